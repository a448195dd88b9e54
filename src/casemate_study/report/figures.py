"""All figures of the study in the paper's order, each from stored artifacts alone."""

from collections.abc import Mapping

from casemate.report import Figure, styled
from casemate_study.report import augmentation, curves, model_comparison, overview, pictures
from casemate_study.results import Artifacts, ModelResults


def all_figures(artifacts: Artifacts, models: Mapping[str, ModelResults]) -> list[Figure]:
    """Every figure whose artifacts are there: the paper's in its order, then ours."""
    with styled():
        found = (
            *augmentation.augmented(artifacts),
            pictures.samples(artifacts),
            pictures.architecture(artifacts),
            curves.training(artifacts),
            pictures.confusion(artifacts),
            pictures.before_after(
                artifacts,
                "E2/pictures",
                "figure-09",
                "Before and after FGSM at eps 0.1",
                "FGSM ascending the stable cross-entropy.",
            ),
            pictures.before_after(
                artifacts,
                "E3/pictures",
                "figure-10",
                "Original, BIM with clip ball, BIM with clip range, eps 0.05",
                "10 iterations of eps / 4, ascending the stable cross-entropy.",
            ),
            curves.fgsm(artifacts),
            curves.bim(artifacts),
            curves.iterations(artifacts),
            model_comparison.defences(models),
            model_comparison.distillation(models, "ce", "figure-16"),
            model_comparison.distillation(models, "prob-ce", "figure-16-saturated"),
            curves.overfitted(artifacts),
            model_comparison.early(models),
            model_comparison.regularised_bim(models),
            augmentation.neighbours(artifacts),
            overview.accuracies(models),
            overview.diagnosis(models),
            curves.masking(artifacts),
            overview.targeted(artifacts, models),
        )
    return sorted((figure for figure in found if figure is not None), key=_place)


def _place(figure: Figure) -> tuple[bool, str]:
    """The paper's figures by number; the others after them as they come."""
    numbered = figure.name.startswith("figure-")
    return (not numbered, figure.name if numbered else "")
