"""A trained network behind HTTP: its page, predictions, corrected labels.

guard.py     who may speak with the server, and how much      app.py     what is served at which address
batching.py  images of many requests → predictions            server.py  socket, limits of time, the end
"""

from convscope.serving.app import create_app
from convscope.serving.guard import Gate, Limits
from convscope.serving.server import open_socket, serve

__all__ = ["Gate", "Limits", "create_app", "open_socket", "serve"]
