"""Which objects a network's ``config.json`` may name: the layers of image classifiers, and nothing else.

Keras's safe mode refuses lambdas. This list goes further, and is checked before Keras sees the
configuration: no layer that runs foreign code (``Lambda``, ``TorchModuleWrapper``, ``TFSMLayer`` …), that
reads other files (``TextVectorization``, ``StringLookup`` …) or that is registered by other packages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from convscope.arithmetic.activations import ACTIVATIONS
from convscope.arithmetic.layers import LAYERS
from convscope.errors import DataError, expected_got, reason

DEEPEST = 100
MOST_VALUES = 1_000_000
MOST_LAYERS = 5_000

# Words in lines, not one in each: a list to be read, not diffed.
# fmt: off
INITIALIZERS = frozenset({
    "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "LecunNormal",
    "LecunUniform", "Ones", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal",
    "VarianceScaling", "Zeros"
})
# What `a + b` and the like become in a functional model.
OPERATIONS = {
    "keras.src.ops.numpy": frozenset({
        "Absolute", "Add", "Amax", "Amin", "Clip", "Concatenate", "Divide", "Exp", "ExpandDims",
        "Log", "Max", "Maximum", "Mean", "Min", "Minimum", "Multiply", "Negative", "Power",
        "Reshape", "Sqrt", "Square", "Squeeze", "Subtract", "Sum", "Tanh", "Transpose",
        "TrueDivide", "Var"
    }),
    "keras.src.ops.nn": frozenset(
        {"Elu", "Gelu", "LeakyRelu", "LogSoftmax", "Relu", "Relu6", "Sigmoid", "Silu", "Softmax"}
    ),
    "keras.src.ops.core": frozenset({"Cast"}),
}
# fmt: on
MODELS = frozenset({"Sequential", "Functional", "Model"})
OBJECTS = {
    "keras": MODELS | {"DTypePolicy"},
    "keras.models": MODELS,
    "keras.src.models.functional": MODELS,
    "keras.src.models.sequential": MODELS,
    "keras.dtype_policies": frozenset({"DTypePolicy"}),
    "keras.layers": frozenset(LAYERS),
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": frozenset({"L1", "L2", "L1L2", "OrthogonalRegularizer"}),
    "keras.constraints": frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}),
    **OPERATIONS,
}
# Functions are written as objects of the class "function", with their name for a configuration.
FUNCTION_MODULES = frozenset({"builtins", "keras.activations", "keras.src.activations.activations"})
# Values that JSON does not know.
VALUES = frozenset({"__keras_tensor__", "__slice__", "__ellipsis__", "__numpy__"})
NUMBERS = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"})
# What layers compute with; those without weights, and inputs, may have whole numbers too.
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16"})


def read_config(content: bytes, source: str) -> dict[str, Any]:
    """Read a ``config.json`` of Keras, and refuse whatever does not belong into an image classifier.

    DataError where it is no JSON, too large or too deep, or names an object that is not on the list. What is
    returned is for ``keras.saving.deserialize_keras_object``; how the model was compiled is left out.
    """
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(expected_got(f"the configuration in {source} to be JSON", reason(error))) from error
    # As text, here and below: a list or an object instead of a name cannot be looked up.
    if not isinstance(config, dict) or str(config.get("class_name")) not in MODELS:
        raise DataError(expected_got(f"{source} to hold a Keras model", "something else"))
    layers = 0
    for value in _objects(config, source):
        _require_allowed(value, source)
        value.pop("compile_config", None)  # losses, metrics and optimizers are chosen anew, never loaded
        layers += value.get("module") == "keras.layers"
        if layers > MOST_LAYERS:
            raise DataError(expected_got(f"at most {MOST_LAYERS:,} layers in {source}", "more"))
    return config


def _objects(config: dict[str, Any], source: str) -> Iterator[dict[str, Any]]:
    """Find every serialised object, at any depth; what how a model was compiled is not looked at."""
    pending: list[tuple[Any, int]] = [(config, 0)]
    seen = 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_VALUES:
            raise DataError(expected_got(f"the configuration in {source} to be that of a network", "a maze"))
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            pending += [(item, depth + 1) for item in value.values() if isinstance(item, dict | list)]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value if isinstance(item, dict | list)]


def _require_allowed(value: dict[str, Any], source: str) -> None:
    """Refuse an object that is not on the list."""
    name, module = value["class_name"], value.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise _refusal(value, source)
    if name == "function":
        own_name = value.get("config")
        if module not in FUNCTION_MODULES or str(own_name) not in ACTIVATIONS:
            raise _refusal(value, source)
    elif name in VALUES and module is None:
        own_name = name
        if name == "__numpy__" and str(_inner(value).get("dtype")) not in NUMBERS:
            raise _refusal(value, source)
    else:
        own_name = name
        if name not in _names_of(module):
            raise _refusal(value, source)
    _require_real_numbers(value, source)
    # Keras looks a registered name up first, among everything that the program has registered.
    if value.get("registered_name") not in (None, name, own_name):
        raise _refusal(value, source)


def _require_real_numbers(value: dict[str, Any], source: str) -> None:
    """Refuse an object whose dtype, or policy, no network for images can compute with."""
    settings = _inner(value)
    dtype = settings.get("name" if value["class_name"] == "DTypePolicy" else "dtype")
    if isinstance(dtype, dict):
        dtype = _inner(dtype).get("name")
    has_weights = any(key.endswith("_initializer") for key in settings)
    if isinstance(dtype, str) and dtype not in (FLOATS if has_weights else FLOATS | NUMBERS):
        expected = f"a dtype that images and weights can have, such as float32, in {source}"
        hint = "Build the network anew with that dtype, load its weights into it, and save it."
        raise DataError(expected_got(expected, reason(ValueError(repr(dtype))), hint))


def _names_of(module: str | None) -> frozenset[str]:
    """Give the names allowed in a module; older files leave the module of initializers and the like out."""
    if module is not None:
        return OBJECTS.get(module, frozenset())
    small = ("keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies")
    return frozenset[str]().union(*(OBJECTS[part] for part in small))


def _inner(value: dict[str, Any]) -> dict[str, Any]:
    inner = value.get("config")
    return inner if isinstance(inner, dict) else {}


def _refusal(value: dict[str, Any], source: str) -> DataError:
    """Make the error for an object that is not on the list."""
    parts = [str(value[key]) for key in ("module", "class_name") if value.get(key)]
    own_name = _inner(value).get("name")
    found = ".".join(parts) + (f" {own_name!r}" if isinstance(own_name, str) else "")
    hint = "Load it with Keras itself if you trust whoever made it."
    expected = f"only layers of image classifiers in {source}"
    return DataError(expected_got(expected, reason(ValueError(found)), hint))
