"""Random numbers: a known hash, unbiased, unrelated between purposes, and independent of how a batch is cut."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from casemate.rng import Streams, derive

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _split_mix(state: int) -> int:
    """SplitMix64's output for a counter, in Python's own integers."""
    bits = state & _MASK
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & _MASK
    return bits ^ (bits >> 31)


def _many(purpose: str = "x", seed: int = 0) -> Streams:
    return Streams(derive(seed, purpose), torch.arange(1000))


def test_the_oracle_is_the_published_generator() -> None:
    # the first numbers of SplitMix64 from state 1234567, as its authors' C code prints them
    assert [_split_mix(1234567 + step * _GOLDEN) for step in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniform_numbers_are_split_mix_of_the_counter() -> None:
    index = torch.tensor([0, 1, 7, 59_999, 2**40])
    drawn = Streams(derive("seed"), index).uniform((2, 3), "start", 4)
    for row, example in zip(drawn, index.tolist(), strict=True):
        key = _split_mix(example * _GOLDEN + derive(derive("seed"), "start", 4))
        expected = [(_split_mix(key + position * _GOLDEN) >> 40) / 2**24 for position in range(1, 7)]
        assert row.flatten().tolist() == expected


def test_derived_seeds_never_change() -> None:
    # results are stored under seeds: another hash would make every stored number impossible to reproduce
    assert derive(0, "train", 1) == 1406570378534587136  # SHA-256 of int:0, str:train, int:1 with 1F between
    assert derive() == 0xE3B0C44298FC1C14 >> 1  # SHA-256 of nothing


_PARTS = st.lists(st.integers() | st.text(st.characters(min_codepoint=32, codec="utf-8")), max_size=4).map(tuple)


@given(_PARTS, _PARTS)
def test_different_parts_derive_different_seeds(one: tuple[int | str, ...], two: tuple[int | str, ...]) -> None:
    assert (derive(*one) == derive(*two)) == (one == two)
    assert 0 <= derive(*one) < 2**63


@pytest.mark.parametrize(
    ("one", "two"),
    [(("1", 1), (1, "1")), (("1", 1), (1, 1)), (("ab", "c"), ("a", "bc")), (("a",), ("a", "")), ((1, 23), (12, 3))],
)
def test_parts_are_told_apart(one: tuple[int | str, ...], two: tuple[int | str, ...]) -> None:
    assert derive(*one) != derive(*two)


@given(st.permutations(range(12)), st.integers(0, 12), st.sampled_from(["uniform", "normal"]))
def test_draws_do_not_depend_on_split_and_order(order: list[int], cut: int, kind: str) -> None:
    def draw(index: torch.Tensor) -> torch.Tensor:
        return getattr(Streams(5, index), kind)((1, 2, 3), "start", 0)

    whole = draw(torch.arange(100, 112))
    index = torch.tensor(order, dtype=torch.int64) + 100
    parts = torch.cat([draw(index[:cut]), draw(index[cut:])])
    assert torch.equal(parts, whole[order])


def test_taking_some_examples_goes_on_with_their_streams() -> None:
    streams = Streams(5, torch.arange(6))
    mask = torch.tensor([True, False, True, True, False, False])
    everyone = streams.uniform((4,), "step", 3)
    assert torch.equal(streams[mask].uniform((4,), "step", 3), everyone[mask])
    assert torch.equal(streams[torch.tensor([4, 0])].uniform((4,), "step", 3), everyone[[4, 0]])


def test_more_positions_extend_a_stream() -> None:
    assert torch.equal(_many().uniform((9,), "x")[:, :5], _many().uniform((5,), "x"))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    _many().normal((3,), "x")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pick", ["all", "one position of many examples", "one example"])
def test_uniform_is_uniform(pick: str) -> None:
    drawn = Streams(3, torch.arange(2000)).uniform((200,), "x")
    sample = {"all": drawn, "one position of many examples": drawn[:, 7], "one example": drawn[7]}[pick].flatten()
    assert float(sample.min()) >= 0
    assert float(sample.max()) < 1
    assert stats.kstest(sample.double().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("pick", ["all", "one position of many examples"])
def test_normal_is_normal(pick: str) -> None:
    drawn = Streams(4, torch.arange(2000)).normal((200,), "x")
    sample = (drawn if pick == "all" else drawn[:, 7]).flatten().double().numpy()
    assert stats.kstest(sample, "norm").pvalue > 0.01
    if pick == "all":  # 400,000 draws reach 4.5 deviations, and the tail has the right weight
        assert abs(sample).max() > 4.3
        assert (abs(sample) > 3).mean() == pytest.approx(0.0027, rel=0.1)


def test_different_draws_are_uncorrelated() -> None:
    shape = (300,)
    base = _many().uniform(shape, "x")
    draws = [
        base,
        base.roll(1, dims=0),  # the neighbouring example
        base.roll(1, dims=1),  # the neighbouring position
        _many().uniform(shape, "y"),
        _many().uniform(shape, "x", 0),
        _many().uniform(shape, "x", 1),
        _many(seed=1).uniform(shape, "x"),
        Streams(derive(0, "x"), torch.arange(1000, 2000)).uniform(shape, "x"),
        _many().normal(shape, "x"),
    ]
    flat = torch.stack([draw.flatten() for draw in draws]).double()
    for values in (flat, (flat - 0.5) ** 2):
        correlation = torch.corrcoef(values)
        for one, two in itertools.combinations(range(len(draws)), 2):
            assert abs(float(correlation[one, two])) < 5 / 300_000**0.5, (one, two)


def test_pairs_fill_the_square_evenly() -> None:
    drawn = Streams(6, torch.arange(2000)).uniform((200,), "x")
    cells = (drawn * 16).long()
    pairs = (cells[:, 0::2] * 16 + cells[:, 1::2]).flatten()
    assert stats.chisquare(torch.bincount(pairs, minlength=256).numpy()).pvalue > 0.01
