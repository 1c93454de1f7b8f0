"""Layer energies: how much loss a unit of a layer's damage causes.

    alpha_l = loss that pruning layer l adds / predicted damage of that same removal

Without alpha the last layers are over-pruned: their damage costs several times more loss than the
first layers'. There are two ways to it from the dense model, and one from a pruned one.

**Probe.** Prune layer l alone and look: the loss is KL(dense || layer l alone pruned).

**Gradients.** Let a site's output y_t of token t change by e_t in d dimensions, n tokens in all.
With F the Fisher information of the predictions, to second order

    KL per token = 1/(2n) E[(sum_t g_t . e_t)^2],     g_t = dL/dy_t,

where L is the *summed* cross-entropy of tokens drawn from the model and E is over the draws; as
usual (the "empirical Fisher", Kunstner et al. 2019 discuss what that costs) the text's own tokens
stand in for the draws. Take what different tokens and directions add as uncorrelated:

    KL per token = 1/(2nd) sum_t |g_t|^2 |e_t|^2.

Damage is D = mean_t(v_t |e_t|^2), with v_t = w_t / mean(w) and w_t = 1 / mean(x_out,t^2) (see
`calibration.statistics`). These weights are there because errors are in proportion to the size of
the stream, v_t |e_t|^2 about the same for all tokens; so the mean of the product is the product of
the means, and KL per token = alpha D with

    alpha = mean_t(|g_t|^2 / v_t) / (2d) = mean_t(|g_t|^2 / w_t) mean_t(w_t) / (2d).

**Review.** Where layers are pruned together their losses add up to more than their sum, and not in
the same proportion everywhere. In the model that a round has pruned, the loss of layer l is what
putting the dense layer back would save: KL(dense || all pruned) - KL(dense || all but l).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROBE_SPARSITY = 0.3  # Share of the probed layer's channels that goes.
LEAST_KL = 1e-9  # Below float32 noise of a logit difference: "no measurable effect".
# A review changes an energy by at most this factor relative to the others: what one layer saves is
# a small difference of large numbers, which may even be negative.
REVIEW_LIMIT = 2.0


def energy(kl: float, predicted_damage: float) -> float:
    """Energy of one layer; positive also where a probe had no measurable effect.

    Args:
        kl: Mean KL divergence per token, nats.
        predicted_damage: Sum of the damage curve over the probed removal.
    """
    if predicted_damage <= 0.0:
        return LEAST_KL  # Every probed channel is dead: removing them costs nothing.
    return max(kl, LEAST_KL) / predicted_damage


def gradient_energy(
    squared_gradients: NDArray[np.float32], token_weights: NDArray[np.float32], width: int
) -> float:
    """Energy of the sites of one kind in one layer, nats per unit of damage.

    Args:
        squared_gradients: |g_t|^2 of the summed loss at their output, (n,).
        token_weights: w_t of the layer's output, (n,).
        width: d, the output's dimensions.
    """
    weights = token_weights.astype(np.float64)
    scaled = squared_gradients.astype(np.float64) / weights
    return max(float(scaled.mean() * weights.mean()) / (2 * width), LEAST_KL)


def review_factors(predicted: list[float], measured: list[float]) -> list[float]:
    """What a review multiplies energies with.

    Args:
        predicted: Loss that each layer's removal was predicted to cause; 0 where nothing went.
        measured: Loss that it causes in the pruned model, nats; noise may make it negative.

    Returns:
        Of each the ratio of measured to predicted, no further than `REVIEW_LIMIT` from that of all
        together, which also stands for layers that lost nothing.
    """
    total = max(sum(measured), LEAST_KL) / max(sum(predicted), LEAST_KL)
    ratios = [
        found / (loss * total) if loss > 0.0 else 1.0
        for loss, found in zip(predicted, measured, strict=True)
    ]
    return [total * min(max(ratio, 1 / REVIEW_LIMIT), REVIEW_LIMIT) for ratio in ratios]
