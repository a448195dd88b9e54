"""Two processes with the same command on one store, the second started at a random moment of the first.

Both must end well, with the results of one that runs alone. A study promises that its processes compute nothing twice:
one of two may say that the other computes an artifact, and then ends well when it runs again. Evaluations promise equal
results only.
"""

import time

from benchmarks.campaign.commands import EVALUATE, STUDY, Command
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.outputs import contents, differences
from benchmarks.campaign.parts import Setting

_WAITING = "another process"
"""In the message of a study that meets another one."""
_LOOK = 0.1
"""Seconds between looks at the store."""


def run(setting: Setting) -> list[Counts]:
    """Start pairs of each command."""
    rows = []
    with setting.observer.work("Pairs", sum(setting.size.pairs)) as advance:
        for command, pairs in zip((EVALUATE, STUDY), setting.size.pairs, strict=True):
            draw = setting.draw(f"pairs of {command.name}")
            counts = Counts(f"two at once: {command.name}")
            for _ in range(pairs):
                counts.add(_trial(setting, command, draw.uniform(0, setting.undisturbed(command).seconds)))
                advance(1, command.name)
            rows += [counts] if pairs else []
    return rows


def _trial(setting: Setting, command: Command, offset: float) -> Trial:
    """A pair, and what each found."""
    room, trial = setting.room(), Trial(f"{command.name}, the second after {offset:.1f} s")
    patience, names = 2 * setting.patience(command), ("out", "out2")
    both = [setting.start(command, room, "--out", names[0], name=names[0])]
    time.sleep(offset)
    both.append(setting.start(command, room, "--out", names[1], name=names[1]))
    twice, seen = set[str](), dict(command.finished(room.work))
    limit = time.monotonic() + patience
    while any(each.poll() is None for each in both) and time.monotonic() < limit:
        now = command.finished(room.work)
        twice |= {name for name, mark in now.items() if seen.setdefault(name, mark) != mark}
        time.sleep(_LOOK)
    ends = [room.ended(each, 10, name) for each, name in zip(both, names, strict=True)]
    trial.hung = any(each.code is None for each in ends)
    trial.traceback = any(each.has_traceback for each in ends)
    trial.ended = "both went on"
    for place, each in enumerate(ends):
        if each.code == 2 and _WAITING in each.said:
            trial.ended = "one said that it must wait"
            ends[place] = setting.run(command, room, "--out", names[place], seconds=patience)
    for each in ends:
        trial.lost += setting.harm(command, room, each)
    second = contents(room.work, *(each.replace("out/", "out2/") for each in command.results))
    renamed = {name.replace("out2/", "out/"): value for name, value in second.items()}
    trial.lost += [f"of the second, {each}" for each in differences(renamed, setting.undisturbed(command).outputs)]
    if command is STUDY:
        trial.lost += [f"{name} was computed twice" for name in sorted(twice)]
    trial.strays += room.strays(*command.writes, "out2")
    room.remove()
    return trial
