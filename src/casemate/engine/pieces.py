"""A folder of finished artifacts without large files such as weights, small enough to commit.

    PIECES/NAME/artifact.json     NAME is E2_fgsm_ce for the task E2/fgsm/ce; beside it the artifact's small files

Pieces are found by the task's name, not by a key: they count as finished even if the code has changed since. Their
provenance names the commit that computed them.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from casemate.engine.store import Artifact, facts_of
from casemate.errors import SettingError, StoreError
from casemate.files import make_folder, read_json, write_json, writing_folder

_STUDY = "study.json"


@final
class Pieces:
    """The pieces in the folder `root`, which is created when the first one is added.

    Args:
        root: the folder.
        study: what the pieces belong to, as JSON, such as scale, data set and seed. It is written to study.json beside
            them, so that no other study takes them for its own.
        kept: says of each file of an artifact, by the kind of its task and the file's name, whether pieces include it.

    Raises:
        SettingError: the folder has the pieces of another study, or something else.
    """

    def __init__(self, root: Path, study: Mapping[str, Any], kept: Callable[[str, str], bool]) -> None:
        self.root: Path = Path(root)
        self._study, self._kept = dict(study), kept
        found = study_of(self.root)
        if found is None:
            if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
                raise SettingError(f"{self.root} has no {_STUDY}, so it is no folder of pieces; choose another one")
            return
        if found != self._study:
            raise SettingError(f"{self.root} has the pieces of {_words(found)}, not of {_words(study)}; choose another")

    @property
    def exists(self) -> bool:
        """Whether any piece was ever added."""
        return (self.root / _STUDY).exists()

    def find(self, name: str) -> Artifact | None:
        """The artifact of the task called `name`, without its large files; None if there is no such piece.

        Raises `StoreError` for a damaged artifact.json.
        """
        folder = self._folder(name)
        if not (folder / "artifact.json").is_file():
            return None
        facts = facts_of(folder)
        if facts is None or "key" not in facts:
            raise StoreError(f"{folder}/artifact.json is damaged; restore or delete it, and run the command again")
        return Artifact(str(facts["key"]), folder, facts)

    def add(self, name: str, artifact: Artifact) -> None:
        """Copy the artifact of the task called `name` without its large files; does nothing if it is unchanged."""
        old = self.find(name)
        if old is not None and old.key == artifact.key:
            return
        if not self.exists:
            write_json(make_folder(self.root) / _STUDY, self._study)
        kind = artifact.facts["kind"]
        with writing_folder(self._folder(name)) as folder:
            for file in artifact.folder.iterdir():
                if file.name == "artifact.json" or self._kept(kind, file.name):
                    shutil.copyfile(file, folder / file.name)

    def _folder(self, name: str) -> Path:
        return self.root / name.replace("/", "_")


def study_of(root: Path) -> Mapping[str, Any] | None:
    """What the pieces in the folder `root` belong to (see `Pieces`); None if it has none. Raises `StoreError`."""
    file = root / _STUDY
    if not file.exists():
        return None
    found = read_json(file, StoreError)
    if not isinstance(found, dict):
        raise StoreError(f"{file} is damaged; restore it, or choose another folder of pieces")
    return found


def _words(study: Mapping[str, Any]) -> str:
    return "the study with " + ", ".join(f"{name} {value}" for name, value in sorted(study.items()))
