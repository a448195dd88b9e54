"""All figures of the study, each from stored results alone."""

from collections.abc import Mapping

from casemate.report import Figure, styled
from casemate_study.report import augmentation, curves, model_comparison, overview, pictures
from casemate_study.report.hypotheses_figure import hypotheses_figure
from casemate_study.results.models import ModelResults
from casemate_study.results.stored import Artifacts


def all_figures(artifacts: Artifacts, models: Mapping[str, ModelResults]) -> list[Figure]:
    """Draw every figure whose artifacts are finished: the paper's in the order of their numbers, then ours."""
    with styled():
        found = (
            *augmentation.augmentation_figures(artifacts),
            pictures.samples_figure(artifacts),
            pictures.architecture_figure(artifacts),
            curves.training_figure(artifacts),
            pictures.confusion_figure(artifacts),
            pictures.before_after_figure(
                artifacts,
                "E2/pictures",
                "figure-09",
                "Before and after FGSM at eps 0.1",
                "FGSM ascending the stable cross-entropy.",
            ),
            pictures.before_after_figure(
                artifacts,
                "E3/pictures",
                "figure-10",
                "Original, BIM with clip ball, BIM with clip range, eps 0.05",
                "10 iterations of eps / 4, ascending the stable cross-entropy.",
            ),
            curves.fgsm_figure(artifacts),
            curves.bim_figure(artifacts),
            curves.iterations_figure(artifacts),
            model_comparison.defenses_figure(models),
            model_comparison.distillation_figure(models, "ce", "figure-16"),
            model_comparison.distillation_figure(models, "prob-ce", "figure-16-saturated"),
            curves.overfitting_figure(artifacts),
            model_comparison.early_stopping_figure(models),
            model_comparison.regularised_bim_figure(models),
            augmentation.neighbours_figure(artifacts),
            overview.accuracies_figure(models),
            overview.diagnosis_figure(models),
            curves.checkpoints_figure(artifacts),
            hypotheses_figure(artifacts),
            overview.targeted_figure(artifacts, models),
        )
    return sorted((figure for figure in found if figure is not None), key=_place)


def _place(figure: Figure) -> tuple[bool, str]:
    """Sort key that puts the paper's figures first, by number, and leaves the others in the order given."""
    numbered = figure.name.startswith("figure-")
    return (not numbered, figure.name if numbered else "")
