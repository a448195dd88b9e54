"""Are our attacks as strong as those of torchattacks, Foolbox, ART and AutoAttack at the same settings? See README.md.

Exit code 0: none is clearly worse. 1: some are. 2: something that was asked for was not compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from judge import CHANCE, FARTHER, POINTS, judge_ball, judge_nearest, outcome
from plan import CASES, Case
from torch import Tensor

from casemate.data import load as load_data
from casemate.errors import CasemateError
from casemate.files import write_json
from casemate.models import Classifier
from casemate.models import load as load_model
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
WANTED = {"torchattacks": "3.5.1", "foolbox": "3.3.4", "art": "1.20.1"}
"""The libraries and versions that are compared with; the original AutoAttack has none and is asked for by name."""
DISTRIBUTIONS = {"art": "adversarial-robustness-toolbox"}


class NotComparedError(Exception):
    """A comparison that could not take place."""


def key_of(case: Case) -> str:
    """The name of a case in files and rows."""
    return f"{case.name} {case.norm}"


def right_ones(model: Classifier, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first images that the network gets right: of the others the libraries make different things."""
    with torch.no_grad():
        right = (torch.cat([model(part).argmax(1) for part in images.split(250)]) == labels).nonzero().squeeze(1)
    if len(right) < count:
        raise NotComparedError(f"the network gets {len(right)} of {len(labels)} images right; {count} are needed")
    return images[right[:count]].contiguous(), labels[right[:count]]


def their_images(
    library: str, args: argparse.Namespace, cases: Sequence[dict[str, Any]], images: Tensor, labels: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `runner.py` makes with a library. Raises `NotComparedError` if it does not run or has another version."""
    if not args.python.is_file():
        raise NotComparedError(f"{args.python} is missing; make .venv-peers/.ready sets it up")
    if library == "autoattack" and not os.environ.get("AUTOATTACK_SRC"):
        raise NotComparedError("AUTOATTACK_SRC is not set; clone github.com/fra31/auto-attack and name its folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        safetensors.torch.save_file({"images": images, "labels": labels}, folder / "images.safetensors")
        (folder / "plan.json").write_text(json.dumps(cases))
        command = [str(args.python), str(HERE / "runner.py"), library, str(folder), str(args.model.resolve())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotComparedError(f"it did not run:\n{done.stderr.strip()}")
        told = json.loads((folder / f"{library}.json").read_text())
        made = safetensors.torch.load_file(folder / f"{library}.safetensors")
    if library == "autoattack":
        git = ["git", "-C", os.environ["AUTOATTACK_SRC"], "rev-parse", "HEAD"]
        told["versions"]["autoattack"] = (
            subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        )
    else:
        seen = told["versions"][DISTRIBUTIONS.get(library, library)]
        if seen != WANTED[library]:
            raise NotComparedError(f"it is {seen}; this comparison is with {WANTED[library]}")
    return told, made


class Ours:
    """Our side, each attack run once for each number of images."""

    def __init__(self, model: Classifier, images: Tensor, labels: Tensor, seed: int) -> None:
        self.model, self.images, self.labels, self.seed = model, images, labels, seed
        self._kept: dict[tuple[str, int], tuple[Tensor, dict[str, Any]]] = {}

    def __call__(self, case: Case, eps: float, count: int) -> tuple[Tensor, dict[str, Any]]:
        """The adversarial images, and what they cost."""
        key = (key_of(case), count)
        if key not in self._kept:
            attack = case.ours(case.settings, case.norm, eps)
            start = time.perf_counter()
            result = attack(self.model, self.images[:count], self.labels[:count], seed=self.seed, batch_size=count)
            cost = {
                "seconds": time.perf_counter() - start,
                "forward": result.passes.forward,
                "backward": result.passes.backward,
                "load": os.getloadavg()[0],
            }
            self._kept[key] = result.adversarial, {"attack": result.attack, "cost": cost}
        return self._kept[key]


def row_of(case: Case, library: str, eps: float, ours: Ours, told: dict[str, Any], theirs: Tensor) -> dict[str, Any]:
    """One attack against one library."""
    count = len(theirs)
    clean, labels = ours.images[:count], ours.labels[:count]
    made, mine = ours(case, eps, count)
    radius = eps if case.kind == "ball" and not case.unbounded else None
    both = [outcome(ours.model, each, clean, labels, case.norm, radius) for each in (made, theirs)]
    found = (judge_ball if case.kind == "ball" else judge_nearest)(*both, random=case.random)
    peer = case.peers[library]
    return {
        "case": key_of(case),
        "library": library,
        "kind": case.kind,
        "n": count,
        "eps": radius,
        "settings": dict(case.settings),
        "differs": peer.differs,
        "judged": peer.judged,
        **found,
        "worse": found["worse"] and peer.judged,
        "our_attack": mine["attack"],
        "our_cost": mine["cost"],
        "their_cost": told,
    }


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    if row["kind"] == "ball":
        what = (
            f"left {row['ours_left']:5.1f} % against {row['theirs_left']:5.1f} % ({row['difference']:+.1f}), "
            f"{row['alike']} alike"
        )
    elif row["both"]:
        what = (
            f"success {row['ours_success']:.0f} % against {row['theirs_success']:.0f} %, "
            f"median {row['ours_median']:.4g} against {row['theirs_median']:.4g} "
            f"(mean {row['ours_mean']:.4g}, {row['theirs_mean']:.4g}), nearer on {100 * row['nearer_share']:.0f} %"
        )
    else:
        what = f"success {row['ours_success']:.0f} % against {row['theirs_success']:.0f} %, none in common"
    mark = "WORSE" if row["worse"] else "" if row["judged"] else "not judged"
    seconds = f"{row['our_cost']['seconds']:.1f} s against {row['their_cost']['seconds']:.1f} s"
    print(f"{row['case']:22} {row['library']:13} n {row['n']:3}  {what}, {seconds}  {mark}", flush=True)


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to the result; one of the same network, case and library is replaced."""

    def same(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["network"], row["case"], row["library"]

    document = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    new = {same(row) for row in rows}
    document["rows"] = [row for row in document["rows"] if same(row) not in new] + rows
    document["rows"].sort(key=same)
    document["command"] = "python benchmarks/attacks/compare.py --model FILE --name NAME --linf EPS --l2 EPS --l1 EPS"
    document["rules"] = {"points": POINTS, "farther": FARTHER, "chance": CHANCE}
    write_json(path, document)


def run(args: argparse.Namespace) -> int:
    """Compare on one network; return the exit code."""
    torch.set_num_threads(1)
    model, description = load_model(args.model)
    model.eval()
    cases = [
        replace(case, images=min(case.images, args.n))
        for case in CASES
        if not args.only or {case.name, key_of(case)} & {*args.only}
    ]
    libraries = args.libraries
    most = max(case.images for case in cases)
    data = load_data(description.dataset or "fashion-mnist", args.data_dir).test[: 10 * most]
    images, labels = right_ones(model, *data.tensors(), most)
    ours, eps = Ours(model, images, labels, args.seed), {"linf": args.linf, "l2": args.l2, "l1": args.l1}
    rows, skipped = [], []
    for library in libraries:
        plan = [
            {
                "key": key_of(case),
                "name": case.name,
                "kind": case.kind,
                "norm": case.norm,
                "eps": eps[case.norm],
                "images": min(case.peers[library].images or case.images, case.images),
                "settings": dict(case.settings),
            }
            for case in cases
            if library in case.peers
        ]
        if not plan:
            continue
        try:
            told, made = their_images(library, args, plan, images, labels)
        except NotComparedError as error:
            skipped.append(f"{library}, all of it: {error}")
            continue
        for case in cases:
            if library not in case.peers:
                continue
            its = told["cases"][key_of(case)]
            if "error" in its:
                skipped.append(f"{key_of(case)}, {library}: {its['error']}")
                continue
            row = {
                "network": args.name,
                "architecture": description.architecture,
                "recipe": description.recipe,
                "seed": args.seed,
                **row_of(case, library, eps[case.norm], ours, its, made[key_of(case)]),
                "versions": told["versions"],
                "surroundings": surroundings("cpu", 1),
            }
            show(row)
            rows.append(row)
        keep(args.out, rows)
    worse = [f"{row['case']}, {row['library']}" for row in rows if row["worse"]]
    print(f"{args.name}: {len(rows)} comparisons, ours clearly worse in {len(worse)}: {'; '.join(worse) or 'none'}")
    for each in skipped:
        print(f"NOT COMPARED: {each}", file=sys.stderr)
    return 2 if skipped or not rows else 1 if worse else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint that casemate saved (.safetensors)")
    parser.add_argument("--name", required=True, help="what the network is called in the result")
    parser.add_argument("--linf", type=float, required=True, help="eps of the attacks in an Linf ball")
    parser.add_argument("--l2", type=float, required=True)
    parser.add_argument("--l1", type=float, required=True)
    parser.add_argument("--n", type=int, default=200, help="images at most; slow attacks get fewer anyway")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ATTACK",
        choices=sorted({each for case in CASES for each in (case.name, key_of(case))}),
    )
    parser.add_argument(
        "--libraries", nargs="+", choices=[*WANTED, "autoattack"], default=list(WANTED), metavar="LIBRARY"
    )
    parser.add_argument("--seed", type=int, default=0, help="of our draws")
    parser.add_argument("--out", type=Path, default=HERE / "result.json", help="rows are added to it")
    parser.add_argument("--data-dir", type=Path, help="folder of the Fashion-MNIST files")
    parser.add_argument(
        "--python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python", help="interpreter of the peers"
    )
    try:
        return run(parser.parse_args())
    except (CasemateError, NotComparedError) as error:
        print(f"NOT COMPARED: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
