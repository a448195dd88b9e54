"""Check of a Keras model's `config.json`: built-in layers only, by a list of names; Keras itself has not seen it yet.

Keras' own safe mode is not relied upon: it decides what to refuse, and has been bypassed; here is decided what to
accept.
"""

from collections.abc import Iterator
from typing import Any

MODULES = frozenset(
    {
        *("keras", "keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints"),
        *("keras.src.models.functional", "keras.src.models.sequential"),
    }
)
"""Modules of which objects are accepted."""
NAMES = frozenset(
    {
        *("Sequential", "Functional", "DTypePolicy", "InputLayer", "__keras_tensor__"),
        *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense"),
        *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D"),
        *("Flatten", "Reshape", "Permute", "ZeroPadding2D", "Cropping2D", "UpSampling2D", "Rescaling", "Normalization"),
        *("Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "ActivityRegularization"),
        *("BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"),
        *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
        *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
        *("Zeros", "Ones", "Constant", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling"),
        *("GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform", "Orthogonal"),
        *("L1", "L2", "L1L2", "MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"),
    }
)
"""Names of the models, layers, initialisers, regularisers and constraints that are accepted."""
_DEEPEST = 64
"""Largest depth of nested values that is read."""


def foreign_objects(config: Any) -> list[str]:
    """What a configuration would make that is not on the list, each as module and name; empty if nothing."""
    return sorted({each for each in _objects(config, 0) if each})


def _objects(value: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        yield "values nested too deeply"
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each, depth + 1)
    elif isinstance(value, dict):
        if "class_name" in value:
            yield _foreign(value)
        for each in value.values():
            yield from _objects(each, depth + 1)


def _foreign(value: dict[str, Any]) -> str:
    """Module and name of an object that is not on the list, or "" if it is."""
    name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    if name == "__keras_tensor__" and module is None and registered is None:
        return ""
    listed = isinstance(name, str) and name in NAMES and name != "__keras_tensor__"
    known = isinstance(module, str) and module in MODULES and registered in (None, name)
    return "" if listed and known else f"{module}.{name}"


def input_shapes(config: Any) -> list[list[Any]]:
    """The shapes, with the number of images first, of all input layers of the model itself, not of models in it."""
    layers = config.get("config", {}).get("layers", []) if isinstance(config, dict) else []
    found = [each.get("config", {}).get("batch_shape") for each in layers if each.get("class_name") == "InputLayer"]
    return [each for each in found if isinstance(each, list)]


def is_channels_first(config: Any) -> bool:
    """Whether a layer of the model says that it takes channels first."""
    if isinstance(config, dict):
        return config.get("data_format") == "channels_first" or any(map(is_channels_first, config.values()))
    return isinstance(config, list) and any(map(is_channels_first, config))
