"""The fault campaign, very small: nothing is lost, and it notices a writer and results that are broken on purpose."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.campaign import damages, disks, growth, inputs, kills, page
from benchmarks.campaign.commands import TRAIN
from benchmarks.campaign.counts import Counts, Trial, counts_of
from benchmarks.campaign.outputs import broken, differences
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.sizes import TINY

from casemate.progress import NULL_OBSERVER, no_progress

pytestmark = pytest.mark.integration

HALF_WRITER = """
    # Writes under the final name, slowly, so that a kill leaves a half file.
    import time
    from contextlib import contextmanager

    import casemate.files as files


    @contextmanager
    def writing(path):
        files.make_folder(path.parent)
        path.write_bytes(b"half")
        seen = path.with_name(f".{path.name}.tmp")
        seen.touch()
        time.sleep(0.2)
        yield path
        seen.unlink()


    files.writing = writing
"""
OTHER_RESULTS = """
    # Every process trains with other random numbers.
    import os

    import casemate.rng as rng

    derive = rng.derive
    rng.derive = lambda *given: derive(os.getpid(), *given[1:]) if given else derive()
"""


def made(folder: Path, shim: str | None = None) -> Setting:
    """A small campaign, of commands that are broken by a shim."""
    place = None
    if shim is not None:
        place = folder / "shim"
        place.mkdir()
        (place / "sitecustomize.py").write_text(textwrap.dedent(shim))
    return Setting(folder / "campaign", TINY, 0, NULL_OBSERVER, place)


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    setting = made(tmp_path)
    rows = [kills.killed(setting, TRAIN, 1, no_progress)]
    few = damages.READERS[:1]
    rows += [damages.damaged(setting, few[0], damages.made_for(setting, few), lambda: None)]
    rows += [inputs.given(setting, name) for name in ("result:record", "images:npz", "model:weights")]
    rows += growth.run(setting)
    rows += [disks.filled(setting, TRAIN, no_progress)]
    assert [row.examples for row in rows] == [[]] * len(rows)
    assert all(row.tried > 0 and row.harm == 0 for row in rows)


@pytest.mark.parametrize(
    ("shim", "words"), [(HALF_WRITER, "model.safetensors.training is not whole"), (OTHER_RESULTS, "differs")]
)
def test_a_fault_is_noticed(tmp_path: Path, shim: str, words: str) -> None:
    counts = kills.killed(made(tmp_path, shim), TRAIN, 1, no_progress)
    assert counts.lost == 1
    assert words in counts.examples[0]


def test_a_half_file_a_change_and_a_missing_file_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"half": ')
    (tmp_path / "b.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / ".c.json.tmp").write_text("temporary files may be half")
    (tmp_path / "d.json").write_text("{}")
    assert [each.split()[0] for each in broken(tmp_path)] == ["a.json", "b.safetensors"]
    found = differences({"a": 1, "b": 2, "x": 3}, {"a": 1, "b": 3, "c": 4})
    assert found == ["c is missing", "x should not be there", "b differs"]


def test_growing_memory_is_noticed() -> None:
    steady, growing = [10**8] * 100, [10**8 + 50_000 * number for number in range(100)]
    assert growth.judged(steady)["growth, bytes per evaluation"] == pytest.approx(0, abs=1)
    assert growth.judged(growing)["growth, bytes per evaluation"] == pytest.approx(50_000)


def test_the_page_has_every_row(tmp_path: Path) -> None:
    counts = Counts("kill -9: a command", means="as root")
    for trial in (Trial("one", ended="refused"), Trial("two", lost=["a file"], hung=True)):
        counts.add(trial)
    assert counts.harm == 2
    assert counts_of(json.loads(json.dumps(counts.as_json()))) == counts
    page.keep(tmp_path / "counts.json", "kills", [counts], size=TINY, seed=3, seconds=4.0)
    page.write(tmp_path / "counts.json", tmp_path / "counts.md")
    text = (tmp_path / "counts.md").read_text()
    assert "| kill -9: a command (as root) | 2 | 1 | 1 | 0 | 0 | refused 1 |" in text
    assert "- two: a file; hung" in text
