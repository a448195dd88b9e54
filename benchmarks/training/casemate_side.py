"""How long our recipe (the study's E1+, with a schedule of fewer epochs) takes to reach an accuracy. See README.md.

Its learning rate falls to zero at the end of the schedule, so the whole training is what counts. One thread, so that
the seconds of the processor mean something beside those of the clock.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn

from casemate.data import load, split
from casemate.data.named import make_augmentation
from casemate.evaluation import evaluate_clean
from casemate.files import write_json
from casemate.models import create
from casemate.provenance import surroundings
from casemate.training import TrainConfig, fit
from casemate_study.experiments.undefended import TUNED, TUNED_AUGMENT, TUNED_DROPOUT


def main() -> None:
    """Train, look at the test images once, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=float, default=0.927)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load("fashion-mnist", args.data_dir)
    train, validation = split(data.train, 6000, 0)
    model = create("paper-cnn", input_shape=data.image_shape, classes=data.classes)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p *= TUNED_DROPOUT
    settings = TrainConfig(epochs=args.epochs, precision=args.precision, **TUNED)  # pyright: ignore[reportArgumentType]
    start, before = time.perf_counter(), time.process_time()
    trained = fit(model, train, validation, settings, augment=[make_augmentation(each) for each in TUNED_AUGMENT])
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    accuracy = evaluate_clean(trained.model, data.test).accuracy
    found = {
        "target": args.target,
        "reached": accuracy.value >= args.target,
        "threads": args.threads,
        "epochs": args.epochs,
        "precision": args.precision,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "test_accuracy": accuracy.as_json(),
        "load": os.getloadavg()[0],
        "surroundings": surroundings("cpu", args.threads),
    }
    write_json(args.out, found)
    print(f"{args.epochs} epochs: {100 * accuracy.value:.2f} % after {seconds:.0f} s ({cpu:.0f} of the processor)")


if __name__ == "__main__":
    main()
