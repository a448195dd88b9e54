"""Whether a teacher knows more than guessing does."""

from casemate.data import LabelledImages
from casemate.errors import CasemateError
from casemate.evaluation import evaluate_clean
from casemate.evaluation.intervals import percent
from casemate.evaluation.verdict import guessing_accuracy
from casemate.models import Classifier
from casemate.progress import Observer

_TRIED = 500
"""Largest number of images that a teacher is tried on."""


def report_untrained(teacher: Classifier, images: LabelledImages, observer: Observer) -> None:
    """Report a teacher that is not shown to be better than guessing, as one with fresh weights is.

    One that the images do not fit is not tried: the training says why.
    """
    tried = images[:_TRIED]
    try:
        found = evaluate_clean(teacher, tried).accuracy
    except CasemateError:
        return
    guessing = guessing_accuracy(tried.labels.numpy(), len(teacher.classes))
    if found.low <= guessing:
        observer.message(
            f"Note: the teacher is right on {found:n} of the images, and the commonest class is that of "
            f"{percent(guessing)}. Has it trained weights, and does it normalise its images? A function of your own "
            "can load and normalise, and return a casemate.Classifier."
        )
