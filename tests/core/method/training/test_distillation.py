from __future__ import annotations

import math

import pytest
import torch

from strucprune_core.method.training.distillation import BETAS, EPSILON, Trained, has_diverged


def test_the_update_is_adam_at_a_rate_relative_to_the_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=draw)
    ours = Trained.start(start.clone())
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], betas=BETAS, eps=EPSILON)
    for step in range(1, 8):
        gradient = torch.randn(5, 3, generator=draw) * 10.0**-step
        adam.param_groups[0]["lr"] = 0.01 * float(ours.weight.square().mean().sqrt())
        theirs.grad = gradient.clone()
        adam.step()
        ours.update(gradient, step, 0.01)
        torch.testing.assert_close(ours.weight, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_a_matrix_without_gradient_stays() -> None:
    ours = Trained.start(torch.ones(2, 2))
    ours.update(torch.zeros(2, 2), 1, 0.01)
    assert ours.weight.equal(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("loss", "first", "diverged"),
    [(1.0, 1.0, False), (1.9, 1.0, False), (2.1, 1.0, True), (math.nan, 1.0, True)],
)
def test_divergence_is_a_loss_that_exploded(loss: float, first: float, diverged: bool) -> None:
    assert has_diverged(loss, first) is diverged
