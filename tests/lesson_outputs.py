"""What an executed lesson shows: its verdicts, and what should not be there."""

import json
import re

from convscope.teaching.grading import MIME_TYPE, tasks_of

# What a figure or a library object prints where the cell forgot to end in something worth showing.
STRAY = re.compile(r"^\[?<?(matplotlib|Text\(|function|generator|\w+\.\w+ object)")


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def complaints(notebook):
    """List outputs that should not be there: errors, warnings, what was printed by accident."""
    found = []
    for output in outputs(notebook):
        shown = output.get("text") or output.get("data", {}).get("text/plain", "")
        stderr = output.get("name") == "stderr"
        failed = output.output_type == "error"
        stray = output.output_type == "execute_result" and STRAY.match(shown)
        if stderr or failed or stray or "Warning" in json.dumps(output):
            found.append(shown or output.get("evalue"))
    return found


def verdicts(notebook):
    """Read what the checks said, in order; a cell that waits for a task asks its check without showing it."""
    found = [output.data[MIME_TYPE] for output in outputs(notebook) if MIME_TYPE in output.get("data", {})]
    return {verdict["task"]: (verdict["state"], verdict["points"]) for verdict in found}


def full_marks(name):
    return {task: ("right", entry.points) for task, entry in tasks_of(int(name[0])).items()}
