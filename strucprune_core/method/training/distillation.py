"""Distillation of the pruned model as a whole: Adam on all layers towards the dense model's output.

    loss = mean_t KL(dense || pruned) of the next-token distributions, nats

This is knowledge distillation (Hinton et al. 2015) at temperature 1, with the dense model as the
teacher and no loss on labels. Recovery repairs a layer against its own dense output. How the errors
of layers combine shows only at the model's output, which distillation trains on.

We differ in memory: the model is never held. Gradients come back layer by layer
(`models/backward.py`), and a layer is updated, with its moments, while it is resident. So this file
holds what happens to one tensor. The result is used only if the divergence on held-out tokens
falls.

Learning rates are relative to each matrix's own root mean square, as in recovery and in Adafactor
(Shazeer and Stern 2018). So one number serves all matrices of all models.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

BETAS = (0.9, 0.99)
# As in `recovery`: far below the gradients of a mean over many tokens, which are small.
EPSILON = 1e-15
DIVERGED_NATS = 1.0  # Above the first batch's loss: training has undone what repair had reached.


class DistillationStatus(StrEnum):
    """How a distillation ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"  # The divergence on held-out tokens did not fall.
    DIVERGED = "diverged"  # The loss exploded or was not a number.


@dataclass(frozen=True, slots=True)
class Trained:
    """One matrix in training and its moments, all of one shape, float32, on one device."""

    weight: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def start(cls, weight: Tensor) -> Trained:
        """A matrix that has not been trained yet."""
        return cls(weight, torch.zeros_like(weight), torch.zeros_like(weight))

    def update(self, gradient: Tensor, step: int, rate: float) -> None:
        """One step of Adam (Kingma and Ba 2015), in place.

        Args:
            gradient: Of the loss, shaped as the matrix.
            step: Number of the step, from 1.
            rate: Learning rate relative to the matrix's root mean square.
        """
        beta1, beta2 = BETAS
        self.first.lerp_(gradient, 1.0 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        length = rate * float(self.weight.square().mean().sqrt()) / (1.0 - beta1**step)
        scale = self.second.div(1.0 - beta2**step).sqrt_().add_(EPSILON)
        self.weight.addcdiv_(self.first, scale, value=-length)


def has_diverged(loss: float, first_loss: float) -> bool:
    """Whether a batch's loss says that training has gone wrong."""
    return not loss <= first_loss + DIVERGED_NATS  # `not <=`: also for NaN.
