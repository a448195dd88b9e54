"""How often images made on one model fool others: the attacks of `Transferable`, and an ensemble as substitute.

`python benchmarks/transfer/run.py` trains the three networks of `networks.py` on Fashion-MNIST, attacks the first test
images that all three classify correctly, on one of two networks or on both, and counts how many of the results fool
each network that was not used. It writes `result.json` and the table in `docs/attacks.md`.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networks
import torch

from casemate import (
    MIFGSM,
    Classifier,
    InputDiversity,
    LabelledImages,
    Nesterov,
    ScaledCopies,
    TrainConfig,
    Transfer,
    Transferable,
    TranslationKernel,
    VarianceTuning,
    ensemble,
    evaluate_clean,
    fit,
)
from casemate.attacks import AbstractAttack
from casemate.data import load, subset
from casemate.files import write_json, write_text
from casemate.intervals import Estimate, share
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "attacks.md"
BEGIN, END = "<!-- benchmarks/transfer/run.py: begin -->", "<!-- benchmarks/transfer/run.py: end -->"
EPS, COUNT, SEED = 0.15, 300, 0
TRAIN, EPOCHS = 12_000, 4
SUBSTITUTES = (("plain",), ("strided",), ("plain", "strided"))
_KERNEL, _TUNING = TranslationKernel(size=5), VarianceTuning(samples=5)
PARTS = {
    "MI": (),
    "DI-MI": (InputDiversity(),),
    "TI-MI": (_KERNEL,),
    "SI-NI": (ScaledCopies(), Nesterov()),
    "VMI": (_TUNING,),
    "VNI": (_TUNING, Nesterov()),
    "all parts": (InputDiversity(), _KERNEL, ScaledCopies(), Nesterov(), _TUNING),
}


def main() -> None:
    """Train, attack, write the result."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = load("fashion-mnist")
    models = {name: _trained(make(), data.classes, data.train) for name, make in networks.NETWORKS.items()}
    clean = {name: evaluate_clean(model, data.test).accuracy.as_json() for name, model in models.items()}
    images = _classified_by_all(models, data.test)
    found = [each for names in SUBSTITUTES for attack in PARTS for each in _fooled(models, names, attack, images)]
    about = {
        "command": "python benchmarks/transfer/run.py",
        "images": COUNT,
        "eps": EPS,
        "seed": SEED,
        "training": {"images": TRAIN, "epochs": EPOCHS},
        "attacks": {name: _attack(name).record() for name in PARTS},
        "clean_accuracy": clean,
        "seconds": time.perf_counter() - start,
    }
    write_json(HERE / "result.json", about | {"surroundings": surroundings("cpu", 1), "success": found})
    write_table()


def _trained(network: torch.nn.Module, classes: tuple[str, ...], train: LabelledImages) -> Classifier:
    """One of the networks, trained on a part of the training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | torch.nn.BatchNorm2d):
                layer.reset_parameters()
    model = Classifier(network, input_shape=(1, 28, 28), classes=classes)
    part = subset(train, TRAIN, SEED)
    fit(model, part, part[torch.arange(500)], TrainConfig(epochs=EPOCHS, schedule="cosine", seed=SEED))
    return model.eval()


def _classified_by_all(models: Mapping[str, Classifier], test: LabelledImages) -> LabelledImages:
    """The first test images that all models classify correctly."""
    images, labels = test.tensors()
    with torch.no_grad():
        right = torch.stack([model(images[:1000]).argmax(1) == labels[:1000] for model in models.values()]).all(0)
    return test[right.nonzero().squeeze(1)[:COUNT]]


def _attack(name: str) -> AbstractAttack:
    inner = MIFGSM(eps=EPS)
    return Transferable(attack=inner, parts=PARTS[name]) if PARTS[name] else inner


def _fooled(
    models: Mapping[str, Classifier], names: tuple[str, ...], attack: str, images: LabelledImages
) -> list[dict[str, Any]]:
    """How many images made on the models `names` fool each other model, as estimates, and the seconds they took."""
    start = time.perf_counter()
    substitute = models[names[0]] if len(names) == 1 else ensemble([models[name] for name in names])
    targets = [name for name in models if name not in names]
    # all models classify the clean images correctly, so the same images are made for every target
    transfer = Transfer(attack=_attack(attack), substitute=substitute)
    made = transfer(models[targets[0]], *images.tensors(), seed=SEED)
    seconds = time.perf_counter() - start
    found = []
    for target in targets:
        with torch.no_grad():
            fooled = models[target](made.adversarial).argmax(1) != made.labels
        part = share(fooled.numpy())
        print(" + ".join(names), "to", target, attack, part, f"{seconds:.0f} s", flush=True)
        about = {"substitutes": list(names), "target": target, "attack": attack}
        found.append(about | {"share": part.as_json(), "seconds": seconds})
    return found


def write_table() -> None:
    """Write the table from `result.json` into the page: a row for each pair of substitutes and target."""
    found = json.loads((HERE / "result.json").read_text())
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for each in found["success"]:
        key = " + ".join(each["substitutes"]), each["target"]
        pairs.setdefault(key, {})[each["attack"]] = Estimate.from_json(each["share"]).value
    made = found["surroundings"]
    text = [
        BEGIN,
        f"Images that fool the target, in per cent, of n = {found['images']} that all networks classify correctly; "
        f"eps {found['eps']}, Linf, seed {found['seed']}. `{found['command']}`, {found['seconds'] / 60:.0f} minutes on "
        f"one thread ({made['processor']}, PyTorch {made['libraries']['torch']}, commit {made['commit']}). At 50 % the "
        "95 % interval is 6 points to either side.",
        "",
        f"| Images made on | Target | {' | '.join(PARTS)} |",
        f"| --- | --- |{' --- |' * len(PARTS)}",
        *(
            f"| {names} | {target} | {' | '.join(f'{100 * row[attack]:.0f}' for attack in PARTS)} |"
            for (names, target), row in pairs.items()
        ),
        END,
    ]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    write_text(PAGE, before + "\n".join(text) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
