"""A folder of finished artifacts without large files such as weights, small enough to commit.

    PIECES/NAME/artifact.json     NAME is E2_fgsm_ce for the task E2/fgsm/ce; beside it the artifact's small files

Pieces are found by the task's name, not by a key: they count as finished even if the code has changed since. Their
provenance names the commit that computed them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import final

from casemate.engine.store import Artifact, facts_of
from casemate.errors import StoreError
from casemate.files import writing_folder


@final
class Pieces:
    """The pieces in the folder `root`, which is created when the first one is added.

    `kept` returns, for the kind of a task and the name of a file of its artifact, whether pieces include the file.
    """

    def __init__(self, root: Path, kept: Callable[[str, str], bool]) -> None:
        self.root: Path = Path(root)
        self._kept = kept

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
        kind = artifact.facts["kind"]
        with writing_folder(self._folder(name)) as folder:
            for file in artifact.folder.iterdir():
                if file.name == "artifact.json" or self._kept(kind, file.name):
                    shutil.copyfile(file, folder / file.name)

    def _folder(self, name: str) -> Path:
        return self.root / name.replace("/", "_")
