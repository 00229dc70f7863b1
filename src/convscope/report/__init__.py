r"""A run → one self-contained HTML file: nothing is fetched, nothing is built, everything is in it.

In the order in which they build on each other:

    formatting                  numbers, names, charts and images for a page
    summary, training, scores   \
    mistakes, explorer, inside  / a section each, or a few: what the templates show
    rendering                   sections, the templates in ``page/``, styles and scripts; the map of images

A section that cannot be made says why, and the others stay.
"""
