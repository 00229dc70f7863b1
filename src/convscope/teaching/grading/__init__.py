"""Grading by properties: an answer is right for what it is, not for being equal to a stored output.

verdict      reading a student's variables; what a check says of them
data_preparation, layers, networks, evaluation_by_hand, pictures
             the judges, by what they judge
tasks        the table of all tasks; ``check``: find the answer, judge it, give the next hint; sealed checks
execution    running a notebook in a process of its own, with a time limit
marking      handed-in notebooks → marks
"""

from convscope.teaching.grading.tasks import TASKS, Task, check, seal, sign, tasks_of
from convscope.teaching.grading.verdict import MIME_TYPE, CheckFailed, Verdict

__all__ = [
    "MIME_TYPE",
    "TASKS",
    "CheckFailed",
    "Task",
    "Verdict",
    "check",
    "seal",
    "sign",
    "tasks_of",
]
