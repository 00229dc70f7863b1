"""``python -m convscope``, for where the command itself is not on the path."""

from convscope.cli import start

start()
