"""How long the study's recipe takes in Keras to reach an accuracy on the test images. See README.md.

Runs in the environment of `benchmarks/keras`. Only `fit` is timed; the test images are looked at between epochs. One
thread, so that the seconds of the processor, which other work on the machine does not lengthen, mean something; they
are told beside those of the clock.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "keras"))
import tensorflow as tf
from reference import keras_version, load, network, processor


def main() -> None:
    """Train until the target is reached, epoch by epoch; write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=float, default=0.927)
    parser.add_argument("--epochs", type=int, default=50, help="at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(0)
    images, labels = load(args.data_dir, "train")
    images, labels = images[:54_000], labels[:54_000]  # as many as our recipe trains on
    test = load(args.data_dir, "t10k")
    model = network("softmax")
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    rows, seconds, cpu = [], 0.0, 0.0
    for epoch in range(1, args.epochs + 1):
        start, before = time.perf_counter(), time.process_time()
        model.fit(images, labels, batch_size=128, epochs=1, verbose=0)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - before
        accuracy = float(model.evaluate(*test, batch_size=500, verbose=0)[1])
        rows.append(
            {
                "epoch": epoch,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "test_accuracy": accuracy,
                "load": os.getloadavg()[0],
            }
        )
        found = {
            "target": args.target,
            "reached": accuracy >= args.target,
            "threads": args.threads,
            "epochs": rows,
            "versions": {"keras": keras_version(), "tensorflow": tf.__version__, "python": platform.python_version()},
            "processor": processor(),
        }
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"epoch {epoch}: {100 * accuracy:.2f} % after {seconds:.0f} s ({cpu:.0f} of the processor)", flush=True)
        if accuracy >= args.target:
            break


if __name__ == "__main__":
    main()
