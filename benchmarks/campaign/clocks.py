"""Clocks that are wrong or jump while a command runs: the same results, no estimate below zero, nothing hangs.

The system's clock is not touched: Python runs a sitecustomize.py that changes `time.time`, and the `datetime.now` of
casemate, in the command and in its workers. The times of files stay true, so that the two disagree, as after a clock
was set.
"""

import re
import textwrap
from pathlib import Path

from benchmarks.campaign.commands import EVALUATE, STUDY_2, TRAIN, Command
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.outputs import final_files
from benchmarks.campaign.parts import Setting

CLOCKS = {
    "back by an hour after 5 s": "-3600 if running() > 5 else 0",
    "a day ahead after 5 s": "86400 if running() > 5 else 0",
    "ten years behind": "-315360000",
    "ten years ahead": "315360000",
    "back and forth by an hour each second": "3600 * (-1) ** int(running())",
    "stopped": "start - time_()",
}
"""What is added to the time, in seconds: an expression of the seconds that the program runs."""
_SHIM = '''
    """Makes the clock wrong that casemate and all libraries read."""

    import builtins
    import datetime
    import time
    from types import SimpleNamespace

    time_, monotonic, import_ = time.time, time.monotonic, builtins.__import__
    start, begun = time_(), monotonic()


    def running():
        return monotonic() - begun


    def wrong():
        return time_() + (CLOCK)


    class Wrong(datetime.datetime):
        __slots__ = ()

        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(wrong(), tz)


    wrong_module = SimpleNamespace(**{**vars(datetime), "datetime": Wrong})


    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        # for casemate alone: modules of other libraries in C know the size of a datetime and its class
        if name == "datetime" and str((globals or {}).get("__name__")).startswith("casemate"):
            return wrong_module
        return import_(name, globals, locals, fromlist, level)


    builtins.__import__ = importing
    time.time = wrong
    time.time_ns = lambda: int(wrong() * 1e9)
'''
_NEGATIVE = re.compile(r"-\d[\d.,]* ?(?:s|ms|min|h|d)\b(?! ago)")
"""A time below zero, as the command line would write it."""
_NEGATIVE_JSON = re.compile(r'seconds": -\d')


def run(setting: Setting) -> list[Counts]:
    """Run commands with wrong clocks, the second half of each run after a kill."""
    rows = []
    with setting.observer.work("Clocks", sum(setting.size.clocks)) as advance:
        for command, clocks in zip((EVALUATE, TRAIN, STUDY_2), setting.size.clocks, strict=True):
            counts = Counts(f"wrong clock: {command.name}")
            for name in list(CLOCKS)[:clocks]:
                counts.add(_trial(setting, command, name))
                advance(1, f"{command.name}, {name}")
            rows += [counts] if clocks else []
    return rows


def _trial(setting: Setting, command: Command, name: str) -> Trial:
    """Kill a command half-way, and let it go on with a wrong clock; a run that ended before begins anew."""
    room, trial = setting.room(), Trial(f"{command.name}, clock {name}")
    process = setting.start(command, room)
    if room.ended(process, setting.undisturbed(command).seconds / 2).code is not None:
        room.remove()  # it was faster than half the time of the run that nothing disturbed
        room = setting.room()
    ended = room.run(*command.argv, shim=_shim(room.root, CLOCKS[name]), seconds=setting.patience(command))
    trial.hung, trial.traceback = ended.code is None, ended.has_traceback
    trial.lost += setting.harm(command, room, ended)
    trial.lost += [f"a time below zero: {each}" for each in _NEGATIVE.findall(ended.said)]
    trial.lost += [
        f"a time below zero in {path.name}"
        for path in final_files(room.work)
        if path.suffix == ".json" and _NEGATIVE_JSON.search(path.read_text())
    ]
    trial.strays += room.strays(*command.writes)
    room.remove()
    return trial


def _shim(folder: Path, clock: str) -> Path:
    """A folder with a sitecustomize.py that makes the clock wrong."""
    place = folder / "shim"
    place.mkdir()
    (place / "sitecustomize.py").write_text(textwrap.dedent(_SHIM).replace("CLOCK", clock))
    return place
