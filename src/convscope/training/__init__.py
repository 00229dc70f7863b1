"""Training: the drop-in for ``model.fit``, its loop, its schedules."""

from convscope.errors import UsageError, expected_got

ENGINES = ("auto", "fast", "keras")
PRECISIONS = ("auto", "float32", "bfloat16")


def require_engine_for(precision: str, engine: str) -> None:
    """Refuse bfloat16 where Keras's engine was asked for, which computes in the types of the model."""
    if engine == "keras" and precision == "bfloat16":
        hint = "Keras's computes in the model's own types."
        raise UsageError(expected_got("the fast engine for precision bfloat16", "engine keras", hint))


def require_count(name: str, value: object, least: int) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise UsageError(expected_got(f"{name} of at least {least}, a whole number", repr(value)))
