from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from strucprune_core.errors import Stopped
from strucprune_core.method.layer.ridge import ridge
from strucprune_core.method.training.recovery import (
    RecoveryOptions,
    RecoveryResult,
    RecoveryStatus,
    Tokens,
    held_out_error,
    recover,
)
from strucprune_core.method.training.schedule import FLOOR, rate_factor
from tests.support.known import known

D, F, KEPT = 12, 32, 20
OPTIONS = RecoveryOptions(steps=60, batch_tokens=128)


def gated(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    hidden = functional.silu(x @ weights["gate"].T) * (x @ weights["up"].T)
    return hidden @ weights["down"].T


def dense_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    return {role: torch.randn(*shape, generator=draw) / 3 for role, shape in shapes.items()}


def tokens_of(count: int, seed: int) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, D, generator=draw)
    weights = torch.rand(count, generator=draw) + 0.5
    targets = gated(inputs, dense_weights())
    return Tokens(inputs.numpy(), targets.numpy(), weights.numpy())


def pruned_weights(train: Tokens) -> dict[str, Tensor]:
    """The first channels, with the down projection repaired."""
    dense, kept = dense_weights(), torch.arange(KEPT)
    x = torch.from_numpy(train.inputs)
    hidden = functional.silu(x @ dense["gate"].T) * (x @ dense["up"].T)
    gram = hidden.T @ hidden / len(hidden)
    down = ridge(gram, dense["down"], kept, 0.01).weight.float()
    return {"gate": dense["gate"][:KEPT], "up": dense["up"][:KEPT], "down": down}


def run(options: RecoveryOptions = OPTIONS) -> tuple[dict[str, Tensor], RecoveryResult]:
    train, holdout = tokens_of(1024, 1), tokens_of(256, 2)
    weights = pruned_weights(train)
    return weights, recover(gated, weights, train, holdout, options)


def test_it_lowers_the_held_out_error() -> None:
    weights, result = run()
    assert result.status is RecoveryStatus.ACCEPTED
    assert result.accepted
    assert known(result.error_after) < 0.9 * known(result.error_before)
    holdout = tokens_of(256, 2)
    assert result.error_before == held_out_error(gated, weights, holdout, OPTIONS.batch_tokens)
    assert result.error_after == held_out_error(
        gated, result.weights, holdout, OPTIONS.batch_tokens
    )
    assert len(result.losses) == OPTIONS.steps
    assert sum(result.losses[-10:]) < sum(result.losses[:10])
    assert all(not weight.requires_grad for weight in result.weights.values())
    assert {role: w.shape for role, w in result.weights.items()} == {
        role: w.shape for role, w in weights.items()
    }


def test_the_held_out_error_is_the_weighted_one() -> None:
    tokens, weights = tokens_of(100, 3), pruned_weights(tokens_of(200, 4))
    gap = (gated(torch.from_numpy(tokens.inputs), weights).numpy() - tokens.targets) ** 2
    w = tokens.weights[:, None]
    expected = (gap * w).sum() / (tokens.targets**2 * w).sum()
    assert held_out_error(gated, weights, tokens, 32) == pytest.approx(float(expected), rel=1e-5)
    assert held_out_error(gated, dense_weights(), tokens, 32) == 0.0


def test_given_weights_are_not_modified() -> None:
    train, holdout = tokens_of(256, 1), tokens_of(64, 2)
    weights = pruned_weights(train)
    copies = {role: weight.clone() for role, weight in weights.items()}
    recover(gated, weights, train, holdout, OPTIONS)
    assert all(torch.equal(weights[role], copies[role]) for role in weights)


def test_what_does_not_help_is_rejected() -> None:
    """Trained towards other targets than the held-out ones, it must get worse there."""
    train, holdout = tokens_of(256, 1), tokens_of(64, 2)
    weights = pruned_weights(train)
    wrong = Tokens(train.inputs, -train.targets, train.weights)
    result = recover(gated, weights, wrong, holdout, OPTIONS)
    assert result.status is RecoveryStatus.REJECTED
    assert not result.accepted
    assert known(result.error_after) > known(result.error_before)
    assert all(result.weights[role] is weights[role] for role in weights)


def test_perfect_weights_are_left_alone() -> None:
    weights = dense_weights()
    result = recover(gated, weights, tokens_of(256, 1), tokens_of(64, 2), OPTIONS)
    assert result.status is RecoveryStatus.REJECTED
    assert result.error_before == 0.0
    assert all(torch.equal(result.weights[role], weights[role]) for role in weights)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_divergence_is_reported(rate: float) -> None:
    weights, result = run(RecoveryOptions(steps=60, batch_tokens=128, learning_rate=rate))
    assert result.status is RecoveryStatus.DIVERGED
    assert np.isnan(known(result.error_after))
    assert len(result.losses) < 60
    assert all(torch.equal(result.weights[role], weights[role]) for role in weights)


def test_a_block_that_is_not_finite_diverges_at_once() -> None:
    train = tokens_of(256, 1)
    inputs = train.inputs.copy()
    inputs[:, 0] = np.inf
    broken = Tokens(inputs, train.targets, train.weights)
    result = recover(gated, dense_weights(), broken, tokens_of(64, 2), OPTIONS)
    assert result.status is RecoveryStatus.DIVERGED
    assert len(result.losses) == 1


def test_the_same_seed_gives_the_same_bits() -> None:
    _, first = run()
    torch.randn(7)  # Not drawn from: recovery has a generator of its own.
    _, second = run()
    _, other = run(RecoveryOptions(steps=60, batch_tokens=128, seed=1))
    assert first.losses == second.losses
    assert all(torch.equal(first.weights[role], second.weights[role]) for role in first.weights)
    assert other.losses != first.losses


def test_memory_mapped_rows_give_the_same_bits(tmp_path: Path) -> None:
    def mapped(array: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        np.save(tmp_path / name, array)
        loaded: NDArray[np.float32] = np.load(tmp_path / name, mmap_mode="r")
        return loaded

    train, holdout = tokens_of(300, 1), tokens_of(70, 2)
    weights = pruned_weights(train)
    on_disk = Tokens(
        mapped(train.inputs, "x.npy"),
        mapped(train.targets, "y.npy"),
        mapped(train.weights, "w.npy"),
    )
    options = RecoveryOptions(steps=10, batch_tokens=128)
    plain = recover(gated, weights, train, holdout, options)
    assert recover(gated, weights, on_disk, holdout, options).losses == plain.losses


def test_it_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        _, result = run()
    _, plain = run()
    assert result.losses == plain.losses
    assert not any(weight.is_inference() for weight in result.weights.values())


def test_units_of_the_outputs_do_not_matter() -> None:
    train, holdout = tokens_of(256, 1), tokens_of(64, 2)
    weights = pruned_weights(train)
    result = recover(gated, weights, train, holdout, OPTIONS)

    def scaled(tokens: Tokens) -> Tokens:
        targets, weights = tokens.targets / np.float32(1024), tokens.weights * np.float32(64)
        return Tokens(tokens.inputs, targets, weights)

    small = dict(weights, down=weights["down"] / 1024)
    other = recover(gated, small, scaled(train), scaled(holdout), OPTIONS)
    assert other.losses == pytest.approx(result.losses, rel=1e-3)


def test_a_tick_after_every_step_may_stop_it() -> None:
    train, ticks = tokens_of(256, 1), list[int]()

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise Stopped("stop")

    with pytest.raises(Stopped):
        recover(gated, pruned_weights(train), train, tokens_of(64, 2), OPTIONS, tick)
    assert len(ticks) == 3


@pytest.mark.parametrize("count", [5, 130])
def test_fewer_tokens_than_a_batch_or_a_rest(count: int) -> None:
    train = tokens_of(count, 1)
    result = recover(gated, pruned_weights(tokens_of(200, 1)), train, tokens_of(64, 2), OPTIONS)
    assert len(result.losses) == OPTIONS.steps


@pytest.mark.parametrize("steps", [1, 2, 20, 80, 150])
def test_the_rate_warms_up_and_falls_to_the_floor(steps: int) -> None:
    rates = [rate_factor(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert peak == max(1, round(0.05 * steps)) - 1
    assert rates[peak] == 1.0
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0.0
    if steps > 1:
        assert rates[-1] == pytest.approx(FLOOR)


def in_sequences(tokens: Tokens, length: int) -> Tokens:
    arrays = (tokens.inputs, tokens.targets, tokens.weights)
    return Tokens(*(array.reshape(-1, length, *array.shape[1:]) for array in arrays))


@pytest.mark.parametrize(("length", "in_batch"), [(1, 128), (32, 4), (100, 1), (256, 1)])
def test_a_block_that_mixes_tokens_gets_whole_sequences(length: int, in_batch: int) -> None:
    """As many as hold the tokens of a batch, at least one."""
    shapes: set[tuple[int, ...]] = set()

    def block(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        shapes.add(tuple(x.shape))
        return gated(x, weights)

    train = in_sequences(tokens_of(1600 if length == 100 else 1024, 1), length)
    holdout = in_sequences(tokens_of(2 * length, 2), length)
    result = recover(block, pruned_weights(tokens_of(1024, 1)), train, holdout, OPTIONS)
    assert (in_batch, length, D) in shapes
    assert max(shape[0] for shape in shapes) == in_batch
    assert result.accepted


def test_sequences_of_one_token_are_tokens() -> None:
    train, holdout = tokens_of(1024, 1), tokens_of(256, 2)
    start = pruned_weights(train)
    plain = recover(gated, start, train, holdout, OPTIONS)
    same = recover(gated, start, in_sequences(train, 1), in_sequences(holdout, 1), OPTIONS)
    assert plain.error_after == pytest.approx(same.error_after, rel=1e-4)
    assert plain.losses == pytest.approx(same.losses, rel=1e-4)
