"""The exercise as notebooks: one source for each lesson, two notebooks from it, and grading.

Rooms:

    settings     what the lessons run on
    pictures     pictures of one's own digits
    sources      reading a lesson's source
    notebooks    source → solution and student version
    execution    running a notebook in a process of its own, with a time limit
    marking      a notebook → its points
    quiz         random networks, whose shapes and parameters the student predicts
"""

from convscope.lessons.pictures import make_photographs, read_pictures
from convscope.lessons.quiz import make_quiz
from convscope.lessons.settings import epochs, load_data

__all__ = ["epochs", "load_data", "make_photographs", "make_quiz", "read_pictures"]
