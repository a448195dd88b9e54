"""The command line makes PyTorch's threads sleep while they wait, unless the user has set how they wait."""

import json
import os
import subprocess
import sys

import pytest
import torch

from casemate import waiting_threads
from conftest import Listener
from test_study import Run, runner

CLEAN = {name: value for name, value in os.environ.items() if name not in waiting_threads.VARIABLES}
WAYS = [
    ({}, "0", "passive, set by casemate"),
    ({"OMP_WAIT_POLICY": "active"}, "30000000000", "active, set by you in OMP_WAIT_POLICY"),
    ({"OMP_WAIT_POLICY": "passive"}, "0", "passive, set by you in OMP_WAIT_POLICY"),
    ({"GOMP_SPINCOUNT": "77"}, "77", "77, set by you in GOMP_SPINCOUNT"),
]
"""What the user has set, how often GCC's OpenMP library then looks before a thread sleeps, and what info says."""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GCC's OpenMP library, which is read here, on Linux")
@pytest.mark.parametrize(("given", "spins", "said"), WAYS)
def test_threads_that_wait_sleep_unless_the_user_has_said_how(given: dict[str, str], spins: str, said: str) -> None:
    """The OpenMP library itself writes, when it is loaded, what it has read from the environment."""
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**CLEAN, **given, "OMP_DISPLAY_ENV": "verbose"},
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
    assert json.loads(done.stdout)["waiting_threads"] == said


def test_nothing_is_set_where_pytorch_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in waiting_threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    run: Run = runner(capsys)
    code, out, _ = run("info", "--json")
    assert code == 0
    assert json.loads(out)["waiting_threads"] == "not in effect: PyTorch was loaded before"
    assert not os.environ.keys() & set(waiting_threads.VARIABLES)


def test_who_set_it_is_known_after_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"KMP_BLOCKTIME": "1"})
    monkeypatch.setattr(waiting_threads, "_set_here", [])
    monkeypatch.delitem(sys.modules, "torch")
    waiting_threads.sleep_while_waiting()
    assert os.environ == {"KMP_BLOCKTIME": "1"}
    del os.environ["KMP_BLOCKTIME"]
    for _ in range(2):
        waiting_threads.sleep_while_waiting()
        assert os.environ == {"OMP_WAIT_POLICY": "passive"}
        assert waiting_threads.describe_waiting() == "passive, set by casemate"


@pytest.mark.parametrize(
    ("load", "threads", "policy", "said"),
    [(5.0, 2, None, True), (2.0, 2, None, False), (5.0, 1, None, False), (5.0, 2, "passive", False)],
)
def test_spinning_beside_other_programs_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, load: float, threads: int, policy: str | None, said: bool
) -> None:
    for name in waiting_threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if policy is not None:
        monkeypatch.setenv(waiting_threads.POLICY, policy)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("casemate.memory.processors", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    listener = Listener()
    waiting_threads.mention_spinning(listener)
    assert ["(load 5.0 on 2)" in each for each in listener.said] == [True] * said
