from __future__ import annotations

import numpy as np
import pytest

from strucprune_core.method.allocation.energies import (
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
    """1/(2n) E[(sum_t g_t . e_t)^2], drawn, with sizes of gradients and of errors unrelated."""
    draw = np.random.default_rng(0)
    tokens, width, draws = 400, 6, 4000
    slopes = draw.lognormal(0, 0.3, size=tokens)
    errors = 0.1 * draw.lognormal(0, 0.3, size=(tokens, 1)) * draw.normal(size=(tokens, width))
    loss = 0.0
    for _ in range(draws):
        gradients = slopes[:, None] * draw.normal(size=(tokens, width))
        loss += float((gradients * errors).sum()) ** 2 / (2 * tokens) / draws
    damage = float(np.square(errors).sum(1).mean())
    squares = (width * np.square(slopes)).astype(np.float32)
    assert gradient_energy(squares, width) * damage == pytest.approx(loss, rel=0.15)


def test_gradient_energy_by_hand() -> None:
    squares = np.array([8.0, 2.0], dtype=np.float32)
    assert gradient_energy(squares, 5) == pytest.approx(0.5)
    assert gradient_energy(0 * squares, 5) > 0.0


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
