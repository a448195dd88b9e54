"""`open_model`: a model from whatever names it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from casemate.errors import ModelError
from casemate.files import as_path
from casemate.models.checkpoint import sidecar_of
from casemate.models.pretrained import pretrained_file, pretrained_names
from casemate.models.sources.black_box import open_black_box
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.formats import Format, format_of
from casemate.models.sources.hugging_face import open_hugging_face
from casemate.models.sources.keras_file import open_keras, open_keras_hdf5
from casemate.models.sources.onnx_file import open_onnx
from casemate.models.sources.opened import OpenedModel
from casemate.models.sources.own_code import code_file, is_own_code, open_own_code
from casemate.models.sources.programs import open_exported, open_pickle, open_torchscript
from casemate.models.sources.saved import open_saved
from casemate.models.sources.source_files import hashes_of
from casemate.models.sources.timm_name import PREFIX, open_timm
from casemate.models.sources.weights import load_weights

_MOST_WORDS = 1200
"""Largest number of characters of a message."""


def open_model(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    trust_code: bool = False,
    black_box: bool = False,
    queries: int | None = None,
    overrides: ModelFacts | None = None,
) -> OpenedModel:
    """Open a model, on the CPU, from a file, a folder, or the user's own code.

    A network from code or a pickle stays in the mode that it is in; all others are in evaluation mode.

    Args:
        source: a .safetensors file that casemate wrote; the name of a model that comes with the package
            (`casemate.models.pretrained_names`), unless a file has that name; package.module:name or file.py:name for a
            function without arguments that returns a network, for a network's class, or for a network; a .onnx or
            .keras file; timm:NAME; a Hugging Face folder; a program by torch.export (.pt2), TorchScript, or a pickled
            module.
        weights: the weights to load into a network that code or a name builds, or to replace those of a file: a
            .safetensors file or a state dict.
        trust_code: whether to load files that can run code while they are loaded.
        black_box: whether the name is that of a function of images, which is called with them and has no gradient.
        queries: for a black box: the largest number of images that it may be called with, or None.
        overrides: what the user says of the model; it must agree with what its source fixes.

    Raises:
        ModelError: there is no such model, it cannot be loaded, it is not trusted, or it contradicts the overrides.
        MissingExtraError: its format needs an extra that is not installed.
    """
    file = None if weights is None else as_path(weights, "weights")
    try:
        return _open(source, file, trust_code, black_box, queries, overrides)
    except ModelError as error:
        if len(text := str(error)) <= _MOST_WORDS:
            raise
        raise ModelError(f"{text[: _MOST_WORDS // 2]} ... {text[-_MOST_WORDS // 2 :]}") from error


def _open(
    source: str | Path,
    weights: Path | None,
    trust_code: bool,
    black_box: bool,
    queries: int | None,
    overrides: ModelFacts | None,
) -> OpenedModel:
    """See `open_model`, whose messages can be of any length here, since files choose the names in them."""
    path = as_path(source, "source")
    text = str(source)
    given = [] if weights is None else [weights]
    if queries is not None and not black_box:
        raise ModelError("--queries limits the queries of a black box; give --black-box, or leave --queries out")
    if black_box and weights is not None:
        raise ModelError(
            "--weights belongs to a network, and --black-box says that MODEL is none; leave one of them out"
        )
    if black_box:
        return _hashed(open_black_box(text, queries, overrides), [code_file(text)])
    if text.startswith(PREFIX) and not path.exists():
        return _hashed(open_timm(text, weights, overrides), given)
    if is_own_code(text):
        return _hashed(open_own_code(text, weights, overrides), [code_file(text), *given])
    there = path.is_file() or (path / "config.json").exists()  # a folder of results hides no pretrained model
    pretrained = None if there else pretrained_file(text)
    path = pretrained or path
    if not path.exists():
        raise ModelError(
            f"{text} does not exist; expected a file (.safetensors by casemate, .onnx, .keras, .pt2, .pt), a Hugging "
            "Face folder, package.module:function such as networks.mine:load, timm:NAME, or a model that comes with "
            f"casemate: {', '.join(pretrained_names())}"
        )
    if path.suffix == ".py":
        raise ModelError(f"{text} is a file of Python; name what builds the network in it: {text}:NAME")
    kind = format_of(path)
    opened = _hashed(_opened(path, kind, overrides, trust_code=trust_code), _files_of(path, kind))
    if pretrained is not None:
        opened = replace(opened, name=text)
    if weights is None:
        return opened
    if kind == "safetensors":
        raise ModelError(f"--weights {weights} beside {text}, which has weights of its own; give one of them")
    loaded = replace(opened, stated=load_weights(opened.model, weights).completed(opened.stated))
    return _hashed(loaded, given)


def _hashed(opened: OpenedModel, paths: Iterable[Path | None]) -> OpenedModel:
    """The model with the SHA-256 of the files that it was opened from among its facts."""
    hashes = {**opened.sha256, **hashes_of(path for path in paths if path is not None)}
    files = ModelFacts(files=hashes or None).known_from("its files, as they were opened")
    return replace(opened, stated=files.completed(opened.stated))


def _files_of(path: Path, kind: Format) -> list[Path]:
    """The files in which a model lies, except for those that only its format names."""
    match kind:
        case "hugging-face":
            names = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
            return [*(path / name for name in names if (path / name).is_file()), *sorted(path.glob("*.safetensors"))]
        case "safetensors":
            return [path, sidecar_of(path)]
        case _:
            return [path]


def _opened(path: Path, kind: Format, overrides: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """The model in an existing file or folder, by its format."""
    match kind:
        case "onnx":
            return open_onnx(path, overrides)
        case "hugging-face":
            return open_hugging_face(path, overrides)
        case "keras":
            return open_keras(path, overrides, trust_code=trust_code)
        case "hdf5":
            return open_keras_hdf5(path, overrides, trust_code=trust_code)
        case "exported":
            return open_exported(path, overrides, trust_code=trust_code)
        case "torchscript":
            return open_torchscript(path, overrides, trust_code=trust_code)
        case "pickle":
            return open_pickle(path, overrides, trust_code=trust_code)
        case _:
            return open_saved(path, overrides)
