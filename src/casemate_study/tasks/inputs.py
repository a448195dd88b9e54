"""The model, the attack and the test images that a task's configuration describes, for measures and pictures."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from casemate import data
from casemate.attacks import EOT, PRESETS, AbstractGradientAttack
from casemate.defenses import StochasticAffine, at_temperature, preprocessed, with_noise
from casemate.engine import Artifact, Context, ProducerFn
from casemate.models import DEFAULT_PASS_SIZE, Classifier, load
from casemate.progress import NULL_OBSERVER
from casemate.rng import derive


def classifier_for(config: dict[str, Any], needs: Mapping[str, Artifact], context: Context) -> Classifier:
    """Load the trained model of `needs["model"]` as the task's configuration says, onto the device.

    The configuration names which saved weights, the randomness added at inference (or None), and the number by which
    logits are divided (or None).
    """
    model, _ = load(needs["model"].path(f"{config['weights']}.safetensors"))
    if config["inference"] == "stochastic-affine":
        model = preprocessed(model, StochasticAffine())
    elif config["inference"] == "noise":
        model = with_noise(model)
    if config["divide"] is not None:
        model = at_temperature(model, config["divide"])
    return model.to(context.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def attack_of(spec: Mapping[str, Any]) -> AbstractGradientAttack:
    """Build the attack that `spec` describes: its name in `PRESETS` under "name", its settings under theirs.

    With the setting `eot_samples`, the attack averages gradients over that number of random draws (`EOT`).
    """
    settings = {name: value for name, value in spec.items() if name not in ("name", "eot_samples")}
    attack = PRESETS[spec["name"]](**settings)
    return EOT(attack=attack, eot_samples=spec["eot_samples"]) if "eot_samples" in spec else attack


@functools.lru_cache(maxsize=1)
def _read(dataset: str, context: Context) -> data.Dataset:
    return data.load(dataset, context.data_dir, observer=context.observer)


def read(dataset: str, context: Context) -> data.Dataset:
    """Load the data set called `dataset`; later calls in the same run return the same object without
    reading it again.
    """
    return _read(dataset, replace(context, observer=NULL_OBSERVER))


def batch_size(context: Context) -> int | None:
    """Images per forward pass: a fixed number on a CPU, so that results agree bit for bit; on a GPU None, which means
    that a size is chosen automatically.
    """
    return None if context.device.startswith("cuda") else DEFAULT_PASS_SIZE


def tested(config: dict[str, Any], context: Context) -> data.LabelledImages:
    """The test images that a task uses: the first of the data set, as many as `config["images"]` says."""
    return read(config["dataset"], context).test[: config["images"]]


def with_seeded_randomness(produce: ProducerFn) -> ProducerFn:
    """Wrap a producer: while it runs, PyTorch's global random generators are seeded from `config["seed"]`; afterwards
    their state is restored. Randomised models draw from them.
    """

    @functools.wraps(produce)
    def run(
        config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
    ) -> dict[str, Any]:
        gpus = [torch.device(context.device)] if context.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(derive(config["seed"], "answers at random"))
            return produce(config, needs, folder, working, context)

    return run
