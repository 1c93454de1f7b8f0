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
stand in for the draws. Take what different tokens and directions add as uncorrelated, and the size
of a token's gradient as uncorrelated with that of its error:

    KL per token = 1/(2nd) sum_t |g_t|^2 |e_t|^2 = 1/(2d) mean_t |g_t|^2 mean_t |e_t|^2.

Damage is a mean of |e_t|^2 too, with weights that average to 1 (see `calibration.statistics`): the
errors' scale, in which a few massive tokens must not have the only say. So KL per token = alpha D,

    alpha = mean_t |g_t|^2 / (2d).

On SmolLM2-135M this was 0.71 to 1.07 times the probe's energy at the eight layers compared (2, 6,
10, 14, 17, 22, 26 and 29; gradients on 1024 tokens, probes on 512), over which the energy itself
falls 64-fold. To assume that errors are in proportion to the stream, which divides every |g_t|^2 by
the token's weight, was not as good: from the layer on where massive tokens appear, theirs is all
that counts (12 times the probe's energy at layer 14).

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


def gradient_energy(squared_gradients: NDArray[np.float32], width: int) -> float:
    """Energy of the sites of one kind in one layer, nats per unit of damage.

    Args:
        squared_gradients: |g_t|^2 of the summed loss at their output, (n,).
        width: d, the output's dimensions.
    """
    return max(float(squared_gradients.mean(dtype=np.float64)) / (2 * width), LEAST_KL)


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
