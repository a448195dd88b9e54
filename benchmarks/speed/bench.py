"""How fast are sweeps, AutoAttack and passes beside other libraries and the limit of the machine? See README.md.

Every run is a process of its own; the competitors take turns. Each finished part goes into `result.json` at once;
`page.py` makes `docs/performance.md` of it.

Exit code 0: everything ran. 2: something could not be compared (said why); the rest was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from floor import gemm_rate, macs, share_of_floor
from measures import passes, scaling
from networks import NETWORKS, as_written, prepare

from casemate.data import LabelledImages
from casemate.data import load as load_data
from casemate.errors import CasemateError
from casemate.files import write_json
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
EPS = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
STEPS = 10
PEERS = ("torchattacks", "foolbox", "art")
SIZES = (32, 125, 250)
LAYOUTS = ("contiguous", "channels-last")
USUAL = ", usual layout"
"""Behind a peer's name: in the first of them, whatever is fastest."""
ORIGINAL_BATCH = 250
"""Of the original AutoAttack: its own default."""
PARTS = ("passes", "fgsm", "bim", "autoattack-small", "autoattack-adversarial", "scaling")


class NotComparedError(Exception):
    """A comparison that could not take place."""


def once(name: str, task: str, folder: Path, batch: int, layout: str, peers: Path) -> dict[str, Any]:
    """One timed run in a process of its own."""
    python = peers if name in PEERS else Path(sys.executable)
    if not python.is_file():
        raise NotComparedError(f"{python} is missing, so {name} was not run; make .venv-peers/.ready sets it up")
    if name == "original" and not os.environ.get("AUTOATTACK_SRC"):
        raise NotComparedError("AUTOATTACK_SRC is not set: clone github.com/fra31/auto-attack and name its folder")
    command = [str(python), str(HERE / "competitor.py"), name, task, str(folder), str(batch), layout]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotComparedError(f"{name} did not run:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}


class Track:
    """One network, its images, and the competitors' best settings on it."""

    def __init__(self, args: argparse.Namespace, network: str, images: LabelledImages, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.model = prepare(network, args.data, args.models)
        pixels, labels = images.tensors()
        safetensors.torch.save_file({"images": pixels.contiguous(), "labels": labels}, folder / "images.safetensors")
        self._chosen: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def plan(self, n: int, eps: list[float]) -> None:
        """What a competitor is told."""
        plan = {"eps": eps, "steps": STEPS, "threads": self.args.threads, "n": n, "model": str(self.model.resolve())}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def run(self, name: str, task: str) -> dict[str, Any]:
        """One run at the competitor's best settings; see `USUAL`."""
        ours = [(0, LAYOUTS[0])]
        settings = self._chosen.get((name.removesuffix(USUAL), task.split("-")[0]), ours)
        batch, layout = next(each for each in settings if not name.endswith(USUAL) or each[1] == LAYOUTS[0])
        found = once(name.removesuffix(USUAL), task, self.folder, batch, layout, self.args.python)
        return found | {"batch": batch, "layout": layout}

    def choose(self, name: str, task: str, n: int, eps: list[float]) -> None:
        """Batch sizes and memory layouts, the fastest for a peer on a part of the images first. Ours looks itself."""
        self.plan(n, eps)
        tried = {
            (batch, layout): once(name, task, self.folder, batch, layout, self.args.python)["cpu_seconds"]
            for batch in SIZES
            for layout in LAYOUTS
        }
        self._chosen[name, task.split("-")[0]] = sorted(tried, key=lambda each: tried[each])


def row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and of the first run what does not differ from run to run (`within` is of the only one)."""
    first = runs[0]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "all_seconds": [run["seconds"] for run in runs],
        "all_cpu_seconds": [run["cpu_seconds"] for run in runs],
        "memory": max(run["memory"] for run in runs),
        "load": max(run["load"] for run in runs),
        **{
            name: first[name]
            for name in ("accuracy", "passes", "within", "steps", "said", "version", "batch", "layout")
            if name in first
        },
    }


def race(track: Track, tasks: dict[str, tuple[str, ...]], repeats: int, n: int, eps: list[float]) -> dict[str, Any]:
    """Everyone on every task of theirs, `repeats` times, in an order that turns round each time."""
    track.plan(n, eps)
    entries = [(task, name) for task, names in tasks.items() for name in names]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {entry: [] for entry in entries}
    for turn in range(repeats):
        for entry in entries if turn % 2 == 0 else entries[::-1]:
            runs[entry].append(track.run(entry[1], entry[0]))
    return {task: {name: row_of(runs[task, name]) for name in names} for task, names in tasks.items()}


def sweeps(args: argparse.Namespace, kind: str, images: LabelledImages, rate: float) -> dict[str, Any]:
    """A sweep over eps: ours by `worst` and by `last`, the others by the last iterate, as they do.

    The peers run in the layout that is fastest for them, and once more in the usual one, which models have that nobody
    has prepared for speed.
    """
    with tempfile.TemporaryDirectory() as name:
        track = Track(args, "undefended", images, Path(name))
        for peer in PEERS:
            track.choose(peer, kind, max(len(images) // 4, 1), EPS[3:4])
        ours = {f"{kind}-{which}": ("casemate",) for which in ("worst", "worst-bfloat16", "last")}
        usual = tuple(peer + USUAL for peer in PEERS)
        rows = race(track, {kind: (*PEERS, *usual), **ours}, args.repeats, len(images), EPS)
    forward = macs(as_written(track.model))
    fastest, as_usual = (min(names, key=lambda peer: rows[kind][peer]["cpu_seconds"]) for names in (PEERS, usual))
    found: dict[str, Any] = {"n": len(images), "eps": EPS, "steps": STEPS, "rows": rows[kind]}
    found |= {"fastest": fastest, "fastest_as_usual": as_usual}
    for task in ours:
        row = rows[task]["casemate"]
        row["times_as_fast"] = rows[kind][fastest]["cpu_seconds"] / row["cpu_seconds"]
        row["times_as_usual"] = rows[kind][as_usual]["cpu_seconds"] / row["cpu_seconds"]
        row["share_of_floor"] = share_of_floor(row, forward, rate)
        found["rows"][task] = row
        print(
            f"{task}: {row['cpu_seconds']:.2f} s, {row['times_as_fast']:.1f} times as fast as {fastest}, "
            f"{row['times_as_usual']:.1f} times {as_usual}, {100 * row['share_of_floor']:.0f} % of the floor",
            flush=True,
        )
    return found


def autoattack(args: argparse.Namespace, network: str, images: LabelledImages, eps: float) -> dict[str, Any]:
    """AutoAttack standard: ours in float32, ours in bfloat16, and the original in the layout that is faster for it."""
    with tempfile.TemporaryDirectory() as name:
        track = Track(args, network, images, Path(name))
        track.plan(len(images), [eps])
        runs = {
            "casemate": track.run("casemate", "autoattack"),
            "casemate, bfloat16": track.run("casemate", "autoattack-bfloat16"),
        }
        tried = [
            once("original", "autoattack", track.folder, ORIGINAL_BATCH, layout, args.python)
            | {"batch": ORIGINAL_BATCH, "layout": layout}
            for layout in LAYOUTS
        ]
        runs["original"] = min(tried, key=lambda run: run["cpu_seconds"])
    theirs = runs["original"]
    left = {name: torch.tensor(run.pop("left")) for name, run in runs.items()}
    found = {"n": len(images), "eps": eps, "network": NETWORKS[network].about, "rows": {}}
    for name, run in runs.items():
        row = row_of([run])
        row["alike"] = int((left[name] == left["original"]).sum())
        row["times_as_fast"] = theirs["cpu_seconds"] / run["cpu_seconds"]
        found["rows"][name] = row
        print(
            f"AutoAttack, {network}: {name} {100 * run['accuracy'][0]:.1f} % in {run['cpu_seconds']:.0f} s, "
            f"{row['times_as_fast']:.1f} times as fast as the original, {row['alike']} of {len(images)} alike",
            flush=True,
        )
    return found


def main() -> int:
    """Read the command line; run the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="images from the start of the test part")
    parser.add_argument("--repeats", type=int, default=5, help="of runs under a minute; AutoAttack runs once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--models", type=Path, default=HERE.parents[1] / "runs" / "bench")
    parser.add_argument("--python", type=Path, default=HERE.parents[1] / ".venv-peers" / "bin" / "python")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    code = 0
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.data = load_data("fashion-mnist", args.data_dir)
    images = args.data.test[: args.n]
    rate = gemm_rate(args.threads)
    for part in args.parts:
        try:
            if part == "passes":
                found = passes(prepare("undefended", args.data, args.models), images, rate)
            elif part == "scaling":
                found = scaling(prepare("small", args.data, args.models), args.data.test)
            elif part.startswith("autoattack"):
                found = autoattack(args, part.partition("-")[2], images, 0.1)
            else:
                found = sweeps(args, part, images, rate)
        except (CasemateError, NotComparedError) as error:
            print(f"NOT COMPARED: {part}: {error}", file=sys.stderr)
            code = 2
            continue
        document[part] = found | {
            "command": f"python benchmarks/speed/bench.py --n {args.n} --repeats {args.repeats} --parts {part}",
            "gemm_flops_per_second": rate,
            "load": os.getloadavg()[0],
            "surroundings": surroundings("cpu", args.threads),
        }
        write_json(args.out, document)
    return code


if __name__ == "__main__":
    sys.exit(main())
