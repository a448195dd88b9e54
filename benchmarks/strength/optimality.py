"""casemate's minimum-norm attacks beside those of other libraries, at equal numbers of steps; see README.md.

`python benchmarks/strength/optimality.py [--library NAME ...]` computes what is missing with the libraries that can be
imported, and writes the page, `optimality.md`. adv-lib is read from ADVLIB_SRC; Foolbox, ART and torchattacks are in
`.venv-peers`: run it once more with that environment's Python.

Exit code 0: what could be run is there. 1: an attack failed. 2: a network or a library is missing.
"""

import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from cells import Cell, has_networks, parser_of
from networks import load, network_of, weights_of
from originals import ORDERS, Norm, adv_lib, commit_of, distances, fooled, rounded, write
from torch import Tensor

from casemate import attacks, data
from casemate.attacks import frozen
from casemate.files import write_text
from casemate.models import Classifier
from casemate.provenance import commit, processor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "optimality"
PAGE = HERE / "optimality.md"
NAMES = ("linf", "plain", "l2")
"""The networks: trained in Linf, undefended, trained in L2."""
IMAGES = slice(0, 120)
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
LIBRARIES = ("casemate", "adv-lib", "foolbox", "art", "torchattacks")
STEPS = 300
ROUNDS = 6
"""Values of the constant that Carlini and Wagner's attack and EAD search through, in `STEPS` steps together."""
FAB_STEPS, DEEPFOOL_STEPS = 100, 50
SEED = 0

Craft = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> adversarial images."""


def own(norm: Norm) -> dict[str, attacks.AbstractMinimumNormAttack]:
    """Casemate's attacks in a norm, by the method's name."""
    found: dict[str, attacks.AbstractMinimumNormAttack] = {
        "FMN": attacks.FMN(norm=norm, steps=STEPS),
        "PDPGD": attacks.PDPGD(norm=norm, steps=STEPS),
    }
    if norm == "l0":
        return found | {"sigma-zero": attacks.SigmaZero(steps=STEPS)}
    found["FAB"] = attacks.FAB(norm=norm, steps=FAB_STEPS)
    if norm != "linf":
        found["ALMA"] = attacks.ALMA(norm=norm, steps=STEPS)
    if norm == "l1":
        found["EAD"] = attacks.EAD(binary_search_steps=ROUNDS, steps=STEPS // ROUNDS)
    else:
        found["DeepFool"] = attacks.DeepFool(norm=norm, steps=DEEPFOOL_STEPS)
        found["C&W"] = attacks.CarliniWagner(norm=norm, binary_search_steps=ROUNDS, steps=STEPS // ROUNDS)
    if norm == "l2":
        found["DDN"] = attacks.DDN(steps=STEPS)
        found["PDGD"] = attacks.PDGD(steps=STEPS)
        found["L-BFGS"] = attacks.LBFGS(binary_search_steps=ROUNDS, steps=STEPS // ROUNDS)
    return found


def by_casemate(model: Classifier, norm: Norm) -> dict[str, Craft]:
    """Casemate's attacks."""
    return {name: lambda x, y, attack=attack: attack(model, x, y).adversarial for name, attack in own(norm).items()}


def by_adv_lib(model: Classifier, norm: Norm) -> dict[str, Craft]:
    """adv-lib's attacks."""
    library, order, network = adv_lib(os.environ["ADVLIB_SRC"]), ORDERS[norm], model.network
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        "FMN": ("fmn", {"norm": order, "steps": STEPS, "α_init": 10.0 if norm == "linf" else 1.0}),
        "PDPGD": ("pdpgd", {"norm": order, "num_steps": STEPS, **({"proximal_operator": 23} if norm == "l0" else {})}),
    }
    if norm == "l0":
        chosen["sigma-zero"] = ("sigma_zero", {"num_steps": STEPS})
    else:
        chosen["FAB"] = ("fab", {"norm": order, "n_iter": FAB_STEPS})
    if norm in ("l1", "l2"):
        rate = 0.5 if norm == "l1" else 0.1
        chosen["ALMA"] = ("alma", {"distance": norm, "num_steps": STEPS, "α": 0.9, "init_lr_distance": rate})
    search = {"binary_search_steps": ROUNDS, "max_iterations": STEPS // ROUNDS}
    if norm == "l2":
        chosen["DDN"] = ("ddn", {"steps": STEPS, "levels": None})
        chosen["PDGD"] = ("pdgd", {"num_steps": STEPS})
        chosen["C&W"] = ("carlini_wagner_l2", search)
    if norm in ("linf", "l2"):
        chosen["DeepFool"] = ("df", {"norm": order, "steps": DEEPFOOL_STEPS})
    return {
        name: partial(getattr(library, function), network, **settings) for name, (function, settings) in chosen.items()
    }


def by_foolbox(model: Classifier, norm: Norm) -> dict[str, Craft]:
    """Foolbox's own attacks."""
    library = importlib.import_module("foolbox")
    kinds, wrapped = library.attacks, library.PyTorchModel(model, bounds=model.bounds, device="cpu")
    letter = {"linf": "LInf", "l2": "L2", "l1": "L1", "l0": "L0"}[norm]
    made = {"FMN": getattr(kinds, f"{letter}FMNAttack")(steps=STEPS)}
    if norm in ("linf", "l2"):
        made["DeepFool"] = getattr(kinds, f"{letter.replace('I', 'i')}DeepFoolAttack")(steps=DEEPFOOL_STEPS)
    if norm == "l2":
        made["DDN"] = kinds.DDNAttack(steps=STEPS)
        made["C&W"] = kinds.L2CarliniWagnerAttack(binary_search_steps=ROUNDS, steps=STEPS // ROUNDS)
    if norm == "l1":
        made["EAD"] = kinds.EADAttack(binary_search_steps=ROUNDS, steps=STEPS // ROUNDS, decision_rule="L1")
    criterion = library.criteria.Misclassification
    return {
        name: lambda x, y, attack=attack: attack(wrapped, x, criterion(y), epsilons=None)[1]
        for name, attack in made.items()
    }


def by_art(model: Classifier, norm: Norm) -> dict[str, Craft]:
    """ART's own attacks."""
    evasion = importlib.import_module("art.attacks.evasion")
    kind = importlib.import_module("art.estimators.classification").PyTorchClassifier
    wrapped = kind(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=model.input_shape,
        nb_classes=len(model.classes),
        clip_values=model.bounds,
        device_type="cpu",
    )
    many = {"batch_size": IMAGES.stop, "verbose": False}
    search = {"binary_search_steps": ROUNDS, "max_iter": STEPS // ROUNDS}
    made = {}
    if norm == "l2":
        made["DeepFool"] = evasion.DeepFool(wrapped, max_iter=DEEPFOOL_STEPS, **many)
        made["C&W"] = evasion.CarliniL2Method(wrapped, **search, **many)
    if norm == "l1":
        made["EAD"] = evasion.ElasticNet(wrapped, decision_rule="L1", **search, **many)
    return {
        name: lambda x, y, attack=attack: torch.from_numpy(attack.generate(x=x.numpy(), y=y.numpy()))
        for name, attack in made.items()
    }


def by_torchattacks(model: Classifier, norm: Norm) -> dict[str, Craft]:
    """Torchattacks' classes."""
    library = importlib.import_module("torchattacks")
    made: dict[str, Any] = {}
    if norm != "l0":
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        made["FAB"] = library.FAB(model, norm=name, eps=1e6, steps=FAB_STEPS)
    if norm == "l2":
        made["DeepFool"] = library.DeepFool(model, steps=DEEPFOOL_STEPS)
        made["C&W"] = library.CW(model, c=1, lr=0.01, steps=STEPS)
    if norm == "l1":
        made["EAD"] = library.EADL1(model, binary_search_steps=ROUNDS, max_iterations=STEPS // ROUNDS)
    return dict(made)


MAKERS: Mapping[str, Callable[[Classifier, Norm], dict[str, Craft]]] = {
    "casemate": by_casemate,
    "adv-lib": by_adv_lib,
    "foolbox": by_foolbox,
    "art": by_art,
    "torchattacks": by_torchattacks,
}
MODULES = {"foolbox": "foolbox", "art": "adversarial-robustness-toolbox", "torchattacks": "torchattacks"}


def version_of(library: str) -> str | None:
    """The version or commit of a library; None if it is not here."""
    if library == "casemate":
        return commit()
    if library == "adv-lib":
        return commit_of(os.environ["ADVLIB_SRC"]) if "ADVLIB_SRC" in os.environ else None
    try:
        return metadata.version(MODULES[library])
    except metadata.PackageNotFoundError:
        return None


def plan() -> list[Cell]:
    """All cells, in the order in which they are computed."""
    return [Cell(results=RESULTS, network=network_of(name), norm=norm) for norm in NORMS for name in NAMES]


def compute(cell: Cell, libraries: Iterable[str], folder: Path) -> bool:
    """Run what the cell lacks, and write it after each attack; return whether all attacks ran."""
    weights, model = weights_of(cell.network.name, folder), load(cell.network.name, folder)
    images, labels = data.load("fashion-mnist").test[IMAGES].tensors()
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    found = cell.read()
    if found.get("weights") != weights:
        found = {"network": cell.network.name, "norm": cell.norm, "weights": weights, "attacks": {}}
    found |= {
        "first": IMAGES.start,
        "n": IMAGES.stop - IMAGES.start,
        "right": len(labels),
        "steps": STEPS,
        "seed": SEED,
    }
    whole = True
    for library in libraries:
        for method, craft in MAKERS[library](model, cell.norm).items():
            if f"{library} {method}" in found["attacks"]:
                continue
            counted = [0]
            called = model.network if library == "adv-lib" else model  # what the library calls
            hook = called.register_forward_hook(
                lambda _, args, __, counted=counted: counted.__setitem__(0, counted[0] + len(args[0]))
            )
            torch.manual_seed(SEED)
            np.random.seed(SEED)  # noqa: NPY002 (the generator that ART draws from)
            start = time.process_time()
            try:
                with frozen(model):
                    moved = craft(images.clone(), labels.clone()).detach()
            except Exception:  # whatever a library raises is printed, and the next attack goes on
                traceback.print_exc()
                print(f"{cell.path.stem} {library} {method}: FAILED", flush=True)
                whole = False
                continue
            finally:
                hook.remove()
            seconds = time.process_time() - start
            far = distances(moved.clamp(0, 1), images, cell.norm).tolist()
            with frozen(model):
                sure = fooled(model, moved, labels).tolist()
            found["attacks"][f"{library} {method}"] = {
                "version": version_of(library),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "processor": processor(),
                "processor_seconds": round(seconds, 1),
                "forward": counted[0],
                "distance": [rounded(each) if hit else None for each, hit in zip(far, sure, strict=True)],
            }
            write(cell.path, found)
            print(f"{time.strftime('%H:%M:%S')} {cell.path.stem} {library} {method}", flush=True)
    return whole


def optimality(far: np.ndarray, best: np.ndarray) -> float:
    """How near the curve of robust accuracy against distance comes to that of the best of all (1: equal).

    (Cinà et al. 2024, arXiv 2404.19460, section 3.2.) `far` are an attack's distances, infinite where it found
    nothing, `best` the smallest of all attacks; both of images that are classified correctly.
    """
    most = best.max()
    area, least = far.clip(max=most).mean(), best.mean()
    return float(1 - (area - least) / (most - least))


@final
@dataclass(frozen=True, kw_only=True)
class Score:
    """An attack in a norm, over the networks."""

    name: str
    """Library and method."""
    optimality: list[float]
    """On each network."""
    median: list[float]
    """The median distance over the smallest of all attacks', on each network."""
    forward: float
    """Forward passes per image."""
    seconds: float


def scores(norm: Norm) -> Iterator[Score]:
    """The scores of the attacks in a norm that were run on all networks, and of each library's nearest images."""
    cells = [found for cell in plan() if cell.norm == norm and (found := cell.read())]
    if not cells:
        return
    tables = [
        {
            name: np.array([np.inf if far is None else far for far in each["distance"]])
            for name, each in cell["attacks"].items()
        }
        for cell in cells
    ]
    best = [np.min(list(table.values()), axis=0) for table in tables]
    names = [name for name in cells[0]["attacks"] if all(name in table for table in tables)]
    groups = {name: [name] for name in names}
    for library in LIBRARIES:
        own = [name for name in names if name.startswith(f"{library} ")]
        if len(own) > 1:
            groups[f"{library}, all together"] = own
    for label, members in groups.items():
        mine = [np.min([table[name] for name in members], axis=0) for table in tables]
        entries = [cell["attacks"][name] for cell in cells for name in members]
        yield Score(
            name=label,
            optimality=[optimality(far, least) for far, least in zip(mine, best, strict=True)],
            median=[float(np.median(far) / np.median(least)) for far, least in zip(mine, best, strict=True)],
            forward=sum(each["forward"] for each in entries) / sum(cell["right"] for cell in cells),
            seconds=sum(each["processor_seconds"] for each in entries),
        )


def page() -> str:
    """The page of results, in Markdown."""
    lines = [
        "# Minimum-norm attacks: how near the best of all",
        "",
        "Written by `python benchmarks/strength/optimality.py`; README.md says what was run. *Optimality* (Cinà et al.",
        "2024): 1 where an attack finds the nearest image that any attack found, for every image. *Median*: its median",
        "distance over the median of the nearest that any found. *All together*: for each image the nearest that any",
        f"attack of a library found. On {', '.join(f'`{each}`' for each in NAMES)}.",
    ]
    for norm in NORMS:
        found = sorted(scores(norm), key=lambda each: -sum(each.optimality))
        lines += ["", f"## {norm}", "", "| attack | optimality | mean | median | forward passes per image | seconds |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for each in found:
            name = f"**{each.name}**" if each.name.startswith("casemate") else each.name
            each_network = ", ".join(f"{value:.3f}" for value in each.optimality)
            medians = ", ".join(f"{value:.2f}" for value in each.median)
            lines.append(
                f"| {name} | {each_network} | {np.mean(each.optimality):.3f} | {medians} | {each.forward:.0f} | "
                f"{each.seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compute what is missing; return the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, help="only these; default: those that are here")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS, help="only these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    libraries = options.library or [each for each in LIBRARIES if version_of(each) is not None]
    if absent := [each for each in libraries if version_of(each) is None]:
        print(f"not here: {', '.join(absent)}", file=sys.stderr)
        return 2
    whole, cells = True, [] if options.page else [each for each in plan() if each.norm in options.norms]
    if not has_networks(cells, options.folder):
        return 2
    for cell in cells:
        whole &= compute(cell, libraries, options.folder)
    write_text(PAGE, page())
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
