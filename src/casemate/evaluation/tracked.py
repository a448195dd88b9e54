"""What an evaluation passes to experiment trackers: accuracies with intervals, the verdict, findings, examples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from casemate.data import ReadableImages
from casemate.errors import StoreError
from casemate.evaluation.cascade_result import Cascade
from casemate.evaluation.findings import Finding, Severity
from casemate.evaluation.verdict import Verdict
from casemate.models import Classifier
from casemate.norms import format_eps
from casemate.progress import Observer, Tracked, TrackingObserver, track

_SHOWN = 8
"""Number of adversarial examples in the picture, at most."""


def track_evaluation(
    observer: Observer,
    model: Classifier,
    images: ReadableImages,
    cascade: Cascade,
    findings: Sequence[Finding],
    verdicts: Sequence[Verdict],
    seconds: float,
) -> None:
    """Pass on what an evaluation found, with a picture of a few images that were fooled; see `Evaluation`."""
    if not isinstance(observer, TrackingObserver):
        return
    numbers = {"evaluation/seconds": seconds}
    for each in verdicts if len(verdicts) > 1 else ():
        numbers |= each.number.robust.as_numbers(f"evaluation/robust_accuracy_at_{_word(each.number.eps)}")
    for attempt in cascade.attempts:
        left = (attempt.tried - attempt.fooled) / len(images)
        numbers[f"attacks/left_after_{attempt.attack}_at_{_word(attempt.eps)}"] = left
    severities = Counter(each.severity for each in findings)
    numbers |= {f"evaluation/findings_{each}": float(severities[each]) for each in Severity}
    numbers |= {f"evaluation/{name}_passes": float(count) for name, count in asdict(cascade.passes).items()}
    said = "\n".join(f"- {each.check} ({each.severity}): {each.sentence}" for each in findings)
    track_verdict(observer, verdicts[-1])
    pictures = _pictures(model, images, cascade)
    track(observer, Tracked(numbers=numbers, texts={"findings": said or "none"}, pictures=pictures))


def track_verdict(observer: Observer, verdict: Verdict) -> None:
    """Pass on a verdict, with the accuracies that it is about."""
    number = verdict.number
    numbers = number.clean.as_numbers("evaluation/clean_accuracy")
    numbers |= number.robust.as_numbers("evaluation/robust_accuracy")
    track(observer, Tracked(numbers=numbers, texts={"verdict": verdict.word, "verdict_sentence": verdict.sentence}))


def _word(eps: float) -> str:
    """A value of eps as a part of a name: 8/255 is "8_255"."""
    return format_eps(eps).replace("/", "_")


def _pictures(model: Classifier, images: ReadableImages, cascade: Cascade) -> dict[str, Any]:
    """A picture of a few images that were fooled, clean above adversarial; none if none was, or they are gone."""
    places = torch.from_numpy(np.flatnonzero(cascade.first_success >= 0)[:_SHOWN])
    if not len(places):
        return {}
    try:
        pairs = torch.stack([images.read(places).tensors()[0].cpu(), cascade.examples.read(places)])
    except StoreError:  # the report, if there is one, raises it
        return {}
    low, high = model.bounds
    pixels = ((pairs.float() - low) / (high - low)).clamp(0, 1)
    if pixels.shape[2] != 3:
        pixels = pixels.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    framed = F.pad(pixels, (1, 1, 1, 1), value=1.0)
    rows = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (2 heights, images x width, channels)
    return {"clean_above_adversarial": (rows * 255).round().to(torch.uint8).numpy()}
