"""`python -m benchmarks.campaign [PART ...] [--quick]`: run the campaign, or some parts of it, and write the page.

Exit code 0: nothing was lost. 1: something was, and the page says what.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.campaign import page
from benchmarks.campaign.parts import Part, Setting
from benchmarks.campaign.rooms import ROOT
from benchmarks.campaign.sizes import FULL, QUICK, Size

from casemate import progress_bars
from casemate.progress import Observer

RESULT = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


def part(name: str) -> Part:
    """The part of a name."""
    return __import__(f"benchmarks.campaign.{name}", fromlist=["run"]).run


def campaign(names: Sequence[str], size: Size, seed: int, folder: Path, observer: Observer, result: Path) -> int:
    """Run parts, each of which is written to `result` when it ends; return how many trials did harm."""
    harm = 0
    with observer.work("Campaign", len(names)) as advance:
        for name in names:
            start = time.monotonic()
            rows = part(name)(Setting(folder / name, size, seed, observer))
            page.keep(result, name, rows, size=size, seed=seed, seconds=time.monotonic() - start)
            harm += sum(row.harm for row in rows)
            for row in rows:
                observer.message(f"{row.title}: {row.tried} tried, {row.harm} bad")
            advance(1, name)
    return harm


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(page.PARTS)}; all if there is none")
    parser.add_argument("--quick", action="store_true", help="a few of each kind, in minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT, help="the file of the counts; the page lies beside it")
    parser.add_argument("--page", action="store_true", help="only write the page of the counts that are there")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(page.PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    harm = 0
    if not given.page:
        with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
            names = given.parts or page.PARTS
            size = QUICK if given.quick else FULL
            harm = campaign(names, size, given.seed, Path(folder), progress_bars(), given.out)
    page.write(given.out, given.out.with_suffix(".md"))
    return 1 if harm else 0


if __name__ == "__main__":
    sys.exit(main())
