"""Times of passes, read off a device's table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.device_table import (
    DeviceTable,
    parse_table,
    shipped_table,
    shipped_tables,
)
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.latency import NotInTable, Surface, pass_model
from strucprune_core.storage.local import LocalStore
from tests.support.device_tables import (
    CONTEXTS,
    WIDTHS,
    attention,
    beside,
    made_table,
    passed,
    product,
)
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Three layers, hidden 64, four query heads of 16, two of keys, 192 channels, 512 tokens."""
    directory = make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3)
    return inspect_model(LocalStore(directory)).config


def by_hand(config: ModelConfig, new: int, cached: int, heads: int) -> float:
    """The sum of the formulas, matrix by matrix; the head sees the last token of each sequence."""
    hidden = config.hidden_size
    total = beside(new, hidden) + product(heads, hidden, config.vocab_size)
    for block in config.blocks:
        keys, queries = block.kv_heads * config.head_dim, block.query_heads * config.head_dim
        (channels,) = block.ffn_widths
        matrices = [
            (hidden, queries),
            (hidden, keys),
            (hidden, keys),
            (queries, hidden),
            (hidden, channels),
            (hidden, channels),
            (channels, hidden),
        ]
        total += sum(product(new, *matrix) for matrix in matrices)
        total += attention(cached, keys, block.query_heads // block.kv_heads)
        total += beside(new, channels) + beside(new, hidden)
    return total


@pytest.mark.parametrize(
    ("of", "sequences", "context", "new", "cached"),
    [("decode", 1, 100, 1, 100), ("decode", 4, 4096, 4, 4 * 4096), ("prefill", 1, 0, 32, 0)],
)
def test_a_pass_is_the_sum_of_its_parts(
    config: ModelConfig, of: str, sequences: int, context: int, new: int, cached: int
) -> None:
    seconds = pass_model(made_table(), of, sequences).seconds(config, context)
    assert seconds == pytest.approx(by_hand(config, new, cached, sequences), rel=1e-9)


def test_layers_of_different_widths_each_count(config: ModelConfig) -> None:
    first, *others = config.blocks
    narrow = config.with_blocks([replace(first, ffn_widths=(70,)), *others])
    seconds = pass_model(made_table(), "decode", 1).seconds(narrow, 16)
    assert seconds == pytest.approx(by_hand(narrow, 1, 16, 1), rel=1e-9)


def test_what_was_removed_takes_nothing(config: ModelConfig) -> None:
    model = pass_model(made_table(), "decode", 1)
    first, second, third = config.blocks
    gone = replace(second, without=("attention", "ffn"), query_heads=0, kv_heads=0, ffn_widths=())
    fewer = model.seconds(config.with_blocks([first, gone, third]), 16)
    assert fewer == pytest.approx(model.seconds(config.with_blocks([first, third]), 16))
    no_ffn = replace(second, without=("ffn",), ffn_widths=())
    between = model.seconds(config.with_blocks([first, no_ffn, third]), 16)
    assert fewer < between < model.seconds(config, 16)


def test_a_window_bounds_what_attention_reads(config: ModelConfig) -> None:
    model = pass_model(made_table(), "decode", 1)
    windowed = config.with_blocks([replace(block, window=50) for block in config.blocks])
    assert model.seconds(windowed, 4096) == pytest.approx(model.seconds(config, 50))


def test_a_head_wider_than_all_matrices_is_counted_in_pieces(config: ModelConfig) -> None:
    wide = replace(config, vocab_size=3 * WIDTHS[-1] + 100)
    more = pass_model(made_table(), "decode", 1).seconds(wide, 16)
    expected = by_hand(wide, 1, 16, 1) + 3 * product(1, 0, 0)  # Each further piece is a call.
    assert more == pytest.approx(expected, rel=1e-9)


widths = st.integers(1, 1024)


@given(widths, widths, st.integers(1, 300), st.integers(1, 8), st.integers(0, 10**6))
def test_more_never_takes_less(
    config: ModelConfig, channels: int, fewer: int, context: int, heads: int, seed: int
) -> None:
    """Whatever was measured, be it noise alone."""
    table = noisy_table(seed)
    model = pass_model(table, "decode", 1)
    dense = shape(config, 1, channels, heads)
    seconds = model.seconds(dense, context)
    rounding = 1 + 1e-12
    narrow = shape(config, 1, min(fewer, channels), heads)
    assert model.seconds(narrow, context) <= rounding * seconds
    fewer_heads = shape(config, 1, channels, max(1, heads - 1))
    assert model.seconds(fewer_heads, context) <= rounding * seconds
    assert model.seconds(dense, max(1, context - 1)) <= rounding * seconds
    assert model.seconds(shape(config, 2, channels, heads), context) > seconds


def noisy_table(seed: int) -> DeviceTable:
    draw = np.random.default_rng(seed)

    def noisy(times: Any) -> Any:
        if isinstance(times, list):
            return [noisy(each) for each in times]
        return times * draw.uniform(0.3, 3.0)

    one = passed(1, 1, CONTEXTS)
    parts = ("products", "layer", "activation", "attention", "model")
    return made_table(decode=[{**one, **{part: noisy(one[part]) for part in parts}}], prefill=[])


def shape(config: ModelConfig, layers: int, channels: int, heads: int) -> ModelConfig:
    """Such a model with other widths, whose heads share no keys."""
    block = replace(config.blocks[0], ffn_widths=(channels,), query_heads=heads, kv_heads=heads)
    return config.with_blocks([block] * layers)


def test_between_and_below_measured_places() -> None:
    surface = Surface.of("it", ((10, 20), (1, 3)), [[1.0, 3.0], [2.0, 8.0]])
    assert surface.at(10, 1) == 1.0
    assert surface.at(15, 1) == 1.5
    assert surface.at(15, 2) == pytest.approx((1 + 3 + 2 + 8) / 4)
    assert surface.at(2, 1) == 1.0


def test_noise_cannot_make_less_take_longer() -> None:
    surface = Surface.of("it", ((1, 2, 3, 4),), [5.0, 1.0, None, 2.0])
    assert [surface.at(place) for place in (1, 2, 4)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("places", [(21, 1), (15, 3), (10, 4)])
def test_what_was_not_measured_is_refused(places: tuple[int, int]) -> None:
    surface = Surface.of("a matrix", ((10, 20), (1, 3)), [[1.0, 3.0], [2.0, None]])
    with pytest.raises(NotInTable, match=f"a matrix of {places[0]} x {places[1]}") as error:
        surface.at(*places)
    assert "--largest" in (error.value.remedy or "")
    assert surface.at(20, 1) == 2.0
    assert surface.at(10, 2) == 2.0


def test_a_model_that_is_too_large_is_refused(config: ModelConfig) -> None:
    model = pass_model(made_table(), "decode", 1)
    wide = config.with_blocks([replace(block, ffn_widths=(1025,)) for block in config.blocks])
    with pytest.raises(NotInTable, match="64 x 1,025"):
        model.seconds(wide, 16)
    with pytest.raises(NotInTable, match="ends at 4,096 tokens") as error:
        model.seconds(config, 4097)
    assert error.value.field == "pruning.target.context_tokens"


def test_passes_that_a_table_has() -> None:
    with pytest.raises(InvalidSpec, match="decode of 1, 4 sequences at once, not of 3"):
        pass_model(made_table(), "decode", 3)
    with pytest.raises(InvalidSpec, match="prefill of 1 sequences"):
        pass_model(made_table(), "prefill", 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (8, 8, 256, 1024)}, "widths must rise"),
        ({"groups": (0, 2, 4)}, "groups must rise"),
        ({"widths": (8, 64)}, "products must hold 2 x 2 times"),
        ({"groups": (1, 2)}, "attention must hold 2 x 4 x 2 times"),
        ({"decode": [passed(4, 1, CONTEXTS)]}, "needs a decode pass of as many"),
        ({"decode": [passed(1, 2, CONTEXTS)]}, "one token of each"),
        ({"decode": []}, "at least 1"),
        ({"version": 2}, "Input should be 1"),
    ],
)
def test_tables_that_do_not_hold_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made_table(**changes)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), "fast"])
def test_times_are_positive_numbers(wrong: Any) -> None:
    one = passed(1, 1, CONTEXTS)
    with pytest.raises(ValidationError):
        made_table(decode=[{**one, "layer": [wrong, 1.0, 1.0, 1.0]}], prefill=[])


def test_the_digest_is_of_what_a_table_says() -> None:
    table = made_table()
    text = json.dumps(json.loads(table.model_dump_json()), indent=3)
    assert parse_table(text, "it").sha256() == table.sha256()
    assert made_table(threads=2).sha256() != table.sha256()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "device": 7}'])
def test_a_file_that_is_no_table(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"x.json is no table of a device") as error:
        parse_table(text, "x.json")
    assert "bench-device" in (error.value.remedy or "")


def test_tables_of_the_package(config: ModelConfig) -> None:
    assert shipped_tables()
    for name in shipped_tables():
        table = shipped_table(name)
        assert table.rounds >= 3
        assert table.runtime.startswith("transformers ")
        for of in ("decode", "prefill"):
            assert pass_model(table, of, 1).seconds(config, 16 if of == "decode" else 0) > 0
    with pytest.raises(InvalidSpec, match="no table of a device named 'none'"):
        shipped_table("none")
