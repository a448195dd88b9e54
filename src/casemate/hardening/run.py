"""Hardening of a trained model: evaluate it, fine-tune copies of it with and without a defence, evaluate these too.

The evaluations use the same test images and the same seed, so that differences are paired. The control is what an
honest comparison needs: it is trained for as many epochs, on the same images with labels, with the same settings and
the same choice of the epoch, by ordinary training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from casemate.data import Array, ImageSource, LabelledImages, StreamedImages
from casemate.defenses import Recipe
from casemate.devices import as_device
from casemate.evaluation import Budget, evaluate
from casemate.evaluation.tracked import track_verdict
from casemate.files import as_path
from casemate.hardening.compared import ComparedModel, FineTuning, compared_model, evaluation_tensors
from casemate.hardening.defaults import DEFAULT_RECIPE, FINE_TUNING
from casemate.hardening.plan import HardeningPlan, plan_hardening
from casemate.hardening.result import BEFORE, CONTROL, Hardened
from casemate.hardening.steps import Steps
from casemate.hardening.subject import trainable_copy
from casemate.models import Classifier, preserve_state
from casemate.progress import NULL_OBSERVER, Observer, Tracked, part_of, track
from casemate.torchrun import refuse_several
from casemate.training import CrossEntropy, TrainConfig, undone_epochs
from casemate.training.extra_state import load_state
from casemate.training.tracked import track_epoch


def harden(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource | None = None,
    *,
    test: ImageSource | None = None,
    unlabelled: Array | LabelledImages | StreamedImages | None = None,
    eps: float | str,
    norm: str = "linf",
    recipe: str | Recipe | Sequence[str | Recipe] | Mapping[str, str | Recipe] = DEFAULT_RECIPE,
    settings: TrainConfig = FINE_TUNING,
    budget: Budget = "standard",
    images: int | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    device: torch.device | str | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Hardened:
    """Fine-tune copies of a trained model, with a defence and without, and evaluate all of them on the same images.

    The model is evaluated first, so that images, labels or a radius that do not fit it stop everything at once. Then
    the control and the hardened models are trained, each from a copy of the model, and evaluated. The epoch that is
    kept is the one of the highest robust accuracy on the validation images, under a fixed attack.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits. It does not change.
        train: training images: `LabelledImages`, a pair of images and labels, a DataLoader or a Dataset.
        validation: images that choose the epoch; None to set a fifth of `train` aside.
        test: images for the evaluations; None to set a fifth of `train` aside. They choose nothing.
        unlabelled: further images to train on, without labels, for recipes that learn without them; labels that they
            have are not used.
        eps: the radius to harden against, in the unit of the pixels, such as "8/255".
        norm: in which eps is measured: linf, l2, l1 or l0.
        recipe: a name in `HARDENING_RECIPES`, a `Recipe`, or several, each of which makes a model; or a dictionary of
            such by the names that these models are given.
        settings: of the training, for the control too; its seed is replaced by `seed`.
        budget: of the evaluations: quick, autoattack, standard or thorough.
        images: number of test images to use, a stratified sample; None for all.
        seed: of all random draws.
        checkpoint: a folder in which finished steps are kept; if it exists, the hardening continues from there.
        device: where to compute; None for the model's device.
        observer: is informed of the progress; `casemate.progress_bars()` shows it.

    Raises:
        SettingError: a radius in another unit than the pixels, too few images, unknown recipes, or steps of another
            hardening in `checkpoint`.
        ShapeError: images that the model does not take, or labels that it has no class for.
        ModelError: a model without weights to train, with frozen batch normalisation, or that fails.
        EvaluationError: the robust accuracy of the model as it is would say nothing, such as for permuted labels.
        TrainingError: a loss that is not finite.
    """
    refuse_several("a hardening", "Start it without torchrun.")
    plan = plan_hardening(
        model,
        train,
        validation,
        test=test,
        unlabelled=unlabelled,
        eps=eps,
        norm=norm,
        recipe=recipe,
        settings=settings,
        budget=budget,
        images=images,
        seed=seed,
    )
    return run_hardening(plan, checkpoint=checkpoint, device=device, observer=observer)


def run_hardening(
    plan: HardeningPlan,
    *,
    checkpoint: Path | str | None = None,
    device: torch.device | str | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Hardened:
    """Run a checked hardening; for the arguments and errors see `harden`."""
    about, seed = plan.about(), plan.settings.seed
    track(observer, Tracked(settings=about))
    steps = Steps(None if checkpoint is None else as_path(checkpoint, "checkpoint"), about, observer)
    with preserve_state(plan.model, seed=seed):
        given = trainable_copy(plan.model).to(plan.model.device if device is None else as_device(device)).eval()
        count = 1 + 2 * len(plan.trainings)
        observer.message(f"Step 1 of {count}: evaluating the model as it is.")
        models = {BEFORE: _evaluated(plan, BEFORE, given, None, steps, observer)}
        for place, (name, recipe) in enumerate(plan.trainings.items()):
            observer.message(f"Step {2 + 2 * place} of {count}: fine-tuning {name}.")
            trained, how = _trained(plan, name, recipe, given, steps, observer)
            observer.message(f"Step {3 + 2 * place} of {count}: evaluating {name}.")
            models[name] = _evaluated(plan, name, trained, how, steps, observer)
        start = plan.selected(CrossEntropy()).accuracies(given, plan.parts.validation)
    found = Hardened(
        models=models,
        eps=plan.eps,
        norm=plan.norm,
        budget=plan.budget,
        seed=seed,
        test=plan.parts.test,
        plan=about,
        start=start,
        notes=(*plan.parts.notes, *_without_gain(models, start[0]), *_rolled_back(models)),
    )
    track(observer, Tracked(texts={"conclusion": found.conclusion}))
    return found


def _without_gain(models: Mapping[str, ComparedModel], start: float) -> list[str]:
    """A remark for each trained model of which no epoch is more robust on the validation images than the one given."""
    return [
        f"no epoch of {name} was more robust on the validation images than the model as it was given: another learning "
        "rate, more epochs, or a smaller eps may be needed"
        for name, each in models.items()
        if name != CONTROL and each.training is not None and each.training.robust <= start
    ]


def _rolled_back(models: Mapping[str, ComparedModel]) -> list[str]:
    """A remark for each trained model of which the guard undid epochs."""
    undone = {
        name: [str(epoch) for epoch in undone_epochs(each.training.history)]
        for name, each in models.items()
        if each.training is not None
    }
    return [
        f"the guard undid {'epoch' if len(epochs) == 1 else 'epochs'} {', '.join(epochs)} of {name}, after which PGD "
        "fooled far more validation images than before (catastrophic overfitting)"
        for name, epochs in undone.items()
        if epochs
    ]


def _evaluated(
    plan: HardeningPlan, name: str, model: Classifier, training: FineTuning | None, steps: Steps, observer: Observer
) -> ComparedModel:
    """The evaluation of a model, or the one that was kept.

    A trained model is attacked even if that says nothing: its verdict then says why, and the training is not lost.
    """
    kept = steps.read(f"evaluated-{name}")
    if kept is None:
        found = evaluate(
            model,
            plan.parts.test,
            eps=plan.eps,
            norm=plan.norm,
            budget=plan.budget,
            seed=plan.settings.seed,
            force=training is not None,
            store=steps.pieces,
            observer=part_of(observer, name),
        )
        kept = evaluation_tensors(found), found.as_json()
        steps.write(f"evaluated-{name}", *kept)
    compared = compared_model(name, model, *kept, training)
    track_verdict(part_of(observer, name), compared.verdict)  # of an evaluation that was kept, too
    return compared


def _trained(
    plan: HardeningPlan, name: str, recipe: Recipe, given: Classifier, steps: Steps, observer: Observer
) -> tuple[Classifier, FineTuning]:
    """A copy of the model, fine-tuned by a recipe, with the weights of the chosen epoch; or the one that was kept."""
    model, checkpoint = trainable_copy(given), steps.training(name)
    kept = steps.read(f"trained-{name}")
    if kept is None:
        found = replace(recipe, objective=plan.selected(recipe.objective)).fit(
            model,
            plan.parts.train_of(recipe.objective),
            plan.parts.validation,
            plan.settings_of(name),
            checkpoint=checkpoint,
            device=given.device,
            observer=part_of(observer, name),
        )
        kept = found.best, {"history": [_row(row) for row in found.history], "epoch": found.best_epoch}
        steps.write(f"trained-{name}", *kept)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    weights, how = kept
    for row in how["history"]:
        track_epoch(part_of(observer, name), row)
    load_state(model, weights)
    return model.eval(), FineTuning(**how)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a training's history, in which the validation loss is the share of images that the attack fooled."""
    return {name: value for name, value in row.items() if name != "val_loss"} | {"val_robust": 1 - row["val_loss"]}
