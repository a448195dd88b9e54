"""What an installation without extras needs, and the one line of the command that needs an extra."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from casemate.models import ModelMetadata, save
from casemate.models.sources import extras
from conftest import tiny_images
from test_record import thirds
from test_sources import parquet
from test_study import Run, runner

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CORE = {
    *("cloudpickle", "filelock", "fsspec", "jaxtyping", "jinja2", "lazy-loader", "matplotlib", "numpy", "pillow"),
    *("platformdirs", "rich", "safetensors", "scipy", "torch", "tyro"),
}
"""What `pip install casemate` installs, with what these need themselves."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


def _name(text: str) -> str:
    """A distribution's name, in the spelling in which all are compared."""
    return re.sub(r"[-_.]+", "-", text).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_name(Requirement(each).name) for each in requirements}


def _with_needs(names: set[str]) -> set[str]:
    """Distributions with all that they need here, directly or indirectly."""
    found, todo = set[str](), list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = [Requirement(each) for each in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # of another system
            continue
        todo += [_name(each.name) for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_an_installation_without_extras_has_the_core_only() -> None:
    assert _names(PROJECT["dependencies"]) == CORE
    users = {name: _names(needs) for name, needs in EXTRAS.items() if name not in ("dev", "release", "notebooks")}
    assert set(users) == {
        *("tables", "fast", "study", "onnx", "timm", "hf", "keras"),
        *("ray", "s3", "mlflow", "tensorboard", "play"),
    }
    for name, needs in users.items():
        assert needs, name
        assert not needs & _with_needs(CORE), name


PROGRAM = """
import importlib, pkgutil, sys

refused = set(sys.argv[1].split(","))

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
import casemate, casemate_study
for package in (casemate, casemate_study):
    for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # the plugin is imported by pytest alone, the page by a server that the extra has
        if not each.name.endswith(("__main__", "testing.plugin", "play.page", "play.server")):
            importlib.import_module(each.name)
from casemate.cli.main import main
sys.exit(main(["info"]))
"""


@pytest.mark.integration
def test_every_module_is_imported_with_the_core_alone() -> None:
    core = _with_needs(CORE) | {"casemate"}
    refused = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {_name(owner) for owner in owners} & core
    }
    assert {"polars", "sklearn", "numba", "beartype", "pytest"} <= refused
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(sorted(refused))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Commands -------------------------------------------------------------------------------------------------------------
MODULES = {
    "onnx": ("onnx", "onnx2torch"),
    "timm": ("timm",),
    "hf": ("transformers",),
    "keras": ("keras",),
    "tables": ("polars",),
    "study": ("sklearn",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboard",),
    "play": ("gradio",),
}
"""By extra the modules that it brings, and that are missing in a test."""
COMMANDS = [
    ("onnx", "evaluate net.onnx --data own.npz"),
    ("onnx", "attack fgsm net.onnx --data own.npz"),
    ("onnx", "harden net.onnx --data own.npz --eps 0.1"),
    ("timm", "evaluate timm:resnet18 --data own.npz"),
    ("timm", "train --start timm:resnet18 --data own.npz"),
    ("hf", "evaluate folder --data own.npz"),
    ("keras", "evaluate net.keras --data own.npz"),
    ("tables", "evaluate saved.safetensors --data images.parquet"),
    ("tables", "attack fgsm saved.safetensors --data images.parquet"),
    ("tables", "train --data images.parquet"),
    ("tables", "data show --data images.parquet"),
    ("tables", "train --dataset digits --history parquet"),
    ("study", "evaluate saved.safetensors --dataset digits"),
    ("study", "train --dataset digits"),
    ("study", "data show --dataset digits"),
    ("study", "study --scale smoke --dataset digits"),
    ("ray", "evaluate saved.safetensors --data own.npz --engine ray"),
    ("ray", "compare saved.safetensors saved.safetensors --data own.npz --engine ray"),
    ("ray", "study --scale smoke --dataset digits --engine ray"),
    ("s3", "evaluate saved.safetensors --data own.npz --store s3://bucket/prefix"),
    ("s3", "compare saved.safetensors saved.safetensors --data own.npz --store s3://bucket/prefix"),
    ("s3", "store list --store s3://bucket/prefix"),
    ("mlflow", "evaluate saved.safetensors --data own.npz --track mlflow"),
    ("mlflow", "train --data own.npz --track mlflow"),
    ("tensorboard", "evaluate saved.safetensors --data own.npz --track tensorboard"),
    ("tensorboard", "train --data own.npz --track tensorboard"),
    ("play", "play"),
    ("play", "play saved.safetensors --data own.npz"),
]


@pytest.mark.parametrize(("extra", "command"), COMMANDS, ids=[f"{extra}: {words}" for extra, words in COMMANDS])
@pytest.mark.usefixtures("unchecked")
def test_a_command_names_the_extra_that_it_lacks(
    extra: str, command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(6)
    parquet(tmp_path).rename(tmp_path / "images.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    np.savez("own.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    save(thirds(), Path("saved.safetensors"), ModelMetadata(architecture="linear", dataset="tiny"))
    Path("net.onnx").write_bytes(b"\x08\x08")
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}")
    Path("folder/model.safetensors").write_bytes(Path("saved.safetensors").read_bytes())
    with zipfile.ZipFile("net.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for name in [name for name in sys.modules if name.partition(".")[0] in MODULES[extra]]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in MODULES[extra]:
        monkeypatch.setitem(sys.modules, name, None)
    if extra in ("onnx", "timm"):  # which need a torchvision that fits; here there is none
        monkeypatch.setattr(extras.metadata, "version", _none)
    before = sorted(each for each in tmp_path.iterdir() if each.name != "cache")
    code, out, err = run(*command.split())
    assert (code, out) == (2, "")
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ")
    assert last.endswith(f"needs the extra {extra!r}: pip install 'casemate[{extra}]'")
    assert sorted(each for each in tmp_path.iterdir() if each.name != "cache") == before


def _none(name: str) -> str:
    raise extras.metadata.PackageNotFoundError(name)
