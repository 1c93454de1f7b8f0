from __future__ import annotations

import pytest

from strucprune_core.allocation.energies import LEAST_KL, energy


def test_energy_is_loss_per_damage() -> None:
    assert energy(0.5, 4.0) == pytest.approx(0.125)


@pytest.mark.parametrize("kl", [0.0, -1e-12, LEAST_KL / 2])
def test_no_measurable_effect_still_costs_something(kl: float) -> None:
    assert energy(kl, 2.0) == pytest.approx(LEAST_KL / 2.0)


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_a_dead_layer_has_a_positive_energy(kl: float) -> None:
    assert energy(kl, 0.0) > 0.0
