from __future__ import annotations

import numpy as np
import pytest

from strucprune_core.allocation.energies import (
    LEAST_KL,
    REVIEW_LIMIT,
    energy,
    gradient_energy,
    review_factors,
)


def test_energy_is_loss_per_damage() -> None:
    assert energy(0.5, 4.0) == pytest.approx(0.125)


@pytest.mark.parametrize("kl", [0.0, -1e-12, LEAST_KL / 2])
def test_no_measurable_effect_still_costs_something(kl: float) -> None:
    assert energy(kl, 2.0) == pytest.approx(LEAST_KL / 2.0)


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_a_dead_layer_has_a_positive_energy(kl: float) -> None:
    assert energy(kl, 0.0) > 0.0


def test_gradient_energy_times_damage_is_the_quadratic_loss() -> None:
    """1/(2n) E[(sum_t g_t . e_t)^2], drawn: errors in proportion to the size of the stream."""
    draw = np.random.default_rng(0)
    tokens, width, draws = 40, 6, 20_000
    sizes = draw.lognormal(0, 1.5, size=tokens)  # mean square of the stream, by token
    slopes = draw.lognormal(0, 0.7, size=tokens) / np.sqrt(sizes)
    gradients = slopes[:, None] * draw.standard_normal((draws, tokens, width))
    errors = 0.1 * np.sqrt(sizes)[:, None] * draw.standard_normal((tokens, width))
    loss = float(np.square((gradients * errors).sum((1, 2))).mean()) / (2 * tokens)
    weights = (1.0 / sizes).astype(np.float32)
    damage = float((weights / weights.mean() * np.square(errors).sum(1)).mean())
    squares = np.square(gradients).sum(2).mean(0).astype(np.float32)
    assert gradient_energy(squares, weights, width) * damage == pytest.approx(loss, rel=0.15)


def test_gradient_energy_by_hand() -> None:
    squares = np.array([8.0, 2.0], dtype=np.float32)
    weights = np.array([1.0, 3.0], dtype=np.float32)  # normalised: 1/2, 3/2
    assert gradient_energy(squares, weights, 5) == pytest.approx((16 + 4 / 3) / 2 / 10)
    # Only ratios of weights count.
    assert gradient_energy(squares, 7 * weights, 5) == pytest.approx((16 + 4 / 3) / 2 / 10)
    assert gradient_energy(0 * squares, weights, 5) > 0.0


def test_a_review_that_finds_what_was_predicted_changes_only_the_scale() -> None:
    assert review_factors([1.0, 2.0, 4.0], [1.5, 3.0, 6.0]) == pytest.approx([1.5] * 3)


def test_a_review_corrects_energies() -> None:
    low, high = review_factors([1.0, 1.0], [0.8, 1.2])
    assert (low, high) == pytest.approx((0.8, 1.2))


def test_a_review_is_limited_and_never_negative() -> None:
    factors = review_factors([1.0, 1.0, 1.0, 0.0], [9.0, 0.1, -0.1, 5.0])
    total = 14.0 / 3.0
    assert factors == pytest.approx([9.0, total / REVIEW_LIMIT, total / REVIEW_LIMIT, total])
    assert min(review_factors([1.0, 2.0], [-1.0, -2.0])) > 0.0
    assert min(review_factors([0.0, 0.0], [0.0, 0.0])) > 0.0
