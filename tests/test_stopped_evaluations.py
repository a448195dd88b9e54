"""`casemate evaluate`, stopped in every way that a machine can stop it: the same command goes on to the same result."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casemate
from conftest import tiny_images

pytestmark = pytest.mark.integration

NETWORK = Path(__file__).parents[1] / "benchmarks" / "campaign" / "nets.py"
WHAT = ("evaluate", "nets.py:net", "--data", "tiny.npz", "--threads", "1")
LONG = (*WHAT, "--images", "700", "--eps", "0.05", "0.1")
"""Two shards of images, five attacks and two values of eps: 20 pieces, ten seconds."""
SHORT = (*WHAT, "--images", "700", "--eps", "0.1", "--budget", "quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of the user's own, and images for it."""
    made = tmp_path_factory.mktemp("stopped")
    shutil.copy(NETWORK, made / "nets.py")
    images = tiny_images(1200, noise=90.0)
    np.savez(made / "tiny.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    return made


def started(folder: Path, *arguments: object, limit: int | None = None) -> subprocess.Popen[str]:
    """A command in a process of its own, which may write files of at most `limit` kilobytes."""
    command = [sys.executable, "-m", "casemate", *map(str, arguments)]
    if limit is not None:
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command]
    environment = os.environ | {"PYTHONPATH": str(Path(casemate.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(folder: Path, *arguments: object, code: int = 0, limit: int | None = None) -> str:
    """What a command says on stderr."""
    process = started(folder, *arguments, limit=limit)
    _, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return err


def results(out: Path) -> dict[str, Any]:
    """All that an evaluation wrote, to the bit, but for times."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: without_times(each)
                for name, each in value.items()
                if not name.endswith("seconds") and name != "provenance"
            }
        return [without_times(each) for each in value] if isinstance(value, list) else value

    names = ("record.json", "adversarial.safetensors", "examples.parquet")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names} | {
        "result": without_times(json.loads((out / "result.json").read_text()))
    }


def pieces(store: Path) -> list[Path]:
    """The files of the finished pieces in a store."""
    return sorted(store.glob("evaluations/*/*/*.safetensors"))


# Kills ----------------------------------------------------------------------------------------------------------------
def killed(folder: Path, place: Path, kills: int) -> Sequence[int]:
    """Kill a command at random moments of its whole time, and let it go on, over and over; the pieces at each kill."""
    start = time.monotonic()
    said(folder, *LONG, "--out", place / "whole", "--store", place / "undisturbed")
    whole, expected = time.monotonic() - start, results(place / "whole")
    draw, held, hit, begun = random.Random(kills), list[int](), 0, 0
    out, store = place / "out0", place / "store0"
    while hit < kills:
        process = started(folder, *LONG, "--out", out, "--store", store)
        try:
            process.communicate(timeout=draw.uniform(0, whole))
            assert results(out) == expected
            begun += 1
            out, store = place / f"out{begun}", place / f"store{begun}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            held.append(len(pieces(store)))
            hit += 1
    said(folder, *LONG, "--out", out, "--store", store)
    assert results(out) == expected
    assert "Everything that was checked holds" in _verified(folder, out)
    return held


def _verified(folder: Path, out: Path) -> str:
    process = started(folder, "verify", out / "record.json", "nets.py:net", "--data", "tiny.npz")
    printed, err = process.communicate(timeout=300)
    assert process.returncode == 0, printed + err
    return " ".join((printed + err).split())


@pytest.mark.slow
def test_three_kills_of_the_command_lose_nothing(folder: Path, tmp_path: Path) -> None:
    killed(folder, tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_of_the_command_lose_nothing(folder: Path, tmp_path: Path) -> None:
    held = killed(folder, tmp_path, 20)
    assert len(set(held)) >= 4, held


def test_ctrl_c_keeps_what_is_finished(folder: Path, tmp_path: Path) -> None:
    options = (*LONG, "--store", tmp_path / "store", "--out", tmp_path / "out")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background do not listen
    try:
        process = started(folder, *options)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while len(pieces(tmp_path / "store")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped: finished work is kept; run the same command again to continue."
    assert not (tmp_path / "out").exists()
    there = len(pieces(tmp_path / "store"))
    assert f"Resumed: {there} of 20 pieces are there already, which took " in said(folder, *options)
    whole = said(folder, *LONG, "--store", tmp_path / "other", "--out", tmp_path / "whole")
    assert "Resumed" not in whole
    assert results(tmp_path / "out") == results(tmp_path / "whole")


# Disks ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(folder: Path, tmp_path: Path) -> None:
    """AutoAttack's pieces grow on the way, so that the first are below the limit; there are 16."""
    options = (*LONG, "--budget", "autoattack", "--store", tmp_path / "store", "--out", tmp_path / "out")
    err = said(folder, *options, code=2, limit=40)
    there = len(pieces(tmp_path / "store"))
    assert 0 < there < 16
    *_, kept, error = err.splitlines()
    assert kept == "Finished pieces of this evaluation are kept; the same command goes on from there."
    assert error.startswith(f"error: cannot write {tmp_path / 'store' / 'evaluations'}")
    assert "free some space or choose another place" in error
    assert not list(tmp_path.rglob("*.tmp"))
    assert f"Resumed: {there} of 16 pieces" in said(folder, *options)


@pytest.mark.slow
def test_a_full_disk_under_the_results_keeps_all_pieces(folder: Path, tmp_path: Path) -> None:
    options = (*SHORT, "--store", tmp_path / "store", "--out", tmp_path / "out")
    said(folder, *SHORT, "--store", tmp_path / "store", "--out", tmp_path / "first")
    error = said(folder, *options, code=2, limit=80).splitlines()[-1]
    assert error.startswith("error: cannot write ")
    assert "adversarial.safetensors" in error
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    count = len(pieces(tmp_path / "store"))
    assert f"Resumed: {count} of {count} pieces" in said(folder, *options)
    assert results(tmp_path / "out") == results(tmp_path / "first")


def test_a_store_that_cannot_be_written_is_one_error_before_any_attack(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "inside"):
        err = said(folder, *SHORT, "--store", store, "--out", tmp_path / "out", code=2)
        assert "Finished pieces" not in err
        assert err.splitlines()[-1].startswith("error: ")
        assert str(store) in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_damaged_piece_is_computed_again_and_said(folder: Path, tmp_path: Path) -> None:
    options = (*SHORT, "--store", tmp_path / "store", "--out", tmp_path / "out")
    said(folder, *options)
    expected = results(tmp_path / "out")
    for number, file in enumerate(pieces(tmp_path / "store")):
        raw = bytearray(file.read_bytes())
        raw[-1 - number] ^= 1  # one bit of a tensor
        file.write_bytes(raw[: len(raw) // 2] if number == 1 else raw)
    err = said(folder, *options)
    assert err.count("a piece of the evaluation, is damaged; it is computed again") == len(pieces(tmp_path / "store"))
    assert results(tmp_path / "out") == expected
    assert "is damaged" not in said(folder, *options)


# The same store -------------------------------------------------------------------------------------------------------
def test_two_at_a_time_in_one_store_end_alike(folder: Path, tmp_path: Path) -> None:
    both = [started(folder, *SHORT, "--store", tmp_path / "store", "--out", tmp_path / name) for name in ("one", "two")]
    for each in both:
        _, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.slow
def test_pieces_of_other_threads_are_not_used_and_it_is_said(folder: Path, tmp_path: Path) -> None:
    options = (*SHORT, "--store", tmp_path / "store", "--out", tmp_path / "out")
    said(folder, *options)
    err = said(folder, *options, "--threads", "2", "--overwrite")
    assert "Resumed" not in err
    assert "Pieces of this model's evaluations in the store are not used: computed with threads 1 (now 2)" in err
    assert "Resumed" in said(folder, *options, "--overwrite")


@pytest.mark.slow
def test_more_images_grow_the_record(folder: Path, tmp_path: Path) -> None:
    options = (*WHAT, "--eps", "0.1", "--budget", "quick", "--store", tmp_path / "store")
    said(folder, *options, "--images", "500", "--out", tmp_path / "few")
    count = len(pieces(tmp_path / "store"))
    err = said(folder, *options, "--images", "700", "--out", tmp_path / "more")
    assert f"Resumed: {count} of {2 * count} pieces" in err
    few, more = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("few", "more"))
    assert (few["images"], more["images"]) == (500, 700)
    kept, grown = (casemate.read_record(tmp_path / name / "record.json").adversarial for name in ("few", "more"))
    assert kept.equal(grown[:500])
    assert "Everything that was checked holds" in _verified(folder, tmp_path / "more")
