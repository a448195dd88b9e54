"""An evaluation's model, prepared for its attacks, and the folder of a store that keeps what is finished."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from casemate.attacks import prepare_for_attack
from casemate.data import LabelledImages
from casemate.evaluation.pieces import Measurements, PieceStore, open_pieces, plan_of
from casemate.models import Classifier, Frozen, Precision
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE
from casemate.models.accel.precision import in_bfloat16
from casemate.norms import Norm
from casemate.progress import Observer


def keeping_pieces(
    model: Classifier,
    few: LabelledImages,
    store: Path | str | None,
    seed: int,
    norm: Norm,
    draws: int,
    precision: Precision,
    batch_size: int | None,
    observer: Observer,
    *,
    fresh: bool,
) -> AbstractContextManager[PieceStore | None]:
    """The context of an evaluation that keeps its pieces in `store`; None keeps none. See `casemate.evaluate`."""
    if store is None:
        return nullcontext()
    about = plan_of(model, few, seed=seed, norm=norm, draws=draws, precision=precision, batch_size=batch_size)
    return open_pieces(store, about, fresh=fresh, observer=observer)


@contextmanager
def prepared_model(
    model: Classifier,
    few: LabelledImages,
    kept: PieceStore | None,
    work: int | None,
    precision: Precision,
    batch_size: int | None,
    observer: Observer,
) -> Iterator[Frozen]:
    """Prepare the model for its attacks.

    Pass size and precision come from the plan in the store; if there is none, they are measured and saved there.
    """
    known = None if kept is None else kept.measured
    pixels, _ = few.tensors(model.device)
    size, measured = (batch_size, precision) if known is None else (known.pass_size, "float32")
    with prepare_for_attack(
        model, pixels, pass_size=size, passes=work, precision=measured, observer=observer
    ) as prepared:
        if known is not None and known.precision == "bfloat16":
            prepared = replace(prepared, low_precision=in_bfloat16(prepared.copy))
        size = prepared.copy.pass_size or DEFAULT_PASS_SIZE
        own = known or Measurements(pass_size=size, precision=prepared.precision)
        if kept is None or kept.begin(own) == own:
            yield prepared
            return
    with prepared_model(
        model, few, kept, work, precision, batch_size, observer
    ) as prepared:  # as another client measured
        yield prepared
