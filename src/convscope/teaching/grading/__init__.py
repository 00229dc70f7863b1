"""Grading by properties: an answer is right for what it is, not for being equal to a stored output.

Rooms:

    verdict         what a check says, and the flaw that ends it
    values          reading a student's variables
    preparation, counting, architectures, trainings, scores, layers_by_hand, pictures
                    the judges, by what they judge
    bands           the accuracies that real seeds give
    tasks           the table of all tasks
    checking        ``check``: find the answer, judge it, give the next hint; sealed checks for grading
"""

from convscope.teaching.grading.checking import check, seal, sign
from convscope.teaching.grading.pictures import photograph
from convscope.teaching.grading.tasks import TASKS, Task, tasks_of
from convscope.teaching.grading.verdict import MIME_TYPE, Flaw, Verdict

__all__ = ["MIME_TYPE", "TASKS", "Flaw", "Task", "Verdict", "check", "photograph", "seal", "sign", "tasks_of"]
