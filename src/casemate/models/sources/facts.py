"""`ModelFacts`: how a model takes its images and returns its classes, and where each of these is known from.

A source finds some facts in its file, the user states others by options, and the first images show the rest. What the
user states replaces what a file recommends, but must agree with what the file fixes: every contradiction is an error
that names the option.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

from casemate.data import Resizing
from casemate.errors import ModelError
from casemate.models.given import same_classes

FLAGS: Mapping[str, str] = {
    "bounds": "--bounds",
    "mean": "--mean",
    "std": "--std",
    "channels_last": "--channels-last",
    "size": "--size",
    "classes": "--classes",
    "output": "--output",
}
"""The command-line option that states a fact, by the fact's name."""
USER = "stated by the user"
"""The origin of facts that the user stated."""
_MOST_NAMES = 4
"""Largest number of class names that are shown."""
_SHOWN_DIGITS = 16
"""Number of digits of a hash that are shown; files have them all."""
_IF_KNOWN = ("preparation", "files")
"""Facts that are rows of a table only where they are known."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """How a model takes its images and returns its classes; what is not known is None."""

    bounds: tuple[float, float] | None = None
    """Smallest and largest pixel that the network takes, before `mean` and `std` are applied."""
    mean: tuple[float, ...] | None = None
    """Subtracted from the pixels, in units of `bounds`: one number, or one per channel."""
    std: tuple[float, ...] | None = None
    """Divides the pixels after that: one number, or one per channel."""
    channels_last: bool | None = None
    """Whether the network takes `(n, height, width, channels)`."""
    channels: int | None = None
    size: tuple[int, int] | None = None
    """Height and width of an image in pixels."""
    preparation: Resizing | None = None
    """How the model's configuration brings images to a size."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of the outputs; "0", "1" and so on where only their number is known."""
    output: int | str | None = None
    """What the network returns: "logits", "probabilities", or the index or key of the part that holds the logits."""
    mode: str | None = None
    """The mode that the network was in when it was loaded."""
    device: str | None = None
    """Where the model computes."""
    files: Mapping[str, str] | None = None
    """The SHA-256, hexadecimal, of each file that the model was opened from, by the file's name."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """By the name of a fact: where it is known from."""

    def named(self) -> dict[str, Any]:
        """The facts that are known, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "origins"}
        return {name: value for name, value in values.items() if value is not None}

    def known_from(self, origin: str) -> "ModelFacts":
        """The same facts, each of which is known from `origin`."""
        return replace(self, origins=dict.fromkeys(self.named(), origin))

    def completed(self, others: "ModelFacts") -> "ModelFacts":
        """These facts, and those of `others` that are not among them."""
        new = {name: value for name, value in others.named().items() if getattr(self, name) is None}
        origins = {name: others.origins.get(name, "") for name in new}
        return replace(self, **new, origins={**self.origins, **origins})

    def rows(self) -> list[tuple[str, str, str]]:
        """The facts as a table of texts: what, its value, and where it is known from; also what is not known."""
        found = [
            (name, *_described(name, self))
            for name in _TITLES
            if name not in _IF_KNOWN or getattr(self, name) is not None
        ]
        return [(_TITLES[name], value, origin) for name, value, origin in found]

    def as_json(self) -> dict[str, Any]:
        """The known facts in types that JSON can express, each with its origin."""
        plain = {name: _plain(value) for name, value in self.named().items()}
        return {name: {"value": value, "origin": self.origins.get(name, "")} for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """A fact's value in types that JSON can express."""
    if isinstance(value, Resizing):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


_TITLES = {
    "bounds": "range",
    "mean": "mean",
    "std": "std",
    "channels_last": "layout",
    "channels": "channels",
    "size": "size",
    "preparation": "preparation",
    "classes": "classes",
    "output": "output",
    "mode": "mode",
    "device": "device",
    "files": "SHA-256",
}
"""The title of a fact in a table, by its name, in the order of the rows."""
_UNSTATED = {
    "bounds": ("0 to 1", "by convention"),
    "mean": ("none", "by convention"),
    "std": ("none", "by convention"),
    "channels_last": ("channels, height, width", "by convention"),
    "output": ("logits", "by convention"),
}
"""Value and origin of a fact that nothing states."""


def _described(name: str, facts: ModelFacts) -> tuple[str, str]:
    """A fact's value as a text, and where it is known from, with the option that changes a convention."""
    value = getattr(facts, name)
    if value is None:
        text, origin = _UNSTATED.get(name, ("not known", ""))
        return text, f"{origin}; {FLAGS[name]} changes it" if origin else origin
    match name:
        case "bounds":
            text = f"{value[0]:g} to {value[1]:g}"
        case "mean" | "std":
            text = ", ".join(f"{each:.6g}" for each in value)
        case "channels_last":
            text = "height, width, channels" if value else "channels, height, width"
        case "size":
            text = f"{value[0]} x {value[1]}"
        case "preparation":
            text = f"images {value.in_words}"
        case "files":
            text = "\n".join(f"{file}: {digest[:_SHOWN_DIGITS]}..." for file, digest in value.items())
        case "classes":
            more = ", ..." if len(value) > _MOST_NAMES else ""
            text = f"{len(value)}: {', '.join(value[:_MOST_NAMES])}{more}"
        case _:
            text = str(value)
    return text, facts.origins.get(name, "")


def settle(
    found: ModelFacts, stated: ModelFacts | None, *, fixed: Collection[str] = (), source: str = "the model"
) -> ModelFacts:
    """The facts to build a model by: those that the user stated, else those found in its source.

    Args:
        found: what the source says, with origins.
        stated: what the user says.
        fixed: names of facts that are properties of the source and cannot be stated otherwise.
        source: its name, for errors about what it says itself.

    Raises:
        ModelError: a contradiction between the two or within the facts; the message names the option.
    """
    if stated is None:
        _check_together(found, source)
        return found
    for name, value in stated.named().items():
        own = getattr(found, name)
        if name in fixed and own is not None and not _agree(name, value, own):
            raise ModelError(
                f"{FLAGS.get(name, name)} {_as_written(value)} contradicts the model, which has "
                f"{_described(name, found)[0]} ({found.origins.get(name, 'its file')}); leave {FLAGS.get(name, name)} "
                "out, or choose another model"
            )
    facts = stated.known_from(USER).completed(found)
    _check_together(facts, source)
    return facts


def _agree(name: str, stated: Any, own: Any) -> bool:
    """Whether the user's value of a fact is that of the source; class names may be given to numbered classes."""
    if name == "classes":
        return same_classes(stated, own)
    if name in ("mean", "std"):
        return {round(each, 4) for each in stated} == {round(each, 4) for each in own}
    return stated == own


def _as_written(value: Any) -> str:
    """A stated value as the user writes it behind an option."""
    if isinstance(value, bool):
        return ""
    return (
        " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
        if isinstance(value, tuple)
        else str(value)
    )


def _check_together(facts: ModelFacts, source: str) -> None:
    """Raise `ModelError` if mean, std and bounds contradict each other or the number of channels."""
    try:
        _check_normalisation(facts)
    except ModelError as error:
        origins = {name: facts.origins.get(name) for name in ("bounds", "mean", "std") if name in facts.named()}
        if USER in origins.values():
            raise
        where = ", ".join(sorted({origin for origin in origins.values() if origin})) or "its file"
        raise ModelError(f"{source}: {where} says what these options would say: {error}") from error


def _check_normalisation(facts: ModelFacts) -> None:
    """See `_check_together`; the message names the options, whoever stated the facts."""
    low, high = facts.bounds or (0.0, 1.0)
    mean, std = facts.mean, facts.std
    if not low < high:
        raise ModelError(f"--bounds {low:g} {high:g}; expected the smaller number first")
    if mean is None and std is None:
        return
    if mean is None or std is None:
        given, missing = ("--std", "--mean") if mean is None else ("--mean", "--std")
        raise ModelError(f"{given} is given without {missing}; give both, or neither")
    for flag, values in (("--mean", mean), ("--std", std)):
        if facts.channels is not None and len(values) not in (1, facts.channels):
            raise ModelError(
                f"{flag} {_as_written(values)} has {len(values)} numbers, but the images have {facts.channels} "
                f"{'channel' if facts.channels == 1 else 'channels'}; give {flag} one number, or one per channel"
            )
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise ModelError(f"--mean has {len(mean)} numbers and --std {len(std)}; give as many of each")
    if not all(each > 0 for each in std):
        raise ModelError(f"--std {_as_written(std)}; expected positive numbers")
    width = high - low
    if not all(low <= each <= high for each in mean) or max(std) > 2 * width:
        raise ModelError(
            f"--mean {_as_written(mean)} and --std {_as_written(std)} do not fit pixels from {low:g} to {high:g}; if "
            "the network takes other pixels, such as bytes, give --bounds 0 255"
        )
    if width > 2 and any(mean) and max(mean) <= low + width / 128 and max(std) <= width / 128:
        raise ModelError(
            f"--mean {_as_written(mean)} and --std {_as_written(std)} are those of pixels within [0, 1], but --bounds "
            f"says {low:g} to {high:g}; leave --bounds out, or give mean and std in its units"
        )
