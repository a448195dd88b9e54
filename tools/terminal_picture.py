"""Draw what a command shows on a terminal as an SVG picture, such as docs/verdict.svg in the README.

    python tools/terminal_picture.py OUT.svg [--first LINES] [--columns N] [--title TEXT] -- COMMAND ...

The command runs in a terminal of its own (Unix only); the picture shows its first lines, in colour, under the title,
which is the command unless another one is given (for what is drawn again from the files of an earlier run).
"""

import argparse
import io
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_CONTROL = re.compile(r"\x1b\[(?:\?\d+[hl]|\d*[A-HJKST])|\x1b\][^\x07]*\x07")
"""What moves the cursor or clears lines: not part of what stands there in the end."""


def shown_by(command: list[str], columns: int) -> str:
    """What a command writes to a terminal of so many columns, colours included. Its errors go to this one's stderr."""
    here, there = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdout=there, stderr=sys.stderr, stdin=subprocess.DEVNULL, env=environment) as run:
        os.close(there)
        parts: list[bytes] = []
        try:
            while part := os.read(here, 65536):
                parts.append(part)
        except OSError:  # Linux reports the end of a terminal so
            pass
    if run.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {run.returncode}")
    return _CONTROL.sub("", b"".join(parts).decode()).replace("\r\n", "\n")


def main() -> None:
    """Run the command and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--title")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    lines = shown_by(given.command, given.columns).strip("\n").split("\n")[: given.first]
    title = given.title or shlex.join(given.command)
    console = Console(record=True, width=given.columns, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {title}", style="dim"), Text.from_ansi("\n" + "\n".join(lines)), sep="\n")
    svg = console.export_svg(title=title.split(" -")[0], theme=MONOKAI, unique_id="casemate")
    # fonts of other hosts are left out: the picture must be the same without a network
    given.out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
