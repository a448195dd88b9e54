"""The parts of the page that show results, as HTML: what `explore` computes, with pictures and plots."""

from collections.abc import Mapping, Sequence
from typing import Any

from casemate.norms import Norm
from casemate.play.explore import NORMS, Exploration, Masking
from casemate.play.pictures import image_uri, perturbation_uri
from casemate.play.study import StudyFigure
from casemate.report.page import template_environment

_NAMES: Mapping[Norm, str] = {norm: name for name, norm in NORMS.items()}
_WIDTH, _HEIGHT = 520, 150
"""Of the plot of the loss, in units of its drawing."""
_FLAT = 1e-6
"""A loss that stays below this is drawn as zero."""


def exploration_view(found: Exploration, classes: Sequence[str], bounds: tuple[float, float]) -> str:
    """Original, perturbation and adversarial image, the probabilities of all classes, and the loss by iteration."""
    change = found.adversarial - found.clean
    largest = change.abs().max().item()
    return _fill(
        "exploration.html.j2",
        found=found,
        classes=classes,
        pictures={
            "original": image_uri(found.clean, bounds),
            "perturbation": perturbation_uri(change),
            "adversarial": image_uri(found.adversarial, bounds),
        },
        largest=largest,
        magnified=(bounds[1] - bounds[0]) / (2 * largest) if largest else 0.0,
        norm=_NAMES[found.choice.norm],
        rows=_probabilities(found, classes),
        plot=loss_plot(found.losses, found.wrong),
    )


def _probabilities(found: Exploration, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class, in their order."""
    pairs = zip(classes, found.before.tolist(), found.after.tolist(), strict=True)
    return [
        {"name": name, "before": before, "after": after, "true": number == found.label}
        for number, (name, before, after) in enumerate(pairs)
    ]


def loss_plot(losses: Sequence[float], fooled: Sequence[bool]) -> dict[str, Any]:
    """The curve of the loss by iteration in the units of its drawing: points, and the ends of the axes."""
    top = max(losses)
    top = top if top > _FLAT else 1.0
    across = _WIDTH / max(1, len(losses) - 1)
    points = [
        {"x": round(number * across, 1), "y": round(_HEIGHT * (1 - loss / top), 1), "fooled": wrong, "loss": loss}
        for number, (loss, wrong) in enumerate(zip(losses, fooled, strict=True))
    ]
    first = next((number for number, wrong in enumerate(fooled) if wrong), None)
    return {"points": points, "width": _WIDTH, "height": _HEIGHT, "top": top, "last": len(losses) - 1, "first": first}


def smallest_view(found: Mapping[str, float | None], norm: Norm, width: float) -> str:
    """The smallest eps that fools each model, as bars; `width` is the range of the pixels."""
    longest = max((eps for eps in found.values() if eps is not None), default=0.0) or 1.0
    rows = [{"name": name, "eps": eps, "share": 0.0 if eps is None else eps / longest} for name, eps in found.items()]
    return _fill("smallest.html.j2", rows=rows, norm=_NAMES[norm], width=width)


def masking_view(found: Masking, classes: Sequence[str], bounds: tuple[float, float]) -> str:
    """The same attack through two losses, side by side."""
    sides = [
        {
            "title": title,
            "found": each,
            "picture": image_uri(each.adversarial, bounds),
            "change": perturbation_uri(each.adversarial - each.clean),
            "plot": loss_plot(each.losses, each.wrong),
        }
        for title, each in (
            ("Loss from probabilities", found.probabilities),
            ("Loss from logits", found.logits),
        )
    ]
    return _fill("masking.html.j2", found=found, sides=sides, classes=classes)


def study_view(figure: StudyFigure) -> str:
    """A figure of the study with its caption."""
    return _fill("study.html.j2", figure=figure)


def notice_view(message: str) -> str:
    """A message in the place of a result."""
    return _fill("notice.html.j2", message=message)


_TEMPLATES = template_environment("casemate.play")


def _fill(name: str, **values: Any) -> str:
    return _TEMPLATES.get_template(name).render(**values)
