"""Does our AutoAttack leave no more than the original one, image by image, and how long do both take? See README.md.

Exit code 0: on every model and eps at most one image more than the original's is left. 1: on some more are. 2: the
comparison did not take place.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from casemate.attacks import frozen
from casemate.data import load as load_data
from casemate.errors import CasemateError
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.files import write_json
from casemate.models import load as load_model
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ALLOWED = 1
"""Images that ours may leave more than the original: both draw at random."""


class NotComparedError(Exception):
    """A comparison that could not take place."""


def original(source: str | None) -> Any:
    """The original's class. Raises `NotComparedError` if it is not there."""
    if not source:
        raise NotComparedError("AUTOATTACK_SRC is not set; clone github.com/fra31/auto-attack and name its folder")
    sys.path.insert(0, source)
    try:
        from autoattack import AutoAttack  # type: ignore[import-not-found]
    except ImportError as error:
        raise NotComparedError(f"no autoattack in AUTOATTACK_SRC={source}: {error}") from error
    return AutoAttack


def commit_of(folder: str) -> str:
    """Which commit of the original was compared with."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def theirs(kind: Any, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, args: Any, eps: float) -> Any:
    """Which images the original leaves, its seconds, and its log."""
    log = io.StringIO()
    start, cpu = time.perf_counter(), time.process_time()
    with frozen(model), contextlib.redirect_stdout(log):
        attack = kind(model, norm=NORMS[args.norm], eps=eps, version="standard", device="cpu", seed=args.seed)
        _, answers = attack.run_standard_evaluation(images, labels, bs=args.batch, return_labels=True)
    seconds = time.perf_counter() - start, time.process_time() - cpu
    return answers == labels, seconds, [line for line in log.getvalue().splitlines() if "accuracy" in line]


def ours(model: Any, images: Any, args: Any, eps: float) -> Any:
    """Which images ours leaves, its seconds, and what each attack did."""
    attacks = attacks_for("standard", args.norm, eps, randomised=False)
    start, cpu = time.perf_counter(), time.process_time()
    found = run_cascade(model, attacks, images, [eps], norm=args.norm, seed=args.seed)
    seconds = time.perf_counter() - start, time.process_time() - cpu
    steps = [f"{each.attack}: {each.fooled} of {each.tried}, {each.seconds:.1f} s" for each in found.attempts]
    return torch.from_numpy(found.robust[:, 0]), seconds, steps


def compare(args: argparse.Namespace) -> int:
    """Compare on one model, and add its rows to the result; return the exit code."""
    kind = original(os.environ.get("AUTOATTACK_SRC"))
    torch.set_num_threads(args.threads)
    model, description = load_model(args.model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = load_data(description.dataset or "fashion-mnist", args.data_dir).test[: args.n]
    pixels, labels = images.tensors()
    document = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": []}
    behind = 0
    for eps in args.eps:
        left, seconds, steps = ours(model, images, args, eps)
        held, their_seconds, log = theirs(kind, model, pixels, labels, args, eps)
        row = {
            "model": args.name,
            "architecture": description.architecture,
            "recipe": description.recipe,
            "norm": args.norm,
            "eps": eps,
            "n": len(images),
            "seed": args.seed,
            "clean_accuracy": float((model(pixels).argmax(1) == labels).double().mean()),
            "ours": float(left.double().mean()),
            "original": float(held.double().mean()),
            "agree": int((left == held).sum()),
            "only_ours_leaves": int((left & ~held).sum()),
            "only_the_original_leaves": int((held & ~left).sum()),
            "our_seconds": seconds[0],
            "original_seconds": their_seconds[0],
            "our_cpu_seconds": seconds[1],
            "original_cpu_seconds": their_seconds[1],
            "times_as_fast": their_seconds[1] / seconds[1],
            "our_attacks": steps,
            "original_log": log,
            "load": os.getloadavg()[0],
            "surroundings": surroundings("cpu", args.threads),
            "original_commit": commit_of(os.environ["AUTOATTACK_SRC"]),
        }
        behind = max(behind, int(left.sum()) - int(held.sum()))
        same = [
            each
            for each in document["rows"]
            if (each["model"], each["norm"], each["eps"], each["seed"]) == (args.name, args.norm, eps, args.seed)
        ]
        document["rows"] = [each for each in document["rows"] if each not in same] + [row]
        document["command"] = (
            "AUTOATTACK_SRC=... python benchmarks/autoattack/compare.py --model FILE --name NAME --eps ..."
        )
        write_json(args.out, document)
        print(
            f"{args.name}, {args.norm} {eps:g}, n = {row['n']}: clean {100 * row['clean_accuracy']:.1f} %, ours "
            f"{100 * row['ours']:.1f} % in {seconds[1]:.0f} s, original {100 * row['original']:.1f} % in "
            f"{their_seconds[1]:.0f} s ({row['times_as_fast']:.1f} times), {row['agree']} of {row['n']} images alike",
            flush=True,
        )
    return 0 if behind <= ALLOWED else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint that casemate saved (.safetensors)")
    parser.add_argument("--name", required=True, help="what the model is called in the result")
    parser.add_argument("--eps", type=float, nargs="+", required=True)
    parser.add_argument("--norm", choices=sorted(NORMS), default="linf")
    parser.add_argument("--n", type=int, default=500, help="images from the start of the test part")
    parser.add_argument("--batch", type=int, default=250, help="of the original; ours measures its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "result.json", help="rows are added to it")
    try:
        return compare(parser.parse_args())
    except (CasemateError, NotComparedError) as error:
        print(f"NOT COMPARED: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
