"""The files of an evaluation: record, result.json, table of examples and report.html, written all or none."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from casemate.documents import EVALUATION, document
from casemate.evaluation import Evaluation
from casemate.evaluation.examples import evaluation_table
from casemate.evaluation.fingerprints import fingerprint_of_images
from casemate.evaluation.proof import prove
from casemate.evaluation.record import write_evaluated
from casemate.files import filling, write_json
from casemate.norms import format_eps
from casemate.progress import NULL_OBSERVER, Observer, Tracked, track
from casemate.provenance import surroundings
from casemate.report.evaluation import build_evaluation
from casemate.report.folder import FILES, RESULT, check_replaceable
from casemate.tables import write_table

_IN_THE_WAY = "choose another folder, or give overwrite=True to replace it"


def write_evaluation(
    folder: Path,
    found: Evaluation,
    *,
    name: str,
    data: str,
    images: bool = True,
    overwrite: bool = False,
    observer: Observer = NULL_OBSERVER,
) -> Path:
    """Write the files of an evaluation made in Python; return the path of report.html. See `Evaluation.report`."""
    about = {
        "model": name,
        "data": data,
        "images": len(found.images),
        "classes": list(found.clean.classes),
        "norm": found.norm,
        "eps": list(found.values),
        "eps_text": [format_eps(each) for each in found.values],
        "budget": found.budget,
        "substitute": None,
        "precision": found.precision,
        "seed": found.seed,
        "borders": asdict(found.verdict.borders),
        "device": str(found.model.device),
        "fingerprint": found.fingerprint,
        "images_sha256": fingerprint_of_images(found.images),
    }
    check_replaceable(folder, about, overwrite=overwrite, observer=observer, advice=_IN_THE_WAY)
    write_files(folder, found, about, images=images, observer=observer)
    return folder / "report.html"


def write_files(
    folder: Path,
    found: Evaluation,
    about: Mapping[str, Any],
    *,
    images: bool = True,
    threads: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> dict[str, Any]:
    """Write record, result.json, table of examples and report.html, all or none; return the content of result.json.

    Args:
        folder: where they are written.
        found: the evaluation.
        about: its settings, for result.json; among them model, data, device.
        images: whether record and report hold images; else hashes only.
        threads: number of CPU threads, for result.json; None: those that PyTorch uses now.
        observer: is informed of the progress.
    """
    proof = prove(found, found.model, observer)
    result = document(EVALUATION, {**about, **found.as_json()})
    proven = int(proof.proven.sum())
    result["provenance"] = surroundings(about["device"], torch.get_num_threads() if threads is None else threads)
    with observer.work("Writing the report", 0), filling(folder, FILES, RESULT) as temporary:
        claims = write_evaluated(found, proof, temporary, name=about["model"], data=about["data"], images=images)
        result["fingerprint"] = claims["fingerprint"]
        result["record"] = {
            "examples": proven,
            "unproven": int((found.cascade.first_success >= 0).sum()) - proven,
            "robust_accuracy": list(claims["robust_accuracy"]),
            "holds_images": images,
        }
        write_table(evaluation_table(found, proof.prediction.numpy()), temporary / "examples")
        write_json(temporary / RESULT, result)
        build_evaluation(temporary)
    track(observer, Tracked(files=[folder / each for each in FILES if (folder / each).exists()]))
    return result
