"""The exercise as notebooks: one source for each lesson, and two notebooks from it.

Rooms:

    settings     what the lessons run on
    pictures     pictures of one's own digits
    sources      reading a lesson's source
    notebooks    source → solution and student version
"""

from convscope.teaching.lessons.pictures import make_photographs, read_pictures
from convscope.teaching.lessons.settings import epochs, load_data

__all__ = ["epochs", "load_data", "make_photographs", "read_pictures"]
