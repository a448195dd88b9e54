"""The files of certificates: one HTML page, certification.json, the figure, a table of images; all or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casemate.documents import CERTIFICATION, SMOOTHING, document
from casemate.evaluation.certified import CertifiedEvaluation
from casemate.evaluation.fingerprints import fingerprint_of_images
from casemate.evaluation.intervals import Estimate, percent
from casemate.evaluation.smoothed import SmoothedEvaluation, smoothing_settings
from casemate.files import filling, write_bytes, write_json, write_text
from casemate.norms import format_eps
from casemate.progress import NULL_OBSERVER, Observer, Tracked, track
from casemate.provenance import machine_in_words, surroundings
from casemate.report.certification_figures import NAME, certified_and_attacked, certified_by_radius
from casemate.report.charts import Figure, styled
from casemate.report.folder import check_replaceable
from casemate.report.page import template_environment
from casemate.tables import Table, write_table
from casemate.timing import duration

CERTIFICATION_FILE = "certification.json"
"""Name of the file with the settings and results."""
CERTIFICATION_FILES = ("report.html", f"{NAME}.svg", "examples.parquet", "examples.csv", CERTIFICATION_FILE)
"""The files that are written; the table is one of the two."""
_IN_THE_WAY = "choose another folder, or give overwrite=True to replace it"


def write_certification(
    folder: Path,
    found: CertifiedEvaluation | SmoothedEvaluation,
    *,
    name: str,
    data: str,
    overwrite: bool = False,
    observer: Observer = NULL_OBSERVER,
) -> Path:
    """Write the files of a result made in Python; return the path of report.html. See `CertifiedEvaluation.report`."""
    if isinstance(found, CertifiedEvaluation):
        settings: dict[str, Any] = {"method": found.method, "budget": found.budget, "sample": found.sample}
        seed = found.seed
    else:
        settings = smoothing_settings(found.smoothing)
        seed = found.certificate.seed
    about = {
        "model": name,
        "data": data,
        "images": len(found.images),
        "classes": list(found.model.classes),
        "norm": found.norm,
        "eps": list(found.values),
        "eps_text": [format_eps(each) for each in found.values],
        **settings,
        "seed": seed,
        "device": str(found.model.device),
        "fingerprint": found.fingerprint,
        "images_sha256": fingerprint_of_images(found.images),
    }
    check_replaceable(
        folder, about, overwrite=overwrite, observer=observer, advice=_IN_THE_WAY, file=CERTIFICATION_FILE
    )
    write_certification_files(folder, found, about, observer=observer)
    return folder / "report.html"


def write_certification_files(
    folder: Path,
    found: CertifiedEvaluation | SmoothedEvaluation,
    about: Mapping[str, Any],
    *,
    threads: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> dict[str, Any]:
    """Write page, certification.json, figure and table, all or none; return the content of certification.json.

    Args:
        folder: where they are written.
        found: the result.
        about: its settings, for certification.json; among them model, data, device.
        threads: number of CPU threads, for certification.json; None: those that PyTorch uses now.
        observer: is informed of the progress.
    """
    schema = CERTIFICATION if isinstance(found, CertifiedEvaluation) else SMOOTHING
    result = document(schema, {**about, **found.as_json()})
    result["provenance"] = surroundings(about["device"], torch.get_num_threads() if threads is None else threads)
    with (
        observer.work("Writing the report", 0),
        filling(folder, CERTIFICATION_FILES, CERTIFICATION_FILE) as temporary,
    ):
        with styled():
            if isinstance(found, CertifiedEvaluation):
                figure, table = certified_and_attacked(found), certified_table(found)
            else:
                figure, table = certified_by_radius(found), smoothed_table(found)
        write_bytes(temporary / f"{NAME}.svg", figure.svg)
        write_table(table, temporary / "examples")
        write_json(temporary / CERTIFICATION_FILE, result)
        write_text(temporary / "report.html", _page(found, result, figure))
    names = [each for each in CERTIFICATION_FILES if (folder / each).exists()]
    track(observer, Tracked(files=[folder / each for each in names]))
    return result


def certified_table(found: CertifiedEvaluation) -> Table:
    """Table with a row per image.

    Columns: index, label, correct without an attack, certified_eps (the largest eps at which it is certified),
    attacked (whether it was, at any eps), fooled_at (the smallest eps at which it is misclassified under attack, 0
    without one), first_success (the attack that fooled it first).
    """
    values, names = np.array([float(each) for each in found.values]), [*found.attacks, None]
    count = len(values)
    proven = np.asarray(found.certified.any(1))
    last = count - 1 - found.certified[:, ::-1].argmax(1)
    fallen = ~found.robust[:, -1]
    first = np.array([0.0, *values])[np.where(found.clean, 1 + (~found.robust).argmax(1), 0)]
    return {
        "index": np.arange(len(proven)),
        "label": found.images.labels.cpu().numpy(),
        "correct": found.clean,
        "certified_eps": np.ma.masked_array(values[last], ~proven),
        "attacked": np.asarray(found.attacked.any(1)),
        "fooled_at": np.ma.masked_array(first, ~fallen),
        "first_success": np.array([names[max(place, -1)] for place in found.first_success], dtype=object),
    }


def smoothed_table(found: SmoothedEvaluation) -> Table:
    """Table with a row per image.

    Columns: index, label, prediction of the smoothed model (-1 where it abstains), radius within which that is
    certified, votes of `n` for the class that was selected.
    """
    made = found.certificate
    columns = {"label": made.labels, "prediction": made.prediction, "radius": made.radius, "votes": made.votes}
    return {"index": np.arange(len(made.labels))} | {name: each.cpu().numpy() for name, each in columns.items()}


def _page(found: CertifiedEvaluation | SmoothedEvaluation, result: Mapping[str, Any], figure: Figure) -> str:
    """The HTML of the report."""
    smoothed = isinstance(found, SmoothedEvaluation)
    void = isinstance(found, CertifiedEvaluation) and found.is_void
    attacks = [] if isinstance(found, SmoothedEvaluation) else [*found.successes_by_attack.items()]
    return (
        template_environment()
        .get_template("certification.html.j2")
        .render(
            found=found,
            smoothed=smoothed,
            attacked=isinstance(found, CertifiedEvaluation) and found.has_attacks,
            void=void,
            colour="red" if void else "green" if found.certified_accuracy[-1].value else "yellow",
            title=result["model"],
            cards=_cards(found),
            attacks={"head": ("attack", "first to fool"), "rows": attacks},
            figure=figure,
            about=_about(found, result),
        )
    )


def _cards(found: CertifiedEvaluation | SmoothedEvaluation) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page as texts: (what it is, value, interval)."""
    eps = f"eps {format_eps(found.values[-1])}"
    if isinstance(found, SmoothedEvaluation):
        shown = [
            ("smoothed model: clean accuracy", found.clean_accuracy),
            (f"smoothed model: certified, {eps}, alpha {found.smoothing.alpha:g}", found.certified_accuracy[-1]),
        ]
        return [*map(_card, shown), ("abstained", f"{found.abstained:,}", f"of {len(found.images):,} images")]
    shown = [("clean accuracy", found.clean_accuracy), (f"certified, {eps}", found.certified_accuracy[-1])]
    if found.has_attacks:
        shown.append((f"withstood every attack, {eps}", found.robust_accuracy[-1]))
    if not found.is_void:
        return [_card(each) for each in shown]
    return [_card(each) for each in shown if not each[0].startswith("certified")]


def _card(shown: tuple[str, Estimate]) -> tuple[str, str, str]:
    what, number = shown
    return (
        what,
        percent(number.value),
        f"95 % interval {percent(number.low)} to {percent(number.high)}, n = {number.n:,}",
    )


def _about(found: CertifiedEvaluation | SmoothedEvaluation, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows (name, value) of the report's table of settings."""
    made = result["provenance"]
    if isinstance(found, SmoothedEvaluation):
        chosen = found.smoothing
        how = [
            ("noise", f"normal, sigma {chosen.sigma:g} in the unit of the pixels"),
            ("draws for each image", f"{chosen.n0:,} to select the class, {chosen.n:,} others to certify it"),
            ("alpha", f"{chosen.alpha:g}: the probability, at most, that the certificate of one image is false"),
            ("time", duration(found.seconds)),
        ]
    else:
        how = [
            ("certificate", found.method),
            ("attacks", f"budget {found.budget}" if found.has_attacks else "none"),
            ("certified images attacked", f"at most {found.sample:,}" if found.has_attacks else "none"),
            ("time", found.time_sentence),
        ]
    return [
        ("model", f"{result['model']}, SHA-256 of its weights {found.fingerprint}"),
        ("images", f"{len(found.images):,} of {result['data']}, SHA-256 {result['images_sha256']}"),
        ("norm and eps", f"{found.norm}; {', '.join(map(format_eps, found.values))}"),
        *how,
        ("seed", str(result["seed"])),
        ("machine", machine_in_words(made)),
        ("software", f"casemate {made['casemate']}, PyTorch {made['libraries']['torch']}, Python {made['python']}"),
    ]
