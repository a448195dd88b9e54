"""The finished steps of a hardening in a folder, so that the same call continues after an interruption or a kill.

Each step is a safetensors file with tensors, and a JSON text with a checksum of both in its metadata. `plan.json` says
which hardening the steps belong to.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import safetensors.torch

from casemate.arrays import UnsoundError, read_safetensors
from casemate.errors import SettingError, StoreError
from casemate.files import read_json, write_bytes, write_json
from casemate.progress import Observer
from casemate.training.extra_state import as_tensors, from_tensors
from casemate.training.state import checksum

_PLAN = "plan.json"


@final
class Steps:
    """The finished steps of one hardening, in a folder; without a folder none is kept.

    Args:
        folder: is created; None to keep nothing.
        plan: all that the results depend on, as JSON.
        observer: receives a message for a step that is damaged, which is made again.

    Raises:
        SettingError: the folder holds the steps of another hardening.
    """

    def __init__(self, folder: Path | None, plan: Mapping[str, Any], observer: Observer) -> None:
        self._folder, self._observer = folder, observer
        if folder is None:
            return
        wanted = json.loads(json.dumps(plan))
        path = folder / _PLAN
        if path.exists():
            held = read_json(path, StoreError)
            held = held if isinstance(held, dict) else {}
            unlike = [name for name in sorted(wanted.keys() | held.keys()) if held.get(name) != wanted.get(name)]
            if unlike:
                raise SettingError(
                    f"{folder} holds the steps of another hardening: it differs in {', '.join(unlike)}. Give the same "
                    "settings to continue it, or another folder, or delete this one"
                )
        else:
            write_json(path, wanted)

    @property
    def pieces(self) -> Path | None:
        """The store of the pieces of unfinished evaluations; None if nothing is kept."""
        return None if self._folder is None else self._folder / "pieces"

    def training(self, name: str) -> Path | None:
        """The checkpoint of the unfinished training called `name`; None if nothing is kept."""
        return None if self._folder is None else self._folder / f"{name}.training"

    def write(self, name: str, tensors: Mapping[str, Any], content: Any) -> None:
        """Keep a finished step, whole or not at all: tensors or weights, and what JSON can express.

        Raises `StoreError`, and `ModelError` for weights with an extra state that a file cannot hold.
        """
        if self._folder is None:
            return
        text = json.dumps(content)
        own = {key: value.detach().cpu().clone().contiguous() for key, value in as_tensors(tensors).items()}
        raw = safetensors.torch.save(own, {"content": text, "sha256": checksum(text, own)})
        write_bytes(self._folder / f"{name}.safetensors", raw)

    def read(self, name: str) -> tuple[dict[str, Any], Any] | None:
        """What `write` kept of a finished step; None if it is not finished, or its file is damaged."""
        if self._folder is None or not (path := self._folder / f"{name}.safetensors").exists():
            return None
        try:
            tensors, metadata = read_safetensors(path)
            if metadata["sha256"] != checksum(metadata["content"], tensors):
                raise UnsoundError("its checksum does not match")
            return from_tensors(tensors), json.loads(metadata["content"])
        except (UnsoundError, LookupError, ValueError) as error:
            self._observer.message(f"{path} is damaged ({error}); this step is made again.")
            return None
