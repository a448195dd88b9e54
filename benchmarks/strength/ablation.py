"""What each minimum-norm attack adds to AutoAttack's attacks, on the networks that are set aside; see README.md.

`python benchmarks/strength/ablation.py` computes the cells that are missing, and writes the page, `ablation.md`.
Budgets are chosen by it: no reported network is looked at.

Exit code 0: no cell is missing. 2: a network is missing.
"""

import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, has_networks, parser_of
from networks import NETWORKS, load, weights_of
from originals import Norm, rounded, write

from casemate import data
from casemate.attacks import ALMA, DDN, FMN, PDGD, PDPGD, AbstractMinimumNormAttack, AutoAttack, DeepFool, model_of
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.files import write_text
from casemate.provenance import commit, processor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "ablation"
PAGE = HERE / "ablation.md"
IMAGES = slice(5000, 5200)
"""Those of the networks that are set aside, as in `originals.py`."""
NORMS: tuple[Norm, ...] = ("l2", "l1", "linf")


def candidates(norm: Norm) -> dict[str, AbstractMinimumNormAttack]:
    """The attacks that may join AutoAttack's, by name with their number of steps."""
    makers: dict[str, Any] = {
        "linf": {"fmn": FMN, "pdpgd": PDPGD},
        "l2": {"ddn": DDN, "alma": ALMA, "pdgd": PDGD, "fmn": FMN, "pdpgd": PDPGD},
        "l1": {"pdpgd": PDPGD, "alma": ALMA, "fmn": FMN},
    }[norm]
    lengths = (50, 100, 300) if norm == "linf" else (50, 100, 300, 1000)
    made = {f"{name}-{steps}": maker(norm=norm, steps=steps) for name, maker in makers.items() for steps in lengths}
    if norm != "l1":
        made["deepfool"] = DeepFool(norm=norm)
    return made


def plan(norms: Iterable[Norm] = NORMS) -> list[Cell]:
    """The cells in these norms, in the order in which they are computed."""
    return [Cell(results=RESULTS, network=each, norm=norm) for norm in norms for each in NETWORKS if not each.reported]


def compute(cell: Cell, folder: Path) -> None:
    """Run what the cell lacks, and write it after each attack."""
    weights = weights_of(cell.network.name, folder)
    found = cell.read()
    if found.get("weights") != weights:
        found = {"network": cell.network.name, "norm": cell.norm, "weights": weights, "attacks": {}, "autoattack": None}
    model = load(cell.network.name, folder)
    images = data.load("fashion-mnist").test[IMAGES]
    pixels, labels = images.tensors()
    with torch.no_grad():
        right = model_of(model)(pixels).argmax(1) == labels
    found |= {
        "first": IMAGES.start,
        "n": len(labels),
        "right": int(right.sum()),
        "eps": cell.eps,
        "commit": commit(),
        "processor": processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name, attack in candidates(cell.norm).items():
        if name in found["attacks"]:
            continue
        start = time.process_time()
        result = attack(model, pixels[right], labels[right])
        found["attacks"][name] = {
            "settings": attack.record(),
            "processor_seconds": round(time.process_time() - start, 2),
            "passes": asdict(result.passes),
            "distance": [rounded(each) if np.isfinite(each) else None for each in result.distance.tolist()],
        }
        write(cell.path, found)
        print(f"{time.strftime('%H:%M:%S')} {cell.path.stem} {name}", flush=True)
    if found["autoattack"] is None:
        values = cell.eps
        start = time.process_time()
        done = run_cascade(
            model,
            AutoAttack(eps=values[0], norm=cell.norm).attacks(),
            images,
            values,
            norm=cell.norm,
            batch_size=500,
        )
        found["autoattack"] = {
            "processor_seconds": round(time.process_time() - start, 2),
            "attempts": [asdict(each) for each in done.attempts],
            "robust": done.robust[right.numpy()].astype(int).tolist(),
        }
        write(cell.path, found)
        print(f"{time.strftime('%H:%M:%S')} {cell.path.stem} autoattack", flush=True)


def fooled(found: Mapping[str, Any], name: str) -> np.ndarray:
    """Which images an attack fools at each eps, `(n, eps)`."""
    far = np.array([np.inf if each is None else each for each in found["attacks"][name]["distance"]])
    return far[:, None] <= np.array(found["eps"]) * (1 + 1e-5)


def chosen(norm: Norm) -> list[str]:
    """The minimum-norm attacks that are in the budget `standard`, by their names here."""
    attacks = attacks_for("standard", norm, 1.0, randomised=False)
    names = [f"{name}-{getattr(attack, 'steps', 0)}" for name, attack in attacks.items()]
    return [each for each in names if each in candidates(norm)]


def table(norm: Norm) -> Iterator[str]:
    """A Markdown table: what each attack fools that AutoAttack's leave, over networks and eps."""
    cells = [found for cell in plan([norm]) if (found := cell.read()).get("autoattack")]
    left = [np.array(found["autoattack"]["robust"], dtype=bool) for found in cells]
    networks = ", ".join(f"`{found['network']}`" for found in cells)
    images = sum(found["right"] for found in cells)
    yield f"{networks or 'No network yet'}: {images} images classified correctly, at three eps each."
    yield ""
    yield "| attacks | fool | of these, images that AutoAttack leaves | seconds |"
    yield "| --- | --- | --- | --- |"
    seconds = sum(found["autoattack"]["processor_seconds"] for found in cells)
    fell, rest = (sum(int(each.sum()) for each in masks) for masks in ([~each for each in left], left))
    yield f"| AutoAttack's, as they are here | {fell} | leave {rest} | {seconds:.0f} |"

    def row(label: str, names: list[str]) -> str:
        hits = [np.any([fooled(found, name) for name in names], axis=0) for found in cells]
        seconds = sum(found["attacks"][name]["processor_seconds"] for found in cells for name in names)
        more = sum(int((hit & rest).sum()) for hit, rest in zip(hits, left, strict=True))
        return f"| {label} | {sum(int(each.sum()) for each in hits)} | {more} | {seconds:.0f} |"

    if cells:
        for name in candidates(norm):
            yield row(name, [name])
        yield row("all of these together", list(candidates(norm)))
        yield row(f"**in the budget: {', '.join(chosen(norm))}**", chosen(norm))


def page() -> str:
    """The page of results, in Markdown."""
    lines = [
        "# What minimum-norm attacks add to AutoAttack",
        "",
        "Written by `python benchmarks/strength/ablation.py`, whose files are in `ablation/`; the networks are set",
        "aside, no number of the reported ones is used. Each minimum-norm attack, with its number of steps, runs once,",
        "on all images that a network classifies correctly, and counts at three eps, one image at one eps as one.",
        "AutoAttack's attacks run at each eps, on the images that are left. Seconds of the processor, one thread,",
        "beside other work.",
    ]
    for norm in NORMS:
        lines += ["", f"## {norm}", "", *table(norm)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compute what is missing; return the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS, help="only these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = [] if options.page else plan(options.norms)
    if not has_networks(cells, options.folder):
        return 2
    for cell in cells:
        compute(cell, options.folder)
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
