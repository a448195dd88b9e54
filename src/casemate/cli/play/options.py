"""The options of `casemate play`, and how it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from casemate.cli import play as command
from casemate.cli.play.request import PlayRequest
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag
from casemate.errors import SettingError

_PORTS = range(1, 65536)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Attack images in the browser, and see which models hold."""

    request: Annotated[PlayRequest, arg(name="")] = field(default_factory=PlayRequest)
    port: Annotated[int, arg(metavar="N")] = 7860
    """The port of the page on this machine."""
    no_browser: Flag = False
    """Only print the address of the page; open no browser."""

    def run(self) -> None:
        """Show the page until Ctrl-C. Raises `CasemateError`."""
        if self.port not in _PORTS:
            raise SettingError(f"--port {self.port}; expected 1 to {_PORTS[-1]}")
        from casemate.cli.play import run

        with watching() as observer:
            answers = run.prepare(self.request, observer)
        run.show(answers, self.port, browser=not self.no_browser)


def parse(argv: Sequence[str]) -> Play:
    """The command `casemate play` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(Play, "casemate play", command.__doc__ or "", argv)
