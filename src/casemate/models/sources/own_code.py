"""A network from the user's own code: `package.module:factory` or `file.py:factory`, perhaps with a weights file.

To name the code is to trust it: it is imported and run. The weights file is not trusted: it is read without running
anything.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from torch import nn

from casemate.errors import CasemateError, ModelError, kind_of
from casemate.models.classifier import Classifier
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.opened import OpenedModel, opened_classifier, opened_network
from casemate.models.sources.weights import load_weights

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_FUNCTION = re.compile(r"(?:[^\W\d][\w.]*|.+\.py):[^\W\d]\w*")


def is_own_code(text: str) -> bool:
    """Whether a model's name is that of a function in a module or in a file of Python, and not of an existing file."""
    return _FUNCTION.fullmatch(text) is not None and not Path(text).exists()


def open_own_code(text: str, weights: Path | None, stated: ModelFacts | None) -> OpenedModel:
    """The model that a function of the user's returns, or that a module defines.

    Args:
        text: package.module:name or file.py:name. The name is that of a function without arguments, of a class whose
            objects need none, or of a network. Modules are searched in the current folder and among the installed
            ones.
        weights: a file to load into the network, or None.
        stated: what the user says of the model.

    Raises:
        ModelError: the import or the call fails, or the result is not a module; or the weights do not fit.
    """
    made = named_object(text)
    name = text.rpartition(":")[2]
    if not isinstance(made, nn.Module):
        if callable(made) and not takes_arguments(made, 0):
            file = text.rpartition(":")[0]
            more = "; if it is a function of images that returns scores or classes, give --black-box"
            raise ModelError(
                f"{text} cannot be called without arguments; expected a function or a class that builds a network. Put "
                f"the call into a function, def build(): return {name}({_required(made)}), and give {file}:build"
                f"{more if takes_arguments(made, 1) else ''}"
            )
        made = _called(made, text)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{text} returned {kind_of(made)}; expected a torch.nn.Module that maps images within [0, 1] to "
            "logits, or a casemate.Classifier around it: Classifier(network, mean=..., std=...)"
        )
    found = ModelFacts() if weights is None else load_weights(made, weights)
    if weights is not None:
        made.eval()  # nobody had a chance to say so after the weights were loaded
    if isinstance(made, Classifier):
        return opened_classifier(made, stated, name=text, short=name, origin=f"the Classifier that {name} returned")
    return opened_network(made, found, stated, name=text, short=name, keeps_mode=True)


def _required(made: Callable[..., object]) -> str:
    """The arguments without a default of a function or class as in a call, with values to be filled in."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # of C code
        return "..."
    return ", ".join(f"{each.name}=..." for each in parameters if each.default is each.empty and each.kind not in _REST)


def code_file(text: str) -> Path | None:
    """The file of Python that defines the module in package.module:name or file.py:name, which has been imported."""
    module = text.rpartition(":")[0]
    file = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def takes_arguments(function: Any, count: int) -> bool:
    """Whether a function can be called with that many arguments, by position; true where that is not known."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of code that is not written in Python
        return True
    return True


def named_object(text: str) -> Any:
    """What a module, package.module:name, or a file, file.py:name, defines under a name. Raises `ModelError`."""
    module, _, name = text.rpartition(":")
    try:
        return getattr(_imported(module), name)
    except CasemateError:
        raise
    except Exception as error:
        raise _failed(text, error) from error


def _called(made: Any, text: str) -> Any:
    try:
        return made()
    except CasemateError:
        raise
    except Exception as error:
        raise _failed(text, error) from error


_own_folders: set[str] = set()
"""Folders from which files of Python, given as file.py:name, were imported."""


@contextmanager
def _sent_by_value(folder: str) -> Iterator[None]:
    """Context in which modules are imported from a user's folder: cloudpickle sends them whole to other processes.

    There the same names may mean other files.
    """
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(folder) and "site-packages" not in file:
            cloudpickle.register_pickle_by_value(sys.modules[name])


def _refuse_namesakes(path: Path) -> None:
    """Raise `ModelError` if a module beside `path` has the name of another folder's module that is loaded already.

    Python would take that one for it, and the network would be built from another model's code.
    """
    for own in sorted(path.parent.glob("*.py")):
        known = getattr(sys.modules.get(own.stem), "__file__", None)
        folder = None if known is None else str(Path(known).parent)
        if own != path and folder != str(path.parent) and folder in _own_folders:
            raise ModelError(
                f"{path} cannot be loaded beside {known}: {own} has the same name, and Python keeps one module of each "
                "name; evaluate the models one at a time, and compare the folders with the results"
            )


def search_here() -> None:
    """Put the current folder among those that are searched for modules."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _imported(module: str) -> ModuleType:
    """The module of that name, or in that file of Python, with the folder it is in among those that are searched."""
    if not module.endswith(".py"):
        search_here()
        return importlib.import_module(module)
    path = Path(module).absolute()
    if not path.is_file():
        raise ModelError(f"{module} does not exist; expected a file of Python that builds the network")
    folder = str(path.parent)
    _refuse_namesakes(path)
    _own_folders.add(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None and path.stem.isidentifier() else f"_casemate_own_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{module} cannot be imported; expected a file of Python")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # before it runs, as dataclasses and pickle need it
    try:
        with _sent_by_value(folder):
            spec.loader.exec_module(made)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    cloudpickle.register_pickle_by_value(made)
    return made


def _failed(text: str, error: Exception) -> ModelError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if last.filename == __file__ else f" ({last.filename}, line {last.lineno})"
    return ModelError(
        f"{text} failed: {type(error).__name__}: {error}{where}. The module is searched in {Path.cwd()} and among the "
        "installed ones; the function is called without arguments"
    )
