"""A run → one HTML file in which its network computes: drawn at, walked through, changed, trained.

layers     the network's layers, as the page computes them
page       all that the page carries: these, weights, images, what Python computed; with the template and the
           modules in ``page/`` bundled into one file
"""

from convscope.explorer.page import Written, render_page, write_page

__all__ = ["Written", "render_page", "write_page"]
