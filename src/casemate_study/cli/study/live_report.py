"""Rewrites the study's report while the study is still running."""

import threading
import time
from pathlib import Path
from typing import final

from casemate.engine import Artifact
from casemate.progress import Observer
from casemate_study.report.build import build_report
from casemate_study.run import PlannedStudy

_SHARE = 0.04
"""Largest share of the time that is spent on writing reports."""


@final
class LiveReport:
    """A context in which a report of the finished artifacts is written again and again.

    `add` takes each new artifact. The report in the folder `out` is written at the first one, and again when writing
    has taken less than 4 % of the time since: with `in_thread` in a thread of its own, else before `add` returns, since
    a report, which builds networks to draw them, must not use PyTorch's random numbers while this process trains. A
    report that cannot be written is only mentioned.
    """

    def __init__(self, study: PlannedStudy, out: Path, observer: Observer, *, in_thread: bool) -> None:
        self.artifacts = dict(study.plan.artifacts)
        """All finished artifacts, by the names of their tasks."""
        self._study, self._out, self._observer, self._in_thread = study, out, observer, in_thread
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "LiveReport":
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def add(self, name: str, artifact: Artifact) -> None:
        """Take a finished artifact; write the report if it is time to."""
        self.artifacts[name] = artifact
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        artifacts = dict(self.artifacts)
        if self._in_thread:
            self._thread = threading.Thread(target=self._write, args=(artifacts,), daemon=True)
            self._thread.start()
        else:
            self._write(artifacts)

    def _write(self, artifacts: dict[str, Artifact]) -> None:
        start = time.monotonic()
        try:
            path = build_report(self._study, artifacts, self._out)
            if not self._next:
                self._observer.message(f"First results: {path}, written again as more are finished")
        except Exception as error:  # the report at the end raises it
            self._observer.message(f"The report was not updated ({type(error).__name__}: {error})")
        finally:
            now = time.monotonic()
            self._next = now + (now - start) * (1 / _SHARE - 1)
