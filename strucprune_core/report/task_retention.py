"""How much of the dense model's accuracy on tasks the pruned one keeps. No torch.

A random choice has some accuracy without any knowledge. So it is subtracted, and the retention is

    sum of (pruned - chance) / sum of (dense - chance)

over the tasks. A task counts if it has an accuracy, and the dense model's is above chance by two
standard errors: what is noise can be neither kept nor lost. A ratio of sums is less noisy than the
mean of the tasks' ratios, in which the task nearest to chance would weigh most.
"""

from __future__ import annotations

from collections.abc import Sequence

from strucprune_core.report.document import TaskMetric, TaskScores

ACCURACIES = ("acc", "exact_match", "acc_norm")
"""The metric that counts: the first of these that a task has."""
_STANDARD_ERRORS = 2.0


def accuracy(scores: TaskScores) -> TaskMetric | None:
    """The metric of a task that counts; None if it has no accuracy."""
    return scores.metric(*ACCURACIES)


def judged_pairs(
    dense: Sequence[TaskScores], pruned: Sequence[TaskScores]
) -> list[tuple[float, float]]:
    """(dense, pruned) accuracy above chance of the tasks that count."""
    pairs = []
    for before, after in zip(dense, pruned, strict=True):
        was, now = accuracy(before), accuracy(after)
        if was is None or now is None:
            continue
        above = was.value - before.chance
        if above > _STANDARD_ERRORS * (was.standard_error or 0.0):
            pairs.append((above, now.value - before.chance))
    return pairs


def retention(dense: Sequence[TaskScores], pruned: Sequence[TaskScores]) -> float | None:
    """The share that is kept; below 0 for a model worse than chance. None: no task counts."""
    pairs = judged_pairs(dense, pruned)
    if not pairs:
        return None
    return sum(after for _, after in pairs) / sum(before for before, _ in pairs)
