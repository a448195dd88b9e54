"""The pieces of an evaluation, kept in a store while it runs, so that one that was stopped goes on where it was.

    STORE/evaluations/PLAN/plan.json                  what was measured once, and what the pieces belong to
    STORE/evaluations/PLAN/MEASURED/KEY.safetensors   the result of one attack at one eps on one shard of the images

PLAN is a hash of what all pieces have in common: the model (its weights, and its logits and gradients on the first
images, which its code determines), seed, norm, the code of the attacks, PyTorch, processor and threads. The number of
images, the values of eps and the list of attacks are no part of it. MEASURED is what was measured, such as 64-float32.
KEY continues a chain: the shard's images and which of them are classified correctly, then every attack with its eps up
to this one, since an attack runs on what those before it left. So an evaluation on more images, or with another eps or
attack at the end, finds all earlier pieces.

Every piece is written whole or not at all, with a SHA-256. A damaged one is computed again.

On shared storage plan and pieces are objects (`casemate.engine.objects`), of which each machine has copies as above:

    URL/evaluations/PLAN/plan.safetensors             what the first of all machines measured
    URL/evaluations/PLAN/MEASURED/KEY.safetensors     a piece
"""

import hashlib
import inspect
import json
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from casemate.arrays import UnsoundError, bytes_of, read_safetensors, safetensors_metadata
from casemate.attacks import AbstractAttack, Misclassification, Passes, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.engine.code_version import code_version
from casemate.engine.evaluations import (
    ATTACKS,
    PLAN,
    PLAN_OBJECT,
    about_evaluations,
    evaluation_folders,
    evaluations_on,
    using,
)
from casemate.engine.objects import Objects
from casemate.engine.store import opened
from casemate.errors import EvaluationError, StoreError
from casemate.evaluation.adversarial import TENSOR
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.files import make_folder, read_json, write_bytes, write_json, write_text
from casemate.models import Classifier, Precision
from casemate.progress import NULL_OBSERVER, Observer
from casemate.provenance import environment, instruction_set, processor
from casemate.rng import all_seeded, derive
from casemate.rows import Rows
from casemate.types import Flags, Images, Labels, PerExample

_SCHEMA = 1
_FACTS = ("tried", "status", "seconds", "pass_size", "processor")
"""The fields of a piece that are no tensors."""
_LISTED_FOR = 10.0
"""Seconds after which the pieces on shared storage are listed again."""
_MOST_PLANS = 100
"""Most plans on shared storage among which the reason is sought why an evaluation finds no pieces."""


@final
@dataclass(frozen=True)
class Nearest(Rows):
    """The results of a minimum-norm attack on some images of a shard, at whatever distance, one entry per image."""

    places: Labels
    """Positions of the images in the shard, ascending."""
    images: Images
    success: Flags
    norm: PerExample
    status: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Piece:
    """The result of one attack at one eps on the images of a shard that all attacks before it left."""

    tried: int
    """Number of images attacked."""
    places: Labels
    """Positions in the shard of the images fooled within eps, int64 `(k,)`."""
    adversarial: Images
    distance: PerExample
    """Norm of the perturbations in `adversarial`, `(k,)`."""
    status: Mapping[str, int]
    """Number of the images attacked that ended with each `Status`, by its name in lower case."""
    passes: Passes
    seconds: float
    pass_size: int | None
    """Images per pass at the end: less than in the plan if memory ran out."""
    nearest: Nearest | None = None
    """Of a minimum-norm attack: its results at every distance, from which those at larger eps follow."""
    processor: str | None = None
    """What computed it, if logits differ there in the last bits from those where the evaluation runs."""

    def write(self, path: Path) -> None:
        """Write the piece as a .safetensors file, whole or not at all."""
        tensors = {"places": self.places, TENSOR: self.adversarial, "distance": self.distance}
        if self.nearest is not None:
            tensors |= {f"nearest_{each.name}": getattr(self.nearest, each.name) for each in fields(Nearest)}
        facts = {name: getattr(self, name) for name in _FACTS}
        text = json.dumps(facts | {"passes": asdict(self.passes)})
        own = {name: each.cpu().contiguous() for name, each in tensors.items()}
        metadata = {"facts": text, "sha256": _checksum(text, own)}
        # not by `save_file`, which writes a temporary file of its own, and after a kill nobody knows whose it is
        write_bytes(path, safetensors.torch.save(own, metadata))

    @classmethod
    def read(cls, path: Path) -> "Piece | None":
        """The piece in a file; None if there is none, or a damaged one."""
        try:
            tensors, metadata = read_safetensors(path)
            if metadata["sha256"] != _checksum(metadata["facts"], tensors):
                return None
            facts = json.loads(metadata["facts"])
            names = [each.name for each in fields(Nearest)]
            nearest = Nearest(*(tensors[f"nearest_{name}"] for name in names)) if "nearest_places" in tensors else None
            return cls(
                **facts | {"passes": Passes(**facts["passes"])},
                places=tensors["places"],
                adversarial=tensors[TENSOR],
                distance=tensors["distance"],
                nearest=nearest,
            )
        except (UnsoundError, LookupError, TypeError, ValueError):
            return None


@final
@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What an evaluation measures once, and repeats when it goes on: it depends on the machine's load, not on its kind.

    With it, results are the same to the bit wherever the evaluation was stopped.
    """

    pass_size: int
    """Images that pass through the network at a time."""
    precision: Precision
    """Precision of the gradients that was found to be faster."""

    @property
    def name(self) -> str:
        """The folder of pieces that were computed with this."""
        return f"{self.pass_size}-{self.precision}"


@final
class PieceStore:
    """The pieces of evaluations with one plan, in the folder `folder`, and as objects if that is one of copies.

    Args:
        folder: of the plan.
        about: what the plan's key is a hash of, which is written beside the pieces.
        objects: shared storage of the plan and its pieces, of which the folder has copies; None if there is none.
        fresh: use no pieces of shared storage.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, objects: Objects | None = None, fresh: bool = False
    ) -> None:
        self.folder = folder
        self._about, self._objects, self._fresh = dict(about), objects, fresh
        self._listed: set[str] = set()
        self._listed_at = -_LISTED_FOR
        self._unusable: set[str] = set()
        self._measured = _measured(folder)
        if objects is not None:
            with objects.get(self._object(PLAN_OBJECT)) as found:
                self._measured = (None if found is None else _measured(found)) or self._measured

    def _object(self, name: str) -> str:
        return f"evaluations/{self.folder.name}/{name}"

    @property
    def measured(self) -> Measurements | None:
        """What was measured when the first evaluation with this plan began; None if none did."""
        return self._measured

    def begin(self, measured: Measurements) -> Measurements:
        """Write down what was measured, or that the plan is used again; return what counts.

        That is what the first evaluation measured, on shared storage that of all clients. There it also stores pieces
        that this machine alone has, since an earlier evaluation could not. Raises `StoreError`.
        """
        if self._objects is None:
            self._measured = _measured(self.folder) or measured  # another evaluation may have begun just now
        else:
            self._measured = self._agreed(measured, self._objects)
        self._write_plan(self.folder / PLAN, self._measured)
        if self._objects is not None:
            for piece in sorted(self._pieces.glob("*.safetensors")):
                is_missing = piece.stem not in self._names() or self._unsent(piece.stem).exists()
                if is_missing and Piece.read(piece) is not None:  # a damaged one must reach no other machine
                    self._share(piece.stem)
        return self._measured

    def _agreed(self, measured: Measurements, objects: Objects) -> Measurements:
        """Store a plan on shared storage; return what the plan there says, which may be another client's."""
        with tempfile.TemporaryDirectory() as folder:
            own = self._write_plan(Path(folder) / PLAN, measured)
            with objects.stored(self._object(PLAN_OBJECT), {PLAN: own}, self._about) as theirs:
                return (None if theirs is None else _measured(theirs)) or measured

    def _write_plan(self, path: Path, measured: Measurements) -> Path:
        return write_json(path, {"schema": _SCHEMA, "measured": asdict(measured), "about": self._about})

    @property
    def _pieces(self) -> Path:
        """The folder of the pieces that were computed with what was measured."""
        assert self._measured is not None, "begin first"
        return self.folder / self._measured.name

    def path(self, key: str) -> Path:
        """The file of the piece with this key."""
        return self._pieces / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the piece with this key was finished; one that only shared storage has is fetched."""
        here = self.path(key).is_file()
        if self._objects is None or self._fresh or (here and not self._unsent(key).exists()):
            return here
        return (key in self._names() and self._fetch(key)) or here

    def seconds(self, keys: Iterable[str]) -> float:
        """The seconds that the pieces with these keys took; only the heads of their files are read."""
        total = 0.0
        for key in keys:
            with suppress(UnsoundError, LookupError, TypeError, ValueError):
                total += float(json.loads(safetensors_metadata(self.path(key))["facts"])["seconds"])
        return total

    def find(self, key: str) -> Piece | None:
        """The finished piece with this key, or None."""
        return Piece.read(self.path(key)) if self.has(key) else None

    def put(self, key: str, piece: Piece) -> Piece:
        """Keep a piece; return the one that counts. Raises `StoreError`.

        On shared storage that is the one of the client that was first.
        """
        if self._objects is None:
            piece.write(self.path(key))
            return piece
        write_text(self._unsent(key), "")
        piece.write(self.path(key))
        return (self.find(key) if self._share(key) else None) or piece

    def _unsent(self, key: str) -> Path:
        """The file that says that this machine's piece is not known to be on shared storage."""
        return self._pieces / f"{key}.unsent"

    def _place(self) -> str:
        """The name of the folder of pieces on shared storage."""
        return self._object(self._pieces.name)

    def _names(self) -> set[str]:
        """The keys of the pieces on shared storage, as of the last `_LISTED_FOR` seconds."""
        if self._objects is not None and time.monotonic() - self._listed_at >= _LISTED_FOR:
            place = self._place()
            self._listed = {name.removeprefix(f"{place}/") for name in self._objects.listing(place)}
            self._listed_at = time.monotonic()
        return self._listed

    def _fetch(self, key: str) -> bool:
        """Copy a piece from shared storage; return whether it is there and whole."""
        assert self._objects is not None
        if key in self._unusable:
            return False
        with self._objects.get(f"{self._place()}/{key}") as found:
            if found is not None and self._is_whole(key, found):
                self._take(key, found)
                return True
        self._unusable.add(key)
        return False

    def _is_whole(self, key: str, found: Path) -> bool:
        """Whether the piece in the folder `found`, fetched from shared storage, can be read."""
        return Piece.read(found / self.path(key).name) is not None

    def _take(self, key: str, found: Path) -> None:
        """Move the piece in the folder `found` to this machine's, instead of one that is there."""
        make_folder(self._pieces)
        (found / self.path(key).name).replace(self.path(key))
        self._unsent(key).unlink(missing_ok=True)

    def _share(self, key: str) -> bool:
        """Store a piece on shared storage; return whether it had one already, which then replaces this machine's.

        One there that cannot be read is replaced.
        """
        assert self._objects is not None
        path = self.path(key)
        try:
            with self._objects.stored(
                f"{self._place()}/{key}",
                {path.name: path},
                {},
                is_usable=lambda found: self._fresh or self._is_whole(key, found),
            ) as theirs:
                taken = theirs is not None and not self._fresh
                if theirs is not None and taken:
                    self._take(key, theirs)
            self._unsent(key).unlink(missing_ok=True)
            return taken
        except StoreError as error:
            raise StoreError(f"{error}. The piece is kept in {path}; the same command stores it") from error


def _measured(folder: Path) -> Measurements | None:
    """What the plan in a folder says was measured; None if there is none, or a damaged one."""
    try:
        found = read_json(folder / PLAN, StoreError)["measured"]
        return Measurements(pass_size=int(found["pass_size"]), precision=found["precision"])
    except (StoreError, LookupError, TypeError, ValueError):
        return None


@contextmanager
def open_pieces(
    location: Path | str, about: Mapping[str, Any], *, fresh: bool = False, observer: Observer = NULL_OBSERVER
) -> Iterator[PieceStore]:
    """Context of an evaluation that keeps its pieces in a store.

    The observer receives a message if pieces of the same model are there that cannot be used, and, if the evaluation
    fails, that finished pieces are kept.

    Args:
        location: the folder of the store, or its URL.
        about: what all pieces have in common, as JSON; see `plan_of`.
        fresh: remove the pieces of earlier evaluations with this plan; those on shared storage stay there, but are not
            used. Raises `StoreError` if one is running.
        observer: is informed.
    """
    root, objects = opened(location, observer)
    if objects is not None:
        objects.expect_writable()  # now, and not after hours of attacks
    with using(root, key_of(about), fresh=fresh) as folder:
        pieces = PieceStore(folder, about, objects=objects, fresh=fresh)
        if pieces.measured is None and not fresh and (words := _unusable(_others(root, objects), about)):
            observer.message(f"Pieces of this model's evaluations in the store are not used: computed with {words}")
        try:
            yield pieces
        except (EvaluationError, KeyboardInterrupt):  # refused before any attack; after Ctrl-C the command says so
            raise
        except BaseException:
            if any(folder.glob("*/*.safetensors")):
                observer.message("Finished pieces of this evaluation are kept; the same command goes on from there.")
            raise


def _others(root: Path, objects: Objects | None) -> Iterator[Mapping[str, Any]]:
    """What the pieces of each evaluation in the store have in common, on this machine the latest first."""
    for folder in reversed(evaluation_folders(root)):
        yield about_evaluations(folder)
    if objects is not None:
        for _, about, _ in islice(evaluations_on(objects), _MOST_PLANS):
            yield about


def _unusable(others: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """In what the first pieces of the same model and settings differ, such as "threads 2 (now 4)"; "" without any."""
    same = set(about) - {"code", "environment", "outputs"}
    for other in others:
        if any(other.get(name) != about[name] for name in same):
            continue
        before, now = other.get("environment", {}), about["environment"]
        words = [f"{name} {before.get(name)} (now {now[name]})" for name in now if before.get(name) != now[name]]
        words += ["other code of the attacks"] if other.get("code") != about["code"] else []
        if words:
            return ", ".join(words)
    return ""


def plan_of(
    model: Classifier, few: LabelledImages, *, seed: int, norm: str, draws: int, precision: str, batch_size: int | None
) -> dict[str, Any]:
    """What all pieces of an evaluation have in common, as JSON.

    Args:
        model: the model as it is judged: of a randomised one the mean of `draws` passes.
        few: the first images.
        seed, norm, precision, batch_size: settings of the evaluation.
    """
    return {
        "code": code_version(ATTACKS),
        "environment": {
            **environment(model.device.type),
            "processor": processor(),
            "instruction set": instruction_set(),
            "threads": torch.get_num_threads(),
        },
        "weights": fingerprint(model),
        "outputs": _outputs(model, few, seed),
        "bounds": list(model.bounds),
        "classes": len(model.classes),
        "seed": seed,
        "norm": norm,
        "draws": draws,
        "precision": precision,
        "batch_size": batch_size,
    }


def _outputs(model: Classifier, few: LabelledImages, seed: int) -> str:
    """A hash of what the model's code computes: logits and input gradients of a few images.

    On a GPU, whose kernels may round differently from call to call, of the layers and the predicted classes instead.
    """
    images, labels = few.tensors(model.device)
    digest = hashlib.sha256()
    with frozen(model), all_seeded(model.device, derive(seed, "outputs")):
        with torch.no_grad():
            logits = model(images)
        if model.device.type != "cpu":
            digest.update(repr(model).encode())
            return _digest(digest, logits.argmax(1))
        try:
            gradient = input_gradient(model, images, Misclassification(labels), "ce")[1]
        except Exception:  # the user's own code may raise anything; black boxes have no gradient
            return _digest(digest, logits)
    return _digest(digest, logits, gradient)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a piece says, and of its tensors with their names, types and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, each in sorted(tensors.items()):
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        _digest(digest, each)
    return digest.hexdigest()


def _digest(digest: Any, *tensors: Tensor) -> str:
    for each in tensors:
        digest.update(bytes_of(each))
    return digest.hexdigest()


def shard_key(changes: Mapping[str, int], start: int, images: LabelledImages, correct: np.ndarray) -> str:
    """The beginning of the keys of all pieces of a shard.

    Args:
        changes: those made in the copy of the model that is attacked.
        start: position of the shard's first image in the data.
        images: of the shard.
        correct: which of them are classified correctly, booleans `(n,)`.
    """
    return key_of([dict(changes), start, fingerprint_of_images(images), hashlib.sha256(correct.tobytes()).hexdigest()])


def piece_key(before: str, attack: AbstractAttack, eps: float) -> str:
    """The key of the piece of an attack at one eps, after the piece with the key `before`."""
    record = attack.record()
    uncertain = [uuid.uuid4().hex] if _is_uncertain(record) else []
    return key_of([before, record, _own_code(attack), *uncertain, float(eps)])


def _is_uncertain(record: Any) -> bool:
    """Whether an attack's record has a function without a hash, which is never taken for the same again."""
    if not isinstance(record, Mapping):
        return False
    return ("sha256" in record and record["sha256"] is None) or any(map(_is_uncertain, record.values()))


def _own_code(attack: AbstractAttack) -> list[str]:
    """Hashes of the source files of classes of other packages among an attack and those that it wraps.

    The code of casemate's own classes is in the plan. A class without a source file is never taken for the same again.
    """
    found: list[str] = []
    if type(attack).__module__.partition(".")[0] != "casemate":
        try:
            found.append(hashlib.sha256(Path(inspect.getfile(type(attack))).read_bytes()).hexdigest())
        except (OSError, TypeError):
            found.append(uuid.uuid4().hex)
    for each in fields(attack):
        value = getattr(attack, each.name)
        if isinstance(value, AbstractAttack):
            found += _own_code(value)
    return found


def key_of(content: Any) -> str:
    """A hash of JSON, 20 hex digits, to name a file by."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
