"""Layer energies: how much loss a unit of a layer's damage causes, in nats per unit of damage.

    alpha_l = loss that pruning layer l adds / predicted damage of that same removal

StructPrune weighs layers by an energy (section 3); how to measure one is our choice. Without alpha
the last layers are over-pruned: their damage costs several times more loss than the first layers'.
Two ways measure it on the dense model, and one on a pruned model.

**Probe** (the default). Prune layer l alone, and measure the loss as KL(dense || pruned) on
held-out tokens.

**Gradients.** Let the output y_t of a site change by e_t in d dimensions, for n tokens. With F the
Fisher information of the predictions, to second order

    KL per token = 1/(2n) E[(sum_t g_t . e_t)^2],     g_t = dL/dy_t,

where L is the *summed* cross-entropy of tokens drawn from the model and E is over the draws. As
usual, the text's own tokens stand in for the draws (the "empirical Fisher"; Kunstner et al. 2019
discuss what that costs). Squared gradients rank channels in Fisher pruning (Theis et al. 2018) and
in Taylor pruning (Molchanov et al. 2019); here they only weigh layers. Take the contributions of
different tokens and directions as uncorrelated, and the size of a token's gradient as uncorrelated
with the size of its error:

    KL per token = 1/(2nd) sum_t |g_t|^2 |e_t|^2 = 1/(2d) mean_t |g_t|^2 mean_t |e_t|^2.

Damage is a mean of |e_t|^2 too, with weights that average to 1 (see `method.gram`). So KL per token
is alpha times the damage, with

    alpha = mean_t |g_t|^2 / (2d).

On SmolLM2-135M this was 0.71 to 1.07 times the probe's energy at the eight layers compared (2, 6,
10, 14, 17, 22, 26 and 29; gradients on 1024 tokens, probes on 512). The energy itself falls 64-fold
over these layers. Dividing every |g_t|^2 by the token's weight was worse: from the layer on where
massive tokens appear, only their gradients counted (12 times the probe's energy at layer 14).

**Review.** Losses of layers that are pruned together add up to more than their sum, and not in the
same proportion everywhere. In the model that a round has pruned, the loss of layer l is what
putting the dense layer back would save: KL(dense || all pruned) - KL(dense || all but l pruned).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROBE_SPARSITY = 0.3  # Share of the probed layer's channels that is removed.
LEAST_KL = 1e-9  # Below float32 noise of a logit difference: "no measurable effect".
# A review changes an energy by at most this factor relative to the others: what one layer saves is
# a small difference of large numbers, which may even be negative.
REVIEW_LIMIT = 2.0


def energy(kl: float, predicted_damage: float) -> float:
    """Energy of one layer, nats per unit of damage; positive also where a probe measured no effect.

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
    """The factors by which a review changes energies.

    Args:
        predicted: Loss that each layer's removal was predicted to cause; 0 where nothing went.
        measured: Loss that it causes in the pruned model, nats; noise may make it negative.

    Returns:
        For each layer the ratio of measured to predicted loss, within a factor of `REVIEW_LIMIT` of
        the ratio of all layers together. Layers that lost nothing get that common ratio.
    """
    total = max(sum(measured), LEAST_KL) / max(sum(predicted), LEAST_KL)
    ratios = [
        actual / (loss * total) if loss > 0.0 else 1.0
        for loss, actual in zip(predicted, measured, strict=True)
    ]
    return [total * min(max(ratio, 1 / REVIEW_LIMIT), REVIEW_LIMIT) for ratio in ratios]
