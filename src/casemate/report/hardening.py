"""The files of a hardening: one HTML page, harden.json, and the weights of the trained models; all or none."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from casemate.documents import HARDENING, document
from casemate.evaluation.budgets import BUDGETS_IN_WORDS
from casemate.evaluation.intervals import percent
from casemate.files import filling, write_json, write_text
from casemate.hardening import ComparedModel, Hardened
from casemate.models import ModelMetadata, save
from casemate.norms import format_eps
from casemate.progress import Observer, Tracked, track
from casemate.provenance import surroundings
from casemate.report import hardening_figures
from casemate.report.charts import Figure, styled
from casemate.report.folder import check_replaceable
from casemate.report.page import template_environment
from casemate.timing import duration

HARDEN = "harden.json"
"""Name of the file with the settings and results of a hardening."""
_IN_THE_WAY = "choose another folder, or give overwrite=True to replace it"
_VERSION = "casemate"
"""The entry of the settings that may differ from that of a result that is replaced."""


def write_hardening(
    folder: Path,
    found: Hardened,
    *,
    name: str,
    data: str,
    source: str | None,
    metadata: ModelMetadata | None,
    images: bool,
    overwrite: bool,
    observer: Observer,
    options: Mapping[str, Any] | None = None,
    evaluate: str = "",
    advice: str = _IN_THE_WAY,
) -> Path:
    """Write the files of a hardening and return the path of report.html; see `Hardened.report`.

    `advice` is what to do about other results in the folder, the end of the error's message.
    """
    about = {"model": name, "data": data, **(options or {}), **found.plan}
    compared = {key: value for key, value in about.items() if key != _VERSION}
    check_replaceable(folder, compared, overwrite=overwrite, observer=observer, advice=advice, file=HARDEN)
    trained = [each for each in found.models.values() if each.training is not None]
    files = [*(f"{each.name}{end}" for each in trained for end in (".safetensors", ".json")), "report.html", HARDEN]
    with observer.work("Writing the report", 0), filling(folder, files, HARDEN) as temporary:
        weights = {each.name: _write_weights(each, temporary, found, metadata) for each in trained}
        loading = _loading(folder, found, source, metadata, evaluate)
        result = {
            **about,
            **found.as_json(),
            "weights": weights,
            "load": loading,
            "provenance": surroundings(str(found.model.device), torch.get_num_threads()),
        }
        write_json(temporary / HARDEN, document(HARDENING, result))
        write_text(temporary / "report.html", _page(found, result, images=images))
    track(observer, Tracked(files=[folder / each for each in files]))
    return folder / "report.html"


def _write_weights(
    each: ComparedModel, folder: Path, found: Hardened, metadata: ModelMetadata | None
) -> dict[str, str | None]:
    """Write the weights of a trained model; return the name and the SHA-256 of the file, None for a checkpoint's.

    The JSON file beside a checkpoint states its hash.
    """
    path = folder / f"{each.name}.safetensors"
    if metadata is None:
        return {"file": path.name, "sha256": found.save(path, each.name)}
    recipe = {
        "hardened_by": found.plan["recipes"].get(each.name, "ordinary training"),
        "training": found.plan["training"],
        "start": {"fingerprint": found.plan["fingerprint"], "recipe": metadata.recipe},
    }
    metrics = {
        "test_accuracy": each.clean.as_json(),
        "robust_accuracy": each.robust.as_json(),
        "eps": found.eps,
        "norm": found.norm,
    }
    save(each.model, path, replace(metadata, recipe=recipe, seed=found.seed, metrics=metrics))
    return {"file": path.name, "sha256": None}


def _loading(
    folder: Path, found: Hardened, source: str | None, metadata: ModelMetadata | None, evaluate: str
) -> list[str]:
    """Commands and code that use the best hardened model, one a line.

    `evaluate` are the options of the command; "" for those of the ball that the model was hardened against.
    """
    if not evaluate:
        evaluate = f"--eps {format_eps(found.eps)}" + ("" if found.norm == "linf" else f" --norm {found.norm}")
    path = folder / f"{found.best.name}.safetensors"
    shown = shlex.quote(str(path))
    if metadata is not None:
        return [f"casemate evaluate {shown} {evaluate}", f'model, _ = casemate.load("{path}")']
    lines = [f'network.load_state_dict(safetensors.torch.load_file("{path}"))']
    return lines if source is None else [f"casemate evaluate {source} --weights {shown} {evaluate}", *lines]


def _page(found: Hardened, result: Mapping[str, Any], *, images: bool) -> str:
    """The HTML of the report."""
    with styled():
        figures: list[Figure | None] = [hardening_figures.accuracies_and_differences(found)]
        if images:
            figures.append(hardening_figures.attacked_images(found))
        figures.append(hardening_figures.validation_by_epoch(found))
    helped = list(found.helped.values())
    colour = "green" if all(helped) else "red" if None in helped or not any(helped) else "yellow"
    return (
        template_environment()
        .get_template("hardening.html.j2")
        .render(
            found=found,
            colour=colour,
            result=result,
            title=result["model"],
            setting=f"eps {format_eps(found.eps)} ({found.norm})",
            budget_words=BUDGETS_IN_WORDS[result["budget"]],
            cards=_cards(found),
            differences={"head": _DIFFERENCE_COLUMNS, "rows": _differences(found)},
            verdicts=[(each.name, each.verdict) for each in found.models.values()],
            prices={"head": _PRICE_COLUMNS, "rows": _prices(found)},
            figures=[figure for figure in figures if figure is not None],
            about=_about(found, result),
            notes=[*found.notes, found.seed_note],
        )
    )


_DIFFERENCE_COLUMNS = ("models", "robust accuracy", "clean accuracy", "what follows")
_PRICE_COLUMNS = (
    *("model", "clean accuracy", "robust accuracy", "epochs", "epoch kept", "fine-tuning", "processor time"),
    "evaluation",
)


def _cards(found: Hardened) -> list[tuple[str, str, str]]:
    """The robust accuracies at the top of the page as texts: (what it is, value, interval)."""
    return [
        (
            f"{each.name}: robust accuracy",
            percent(each.robust.value),
            f"95 % interval {percent(each.robust.low)} to {percent(each.robust.high)}; "
            f"clean {percent(each.clean.value)}",
        )
        for each in found.models.values()
    ]


def _differences(found: Hardened) -> list[tuple[str, str, str, str]]:
    """The rows of the table of paired differences."""
    return [
        (
            f"{each.names[1]} minus {each.names[0]}",
            each.robust.words,
            "" if each.clean is None else each.clean.words,
            each.conclusion,
        )
        for each in found.comparisons
    ]


def _prices(found: Hardened) -> list[tuple[str, ...]]:
    """The rows of the table of models: accuracies, and what each cost."""
    rows: list[tuple[str, ...]] = []
    for each in found.models.values():
        how = each.training
        trained = ("", "", "", "")
        if how is not None:
            trained = (str(len(how.history)), str(how.epoch), duration(how.seconds), duration(how.processor_seconds))
        rows.append(
            (each.name, f"{each.clean}", f"{each.robust}", *trained, duration(float(each.evaluation["seconds"])))
        )
    return rows


def _unlabelled(result: Mapping[str, Any]) -> str:
    """How many images without labels there were, as the end of a sentence; empty for none."""
    if "unlabelled_images" not in result:
        return ""
    where = f" ({result['unlabelled']})" if "unlabelled" in result else ""
    return f"; {result['unlabelled_images']:,} without labels to train on{where}"


def _about(found: Hardened, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows (name, value) of the report's table of settings."""
    made, training = result["provenance"], result["training"]
    return [
        ("model", f"{result['model']}, SHA-256 of its weights {result['fingerprint']}"),
        (
            "images",
            f"{result['data']}: {result['train_images']:,} to train on, {result['validation_images']:,} to choose the "
            f"epoch, {result['images']:,} to test on{_unlabelled(result)}",
        ),
        ("norm and eps", f"{found.norm}, {format_eps(found.eps)}"),
        ("recipes", "; ".join(f"{name}: {recipe}" for name, recipe in result["recipes"].items())),
        ("training", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in training.items())),
        ("budget", result["budget"]),
        ("seed", str(found.seed)),
        ("machine", f"{made['processor']}, {made['cores']} cores, {made['threads']} threads, {made['device']}"),
        ("software", f"casemate {made['casemate']}, PyTorch {made['libraries']['torch']}, Python {made['python']}"),
    ]
