"""Layer energies: how much loss a unit of a layer's damage causes.

    alpha_l = KL(dense || layer l alone pruned) / predicted damage of that same removal

Without alpha the last layers are over-pruned: their damage costs several times more loss than the
first layers'.
"""

from __future__ import annotations

PROBE_SPARSITY = 0.3  # Share of the probed layer's channels that goes.
LEAST_KL = 1e-9  # Below float32 noise of a logit difference: "no measurable effect".


def energy(kl: float, predicted_damage: float) -> float:
    """Energy of one layer; positive also where a probe had no measurable effect.

    Args:
        kl: Mean KL divergence per token, nats.
        predicted_damage: Sum of the damage curve over the probed removal.
    """
    if predicted_damage <= 0.0:
        return LEAST_KL  # Every probed channel is dead: removing them costs nothing.
    return max(kl, LEAST_KL) / predicted_damage
