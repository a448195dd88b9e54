"""A run for TensorBoard: event files in a folder, with a folder inside for each part of the run."""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, final

from casemate.errors import CasemateError, TrackingError, missing_extra
from casemate.files import as_path, make_folder, read_json, write_json
from casemate.progress import Tracked
from casemate.tracking.flat import Plain, clean_name, flat
from casemate.tracking.tracker import AbstractTracker, End, error_line, warn

RUN = "casemate.json"
"""Name of the file in a run's folder that says which run it is, and how it ended."""


@final
class TensorBoard(AbstractTracker):
    """An observer that writes a run for TensorBoard.

    Curves of the parts of a run, such as the models of a hardening, are drawn into the same charts.

    Args:
        folder: for the run, or with `run_name` for several runs. If it holds another run already, a number is added
            to its name; an unfinished run is continued.
        run_name: name of the folder of the run in `folder`.
        resume: a text that identifies the run: only an unfinished run with the same text is continued.
        pictures: whether to store pictures, such as adversarial examples.
        on_failure: takes a message if something cannot be stored; by default a `CasemateWarning`.

    Raises:
        MissingExtraError: the extra `tensorboard` is not installed.
        TrackingError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        run_name: str | None = None,
        resume: str | None = None,
        pictures: bool = True,
        on_failure: Callable[[str], None] = warn,
    ) -> None:
        self._writer_type = _import_writer()
        folder = as_path(folder, "folder")
        wanted = folder if run_name is None else folder / clean_name(run_name)
        try:
            self.folder, self._is_resumed = _free_folder(wanted, resume)
            self._about: dict[str, Any] = {"resume": resume}
            write_json(make_folder(self.folder) / RUN, self._about | {"status": "RUNNING"})
        except (CasemateError, OSError) as error:
            raise TrackingError(f"TensorBoard: {error_line(error)}; name another folder") from error
        self._writers: dict[str, Any] = {}
        self._old: dict[str, dict[str, dict[int | None, float]]] = {}
        self._settings: dict[str, dict[str, Plain]] = {}
        self._results: dict[str, dict[str, float]] = {}
        self._begin(pictures=pictures, on_failure=on_failure)

    @property
    def place(self) -> str:
        """The folder of the run."""
        return f"TensorBoard run {self.folder}"

    def _write(self, entry: Tracked, new: Mapping[str, float]) -> None:
        self._stored(entry.part, "")  # what is there is read before the first new file
        writer = self._writer(entry.part)
        for name, value in new.items():
            writer.add_scalar(clean_name(name), value, entry.step or 0)
        if entry.step is None:
            self._results.setdefault(entry.part, {}).update(entry.numbers)
        settings = self._settings.setdefault(entry.part, {})
        fresh = {name: value for name, value in flat(entry.settings).items() if name not in settings}
        settings |= fresh
        if fresh:
            rows = "".join(f"| {_cell(name)} | {_cell(str(value))} |\n" for name, value in settings.items())
            writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
        for name, text in entry.texts.items():
            writer.add_text(clean_name(name), text)
        for name, picture in entry.pictures.items():
            writer.add_image(clean_name(name), picture, dataformats="HWC")
        writer.flush()

    def _writer(self, part: str) -> Any:
        if part not in self._writers:
            self._writers[part] = self._writer_type(str(self._folder_of(part)))
        return self._writers[part]

    def _folder_of(self, part: str) -> Path:
        return self.folder / clean_name(part) if part else self.folder

    def _stored(self, part: str, name: str) -> Mapping[int | None, float]:
        if not self._is_resumed:
            return {}
        if part not in self._old:
            self._old[part] = _scalars(self._folder_of(part))
        return self._old[part].get(clean_name(name), {})

    def _end(self, status: End) -> None:
        from torch.utils.tensorboard.summary import hparams

        for part, writer in self._writers.items():
            if self._settings.get(part) and self._results.get(part):
                named = {clean_name(name): value for name, value in self._results[part].items()}
                for each in hparams(self._settings[part], named):
                    writer.file_writer.add_summary(each)
            writer.close()
        write_json(self.folder / RUN, self._about | {"status": status})


def check_tensorboard() -> None:
    """Raise `MissingExtraError` if the extra is not installed."""
    _import_writer()


def _import_writer() -> Any:
    """PyTorch's class that writes event files."""
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("tracking with TensorBoard", "tensorboard") from error
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def _free_folder(wanted: Path, resume: str | None) -> tuple[Path, bool]:
    """The folder for a run, `wanted` or that name with a number, and whether it holds the same run, unfinished."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not (folder / RUN).exists():
            if not any(folder.glob("events.out.tfevents.*")):
                return folder, False
            continue
        try:
            about = read_json(folder / RUN, TrackingError)
        except TrackingError:  # damaged: nobody knows which run it is
            continue
        if isinstance(about, dict) and about.get("resume") == resume and about.get("status") != "FINISHED":
            return folder, True
    raise AssertionError("there is always another number")


def _scalars(folder: Path) -> dict[str, dict[int | None, float]]:
    """All scalars in the event files of a folder, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 1, "images": 1}).Reload()
    found: dict[str, dict[int | None, float]] = {}
    for name in events.Tags()["scalars"]:
        values: dict[int | None, float] = {each.step: each.value for each in events.Scalars(name)}
        found[name] = values | ({None: values[0]} if 0 in values else {})
    return found


def _cell(text: str) -> str:
    """A text as a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")
