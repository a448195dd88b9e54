"""The folder of a benchmark: one subfolder per model, with the weights, the training and one file per measurement.

Every file is written whole or not at all, and says what it was made from. A file that was made from something else is
an error, never replaced: another definition of a model belongs in another folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from casemate.benchmark.entry import Entry
from casemate.benchmark.measures import AbstractMeasure
from casemate.errors import SettingError, StoreError
from casemate.files import make_folder, read_json, write_json
from casemate.models import Classifier, ModelMetadata, load, save

_TRAINING = "training.json"
_WEIGHTS = "model.safetensors"


@final
class BenchmarkFolder:
    """Reads and writes what is known of the models of a benchmark.

    Args:
        path: is created when something is written.
        data: what identifies the images, as JSON.
    """

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self._path, self._data = path, dict(data)

    @property
    def store(self) -> Path:
        """For the pieces of unfinished evaluations."""
        return self._path / "pieces"

    def checkpoint(self, name: str) -> Path:
        """The unfinished training of a model."""
        return make_folder(self._path / name) / "training.checkpoint"

    def training(self, name: str, entry: Entry) -> dict[str, Any] | None:
        """How a model was trained; None if it is not, or its teacher is not there. Raises `SettingError`, `StoreError`.

        A student whose teacher has been trained again is an error.
        """
        if entry.teacher is not None and self._fingerprint(entry.teacher) is None:
            return None
        return self._read(self._path / name / _TRAINING, self._origin(entry))

    def model(self, name: str) -> Classifier:
        """A trained model, as it is stored. Raises `ModelError`."""
        return load(self._path / name / _WEIGHTS)[0]

    def keep_training(self, name: str, entry: Entry, model: Classifier, training: Mapping[str, Any]) -> Classifier:
        """Write a trained model, with its weights rounded to float16, and return it as it is stored."""
        path = make_folder(self._path / name) / _WEIGHTS
        description = ModelMetadata(
            architecture=entry.network, dataset=str(self._data["dataset"]), recipe=entry.as_json(), seed=entry.seed
        )
        save(model, path, description, half=True)
        write_json(path.with_name(_TRAINING), {"made_from": self._origin(entry), **training})
        self.checkpoint(name).unlink(missing_ok=True)
        return self.model(name)

    def result(self, name: str, measure: AbstractMeasure, fingerprint: str) -> dict[str, Any] | None:
        """A measurement of the model with these weights; None if it is not made. Raises as `training`."""
        return self._read(self._path / name / f"{measure.name}.json", self._about(measure, fingerprint))

    def keep_result(self, name: str, measure: AbstractMeasure, fingerprint: str, result: Mapping[str, Any]) -> None:
        """Write a measurement."""
        path = make_folder(self._path / name) / f"{measure.name}.json"
        write_json(path, {"made_from": self._about(measure, fingerprint), **result})

    def _origin(self, entry: Entry) -> dict[str, Any]:
        """What a model is trained from: its definition, the images, and the weights of its teacher."""
        teacher = {} if entry.teacher is None else {"teacher": self._fingerprint(entry.teacher)}
        return {"entry": entry.as_json(), "data": self._data, **teacher}

    def _fingerprint(self, name: str) -> str | None:
        """That of the weights of a model; None if it is not trained. Raises `StoreError`."""
        path = self._path / name / _TRAINING
        return read_json(path, StoreError).get("fingerprint") if path.exists() else None

    def _about(self, measure: AbstractMeasure, fingerprint: str) -> dict[str, Any]:
        return {"measure": measure.as_json(), "weights": fingerprint, "data": self._data}

    def _read(self, path: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
        if not path.exists():
            return None
        found = read_json(path, StoreError)
        if not isinstance(found, dict) or "made_from" not in found:
            raise StoreError(f"{path} is not a file of a benchmark; delete it, or give another folder")
        held, wanted = found.pop("made_from"), _plain(made_from)
        if held != wanted:
            unlike = [each for each in wanted if not isinstance(held, dict) or held.get(each) != wanted[each]]
            raise SettingError(
                f"{path} was made from something else: it differs in {', '.join(unlike)}. Give another folder, or "
                f"delete {path.parent} to make this model again"
            )
        return found


def _plain(given: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(given, Mapping):
        return {name: _plain(value) for name, value in given.items()}
    return [_plain(each) for each in given] if isinstance(given, tuple | list) else given
