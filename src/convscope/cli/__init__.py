"""The command line: parse, call, print, exit code.

    exercise.py   the exercise                  inspecting.py  shapes and arithmetic of a network
    datasets.py   data list | fetch | info      output.py      tables, sentences, JSON
    predicting.py predict                       exporting.py   export

Exit codes: 0 done; 2 a wrong command or argument; 3 data or run missing, unreadable or wrong; 4 training
diverged; 130 interrupted.
"""

from convscope.cli.main import app, main

__all__ = ["app", "main"]
