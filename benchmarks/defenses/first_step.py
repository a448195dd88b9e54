"""Why `ibp` of casemate and of Shi et al. end differently in the comparison: the first step, at radius 0.

`DEFENSES_SRC=... .venv-peers/bin/python benchmarks/defenses/first_step.py` trains nine networks on each side, with the
same initial weights and batches, and writes `first_step.json` and the table into README.md.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from originals import commit as commit_of
from page import HERE
from plan import images, pair_of
from run import start_of
from theirs import Training, fast_certified_loss
from torch import Tensor, nn

from casemate.certification import certify
from casemate.defenses import make_objective
from casemate.files import write_text
from casemate.models import as_classifier
from casemate.provenance import commit
from casemate.training import TrainingStep

SEEDS = range(9)
RESULTS, README = HERE / "first_step.json", HERE / "README.md"
REPOSITORY = "Fast-Certified-Robust-Training"
PAIR = pair_of("ibp")
Loss = Callable[[Tensor, Tensor, float, Any], Tensor]


def ours(model: nn.Module) -> Loss:
    """The objective of casemate, as a loss of images, labels and the share of the training that is done."""
    objective = make_objective({"name": PAIR.recipe, "settings": dict(PAIR.settings)})
    classifier = as_classifier(model)

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del optimizer
        return objective.at_step(TrainingStep(done=done, index=torch.arange(len(x))))(classifier, x, y)[0]

    return loss


SIDES: Mapping[str, Callable[[nn.Module], Loss]] = {
    "casemate": ours,
    "original": lambda model: fast_certified_loss(PAIR, model),
    "original, no tightness at radius 0": lambda model: fast_certified_loss(PAIR, model, tight_at_zero=False),
}


def certified(side: str, seed: int) -> float:
    """The share of the test images that intervals certify after a training."""
    model, given = start_of(PAIR, seed), images(PAIR)
    pixels, labels = given.train.tensors()
    loss = SIDES[side](model)
    torch.manual_seed(seed)  # the batches, which only this draws
    Training(pair=PAIR, network=model, images=pixels, labels=labels, teacher=None, seed=seed).minimise(loss)
    found = certify(model.eval(), *given.test, eps=PAIR.radius, method="interval")
    return found.certified.double().mean().item()


def table(found: Mapping[str, list[float]]) -> str:
    """The results in Markdown, in percent."""
    heads = ["seed", *map(str, SEEDS)]
    rows = [heads, ["---"] * len(heads)]
    rows += [[side, *(f"{100 * each:.1f}" for each in values)] for side, values in found.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Train, write the results and the table."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for side in SIDES:
        found[side] = [certified(side, seed) for seed in SEEDS]
        print(side, found[side], flush=True)
    about = {"commit": commit(), "original": commit_of(REPOSITORY)}
    write_text(RESULTS, json.dumps({**about, "certified": found}, indent=1) + "\n")
    start, end = "<!-- first_step.py -->\n", "<!-- end of first_step.py -->"
    text = README.read_text(encoding="utf-8")
    write_text(README, re.sub(f"{start}.*?{end}", lambda _: start + table(found) + end, text, flags=re.S))


if __name__ == "__main__":
    main()
