"""Neural Structured Learning's side of the comparison, which needs TensorFlow and an environment of its own.

    .venv-nsl/bin/python benchmarks/defenses/nsl_side.py FOLDER

FOLDER holds `given.npz` (images, labels, neighbours where there are any, and the initial weights by PyTorch's names)
and `given.json` (what to do, and NSL's settings); it gets `found.npz` and `found.json`. `nsl.py` writes and reads them.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import neural_structured_learning as nsl  # pyright: ignore[reportMissingImports]
import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingImports]

INPUT, LABEL = "image", "label"
LAYERS = ("0", "2", "5", "7")
"""PyTorch's names of the layers with weights, in order."""


def network() -> Any:
    """The network of `plan.network`, with its images as PyTorch has them: `(n, 1, 28, 28)`."""
    layers = tf.keras.layers
    image = layers.Input((1, 28, 28), name=INPUT)
    found = layers.Permute((2, 3, 1))(image)
    for filters in (8, 16):
        found = layers.Conv2D(filters, 4, 2, activation="relu")(layers.ZeroPadding2D(1)(found))
    found = layers.Flatten()(layers.Permute((3, 1, 2))(found))
    return tf.keras.Model(image, layers.Dense(10)(layers.Dense(64, activation="relu")(found)))


def to_keras(weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Weights by PyTorch's names, as Keras orders and turns them."""
    found = []
    for name in LAYERS:
        weight = weights[f"{name}.weight"]
        found += [weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, weights[f"{name}.bias"]]
    return found


def from_keras(weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The reverse of `to_keras`."""
    found = {}
    for name, weight, bias in zip(LAYERS, weights[::2], weights[1::2], strict=True):
        found[f"{name}.weight"] = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        found[f"{name}.bias"] = bias
    return found


def regularised(settings: dict[str, Any], base: Any) -> Any:
    """NSL's wrapper of a network: adversarial regularisation, or that by a graph."""
    settings = dict(settings)
    if settings.pop("kind") == "adversarial":
        for limit in ("clip_value_min", "clip_value_max"):  # a number alone does nothing where inputs have names
            settings[limit] = None if settings[limit] is None else {INPUT: settings[limit]}
        config = nsl.configs.make_adv_reg_config(**settings)
        return nsl.keras.AdversarialRegularization(base, label_keys=[LABEL], adv_config=config)
    return nsl.keras.GraphRegularization(base, nsl.configs.make_graph_reg_config(**settings))


def batch_of(given: dict[str, np.ndarray], what: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The inputs and the labels of `fit`; adversarial regularisation wants the labels among the inputs."""
    if what["settings"]["kind"] == "adversarial":
        return {**features(given), LABEL: given["labels"]}, None
    return features(given), given["labels"]


def features(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The images, and those of their neighbours with their weights, by the names that NSL reads."""
    found = {INPUT: given["images"]}
    if "neighbours" in given:
        for place, index in enumerate(given["neighbours"].T):
            found[f"NL_nbr_{place}_{INPUT}"] = given["pool"][index]
            found[f"NL_nbr_{place}_weight"] = given["neighbour_weights"][:, place : place + 1]
    return found


def compiled(given: dict[str, np.ndarray], what: dict[str, Any], optimizer: Any) -> tuple[Any, Any]:
    """The wrapped network with the given weights, ready to train, and the network itself."""
    base = network()
    base.set_weights(to_keras(given))
    wrapped = regularised(what["settings"], base)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped.compile(optimizer=optimizer, loss=loss, run_eagerly=False)
    return wrapped, base


def step(given: dict[str, np.ndarray], what: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The loss of one batch in float64, its gradients, and the adversarial images where there are some.

    The gradients are those that NSL's own training step applies: what a step of SGD with a rate of 1 subtracts.
    """
    tf.keras.backend.set_floatx("float64")
    wrapped, base = compiled(given, what, tf.keras.optimizers.legacy.SGD(1.0))
    (inputs, labels), found = batch_of(given, what), dict[str, np.ndarray]()
    if labels is None:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        found["adversarial"] = np.asarray(wrapped.perturb_on_batch(tensors)[INPUT])
    before = base.get_weights()
    value = wrapped.train_on_batch(inputs, labels, return_dict=True)["loss"]
    gradients = [old - new for old, new in zip(before, base.get_weights(), strict=True)]
    return {**found, **from_keras(gradients)}, {"loss": float(value)}


def train(given: dict[str, np.ndarray], what: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights after a whole training, and its seconds; one on two batches goes before."""
    tf.keras.utils.set_random_seed(what["seed"])
    inputs, labels = batch_of(given, what)
    rate, few = what["learning_rate"], 2 * what["batch_size"]
    wrapped, base = compiled(given, what, tf.keras.optimizers.Adam(rate, epsilon=what["adam_eps"]))
    options = {"batch_size": what["batch_size"], "verbose": 0}
    wrapped.fit({key: each[:few] for key, each in inputs.items()}, None if labels is None else labels[:few], **options)
    for variable in wrapped.optimizer.variables:  # Adam's moments and its count of steps; the rate stays
        if "learning_rate" not in variable.name:
            variable.assign(tf.zeros_like(variable))
    base.set_weights(to_keras(given))
    start, cpu = time.perf_counter(), time.process_time()
    wrapped.fit(inputs, labels, epochs=what["epochs"], shuffle=True, **options)
    seconds = {"seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - start}
    return from_keras(base.get_weights()), seconds


def graph(given: dict[str, np.ndarray], what: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The edges that NSL's `build_graph` finds between the images: two positions and a weight each."""
    folder = Path(what["folder"])
    records, edges = folder / "images.tfrecord", folder / "edges.tsv"
    with tf.io.TFRecordWriter(str(records)) as writer:
        for number, image in enumerate(given["images"]):
            columns = {
                "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(number).encode()])),
                "embedding": tf.train.Feature(float_list=tf.train.FloatList(value=image.flatten())),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=columns)).SerializeToString())
    config = nsl.configs.GraphBuilderConfig(similarity_threshold=what["similarity_threshold"])
    nsl.tools.build_graph_from_config([str(records)], str(edges), config)
    lines = [line.split("\t") for line in edges.read_text().splitlines()]
    return {"edges": np.array([[float(value) for value in line] for line in lines])}, {}


def main(folder: Path) -> None:
    """Do what the folder says."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    what = json.loads((folder / "given.json").read_text())
    with np.load(folder / "given.npz") as file:
        given = dict(file)
    arrays, numbers = {"step": step, "train": train, "graph": graph}[what["do"]](given, {**what, "folder": folder})
    versions = {name: metadata.version(name) for name in ("neural-structured-learning", "tensorflow-cpu")}
    np.savez(folder / "found.npz", **arrays)
    (folder / "found.json").write_text(json.dumps({**numbers, "versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
