"""A run in MLflow: settings as parameters, numbers as metrics, texts as tags, files and pictures as artifacts."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import time
from typing import Any, final

from casemate.errors import CasemateError, TrackingError, missing_extra
from casemate.progress import Tracked
from casemate.tracking.flat import clean_name, flat
from casemate.tracking.tracker import AbstractTracker, End, error_line, warn, without_password

RESUME = "casemate.resume"
"""Name of the tag by which an unfinished run is found again."""
_TAG, _PARAMETER = 5000, 500
"""Characters of a tag and of a parameter, at most, that servers of all supported versions take."""
_BATCH = 100
"""Parameters in one request, at most: MLflow's limit."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Seconds and retries of one request, where the user sets none: by default MLflow waits four minutes for a server that
is down, and the work with it."""
_SERVER = "name a tracking server, such as http://localhost:5000, in MLFLOW_TRACKING_URI"
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)\b")


@final
class MLflow(AbstractTracker):
    """An observer that stores a run in MLflow.

    Args:
        uri: of the tracking server or store; None for MLflow's own choice (`MLFLOW_TRACKING_URI`).
        experiment: name of the experiment, which is created if there is none; None for MLflow's own choice
            (`MLFLOW_EXPERIMENT_NAME`, `MLFLOW_EXPERIMENT_ID`), else the experiment "Default".
        run_name: name of a new run; None for one that MLflow invents.
        run_id: a run to go on with; None for `MLFLOW_RUN_ID`. Without that, and without the other arguments, the run
            that `mlflow.start_run` has made active is used, and not ended.
        resume: a text that identifies the run: an unfinished run with the same text is continued.
        pictures: whether to store pictures, such as adversarial examples.
        on_failure: takes a message if something cannot be stored; by default a `CasemateWarning`.

    Raises:
        MissingExtraError: the extra `mlflow` is not installed.
        TrackingError: the server or store cannot be reached.
    """

    def __init__(
        self,
        *,
        uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        resume: str | None = None,
        pictures: bool = True,
        on_failure: Callable[[str], None] = warn,
    ) -> None:
        mlflow = _import_mlflow()
        with _reached(uri, mlflow):
            self._client = mlflow.MlflowClient(tracking_uri=uri or mlflow.get_tracking_uri())
            active = mlflow.active_run()
            self._is_own = True
            if active is not None and not any((uri, experiment, run_name, run_id, resume)):
                self._is_own, run_id = False, active.info.run_id
            run = self._earlier(run_id or os.environ.get("MLFLOW_RUN_ID"), experiment, resume)
            self._is_resumed = run is not None
            if run is None:
                tags = _context_tags({} if resume is None else {RESUME: resume})
                run = self._client.create_run(self._experiment(experiment), run_name=run_name, tags=tags)
            elif self._is_own:
                self._client.update_run(run.info.run_id, status="RUNNING")
        self.run_id: str = run.info.run_id
        self._parameters: dict[str, str] = dict(run.data.params)
        self._begin(pictures=pictures, on_failure=on_failure)

    @property
    def place(self) -> str:
        """The run's identifier and the address of its store."""
        return f"MLflow run {self.run_id} at {without_password(self._client.tracking_uri)}"

    def _experiment(self, name: str | None) -> str:
        """The identifier of the experiment, which is created if there is none."""
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if name is None:
            return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _earlier(self, run_id: str | None, experiment: str | None, resume: str | None) -> Any:
        """The run that is to be continued: the one named, or the latest unfinished one of `resume`; None for none."""
        if run_id is not None:
            return self._client.get_run(run_id)
        if resume is None:
            return None
        wanted = f"tags.`{RESUME}` = '{resume}' and attributes.status != 'FINISHED'"
        found = self._client.search_runs([self._experiment(experiment)], wanted, max_results=1)
        return found[0] if found else None

    def _write(self, entry: Tracked, new: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time())
        metrics = [
            Metric(clean_name(entry.part, name), float(value), now, entry.step or 0) for name, value in new.items()
        ]
        tags = [RunTag(clean_name(entry.part, name), text[:_TAG]) for name, text in entry.texts.items() if text]
        given = {clean_name(entry.part, name): str(value)[:_PARAMETER] for name, value in flat(entry.settings).items()}
        # a stored parameter cannot be changed: the first value stays
        fresh = {name: value for name, value in given.items() if name not in self._parameters}
        parameters = [Param(name, value) for name, value in fresh.items()]
        with _patience():
            if metrics or tags or parameters:
                first = parameters[:_BATCH]
                self._client.log_batch(self.run_id, metrics, first, tags)
            for start in range(_BATCH, len(parameters), _BATCH):
                self._client.log_batch(self.run_id, params=parameters[start : start + _BATCH])
            self._parameters |= fresh
            for name, picture in entry.pictures.items():
                self._client.log_image(self.run_id, picture, f"{clean_name('pictures', entry.part, name)}.png")
            for file in entry.files:
                store = self._client.log_artifacts if file.is_dir() else self._client.log_artifact
                store(self.run_id, str(file), clean_name(entry.part) or None)

    def _stored(self, part: str, name: str) -> Mapping[int | None, float]:
        if not self._is_resumed:
            return {}
        with _patience():
            history = self._client.get_metric_history(self.run_id, clean_name(part, name))
        found: dict[int | None, float] = {each.step: each.value for each in history}
        return found | ({None: found[0]} if 0 in found else {})

    def _end(self, status: End) -> None:
        if self._is_own:
            with _patience():
                self._client.set_terminated(self.run_id, status)


def check_mlflow(uri: str | None) -> None:
    """Raise, as `MLflow` would, if the server or store cannot be reached; nothing is written."""
    mlflow = _import_mlflow()
    with _reached(uri, mlflow):
        mlflow.MlflowClient(tracking_uri=uri or mlflow.get_tracking_uri()).search_experiments(max_results=1)


def _import_mlflow() -> Any:
    """The module mlflow, whose usage statistics stay off unless the user has turned them on."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise missing_extra("tracking with MLflow", "mlflow") from error
    return mlflow


def _context_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that MLflow gives its own runs, such as the user and the commit of the code, and `tags`."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags(dict(tags))


@contextmanager
def _patience() -> Iterator[None]:
    """A context in which a request to a server that is down takes seconds, unless the user has set how long."""
    changed = [name for name in _PATIENCE if name not in os.environ]
    os.environ.update({name: _PATIENCE[name] for name in changed})
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)


@contextmanager
def _reached(uri: str | None, mlflow: Any) -> Iterator[None]:
    """A context that turns errors of MLflow into a `TrackingError` with advice."""
    try:
        with _patience():
            yield
    except CasemateError:
        raise
    except Exception as error:
        where = uri or mlflow.get_tracking_uri()
        seen = f"MLflow cannot use {without_password(where)}"
        if _DATABASE.match(where) and "unsupported URI" in str(error):
            reason = "this installation of it lacks databases. Install the whole of MLflow (pip install mlflow)"
        elif "MLFLOW_ALLOW_FILE_STORE" in str(error):
            reason = "folders are off by default. Set MLFLOW_ALLOW_FILE_STORE=true"
        else:
            raise TrackingError(f"{seen} ({error_line(error)}); {_SERVER}") from error
        raise TrackingError(f"{seen}: {reason}, or {_SERVER}") from error
