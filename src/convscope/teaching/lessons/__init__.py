"""The exercise as notebooks: one source for each lesson in ``sources/``, and two notebooks from it.

data         what the lessons run on, and pictures of your own digits
notebooks    source → solution and student version
"""

from convscope.teaching.lessons.data import epochs, load_data, make_photographs, read_pictures

__all__ = ["epochs", "load_data", "make_photographs", "read_pictures"]
