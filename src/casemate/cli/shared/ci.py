"""The options --junit and --sarif: files for continuous integration, also where a command falls short or fails."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.cli.shared.console import ThresholdNotMet, print_error
from casemate.cli.shared.options import check_folder
from casemate.errors import CasemateError, SettingError, is_interruption
from casemate.report.ci.checks import CiRun, failed_run
from casemate.report.ci.junit import write_junit
from casemate.report.ci.sarif import write_sarif
from casemate.report.folder import COMPARISON_FILE, FILES


@dataclass(frozen=True, kw_only=True)
class CiFiles:
    """Files for continuous integration, also written where the model falls short and after an error."""

    junit: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write each number and check as a test case in JUnit XML."""
    sarif: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write what is wrong with the model as SARIF 2.1.0, located at the model's file."""

    def check(self, *inputs: Path | None) -> None:
        """Raise `SettingError` or `StoreError` if a file could not be written, or would replace another one of the run.

        These are `inputs`, the files that the command reads, the results that it writes, and the other of the two
        files. Nothing is written.
        """
        given = {"--junit": self.junit, "--sarif": self.sarif}
        files = {name: path for name, path in given.items() if path is not None}
        for name, path in files.items():
            if path.exists() and not path.is_file():
                raise SettingError(f"{name} {path} is a folder or a device; expected the name of a file to write")
            if path.name in (*FILES, COMPARISON_FILE) or any(each is not None and _same(path, each) for each in inputs):
                raise SettingError(
                    f"{name} {path} would replace a file that the command reads or writes; choose another name"
                )
            check_folder(path.parent, f"choose another {name}")
        if len(files) == 2 and _same(*files.values()):
            raise SettingError(f"--junit and --sarif both name {self.sarif}; choose two files")

    def write(self, run: CiRun) -> None:
        """Write the files that have names, each whole or not at all. Raises `StoreError`."""
        if self.junit is not None:
            write_junit(self.junit, run)
        if self.sarif is not None:
            write_sarif(self.sarif, run)

    @contextmanager
    def after_errors(self, command: str, model: str, weights: Path | None = None) -> Iterator[None]:
        """Context that, if an error leaves it, writes the error into the files, and passes it on.

        Neither Ctrl-C nor a gate that was not met is an error; the latter's files have been written already. An error
        on writing the files is printed, and does not take the place of the first one.
        """
        try:
            yield
        except ThresholdNotMet:
            raise
        except Exception as error:
            if not is_interruption(error):
                expected = isinstance(error, CasemateError)
                message = str(error) if expected else f"{type(error).__name__}: {error}"
                file = model_file(model, weights)
                try:
                    self.write(failed_run(command, model, file, message, exit_code=2 if expected else 1))
                except CasemateError as second:
                    print_error(str(second))
            raise


def model_file(model: str, weights: Path | None = None) -> Path | None:
    """The file that says what a model is, for a server to show problems at; None if there is none.

    It is the model's own file (also where that is missing), that of the code that builds it, a Hugging Face folder's
    config.json, or else the file of the weights. No code is imported to find it.
    """
    module, colon, _ = model.rpartition(":")
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    candidates: list[Path] = [path]
    if colon and module.endswith(".py"):
        candidates.append(Path(module))
    elif colon and module != "timm":
        loaded = getattr(sys.modules.get(module), "__file__", None)
        inside = Path(*module.split("."))
        candidates += [Path(loaded)] if loaded else []
        candidates += [inside.with_name(f"{inside.name}.py"), inside / "__init__.py"]
    candidates += [] if weights is None else [weights]
    missing = path if path.suffix and not colon else None
    return next((each for each in candidates if each.is_file()), missing)


def inputs_of(model: str, files: Sequence[Path | None]) -> list[Path | None]:
    """The files that a command reads, for `CiFiles.check`: the model's with the JSON file beside it, and `files`."""
    file = model_file(model)
    return [*files, *(() if file is None else (file, file.with_suffix(".json")))]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
