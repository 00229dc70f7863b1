"""The command line: parse, call, print, exit code.

    exercise.py   the exercise                  lessons.py     its notebooks, their grading, the quiz
    datasets.py   data list | fetch | info …    training.py    train, resume
    judging.py    evaluate, compare, report     inspecting.py  shapes, arithmetic, a look inside a run
    predicting.py predict                       exporting.py   export
    output.py     tables, sentences, JSON

Exit codes: 0 done; 2 a wrong command or argument; 3 data or run missing, unreadable or wrong; 4 training
diverged; 130 interrupted.
"""

from convscope.cli.main import app, main

__all__ = ["app", "main"]
