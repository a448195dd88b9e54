"""All figures of the study in the paper's order, each from stored pieces alone."""

from collections.abc import Mapping

from casemate.engine import Piece
from casemate.report import curves, pictures
from casemate.report.charts import Figure, styled


def all_figures(pieces: Mapping[str, Piece]) -> list[Figure]:
    """Every figure whose pieces are there, in the paper's order."""
    with styled():
        found = (
            pictures.samples(pieces),
            pictures.architecture(pieces),
            curves.training(pieces),
            pictures.confusion(pieces),
            pictures.before_after(
                pieces,
                "E2/pictures",
                "figure-09",
                "Before and after FGSM at eps 0.1",
                "FGSM ascending the stable cross-entropy.",
            ),
            pictures.before_after(
                pieces,
                "E3/pictures",
                "figure-10",
                "Original, BIM with clip ball, BIM with clip range, eps 0.05",
                "10 iterations of eps / 4, ascending the stable cross-entropy.",
            ),
            curves.fgsm(pieces),
            curves.bim(pieces),
            curves.iterations(pieces),
            curves.masking(pieces),
            curves.overfitted(pieces),
        )
    return [figure for figure in found if figure is not None]
