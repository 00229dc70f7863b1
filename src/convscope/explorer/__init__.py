"""A run → one HTML file in which its network computes: drawn at, walked through, changed, trained.

layers     the network's layers, as the page computes them
payload    everything that the page carries: the network's layers, its weights, images, what Python computed
page       the template and the modules in ``page/``, bundled into one file
"""

from convscope.explorer.page import Written, render_page, write_page

__all__ = ["Written", "render_page", "write_page"]
