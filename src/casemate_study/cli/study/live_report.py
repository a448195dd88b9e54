"""Rewrites the study's report while the study is still running."""

import threading
import time
from pathlib import Path
from typing import final

from casemate.engine import Artifact
from casemate.errors import CasemateError
from casemate.progress import Observer
from casemate_study.report.build import build_report
from casemate_study.run import PlannedStudy

_SHARE = 0.04
"""Largest share of the time that is spent on writing reports."""


@final
class LiveReport:
    """A context in which a report of the finished artifacts is written again and again, in a thread of its own.

    `add` takes each new artifact. The report in the folder `out` is written at the first one, and again when writing
    has taken less than 4 % of the time since. A report that cannot be written is only mentioned: the last one counts.
    """

    def __init__(self, study: PlannedStudy, out: Path, observer: Observer) -> None:
        self._study, self._out, self._observer = study, out, observer
        self._artifacts = dict(study.plan.artifacts)
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "LiveReport":
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def add(self, name: str, artifact: Artifact) -> None:
        """Take a finished artifact; write the report if it is time to."""
        self._artifacts[name] = artifact
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._write, args=(dict(self._artifacts),), daemon=True)
        self._thread.start()

    def _write(self, artifacts: dict[str, Artifact]) -> None:
        start = time.monotonic()
        try:
            build_report(self._study, artifacts, self._out)
        except CasemateError as error:
            self._observer.message(f"The report was not updated: {error}")
        now = time.monotonic()
        self._next = now + (now - start) * (1 / _SHARE - 1)
