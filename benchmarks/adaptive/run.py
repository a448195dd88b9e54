"""What preprocessing and detection are worth under attacks that know them; see README.md.

`python benchmarks/adaptive/run.py` measures all of them, and writes the page.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from casemate.attacks import PGD
from casemate.benchmark.plan import plan_benchmark
from casemate.data import LabelledImages, load
from casemate.defenses import (
    JPEG,
    CalibratedDetector,
    FeatureDistillation,
    FeatureSqueezing,
    MedianFilter,
    PixelDeflection,
    ReducedDepth,
    attackable,
    calibrated,
    fit_logistic,
    fit_mahalanobis,
    preprocessed,
)
from casemate.evaluation import Estimate, evaluate, evaluate_clean, share
from casemate.evaluation.detection import DetectionResult, evaluate_detector
from casemate.files import write_text
from casemate.models import Classifier, open_model
from casemate.provenance import commit, processor
from casemate.timing import duration

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "results.md", HERE / "results.json"
EPS, STEPS = 0.05, 50
"""Radius in Linf, where PGD leaves hardly an image without a defence; its steps."""
IMAGES, HELD_OUT, FITTED = 200, 1000, 2000
"""Test images; validation images that thresholds are set on; training images that detectors are fitted to."""
RATE = 0.05
"""The false-positive rate of the detectors."""
LAYERS: Mapping[str, nn.Module] = {
    "none": nn.Identity(),
    "ReducedDepth(2)": ReducedDepth(2),
    "MedianFilter(3)": MedianFilter(3),
    "JPEG(50)": JPEG(quality=50),
    "FeatureDistillation()": FeatureDistillation(),
    "PixelDeflection(deflections=30)": PixelDeflection(deflections=30),
}
Fit = Callable[[Classifier, LabelledImages], Any]
DETECTORS: Mapping[str, Fit] = {
    "FeatureSqueezing()": lambda model, train: FeatureSqueezing(),
    "fit_logistic": lambda model, train: fit_logistic(model, *_clean_and_adversarial(model, train)),
    "fit_mahalanobis": lambda model, train: fit_mahalanobis(model, *train.tensors()),
}


def _clean_and_adversarial(model: Classifier, train: LabelledImages) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = train.tensors()
    found = PGD(eps=EPS, steps=20)(model, images, labels)
    return images, found.adversarial[found.success]


def measured_layer(model: Classifier, layer: nn.Module, images: LabelledImages) -> dict[str, Any]:
    """Accuracy through the layer: without an attack, under PGD on the model alone, and under attacks that know it."""
    pixels, labels = images.tensors()
    torch.manual_seed(0)
    through = preprocessed(model, layer)
    unaware = PGD(eps=EPS, steps=STEPS)(model, pixels, labels).adversarial
    found = evaluate(attackable(model, layer), images, eps=EPS, budget="quick", force=True)
    return {
        "clean": evaluate_clean(through, images).accuracy.as_json(),
        "unaware": share((through(unaware).argmax(1) == labels).numpy()).as_json(),
        "aware": found.robust[-1].as_json(),
        "verdict": found.verdict.word,
    }


def measured_detector(model: Classifier, detector: CalibratedDetector, images: LabelledImages) -> dict[str, Any]:
    """What the detector rejects without an attack, under PGD on the model alone, and under the adaptive attack."""
    found: DetectionResult = evaluate_detector(detector, model, *images.tensors(), eps=EPS, steps=STEPS)
    unaware = next(iter(found.unaware.values()))
    return {
        "false_positives": found.false_positives.as_json(),
        "unaware": None if unaware.detected is None else unaware.detected.as_json(),
        "aware": None if found.adaptive.detected is None else found.adaptive.detected.as_json(),
        "robust": found.robust.as_json(),
        "broken": found.is_broken,
        "summary": found.summary,
    }


def page(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "# Results",
        "",
        f"Written by `run.py`: the pretrained model `undefended`, the first {IMAGES} Fashion-MNIST test images, Linf "
        f"{EPS}, seed 0, {found['processor']}, commit {found['commit']}, {duration(found['seconds'])} on one thread. "
        "Shares with 95 % intervals.",
        "",
        f"| Layer | Clean | PGD-{STEPS} that does not know it | Attacks that know it (`quick`) | Verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in found["layers"].items():
        cells = [name, *(_shown(row[key]) for key in ("clean", "unaware", "aware")), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Detectors, set to reject {RATE:.0%} of clean images (threshold from {HELD_OUT:,} validation images):",
        "",
        f"| Detector | Clean images rejected | Detected: PGD-{STEPS} that does not know it | Detected: adaptive attack "
        "| Right or rejected under all attacks | Broken |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found["detectors"].items():
        cells = [name, *(_shown(row[key]) for key in ("false_positives", "unaware", "aware", "robust"))]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['broken'] else 'no'])} |")
    return "\n".join([*lines, ""])


def _shown(estimate: Mapping[str, Any] | None) -> str:
    return "no image is misclassified" if estimate is None else str(Estimate.from_json(estimate))


def main() -> None:
    """Measure everything, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    if not parser.parse_args().page:
        torch.set_num_threads(1)
        start = time.perf_counter()
        plan = plan_benchmark(load("fashion-mnist"))
        model = open_model("undefended").model
        test, train = plan.dataset.test[:IMAGES], plan.train[:FITTED]
        held_out = plan.validation[:HELD_OUT].tensors()[0]
        layers = {name: measured_layer(model, layer, test) for name, layer in LAYERS.items()}
        detectors: dict[str, Any] = {}
        for name, fit in DETECTORS.items():
            detector = calibrated(fit(model, train), model, held_out, false_positive_rate=RATE)
            detectors[name] = measured_detector(model, detector, test)
            print(f"{name}: {detectors[name]['summary']}", flush=True)
        about = {"seconds": time.perf_counter() - start, "commit": commit(), "processor": processor()}
        write_text(RESULTS, json.dumps({**about, "layers": layers, "detectors": detectors}, indent=1) + "\n")
    write_text(PAGE, page(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
