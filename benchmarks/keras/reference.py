"""The paper's attacks in the paper's own framework: which loss did its code use in effect?

The paper follows TensorFlow's FGSM tutorial: a gradient tape round the model and
`CategoricalCrossentropy()` on its softmax output. Taken at its word, that loss sees float32
probabilities, clipped to [1e-7, 1 - 1e-7]; on a confident network the gradient is then exactly
zero, and an attack stands still. But Keras may find the logits behind a softmax and use those
instead. Which of the two happens is a matter of running it, so this script trains the paper's
network in Keras (experiment E1), computes the attack's gradient in several ways on the same
images, tells by their numbers which loss each way used, and draws the curves of the paper's
attacks (FGSM, BIM with two clippings, BIM against iterations: E2 to E4) for the ways that matter.

`--keras2` asks the same of Keras 2, current at the paper's time. A TensorFlow older than 2.16
brings Keras 2 by itself; a newer one needs the package tf_keras.

It writes one JSON file and does not judge robustness: two of the losses it compares are known
to hide weaknesses, and the third hides some of them.
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "--keras2" in sys.argv:  # TensorFlow picks its Keras while it is imported, so this comes first
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf

Array = np.ndarray
Model = Callable[[tf.Tensor], tf.Tensor]
"""images -> prediction, one row an image."""
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""(one-hot labels, prediction) -> mean loss."""
Gradient = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""(images, one-hot labels) -> gradient of the loss with respect to the images."""

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Checksums of the decompressed files: the gzip files differ from one distributor to another."""

CLASSES = 10
EPSILONS = (0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2)
BIM_ITERATIONS = 10
E4_EPSILON = 0.05
E4_STEPS = {"1/255": 1 / 255, "0.002": 0.002}
E4_ITERATIONS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50)
BATCH = 250
"""Images per attack step. The tutorial attacks one image at a time; see `one_by_one`."""

SAME_GRADIENT = 0.01
"""Two gradients of one image are the same if they differ by at most this share of their size."""
AGREEMENT = 0.95
"""Two ways use one loss if they agree on at least this share of the images."""


@dataclass(frozen=True)
class Way:
    """One way to write the attack's gradient."""

    what: str
    """What distinguishes it, in words for the result file."""
    gradient: Gradient
    curves: bool
    """Whether the attacks are run with it, or only its gradients are compared."""


# ---------------------------------------------------------------------------------------- data


def read(folder: Path, name: str) -> Array:
    """One IDX file as an array of bytes, its content checked against the known sum."""
    content = gzip.decompress((folder / f"{name}.gz").read_bytes())
    seen = hashlib.sha256(content).hexdigest()
    if seen != SHA256[name]:
        raise SystemExit(f"{name}: SHA-256 is {seen}, expected {SHA256[name]}")
    if "labels" in name:
        return np.frombuffer(content, np.uint8, offset=8)
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)


def load(folder: Path, part: str) -> tuple[Array, Array]:
    """Images in [0, 1] and labels of one part ("train" or "t10k")."""
    images = read(folder, f"{part}-images-idx3-ubyte").astype(np.float32) / 255
    return images, read(folder, f"{part}-labels-idx1-ubyte").astype(np.int64)


# ------------------------------------------------------------------------------------- network


def network(head: str) -> Any:
    """The paper's appendix A; `head` says what stands behind the last dense layer.

    "softmax" is the paper's form (an activation of that layer), "layer" has a Softmax layer of
    its own, "logits" has nothing. All three have the same weights in the same order.
    """
    layers = tf.keras.layers

    def convolution(filters: int, initializer: str = "glorot_uniform") -> Any:
        return layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer=initializer)

    stack = [
        tf.keras.Input((28, 28, 1)),
        convolution(32, "he_normal"),
        layers.MaxPooling2D(2),
        convolution(64),
        layers.MaxPooling2D(2),
        layers.Dropout(0.3),
        layers.BatchNormalization(),
        convolution(128),
        convolution(128),
        layers.MaxPooling2D(2),
        layers.Dropout(0.4),
        layers.Flatten(),
        layers.BatchNormalization(),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.25),
        layers.Dense(CLASSES, activation="softmax" if head == "softmax" else None),
    ]
    if head == "layer":
        stack.append(layers.Softmax())
    return tf.keras.Sequential(stack)


def twin(model: Any, head: str) -> Any:
    """The same network with the same weights behind another head."""
    other = network(head)
    other.set_weights(model.get_weights())
    return other


def train(model: Any, images: Array, labels: Array, test: tuple[Array, Array], epochs: int) -> dict[str, Any]:
    """E1: batches of 128, no early stopping, so that the network over-fits.

    Every fifth epoch the share of vanished gradients is taken, since masking grows with training.
    """
    watched: list[dict[str, float]] = []
    ways = {"tutorial": tutorial(model), "probabilities": tutorial(hide_logits(model))}

    def watch(epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % 5 and epoch:
            return
        zero = {name: zero_share(gradients(way, *test)) for name, way in ways.items()}
        watched.append({"epoch": epoch + 1, "test_accuracy": float(logs["val_accuracy"]), **zero})
        say(
            f"  epoch {epoch + 1}: {logs['accuracy']:.3f} on training images, "
            f"{logs['val_accuracy']:.3f} on test images, zero gradients: "
            + ", ".join(f"{name} {share:.3f}" for name, share in zero.items())
        )

    history = model.fit(
        images,
        labels,
        batch_size=128,
        epochs=epochs,
        validation_data=test,
        callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_end=watch)],
        verbose=0,
    ).history
    curves = {name: [float(value) for value in values] for name, values in history.items()}
    return {"history": curves, "zero_share_by_epoch": watched}


# ------------------------------------------------------------------------------- the gradients


def tutorial(model: Model, loss_object: Loss | None = None) -> Gradient:
    """The attack's gradient in the tutorial's form: a tape, the model, the loss object."""
    loss_object = loss_object or tf.keras.losses.CategoricalCrossentropy()

    def gradient(images: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(images)
            prediction = model(images)
            loss = loss_object(label, prediction)
        return tape.gradient(loss, images)

    return gradient


def sparse(label: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """The other spelling of Keras's loss, which takes class numbers."""
    loss_object = tf.keras.losses.SparseCategoricalCrossentropy()
    return loss_object(tf.argmax(label, axis=1), prediction)


def by_hand(label: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """Keras's loss from probabilities without Keras: made to sum to one again, then clipped."""
    normalised = prediction / tf.reduce_sum(prediction, axis=1, keepdims=True)
    clipped = tf.clip_by_value(normalised, 1e-7, 1 - 1e-7)
    return -tf.reduce_mean(tf.reduce_sum(label * tf.math.log(clipped), axis=1))


def by_hand_unscaled(label: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    """The same without the division, which is exact in theory and costs a rounding in float32."""
    clipped = tf.clip_by_value(prediction, 1e-7, 1 - 1e-7)
    return -tf.reduce_mean(tf.reduce_sum(label * tf.math.log(clipped), axis=1))


def hide_logits(model: Model) -> Model:
    """The same probabilities in a new tensor, which carries nothing else with it."""
    return lambda images: tf.identity(model(images))


def ways_to_write_it(model: Any) -> dict[str, Way]:
    """All the ways compared; "logits" and "probabilities" are the two that are known."""
    logits, layer = twin(model, "logits"), twin(model, "layer")
    return {
        "tutorial": Way("the tutorial's code as it is, run eagerly", tutorial(model), True),
        "tutorial_graph": Way("the tutorial's code inside tf.function", tf.function(tutorial(model)), True),
        "probabilities": Way(
            "the loss sees the probabilities alone: tf.identity round the model's output",
            tutorial(hide_logits(model)),
            True,
        ),
        "logits": Way(
            "the loss sees the logits: no softmax, from_logits=True",
            tutorial(logits, tf.keras.losses.CategoricalCrossentropy(from_logits=True)),
            True,
        ),
        "sparse": Way("SparseCategoricalCrossentropy, eager", tutorial(model, sparse), False),
        "probabilities_by_hand": Way(
            "Keras's loss from probabilities written out: divide by the sum, clip, logarithm",
            tutorial(model, by_hand),
            False,
        ),
        "probabilities_unscaled": Way(
            "the same without the division by the sum",
            tutorial(model, by_hand_unscaled),
            False,
        ),
        "softmax_layer": Way("softmax as a layer of its own, eager", tutorial(layer), False),
        "softmax_layer_graph": Way(
            "softmax as a layer of its own, inside tf.function",
            tf.function(tutorial(layer)),
            False,
        ),
        "compiled_model": Way(
            "only the model inside tf.function, the tape and the loss eager",
            tutorial(tf.function(model)),
            False,
        ),
    }


def batches(*arrays: Array, size: int = BATCH) -> Iterator[tuple[tf.Tensor, ...]]:
    """Slices of the arrays as tensors."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(tf.constant(array[start : start + size]) for array in arrays)


def gradients(way: Gradient, images: Array, labels: Array, size: int = BATCH) -> Array:
    """Each image's own gradient: the loss is a mean, so the batch size is multiplied away."""
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    parts = [way(x, y).numpy() * len(x) for x, y in batches(images, one_hot, size=size)]
    return np.concatenate(parts).reshape(len(images), -1)


def zero_share(gradient: Array) -> float:
    """Share of the images whose gradient is zero in every pixel: no attack step moves them."""
    return float((gradient == 0).all(axis=1).mean())


def compare(one: Array, other: Array) -> dict[str, float]:
    """How far two sets of gradients are the same, image by image.

    The greatest absolute difference alone would deceive: where one loss gives exactly zero the
    other gives very little, and only a difference relative to the image's own gradient shows it.
    """
    size = np.maximum(np.abs(one).max(axis=1), np.abs(other).max(axis=1))
    difference = np.abs(one - other).max(axis=1)
    relative = np.divide(difference, size, out=np.zeros_like(size), where=size > 0)
    same_zero = (one == 0).all(axis=1) == (other == 0).all(axis=1)
    return {
        "max_difference": float(difference.max()),
        "max_relative_difference": float(relative.max()),
        "share_of_images_with_the_same_gradient": float((relative <= SAME_GRADIENT).mean()),
        "share_of_images_zero_in_both_or_in_neither": float(same_zero.mean()),
        "share_of_pixels_with_the_same_sign": float((np.sign(one) == np.sign(other)).mean()),
    }


def loss_in_effect(against_logits: dict[str, float], against_probabilities: dict[str, float]) -> str:
    """Which of the two known losses gave these gradients, judged by the comparisons alone."""

    def fits(comparison: dict[str, float]) -> bool:
        return (
            comparison["share_of_images_with_the_same_gradient"] >= AGREEMENT
            and comparison["share_of_images_zero_in_both_or_in_neither"] >= AGREEMENT
        )

    match fits(against_logits), fits(against_probabilities):
        case True, False:
            return "logits"
        case False, True:
            return "probabilities"
        case True, True:
            return "undecided: on these images the two losses have the same gradients"
    return "neither"


def one_by_one(way: Gradient, images: Array, labels: Array) -> dict[str, float]:
    """The tutorial attacks single images: does the batch change anything?"""
    alone, together = (gradients(way, images, labels, size) for size in (1, BATCH))
    return {
        "images": len(images),
        "zero_share_alone": zero_share(alone),
        "zero_share_in_a_batch": zero_share(together),
        **compare(alone, together),
    }


# --------------------------------------------------------------------------------- the attacks


class Judge:
    """Accuracy and loss of attacked images, by a network that gives logits."""

    def __init__(self, logits: Any, labels: Array) -> None:
        self.forward = tf.function(lambda images: logits(images, training=False))
        self.labels = labels

    def __call__(self, images: Array) -> dict[str, float]:
        """Both losses are given: which one a plot shows depends on the code that drew it."""
        z = np.concatenate([self.forward(x).numpy() for (x,) in batches(images)])
        z = z - z.max(axis=1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        rows = np.arange(len(z))
        clipped = np.clip(p[rows, self.labels], np.float32(1e-7), np.float32(1 - 1e-7))
        log_sum = np.log(np.exp(z.astype(np.float64)).sum(axis=1))
        return {
            "accuracy": float((z.argmax(axis=1) == self.labels).mean()),
            "loss_logits": float((log_sum - z[rows, self.labels]).mean()),
            "loss_probabilities": float(-np.log(clipped).mean()),
        }


def signs(way: Gradient, images: Array, labels: Array) -> Array:
    """The gradient's sign, in the images' shape."""
    return np.sign(gradients(way, images, labels)).reshape(images.shape)


def fgsm(images: Array, sign: Array, eps: float) -> Array:
    """E2: one step of eps along the sign of the gradient, which is the same for every eps."""
    return np.clip(images + np.float32(eps) * sign, 0, 1)


def bim(way: Gradient, images: Array, labels: Array, step: float, ball: float | None) -> Iterator[Array]:
    """E3 and E4: the iterates of repeated small steps, without end.

    `ball` keeps them within that distance of the clean image (the paper's equation 2); None
    clips to the range of pixels only.
    """
    attacked = images
    while True:
        attacked = attacked + np.float32(step) * signs(way, attacked, labels)
        if ball is not None:
            attacked = np.clip(attacked, images - np.float32(ball), images + np.float32(ball))
        attacked = np.clip(attacked, 0, 1)
        yield attacked


def table(key: str, rows: dict[float, dict[str, float]]) -> dict[str, list[float]]:
    """Rows of numbers as columns, which is how a figure wants them."""
    names = next(iter(rows.values()))
    return {key: list(rows)} | {name: [row[name] for row in rows.values()] for name in names}


def curves(name: str, way: Gradient, images: Array, labels: Array, judge: Judge) -> dict[str, Any]:
    """E2, E3 and E4 for one way to write the gradient."""
    clean = judge(images)
    result: dict[str, Any] = {}

    sign = signs(way, images, labels)
    result["fgsm"] = table("eps", {eps: judge(fgsm(images, sign, eps)) for eps in EPSILONS})
    say(f"  {name}: FGSM {percent(result['fgsm'])}")

    for clipping in ("ball", "range"):
        rows = {0.0: clean}
        for eps in EPSILONS[1:]:
            iterates = bim(way, images, labels, eps / 4, eps if clipping == "ball" else None)
            rows[eps] = judge([next(iterates) for _ in range(BIM_ITERATIONS)][-1])
        result[f"bim_{clipping}"] = table("eps", rows)
        say(f"  {name}: BIM {clipping} {percent(result[f'bim_{clipping}'])}")

    result["bim_iterations"] = {}
    for label, step in E4_STEPS.items():
        rows = {0: clean}
        iterates = bim(way, images, labels, step, E4_EPSILON)
        for iteration in range(1, max(E4_ITERATIONS) + 1):
            attacked = next(iterates)
            if iteration in E4_ITERATIONS:
                rows[iteration] = judge(attacked)
        result["bim_iterations"][label] = table("iterations", rows)
        say(f"  {name}: BIM step {label} {percent(result['bim_iterations'][label])}")
    return result


def reported_loss(model: Any, images: Array, labels: Array, judge: Judge) -> dict[str, Any]:
    """The loss that `model.evaluate` prints, and which of the two it is."""
    seen = float(model.evaluate(images, labels, verbose=0)[0])
    known = {name: judge(images)[f"loss_{name}"] for name in ("logits", "probabilities")}
    fits = [name for name, loss in known.items() if abs(seen - loss) <= 1e-4 * abs(seen)]
    in_effect = fits[0] if len(fits) == 1 else "undecided" if fits else "neither"
    return {"evaluate": seen, **known, "loss_in_effect": in_effect}


# ---------------------------------------------------------------------------------- the report


def message(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


def percent(columns: dict[str, list[float]]) -> str:
    """A curve's accuracies for a line of progress."""
    return " ".join(f"{100 * accuracy:.1f}" for accuracy in columns["accuracy"])


def keras_version() -> str:
    """Version of the package that `tf.keras` stands for here."""
    package = tf.keras.Sequential.__module__.split(".")[0]
    return importlib.metadata.version(package)


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write(path: Path, result: dict[str, Any]) -> None:
    """The whole file or nothing; six digits a number, and each list of numbers on one line."""
    short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    text = json.dumps(short, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text + "\n")
    whole = Path(file.name)
    whole.chmod(0o644)
    whole.replace(path)


def arguments() -> argparse.Namespace:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train-images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keras2", action="store_true", help="run Keras 2 instead of Keras 3")
    parser.add_argument("--no-curves", action="store_true", help="compare the gradients, no more")
    parser.add_argument("--save-weights", type=Path, metavar="FILE", help="keep the network (.npz)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="do not train: attack this one")
    parser.add_argument("--out", type=Path, help="result file (beside this script by default)")
    options = parser.parse_args()
    options.out = options.out or here / ("result-keras2.json" if options.keras2 else "result.json")
    return options


def main() -> None:
    """Train, compare the gradients, draw the curves, write the file."""
    options = arguments()
    started = time.perf_counter()
    keras = keras_version()
    if options.keras2 != keras.startswith("2."):
        raise SystemExit(f"Keras {keras} does not fit: --keras2 is for Keras 2, and only for it")
    tf.keras.utils.set_random_seed(options.seed)

    all_images, all_labels = load(options.data_dir, "train")
    test_images, test_labels = load(options.data_dir, "t10k")
    train_set = all_images[: options.train_images], all_labels[: options.train_images]
    test = test_images[: options.test_images], test_labels[: options.test_images]

    model = network("softmax")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    if options.weights:
        say(f"TensorFlow {tf.__version__}, Keras {keras}: the network of {options.weights.name}")
        with np.load(options.weights) as weights:
            model.set_weights([weights[name] for name in weights.files])
        training: dict[str, Any] = {"weights": options.weights.name}
    else:
        say(f"TensorFlow {tf.__version__}, Keras {keras}: training on {len(train_set[0])} images")
        training = train(model, *train_set, test, options.epochs)
    if options.save_weights:
        np.savez(options.save_weights, *model.get_weights())
    accuracy = Judge(twin(model, "logits"), test_labels)(test_images)["accuracy"]
    say(f"  accuracy on all {len(test_labels)} test images: {accuracy:.4f}")
    trained = time.perf_counter() - started

    ways = ways_to_write_it(model)
    found = {name: gradients(way.gradient, *test) for name, way in ways.items()}
    judge = Judge(twin(model, "logits"), test[1])
    results: dict[str, Any] = {}
    for name, way in ways.items():
        against = {known: compare(found[name], found[known]) for known in ("logits", "probabilities")}
        results[name] = {
            "what": way.what,
            "zero_share": zero_share(found[name]),
            "loss_in_effect": loss_in_effect(against["logits"], against["probabilities"]),
            "compared_with": against,
        }
        say(
            f"{name}: zero gradients {results[name]['zero_share']:.3f}, "
            f"loss in effect: {results[name]['loss_in_effect']}"
        )

    adversarial = fgsm(test[0], signs(ways["tutorial"].gradient, *test), 0.1)
    alone = one_by_one(ways["tutorial"].gradient, test[0][:100], test[1][:100])
    evaluated = {
        "clean": reported_loss(model, *test, judge),
        "fgsm_0.1": reported_loss(model, adversarial, test[1], judge),
    }
    for name, way in ways.items():
        if way.curves and not options.no_curves:
            results[name] |= curves(name, way.gradient, *test, judge)

    result = {
        "question": "Which loss did the tutorial's attack code use in effect: "
        "the one from logits or the one from clipped float32 probabilities?",
        "loss_in_effect": results["tutorial"]["loss_in_effect"],
        "rule": f"a way uses a known loss if on at least {AGREEMENT:.0%} of the images its "
        f"gradient differs from that loss's by at most {SAME_GRADIENT:.0%} of its size, on at "
        f"least {AGREEMENT:.0%} both are zero or neither, and the other loss does not fit too",
        "run": {
            "date": datetime.now(UTC).date().isoformat(),
            "command": shlex.join(["python", "benchmarks/keras/reference.py", *sys.argv[1:]]),
            "seed": options.seed,
            "train_images": None if options.weights else len(train_set[0]),
            "epochs": None if options.weights else options.epochs,
            "test_images": len(test[0]),
            "seconds": round(time.perf_counter() - started),
            "seconds_training": round(trained),
            "versions": {
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "keras": keras,
                "numpy": np.__version__,
            },
            "hardware": {"processor": processor(), "cores": os.cpu_count(), "gpu": False},
        },
        "training": {"test_accuracy_of_all": accuracy, "all": len(test_labels), **training},
        "loss_reported_by_evaluate": evaluated,
        "one_image_at_a_time": alone,
        "ways": results,
    }
    write(options.out, result)
    say(f"{options.out.name}: loss in effect: {result['loss_in_effect']}, {result['run']['seconds']} s")


if __name__ == "__main__":
    main()
