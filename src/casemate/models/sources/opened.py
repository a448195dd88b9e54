"""`OpenedModel`: a model from any source, with what is known of it; and how it is made from a bare network."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.data import Resizing
from casemate.errors import ModelError
from casemate.models.checkpoint import ModelMetadata
from casemate.models.classifier import Classifier, is_numbered
from casemate.models.output_errors import described
from casemate.models.outputs import Output
from casemate.models.sources.facts import FLAGS, USER, ModelFacts, settle
from casemate.models.sources.query_count import QueryCount
from casemate.models.sources.trials import accepted_images
from casemate.models.state import frozen, is_in_training
from casemate.types import Images

_NAMED = "named by the images"
_CALL = "found by the first call"
"""The origin of facts that the first images showed."""
_PAIR = 8
"""Largest number of images that `check` passes through the network."""
_BEYOND = 0.01
"""How far pixels may lie beyond the bounds before they are taken to be on another scale, as a share of 1."""


@final
@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model, with its name, what is known of it, and the metadata saved beside its weights."""

    model: Classifier
    name: str
    """The model as the user named it: its file, package.module:function, or the name of a pretrained one."""
    short: str
    """The bare name of that file or function, for naming a folder of results."""
    stated: ModelFacts
    """What its source and the user say of it."""
    description: ModelMetadata | None = None
    """The metadata that casemate saved beside its weights; None for a model from elsewhere."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """The SHA-256, hexadecimal, of each file that the model was opened from, by its name, when it was opened."""
        return self.stated.files or {}

    @property
    def dataset(self) -> str | None:
        """Name of the data set that it was trained on, if it is known."""
        return None if self.description is None else self.description.dataset

    @property
    def facts(self) -> ModelFacts:
        """What is known of it by now: also what its first images showed, and where it computes."""
        shape, classes = self.model.interface["input_shape"], self.model.interface["classes"]
        shown = ModelFacts(
            channels=None if shape is None else shape[0],
            size=None if shape is None else shape[1:],
            classes=classes,
            output=self.model.ending and f"{self.model.ending} (taken off: the logits before it are attacked)",
        )
        facts = self.stated if self.model.ending is None else replace(self.stated, output=None)
        if classes is not None and classes != facts.classes and not is_numbered(classes):
            facts = replace(facts, classes=classes, origins={**facts.origins, "classes": _NAMED})
        facts = facts.completed(shown.known_from(_CALL))
        wanted, size = facts.preparation, facts.size
        if wanted is not None and size is not None:
            proportional = wanted if self.stated.size is None else wanted.in_proportion(size)
            facts = replace(facts, preparation=proportional if proportional.makes in (None, size) else None)
        return facts.completed(ModelFacts(device=str(self.model.device)).known_from("chosen"))

    @property
    def queries(self) -> int | None:
        """For a black box: the number of images that it was called with so far; None for any other model."""
        found = (getattr(each, "count", None) for each in self.model.modules())
        return next((each.used for each in found if isinstance(each, QueryCount)), None)

    def preparation_of(self, image_shape: tuple[int, ...]) -> Resizing | None:
        """The resizing and cropping by which the model's configuration brings images of a shape to its size, or None.

        Where the network takes images of any size, those smaller than its configuration's stay as they are: the model
        may have been trained on them.

        Args:
            image_shape: `(channels, height, width)`.
        """
        wanted, size = self.stated.preparation, tuple(image_shape[1:])
        if wanted is None or size == self.stated.size:
            return None
        if self.stated.size is not None:
            return wanted.in_proportion(self.stated.size)
        side = wanted.crop or wanted.size or 0
        least = min(side) if isinstance(side, tuple) else side
        return wanted if min(size) > least else None

    def check(self, images: Images) -> None:
        """Compare what was said of the model with a few images, and find out the rest by passing them through it.

        The model does not change, except that a network which returns probabilities gets their logarithm as its logits
        where the user said so.

        Raises:
            ModelError: the images or the outputs contradict what was said; the message names the option.
        """
        self._check_images(images)
        try:
            with frozen(self.model):
                self.model.examine(images[:2].to(self.model.device))
        except ModelError as error:
            raise ModelError(f"{error}{self._advice(str(error), images)}") from error
        self._check_output(images[:_PAIR])

    def _check_images(self, images: Images) -> None:
        channels, size = images.shape[1], tuple(images.shape[2:])
        stated, origins = self.stated, self.stated.origins
        low, high = self.model.bounds
        if images.isfinite().all() and (images.min() < low - _BEYOND or images.max() > high + _BEYOND):
            raise ModelError(
                f"the images have pixels from {images.min():.4g} to {images.max():.4g}; expected bytes, or numbers "
                f"from {low:g} to {high:g}: store pixels from 0 to 255 as uint8, or divided by 255, and images that "
                "are normalised without that, with --mean and --std instead. --bounds is about what the network takes"
            )
        if stated.size is not None and size != stated.size:
            wanted = f"{stated.size[0]} {stated.size[1]}"
            correct = ", or correct --size, or leave it out" if origins.get("size") == USER else ""
            raise ModelError(
                f"the images are {size[0]} x {size[1]}, but the model takes {stated.size[0]} x {stated.size[1]} "
                f"({_words(origins.get('size', ''))}); give --resize {wanted}{correct}"
            )
        if stated.channels is not None and channels != stated.channels:
            free = not stated.channels_last and "channels_last" not in origins
            last = "; if it takes height, width, channels, give --channels-last" if free else ""
            raise ModelError(
                f"the images have {channels} {'channel' if channels == 1 else 'channels'}, but the model takes "
                f"{stated.channels} ({_words(origins.get('channels', ''))}); give "
                f"{_other_channels(stated.channels)}{last}"
            )
        for name in ("mean", "std"):
            values = getattr(stated, name)
            if values is not None and len(values) not in (1, channels):
                raise ModelError(
                    f"{FLAGS[name]} has {len(values)} numbers ({_words(origins.get(name, ''))}), but the images have "
                    f"{channels} {'channel' if channels == 1 else 'channels'}; give {FLAGS[name]} one number, or one "
                    f"per channel, or {_other_channels(len(values))}"
                )

    @torch.no_grad()
    def _check_output(self, images: Images) -> None:
        """Raise `ModelError` if the network returns logits where probabilities were stated, or the reverse."""
        stated = self.stated.output
        if stated is None or self.stated.origins.get("output") != USER:
            return
        returned: list[Any] = []
        handle = self.model.network.register_forward_hook(lambda *call: returned.append(call[2]))
        try:
            with frozen(self.model):
                outputs = self.model(images.to(self.model.device))
        finally:
            handle.remove()
        if stated not in ("logits", "probabilities"):
            if returned and isinstance(returned[0], Tensor):
                raise ModelError(
                    f"--output {stated} names a part, but the network returns {described(returned[0])}; leave --output "
                    "out, or give logits or probabilities"
                )
            return
        likely = self.model.ending is not None or _are_probabilities(outputs)
        if stated == "logits" and likely:
            raise ModelError(
                "--output logits, but the network returns probabilities: numbers within [0, 1] whose sum is 1; give "
                "--output probabilities, or leave it out"
            )
        if stated == "probabilities" and not likely:
            raise ModelError(
                "--output probabilities, but the network returns numbers that are not within [0, 1] with the sum 1; "
                "give --output logits, or leave it out"
            )
        if stated == "probabilities" and self.model.ending is None and self.model.output is None:
            self.model.output = log_of_probabilities
            self.model.forget()
            self.model.infer(images)

    def _advice(self, message: str, images: Images) -> str:
        """Which options may be wrong, for a network that fails on the first images."""
        if "one logit for each of its" in message and self.stated.origins.get("classes") == USER:
            return ". --classes states another number of classes: correct it, or leave it out"
        if "output=" in message:
            return ". --output names the part that holds the logits: an index, a key or a name"
        if "fails on a batch" not in message or self.queries is not None:
            return ""
        last = bool(self.stated.channels_last)
        network = (
            self.model.network.network if isinstance(self.model.network, ChannelsLastInput) else self.model.network
        )
        shape = tuple(images.shape[1:])
        found = accepted_images(network, shape, channels_last=last, device=self.model.device)
        if found is None:
            return (
                ". It accepts no other usual size, number of channels or layout either: give images like those that it "
                "was trained on (--resize, --channels, --channels-last)"
            )
        order = "height, width, channels" if found.channels_last else "channels, height, width"
        ways = [] if found.channels_last == last else ["leave --channels-last out" if last else "give --channels-last"]
        ways += [] if found.channels == shape[0] else [f"give {_other_channels(found.channels)}"]
        if found.size != shape[1:]:
            ways.append(f"give --resize {found.size[0]} {found.size[1]}")
            ways += ["leave --size out"] if self.stated.origins.get("size") == USER else []
        return (
            f". The network accepts images of {found.size[0]} x {found.size[1]} with {found.channels} "
            f"{'channel' if found.channels == 1 else 'channels'}, in the order {order}: {', and '.join(ways)}"
        )

    def doubt(self, accuracy: float, low: float, guessing: float) -> str | None:
        """What to look at if the accuracy without an attack is not shown to be above guessing; None if it is.

        Args:
            accuracy, low: share of the images that are classified correctly, and the lower end of its interval.
            guessing: the share that guessing reaches.
        """
        if low > guessing:
            return None
        seen = {title: value for title, value, _ in self.facts.rows()}
        return (
            f"Without an attack {accuracy:.1%} of the images are classified correctly, which is not shown to be above "
            f"guessing ({guessing:.1%}). If the model is better, its images or classes were described wrongly: see "
            f"--mean and --std ({seen['mean']}; {seen['std']}), --bounds ({seen['range']}), --channels-last "
            f"({seen['layout']}), --weights, the order of --classes, and whether labels count from 0."
        )


def opened_network(
    network: nn.Module,
    found: ModelFacts,
    stated: ModelFacts | None,
    *,
    name: str,
    short: str,
    fixed: Collection[str] = (),
    keeps_mode: bool = False,
) -> OpenedModel:
    """A model around a bare network.

    Args:
        network: maps images of the layout, range and normalisation in the facts to logits.
        found: what its source says of it, with origins.
        stated: what the user says of it.
        name, short: see `OpenedModel`.
        fixed: names of facts that the user cannot state otherwise.
        keeps_mode: whether the network stays in the mode that it is in; else it is set to evaluation mode.

    Raises:
        ModelError: a contradiction between the facts; the message names the option.
    """
    facts = settle(found, stated, fixed=fixed, source=name)
    model = _classifier(network, facts)
    if not keeps_mode:
        model.eval()
    return OpenedModel(model=model, name=name, short=short, stated=facts.completed(_mode_of(model)))


def opened_classifier(
    model: Classifier, stated: ModelFacts | None, *, name: str, short: str, origin: str
) -> OpenedModel:
    """A model that is a `Classifier` already; what the user says of it must agree with it, or add to it.

    Raises `ModelError` for a contradiction; the message names the option.
    """
    found = stated_by(model, origin)
    facts = settle(found, stated, fixed=FLAGS, source=name).completed(_mode_of(model))
    new = set() if stated is None else {each for each in stated.named() if getattr(found, each) is None}
    if new:
        model = _classifier(model.network, facts, model.output)
    return OpenedModel(model=model, name=name, short=short, stated=facts)


def stated_by(model: Classifier, origin: str) -> ModelFacts:
    """What a `Classifier` states of itself."""
    shape, classes = model.interface["input_shape"], model.interface["classes"]
    normalised = model.mean is not None and model.std is not None
    part = model.output if isinstance(model.output, int | str) else None
    return ModelFacts(
        bounds=model.bounds,
        mean=tuple(model.mean.flatten().tolist()) if normalised and model.mean is not None else None,
        std=tuple(model.std.flatten().tolist()) if normalised and model.std is not None else None,
        channels=None if shape is None else shape[0],
        size=None if shape is None else shape[1:],
        classes=classes,
        output=part,
    ).known_from(origin)


def _mode_of(model: Classifier) -> ModelFacts:
    mode = "training (it is judged in evaluation mode)" if is_in_training(model) else "evaluation"
    return ModelFacts(mode=mode).known_from("the loaded network")


def log_of_probabilities(output: Any) -> Tensor:
    """The logarithm of probabilities `(n, classes)`, which are logits of the same softmax."""
    if not isinstance(output, Tensor):
        raise ModelError(f"--output probabilities, but the network returns {described(output)}; name its part instead")
    return output.clamp(min=torch.finfo(output.dtype).tiny).log()


def _classifier(network: nn.Module, facts: ModelFacts, part: Output | None = None) -> Classifier:
    """The classifier of images within [0, 1] that the facts describe, around `network`."""
    low, high = facts.bounds or (0.0, 1.0)
    mean, std = facts.mean, facts.std
    if (low, high) != (0.0, 1.0) or mean is not None:
        # pixels p within [0, 1] become low + (high - low) p, and then (... - mean) / std
        mean = tuple((each - low) / (high - low) for each in mean or (0.0,))
        std = tuple(each / (high - low) for each in std or (1.0,))
        width = max(len(mean), len(std))
        mean, std = (each * width if len(each) == 1 else each for each in (mean, std))
    known = facts.channels is not None and facts.size is not None
    shape = (facts.channels, *facts.size) if known and facts.size is not None and facts.channels is not None else None
    single = mean is not None and len(mean) == 1
    return Classifier(
        ChannelsLastInput(network) if facts.channels_last else network,
        input_shape=shape,
        classes=facts.classes,
        mean=mean[0] if single and mean is not None else mean,
        std=std[0] if single and std is not None else std,
        output=part if facts.output in (None, "logits", "probabilities") else facts.output,
    )


@final
class ChannelsLastInput(nn.Module):
    """A network that takes images `(n, height, width, channels)`, called with `(n, channels, height, width)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Images) -> Any:
        """What the network returns for the images in its own layout."""
        return self.network(images.permute(0, 2, 3, 1).contiguous())


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether each row of outputs is within [0, 1] and has the sum 1, or is the logarithm of such a row."""
    plain = bool(((outputs >= 0) & (outputs <= 1)).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())
    return plain or bool((outputs <= 0).all() and (outputs.exp().sum(1) - 1).abs().max() < 1e-3)


def _other_channels(count: int) -> str:
    """How images get another number of channels."""
    return f"--channels {count}" if count in (1, 3) else f"images with {count} channels"


def _words(origin: str) -> str:
    return "stated with an option" if origin == USER else origin or "its file"
