"""How many whole blocks go, beside structures of the blocks that stay.

Blocks (the attention or the FFN of a layer, or both) are removed greedily: of all that are left,
the one that costs the least loss per parameter in the model without those before it goes next. The
loss is measured, KL(dense || pruned) on held-out tokens, not predicted. 2SSP (arXiv 2501.17771)
removes attention blocks this way, by perplexity, after a share of its own for channels.

We differ in how the budget is shared. Removing the first k blocks leaves a smaller budget for
channels and heads, which their damage curves price. So for every k

    L(k) = KL_k  +  sum_l alpha_l D_l(removed_l),   with the channels' budget B - (parameters of k)

and the k with the least L(k) is used. Both terms are in nats per token. Where blocks alone go, k is
the first with which the budget is met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strucprune_core.method.allocation.budget import is_enough


@dataclass(frozen=True, slots=True)
class Step:
    """One more block that goes.

    Attributes:
        parameters: What goes with it.
        loss: KL divergence from the dense model, in nats per token, of the model without it and all
            before it.
    """

    parameters: int
    loss: float


def next_block(losses: Sequence[float], parameters: Sequence[int]) -> int:
    """Which of the blocks that are left goes next: the one that adds the least loss per parameter.

    Args:
        losses: KL divergence that removing each adds, nats per token.
        parameters: What goes with each.
    """
    prices = [loss / count for loss, count in zip(losses, parameters, strict=True)]
    return prices.index(min(prices))


def steps_to_budget(parameters: Sequence[int], budget: int) -> int:
    """How many of the steps, in order, meet a budget (see `budget.is_enough`).

    Args:
        parameters: What goes with each step.
        budget: Parameters that are to go.
    """
    removed = 0
    for number, step in enumerate(parameters):
        if is_enough(removed, step, budget):
            return number
        removed += step
    return len(parameters)


def choose_steps(
    steps: Sequence[Step], budget: int, loss_of_rest: Callable[[int, int], float | None]
) -> int | None:
    """How many steps are taken beside what is removed of other structures; None: no number will do.

    Args:
        steps: The steps, in order.
        budget: Parameters that are to go.
        loss_of_rest: Given the number of steps and the budget that they leave, which may be
            negative, the predicted loss of the rest; None if the rest cannot meet it.
    """
    best: tuple[float, int] | None = None
    removed, loss = 0, 0.0
    for count in range(len(steps) + 1):
        if count:
            removed += steps[count - 1].parameters
            loss = steps[count - 1].loss
        rest = loss_of_rest(count, budget - removed)
        if rest is not None and (best is None or loss + rest < best[0]):
            best = (loss + rest, count)
        if removed >= budget:
            break
    return None if best is None else best[1]
