"""How fast are sweeps and AutoAttack beside other libraries and the limit of the machine? See README.md.

Every run is a process of its own; the competitors take turns. Writes `result.json`; `page.py` makes a page of it.

Exit code 0: everything ran. 2: something could not be compared (said why).
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

from casemate.data import load as load_data
from casemate.engine.provenance import surroundings
from casemate.errors import CasemateError
from casemate.files import write_json
from casemate.models import load as load_model

HERE = Path(__file__).resolve().parent
EPS = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
STEPS = 10
TASKS = ("fgsm-worst", "fgsm-last", "bim-worst", "bim-last")
PEERS = ("torchattacks", "foolbox", "art")
BATCHES = (32, 125, 250)
"""Each competitor runs with the one at which it is fastest, found on a part of the images."""


class NotComparedError(Exception):
    """A comparison that could not take place."""


def once(name: str, task: str, folder: Path, batch: int, peers: Path) -> dict[str, Any]:
    """One timed run in a process of its own."""
    python = Path(sys.executable) if name == "casemate" else peers
    if not python.is_file():
        raise NotComparedError(f"{python} is missing, so {name} was not run; make .venv-peers/.ready sets it up")
    command = [str(python), str(HERE / "competitor.py"), name, task, str(folder), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotComparedError(f"{name} did not run:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}


def write_plan(folder: Path, args: argparse.Namespace, n: int, eps: list[float]) -> None:
    """What a competitor is told."""
    plan = {"eps": eps, "steps": STEPS, "threads": args.threads, "n": n, "model": str(args.model.resolve())}
    (folder / "plan.json").write_text(json.dumps(plan))


def fastest_batch(name: str, task: str, folder: Path, args: argparse.Namespace) -> int:
    """The batch size at which a competitor takes least on half of the images at one eps."""
    write_plan(folder, args, max(args.n // 2, 1), EPS[3:4])
    return min(BATCHES, key=lambda batch: once(name, task, folder, batch, args.python)["seconds"])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All tasks, all competitors."""
    model, description = load_model(args.model)
    images, labels = load_data("fashion-mnist", args.data_dir).test[: args.n].unit()
    rate = gemm_rate(args.threads)
    forward = macs(model)
    document: dict[str, Any] = {
        "command": f"python benchmarks/speed/bench.py --model {args.model.name} --n {args.n} --repeats {args.repeats}",
        "n": args.n,
        "eps": EPS,
        "steps": STEPS,
        "model": {"architecture": description.architecture, "recipe": description.recipe, "macs": forward},
        "gemm_flops_per_second": rate,
        "surroundings": surroundings("cpu", args.threads),
        "tasks": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        safetensors.torch.save_file({"images": images.contiguous(), "labels": labels}, folder / "images.safetensors")
        batches: dict[tuple[str, str], int] = {}
        for task in args.tasks:
            competitors = ("casemate", *args.peers)
            for each in competitors:
                kind = task.split("-")[0]
                key = (each, task if each == "casemate" else kind)
                if key not in batches:
                    batches[key] = fastest_batch(each, task, folder, args)
                    print(f"{each}, {task}: batch {batches[key]}", flush=True)
            write_plan(folder, args, args.n, EPS)
            runs: dict[str, list[dict[str, Any]]] = {each: [] for each in competitors}
            for turn in range(args.repeats):
                order = competitors if turn % 2 == 0 else competitors[::-1]
                for each in order:
                    key = (each, task if each == "casemate" else task.split("-")[0])
                    runs[each].append(once(each, task, folder, batches[key], args.python))
            rows = {
                each: {
                    "seconds": statistics.median(run["seconds"] for run in found),
                    "all_seconds": [run["seconds"] for run in found],
                    "accuracy": found[0]["accuracy"],
                    "passes": found[0].get("passes"),
                    "version": found[0]["version"],
                    "memory": max(run["memory"] for run in found),
                    "load": max(run["load"] for run in found),
                    "batch": batches[each, task if each == "casemate" else task.split("-")[0]],
                }
                for each, found in runs.items()
            }
            best = min((each for each in rows if each != "casemate"), key=lambda each: rows[each]["seconds"])
            ratio = rows[best]["seconds"] / rows["casemate"]["seconds"]
            fraction = share_of_floor(task, rows["casemate"], args.n, len(EPS), STEPS, forward, rate)
            document["tasks"][task] = {
                "rows": rows,
                "fastest_peer": best,
                "times_as_fast": ratio,
                "share_of_floor": fraction,
            }
            write_json(args.out, document)
            line = ", ".join(f"{each} {row['seconds']:.2f} s" for each, row in rows.items())
            print(
                f"{task}: {line}; {ratio:.1f} times as fast as {best}; {100 * fraction:.0f} % of the floor", flush=True
            )
    return document


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint that casemate saved (.safetensors)")
    parser.add_argument("--n", type=int, default=500, help="images from the start of the test part")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--python", type=Path, default=HERE.parents[1] / ".venv-peers" / "bin" / "python")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    try:
        torch.set_num_threads(parser.parse_args().threads)
        compare(parser.parse_args())
    except (CasemateError, NotComparedError) as error:
        print(f"NOT COMPARED: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
