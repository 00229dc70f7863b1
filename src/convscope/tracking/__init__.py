"""What a training says, sent to MLflow, TensorBoard or Weights & Biases.

- ``tools``: the three tools behind one protocol; no package of theirs is loaded before it is used.
- ``following``: a listener that follows runs, and what becomes of a tool that does not answer.
- ``callback``: the same for ``convscope.fit`` and Keras's own, as a callback.

``Tracking`` is loaded on first use, because it needs Keras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convscope.tracking.following import follow, followed_by
from convscope.tracking.tools import TOOLS, read_targets

if TYPE_CHECKING:
    from convscope.tracking.callback import Tracking

__all__ = ["TOOLS", "Tracking", "follow", "followed_by", "read_targets"]


def __getattr__(name: str) -> Any:
    """Load the callback on first use."""
    if name != "Tracking":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convscope.tracking.callback import Tracking

    return Tracking
