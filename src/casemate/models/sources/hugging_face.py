"""A Hugging Face folder (extra `hf`): an image classifier with its image processor; no remote code, no network.

`config.json` and `preprocessor_config.json` are read here; the weights must be safetensors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook

from casemate.arrays import UnsoundError, open_safetensors
from casemate.data import Interpolation, Resizing
from casemate.errors import ModelError, SettingError
from casemate.files import read_json
from casemate.models.sources.extras import import_extra
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.opened import OpenedModel, opened_network

_BYTE = 1 / 255
_MOST = 1 << 20
"""Largest number in a configuration; classes, pixels and channels are fewer."""
_LAYERS_PER_TENSOR, _MORE_LAYERS = 10, 1000
"""Most modules that a network may consist of: a number for each tensor of its weights, and some more."""
_ELSEWHERE = {
    "adapter_config.json": "is an adapter of another model",
    "quantization_config": "has quantised weights",
}
"""What a model must not have, by the name of a file beside config.json or of an entry in it."""
_METHODS: dict[Any, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""Interpolations by their number in Pillow, which image processors store."""


def open_hugging_face(folder: Path, stated: ModelFacts | None) -> OpenedModel:
    """The image classifier in a folder as `save_pretrained` writes it.

    Mean, std and size come from its image processor, the names of the classes from its configuration.

    Raises:
        MissingExtraError: without transformers.
        ModelError: the folder needs remote code or has no safetensors, or its weights do not fit.
    """
    config = _read(folder / "config.json")
    if "auto_map" in config:
        raise ModelError(
            f"{folder} needs code of its own (auto_map in config.json), which is not run; it needs a model "
            "whose code is in transformers"
        )
    _check_config(folder / "config.json", config)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} has no .safetensors file; other weights are pickles, which can run code. Save it again: "
            "model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    _check_index(folder)
    tensors = sum(_count_of_tensors(each) for each in weights)
    processor = folder / "preprocessor_config.json"
    try:
        found = _processor_facts(_read(processor)) if processor.is_file() else ModelFacts()
    except SettingError as error:
        raise ModelError(f"{processor}: {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{processor} has a value of another type than expected: {quoted(error)}") from error
    found = found.completed(_config_facts(config).known_from("config.json"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = import_extra("transformers", f"opening {folder}", "hf", torchvision="if installed")
    try:
        with _quiet(transformers), _offline(), _at_most(folder, _LAYERS_PER_TENSOR * tensors + _MORE_LAYERS):
            network, loaded = transformers.AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded by transformers: {quoted(error)}") from error
    absent = [*loaded.get("missing_keys", ()), *(each[0] for each in loaded.get("mismatched_keys", ()))]
    if absent:
        raise ModelError(
            f"{folder} has no weights for {', '.join(map(str, absent[:3]))}, which would be random; expected a folder "
            "with all weights of an image classifier"
        )
    return opened_network(network, found, stated, name=str(folder), short=folder.name, fixed=("classes", "channels"))


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Raise `ModelError` for a configuration that leads to other code or files, or states impossible sizes."""
    for name, what in _ELSEWHERE.items():
        if (path.parent / name).is_file() or name in config:
            raise ModelError(f"{path.parent} {what} ({name}), which is not supported; save the whole model as it is")
    for name, value in _values(config):
        if "attn_implementation" in name and value not in (None, "eager", "sdpa"):
            raise ModelError(
                f"{path} names code from elsewhere, {name}: {str(value)[:100]!r}, which is not run; expected eager or "
                "sdpa"
            )
        if isinstance(value, int | float) and abs(value) > _MOST:
            raise ModelError(f"{path} states {name}: {str(value)[:40]}; expected at most {_MOST:,}")


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values in a configuration that are not objects or lists themselves, each with the name that it is under."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _values(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each, name)
    else:
        yield name, value


def _count_of_tensors(path: Path) -> int:
    """The number of tensors in a file of weights, of which only the header is read. Raises `ModelError`."""
    try:
        return len(open_safetensors(path))
    except UnsoundError as error:
        raise ModelError(f"{path} is not a complete .safetensors file: {error}") from error


def _check_index(folder: Path) -> None:
    """Raise `ModelError` if an index names a file that is not safetensors, or not in the folder itself."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    named = _read(index).get("weight_map")
    if not isinstance(named, dict):
        raise ModelError(f"{index} has no weight_map; expected the files of the weights by their names")
    for each in named.values():
        if not isinstance(each, str) or Path(each).name != each or not each.endswith(".safetensors"):
            raise ModelError(
                f"{index} leads to {str(each)[:100]!r}, which was not read; expected .safetensors files in the folder"
            )


@contextmanager
def _offline() -> Iterator[None]:
    """Context in which nothing is fetched from the hub, whatever the environment said when its client was imported."""
    constants: Any = import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Context without the bars and warnings of transformers; what matters in them is an error here."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _at_most(folder: Path, count: int) -> Iterator[None]:
    """Context in which networks of more than `count` parts raise `ModelError`, before memory and time are used up."""
    seen = 0

    def counted(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > count:
            raise ModelError(
                f"{folder / 'config.json'} describes more layers than the weights have tensors for; one of the files "
                "is damaged, or belongs to another model"
            )

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, ModelError)
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object")
    return found


def _config_facts(config: dict[str, Any]) -> ModelFacts:
    """Classes, channels and size in config.json, as far as it has them in the usual form."""
    labels = config.get("id2label")
    names = tuple(str(each) for each in labels.values()) if isinstance(labels, dict) and len(labels) > 1 else None
    channels, size = config.get("num_channels"), config.get("image_size")
    if type(size) is int:
        size = [size, size]
    whole = isinstance(size, list) and len(size) == 2 and all(type(each) is int for each in size)
    return ModelFacts(
        classes=names,
        channels=channels if type(channels) is int else None,
        size=(size[0], size[1]) if whole and size is not None else None,
    )


def _processor_facts(config: dict[str, Any]) -> ModelFacts:
    """Range, mean, std and size in preprocessor_config.json."""
    origin = "preprocessor_config.json"
    factor = config.get("rescale_factor", _BYTE) if config.get("do_rescale", True) else 1.0
    normalised = config.get("do_normalize", True)
    mean, std = (_numbers(config.get(name)) if normalised else None for name in ("image_mean", "image_std"))
    size = next((each for name in ("crop_size", "size") if (each := _size(config.get(name))) is not None), None)
    if not isinstance(factor, int | float) or not 0 < factor <= 1000:
        raise SettingError(f"rescale_factor {str(factor)[:40]}; expected a positive number, such as {_BYTE}")
    top = 255 * float(factor)
    return ModelFacts(
        bounds=(0.0, 1.0 if abs(top - 1) < 1e-6 else top),
        mean=mean,
        std=std,
        size=size,
        preparation=_preparation(config),
    ).known_from(origin)


def _preparation(config: dict[str, Any]) -> Resizing | None:
    """How the image processor brings images to their size; None if it does not, or in a way that is not known."""
    size = config.get("size") if config.get("do_resize", True) else None
    crop = config.get("crop_size") if config.get("do_center_crop", "crop_size" in config) else None
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    side = edge if isinstance(edge, int) else _size(size)
    method = config.get("resample", 2)
    if (side is None and crop is None) or method not in _METHODS:
        return None
    return Resizing(size=side, crop=_size(crop), interpolation=_METHODS[method])


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, int | float):
        return (float(value),)
    if isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        return tuple(map(float, value))
    return None


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width, from both, from the length of a square's edge, or from a number."""
    match value:
        case {"height": int(height), "width": int(width)} if min(height, width) > 0:
            return height, width
        case {"shortest_edge": int(edge)} if edge > 0:
            return edge, edge
        case int(edge) if edge > 0:
            return edge, edge
        case _:
            return None
