"""What the lessons' notebooks import; it lives in ``teaching``."""

from convscope.teaching.lessons import epochs, load_data, make_photographs, read_pictures
from convscope.teaching.quiz import make_quiz

__all__ = ["epochs", "load_data", "make_photographs", "make_quiz", "read_pictures"]
