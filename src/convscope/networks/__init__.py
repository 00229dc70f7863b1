"""Networks by name: a name and the shape of an image → a Keras model."""

from convscope.networks.named import (
    NETWORKS,
    PUBLISHED,
    LayerSpec,
    Published,
    build,
    is_file_name,
    layers_of,
    require_network,
)

__all__ = [
    "NETWORKS",
    "PUBLISHED",
    "LayerSpec",
    "Published",
    "build",
    "is_file_name",
    "layers_of",
    "require_network",
]
