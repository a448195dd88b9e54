"""An evaluation in pieces: stopped anywhere, it goes on with the same result; more images use the pieces again."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.arrays import writing_tensors
from casemate.attacks import FAB, FGSM, PGD, AbstractAttack, Square
from casemate.cli.store.run import clean_store, list_store
from casemate.data import LabelledImages, first_of
from casemate.engine import evaluations as evaluations_module
from casemate.engine.store import size_of
from casemate.errors import SettingError, ShapeError, StoreError
from casemate.evaluation import Evaluation, evaluate, evaluate_certified, make_record, write_record
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.probe import within_bounds
from casemate.evaluation.proof import prove
from casemate.evaluation.record import write_evaluated
from casemate.evaluation.shards import shard_bounds, shards_of
from casemate.models import Classifier, with_network
from casemate.models.accel import freeze as freeze_module
from conftest import Listener, tiny_images
from oracles import as_installed
from test_record import thirds

EPS = 0.1
ATTACKS: dict[str, AbstractAttack] = {
    "fgsm": FGSM(eps=EPS),
    "fab": FAB(norm="linf", steps=5),
    "square": Square(eps=EPS, n_queries=20),
}
IMAGES = tiny_images(70, noise=90.0)
VALUES = (EPS / 2, EPS)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 20, 20, 40 and so on, so that few images have several."""
    monkeypatch.setattr("casemate.evaluation.shards._FIRST", 20)


def judged(
    store: Path | None = None, model: Classifier | None = None, images: Any = IMAGES, **options: Any
) -> Evaluation:
    """A short evaluation."""
    given: dict[str, Any] = {"eps": VALUES, "attacks": ATTACKS, "force": True, "store": store}
    return evaluate(model or thirds(), images, **given | options)


def content(found: Evaluation) -> dict[str, Any]:
    """All that an evaluation says, to the bit, but for the seconds that it took."""

    def without_seconds(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_seconds(each) for name, each in value.items() if not name.endswith("seconds")}
        return [without_seconds(each) for each in value] if isinstance(value, list) else value

    cascade = found.cascade
    arrays = (cascade.robust, cascade.first_success, cascade.distance, cascade.adversarial.contiguous().numpy())
    arrays += (found.clean.prediction, found.clean.loss, found.clean.gap)
    return without_seconds(json.loads(json.dumps(found.as_json()))) | {
        "arrays": [hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in arrays]
    }


def files(store: Path) -> list[Path]:
    """The files of all pieces in a store."""
    return sorted(store.glob("evaluations/*/*/*.safetensors"))


def resumed(listener: Listener) -> list[str]:
    """What was said of pieces that were there already."""
    return [words for words in listener.said if words.startswith("Resumed")]


class Counted(nn.Module):
    """Counts the images that pass through a network."""

    def __init__(self, network: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.network, self.seen = network, (seen.append,)

    def forward(self, images: Tensor) -> Tensor:
        self.seen[0](len(images))
        return self.network(images)


class Stops(Listener):
    """Presses Ctrl-C when so many pieces are finished."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.attacking = after, False

    @contextmanager
    def work(self, title: str, total: float):
        with super().work(title, total) as advance:
            if title != "Attacking":
                yield advance
                return

            def counted(amount: float, note: str = "") -> None:
                advance(amount, note)
                self.after -= 1
                if not self.after:
                    raise KeyboardInterrupt

            yield counted


# The shards -----------------------------------------------------------------------------------------------------------
def test_more_images_begin_with_the_same_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for shape in ((1, 28, 28), (3, 224, 224), (3, 2000, 2000)):
        whole = shard_bounds(100_000, shape)
        assert [each.start for each in whole[1:]] == [each.stop for each in whole[:-1]]
        assert (whole[0].start, whole[-1].stop) == (0, 100_000)
        for few in (1, 500, 777, 4000):
            assert shard_bounds(few, shape)[:-1] == whole[: len(shard_bounds(few, shape)) - 1]
    assert [each.stop for each in shard_bounds(10_000, (1, 28, 28))] == [500, 1000, 2000, 4000, 8000, 10_000]
    assert max(each.stop - each.start for each in shard_bounds(9000, (3, 224, 224))) < 500
    assert shard_bounds(0, (1, 28, 28)) == []


@pytest.mark.integration
def test_shards_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged()
    monkeypatch.undo()
    whole = judged()
    assert len(shards_of(IMAGES)) == 1
    assert np.array_equal(found.cascade.robust, whole.cascade.robust)
    assert np.array_equal(found.cascade.first_success, whole.cascade.first_success)
    assert torch.allclose(found.cascade.adversarial, whole.cascade.adversarial, atol=1e-6)
    assert found.successes_by_attack == whole.successes_by_attack
    for one, other in zip(found.cascade.attempts, whole.cascade.attempts, strict=True):
        # an attack that searches stops a pass sooner or later where other batches round otherwise
        assert one.passes.forward == pytest.approx(other.passes.forward, rel=0.01)
        assert one.passes.backward == pytest.approx(other.passes.backward, rel=0.01)
        assert replace(one, seconds=0, passes=other.passes) == replace(other, seconds=0)


# Going on -------------------------------------------------------------------------------------------------------------
def test_without_a_store_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    judged()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_no_place_is_refused() -> None:
    place: Any = 3
    for run in (lambda: judged(place), lambda: evaluate_certified(thirds(), IMAGES, eps=0.1, store=place)):
        with as_installed(), pytest.raises(SettingError, match="store = 3; expected a folder, or the URL of shared"):
            run()


@pytest.mark.parametrize("after", [4, 11])
def test_stopped_after_any_piece_it_goes_on_to_the_same_result(after: int, tmp_path: Path, listener: Listener) -> None:
    whole = content(judged())
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, observer=Stops(after))
    assert len(files(tmp_path)) == after
    found = judged(tmp_path, observer=listener)
    assert content(found) == whole
    assert resumed(listener)[0].startswith(f"Resumed: {after} of 18 pieces are there already, which took ")


def test_what_is_finished_is_not_attacked_again(tmp_path: Path) -> None:
    seen: list[int] = []
    model = with_network(thirds(), Counted(thirds().network, seen))
    first = judged(tmp_path, model)
    once = sum(seen)
    seen.clear()
    second = judged(tmp_path, model)
    assert content(second) == content(first)
    assert sum(seen) < once - first.cascade.passes.forward / 2
    then = sum(each.seconds for each in first.cascade.attempts)
    assert first.run_seconds == first.seconds
    assert second.seconds == pytest.approx(second.run_seconds + then)
    assert "in this run and the rest before" in second.summary()
    assert "in this run" not in first.summary()
    assert second.as_json()["run_seconds"] == second.run_seconds
    seen.clear()
    fresh = judged(tmp_path, model, fresh=True)
    assert sum(seen) > 0.9 * once
    assert content(fresh) == content(first)


def test_more_images_use_the_pieces_of_fewer(tmp_path: Path, listener: Listener) -> None:
    judged(tmp_path, images=IMAGES[:40])
    found = judged(tmp_path, observer=listener)
    assert resumed(listener)[0].startswith("Resumed: 12 of 18 pieces are there already, which took ")
    assert content(found) == content(judged())


def test_a_larger_eps_and_a_further_attack_use_the_pieces_before(tmp_path: Path, listener: Listener) -> None:
    few = {name: ATTACKS[name] for name in ("fgsm", "fab")}
    judged(tmp_path, eps=EPS / 2, attacks=few)
    found = judged(tmp_path, observer=listener, attacks=few)
    assert resumed(listener)[0].startswith("Resumed: 6 of 12 pieces are there already, which took ")
    assert content(found) == content(judged(attacks=few))
    listener.said.clear()
    judged(tmp_path, observer=listener)
    assert resumed(listener)[0].startswith("Resumed: 6 of 18 pieces are there already, which took ")


class Kinked(nn.Module):
    """The same logits with another gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + (images - images.detach()))


@pytest.mark.integration
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"model": thirds(19.0)}, id="weights"),
        pytest.param({"model": with_network(thirds(), Kinked(thirds().network))}, id="gradient"),
        pytest.param({"seed": 1}, id="seed", marks=pytest.mark.slow),
        pytest.param({"images": IMAGES[torch.arange(1, 70)]}, id="images", marks=pytest.mark.slow),
        pytest.param({"images": LabelledImages(pixels=IMAGES.pixels, labels=(IMAGES.labels + 1) % 3)}, id="labels"),
        pytest.param({"attacks": {"pgd": PGD(eps=EPS, steps=2), **ATTACKS}}, id="attacks", marks=pytest.mark.slow),
        pytest.param({"eps": EPS / 3}, id="eps", marks=pytest.mark.slow),
        pytest.param({"batch_size": 16}, id="batch size", marks=pytest.mark.slow),
    ],
)
def test_pieces_of_another_evaluation_are_not_used(changed: dict[str, Any], tmp_path: Path, listener: Listener) -> None:
    judged(tmp_path)
    found = judged(tmp_path, observer=listener, **changed)
    assert resumed(listener) == []
    assert content(found) == content(judged(**changed))


def test_code_of_ones_own_is_part_of_a_piece(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from casemate import FGSM, Attack
        from dataclasses import dataclass

        @dataclass(frozen=True, kw_only=True)
        class Own(Attack):
            eps: float
            def run(self, model, clean, criterion, streams, advance):
                return FGSM(eps=self.eps).run(model, clean, criterion, streams, advance)
    """
    file = tmp_path / "own_attack.py"
    file.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    import own_attack  # type: ignore[import-not-found]

    attacks = {"own": own_attack.Own(eps=EPS)}
    judged(tmp_path / "store", attacks=attacks)
    judged(tmp_path / "store", attacks=attacks, observer=listener)
    assert [words.partition(",")[0] for words in resumed(listener)] == ["Resumed: 6 of 6 pieces are there already"]
    file.write_text(file.read_text() + "\n")
    judged(tmp_path / "store", attacks=attacks, observer=listener)
    assert len(resumed(listener)) == 1


def test_what_was_measured_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([16, 64])
    monkeypatch.setattr(freeze_module, "fastest_pass_size", lambda model, images: next(measured))
    monkeypatch.setattr("casemate.attacks.prepare._WORTH_MEASURING", 0)
    first = judged(tmp_path)
    assert first.batch_size == 16
    assert judged(tmp_path, images=IMAGES[:40]).batch_size == 16
    assert judged(tmp_path, fresh=True).batch_size == 64


@pytest.mark.integration
@pytest.mark.parametrize("damage", [b"", b"no piece", None], ids=["empty", "other", "cut"])
def test_a_damaged_piece_is_computed_again(damage: bytes | None, tmp_path: Path) -> None:
    whole = content(judged(tmp_path))
    for file in files(tmp_path)[::2]:
        file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert content(judged(tmp_path)) == whole
    assert content(judged(tmp_path)) == whole


class Noisy(nn.Module):
    """Draws from the global generator in every pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + 0.02 * torch.randn_like(images))


def test_a_randomised_model_draws_the_same_numbers_wherever_it_was_stopped(tmp_path: Path) -> None:
    model, images = with_network(thirds(), Noisy(thirds().network)), IMAGES[:30]
    attacks = {"pgd": PGD(eps=EPS, steps=2), "square": Square(eps=EPS, n_queries=5)}
    whole = content(judged(None, model, images, attacks=attacks, eps=EPS, budget="quick"))
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, model, images, attacks=attacks, eps=EPS, budget="quick", observer=Stops(2))
    assert content(judged(tmp_path, model, images, attacks=attacks, eps=EPS, budget="quick")) == whole


# The store ------------------------------------------------------------------------------------------------------------
@pytest.mark.integration
def test_a_store_that_is_too_large_loses_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        judged(tmp_path, seed=seed)
    for plan in tmp_path.glob("evaluations/*/plan.json"):
        used = 1000 + json.loads(plan.read_text())["about"]["seed"]
        os.utime(plan, (used, used))
    judged(tmp_path, seed=0)
    size = size_of(tmp_path / "evaluations")
    monkeypatch.setattr(evaluations_module, "_MOST_BYTES", int(0.9 * size))
    judged(tmp_path, seed=0)
    left = {json.loads(each.read_text())["about"]["seed"] for each in tmp_path.glob("evaluations/*/plan.json")}
    assert left == {0, 2}
    assert not list(tmp_path.glob("evaluations/*/*.lock"))


def test_an_evaluation_that_runs_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations_module, "_MOST_BYTES", 0)
    monkeypatch.setattr(evaluations_module, "_RECENT", 0)

    class Nested(Stops):
        def work(self, title: str, total: float):
            if title == "Attacking":
                judged(tmp_path, seed=1)
                with pytest.raises(StoreError, match="another process is computing"):
                    judged(tmp_path, fresh=True)
            return super().work(title, total)

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, observer=Nested(5))
    assert len(files(tmp_path)) >= 5


def test_a_store_of_evaluations_that_can_only_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(tmp_path)  # makes none of the folders that studies have
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = sorted(tmp_path.rglob("*"))
    assert len(list_store(tmp_path)["evaluations"]) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_store_lists_and_cleans_pieces(tmp_path: Path) -> None:
    judged(tmp_path)
    held = list_store(tmp_path)
    (row,) = held["evaluations"]
    folder = row["folder"]
    assert (row["norm"], row["seed"], row["threads"], row["pieces"]) == ("linf", 0, 1, len(files(tmp_path)))
    assert row["weights"] == fingerprint(thirds())
    assert (row["current"], row["running"]) == (True, False)
    with evaluations_module.using(tmp_path, Path(folder).name):
        assert list_store(tmp_path)["evaluations"][0]["running"]
        assert "it is running" in clean_store(tmp_path, everything=True, dry_run=False)["kept"][0]
    assert held["evaluations_bytes"] > sum(each.stat().st_size for each in files(tmp_path))
    assert clean_store(tmp_path, everything=False, dry_run=False)["removed"] == []
    assert clean_store(tmp_path, everything=True, dry_run=True)["removed"][0]["path"] == folder
    plan = Path(folder) / "plan.json"
    plan.write_text(plan.read_text().replace('"code": "', '"code": "0'))
    assert not list_store(tmp_path)["evaluations"][0]["current"]
    assert clean_store(tmp_path, everything=False, dry_run=False)["bytes"] > 0
    assert list_store(tmp_path)["evaluations"] == []


# Streams --------------------------------------------------------------------------------------------------------------
@dataclass
class Stream:
    """Images that are made when they are read; it remembers the most that were read at a time."""

    count: int
    most: int = 0

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.count) % 3

    def __len__(self) -> int:
        return self.count

    def read(self, positions: slice | Tensor) -> LabelledImages:
        places = torch.arange(self.count)[positions]
        self.most = max(self.most, len(places))
        return IMAGES[places % 69]


def test_a_stream_gives_the_numbers_of_the_same_images_in_memory(tmp_path: Path) -> None:
    stream = Stream(150)
    found = judged(tmp_path / "store", images=stream)
    whole = judged(images=stream.read(slice(0, 150)))
    assert content(found) == content(whole)
    proof = prove(found, thirds())
    (tmp_path / "stream").mkdir()
    write_evaluated(found, proof, tmp_path / "stream", name="thirds", data="tiny")
    record, prediction = make_record(whole, thirds(), name="thirds", data="tiny")
    write_record(record, tmp_path / "whole")
    assert torch.equal(prediction, proof.prediction)
    for name in ("record.json", "adversarial.safetensors"):
        assert (tmp_path / "stream" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert fingerprint_of_images(stream) == fingerprint_of_images(stream.read(slice(0, 150)))
    assert stream.most <= 150


@dataclass
class Changed:
    """Images of `Stream` as numbers in [0, 1], of which some, at their positions, are multiplied or relabelled."""

    stream: Stream
    factors: dict[int, float] = field(default_factory=dict)
    relabelled: dict[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        found = self.stream.labels.clone()
        for place, label in self.relabelled.items():
            found[place] = label
        return found

    def __len__(self) -> int:
        return len(self.stream)

    def read(self, positions: slice | Tensor) -> LabelledImages:
        places = torch.arange(len(self))[positions]
        pixels = self.stream.read(places).tensors()[0].clone()
        for place, factor in self.factors.items():
            pixels[places == place] = factor * pixels[places == place].clamp(0.5, 1).round()
        return LabelledImages(pixels=pixels, labels=self.labels[places])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": {130: 1.5}}, r"pixels from 0 to 1.5, .* \(image 130 is the first\)"),
        ({"factors": {130: float("nan"), 131: float("nan")}}, r"have pixels that are not finite .* image 130"),
        ({"relabelled": {140: 3}}, "label 3 of image 140; with 3 classes labels run from 0 to 2"),
        ({"relabelled": {140: -1}}, "label -1 of image 140"),
    ],
    ids=["range", "nan", "label", "negative"],
)
def test_what_is_wrong_deep_in_a_stream_is_named_before_any_attack(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=words):
        judged(tmp_path, images=Changed(Stream(150), **changes))
    assert files(tmp_path) == []


@pytest.mark.parametrize("streamed", [True, False])
def test_pixels_beyond_the_bounds_by_rounding_are_at_the_bounds(*, streamed: bool) -> None:
    changed = Changed(Stream(150), factors={100: 1 + 3e-7})
    images = changed if streamed else changed.read(slice(0, 150))
    assert changed.read(slice(0, 150)).pixels.max() > 1
    found = judged(images=images)
    clamped = found.images.read(slice(0, 150)).pixels
    assert clamped.max() == 1
    assert torch.allclose(clamped, changed.read(slice(0, 150)).pixels, atol=1e-6)
    assert found.cascade.adversarial.max() <= 1
    assert torch.equal(within_bounds(IMAGES, thirds()).read(slice(None)).pixels, IMAGES.pixels)


def test_the_first_images_of_a_stream_are_a_stream() -> None:
    few = first_of(Stream(100), 30)
    assert (len(few), few.labels.tolist()) == (30, Stream(30).labels.tolist())
    assert len(few.read(slice(20, 50))) == 10
    assert torch.equal(few.read(torch.tensor([3, 1])).pixels, IMAGES.pixels[[3, 1]])
    assert first_of(few, 40) is few
    assert len(first_of(IMAGES, 5)) == 5


def test_a_file_written_by_rows_is_that_of_safetensors(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).view(3, 2), "a": torch.rand(3, 1, 2), "c": torch.arange(3)}
    shapes = {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    with writing_tensors(tmp_path / "file.safetensors", shapes) as write:
        for row in (2, 0, 1):
            for name, each in tensors.items():
                write(name, row, each[row : row + 1])
    assert (tmp_path / "file.safetensors").read_bytes() == safetensors.torch.save(tensors)


# Kills ----------------------------------------------------------------------------------------------------------------
PROGRAM = """
    import sys, torch
    torch.set_num_threads(1)
    sys.path[:0] = [{tests!r}]
    from pathlib import Path
    import casemate.evaluation.shards as shards
    shards._FIRST = 20
    from test_evaluation_pieces import content, judged
    from casemate.attacks import APGD, FAB, Square
    from contextlib import contextmanager
    import json

    class Steps:
        def message(self, message):
            pass

        @contextmanager
        def work(self, title, total):
            yield lambda amount, note="": print("piece" if "at eps" in note else "step", flush=True) if amount else None

    attacks = {{"apgd": APGD(eps=0.1, steps=60), "fab": FAB(norm="linf", steps=20)}}
    attacks["square"] = Square(eps=0.1, n_queries=300)
    found = judged(Path(sys.argv[1]), attacks=attacks, observer=Steps())
    print(json.dumps(content(found), sort_keys=True))
"""


def program(store: Path) -> subprocess.Popen[str]:
    """An evaluation in a process of its own: it prints a line at each step and each new piece, then its result."""
    code = textwrap.dedent(PROGRAM.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-c", code, str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(store: Path) -> tuple[str, list[str]]:
    """The result of an evaluation that nobody stops, and the lines that it printed before."""
    process = program(store)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    *lines, result = out.splitlines()
    return result, lines


def killed(store: Path, kills: int) -> None:
    """Kill an evaluation, at random steps after none or one of its pieces, and let it go on to the same result.

    The moments follow what it prints, so that every part of it is hit, however fast it is.
    """
    whole, lines = finished(store / "whole")
    between = len(lines) // lines.count("piece")
    draw, hit, held = random.Random(kills), 0, set()
    for _ in range(kills):
        process = program(store / "killed")
        assert process.stdout is not None
        for line in process.stdout if draw.random() < 0.7 else ():
            if line == "piece\n":
                break
        for _ in range(draw.randint(0, between)):
            process.stdout.readline()
        process.kill()
        process.communicate(timeout=100)
        hit += process.returncode == -signal.SIGKILL
        held.add(len(files(store / "killed")))
    assert hit >= kills / 3
    assert len(held) > max(1, kills // 5)
    assert finished(store / "killed")[0] == whole


@pytest.mark.integration
@pytest.mark.slow
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    killed(tmp_path, 3)


@pytest.mark.integration
@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    killed(tmp_path, 20)
