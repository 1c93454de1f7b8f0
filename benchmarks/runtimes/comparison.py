"""Does a runtime compute what transformers computes, and how much faster is the pruned model?"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from benchmarks.runtimes.protocol import Output, Speed, Timing


@dataclass(frozen=True, slots=True)
class Agreement:
    """A runtime's output against the reference's.

    Attributes:
        same_tokens: Greedy tokens before the first that differs, over all prompts.
        tokens: Greedy tokens compared.
        max_abs_logit_difference: Over all prompts and the whole vocabulary.
        parting_margin: Where a prompt's tokens part: by how much the reference prefers its token to
            the next one, the largest over all prompts. None if all tokens are the same.
        noise: Of the reference; see `protocol.Output`.
    """

    same_tokens: int
    tokens: int
    max_abs_logit_difference: float
    parting_margin: float | None = None
    noise: float | None = None


def agreement(found: Output, reference: Output) -> Agreement:
    """Compare outputs for the same prompts.

    Args:
        found: Of the runtime.
        reference: Of transformers, with margins.

    Raises:
        ValueError: they are not for the same prompts, vocabulary and number of tokens.
    """
    if found.logits.shape != reference.logits.shape:
        raise ValueError(
            f"logits of shape {found.logits.shape} cannot be compared with {reference.logits.shape}"
        )
    if reference.margins is None:
        raise ValueError("the reference has no margins")
    same = [
        _same(ours, theirs) for ours, theirs in zip(found.tokens, reference.tokens, strict=True)
    ]
    partings = [
        margins[count]
        for count, margins in zip(same, reference.margins, strict=True)
        if count < len(margins)
    ]
    return Agreement(
        same_tokens=sum(same),
        tokens=sum(len(tokens) for tokens in reference.tokens),
        max_abs_logit_difference=float(np.abs(found.logits - reference.logits).max()),
        parting_margin=max(partings, default=None),
        noise=reference.noise,
    )


def _same(ours: list[int], theirs: list[int]) -> int:
    """Tokens before the first difference."""
    equal = [own == other for own, other in zip(ours, theirs, strict=True)]
    return equal.index(False) if False in equal else len(equal)


@dataclass(frozen=True, slots=True)
class Rates:
    """Medians over rounds, in tokens per second."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def rates(speed: Speed, timing: Timing) -> Rates:
    """Tokens per second of one model."""
    return Rates(
        prefill_tokens_per_second=len(timing.prompt) / statistics.median(speed.prefill_seconds),
        decode_tokens_per_second=timing.new_tokens / statistics.median(speed.decode_seconds),
    )


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times as fast the pruned model is: the median over rounds of dense / pruned seconds.

    A round times both models one after the other, so that what slows the machine down slows both.
    """

    prefill: float
    decode: float


def gain(dense: Speed, pruned: Speed) -> Gain:
    """Compare two models that were timed in turns."""
    return Gain(
        prefill=_median_ratio(dense.prefill_seconds, pruned.prefill_seconds),
        decode=_median_ratio(dense.decode_seconds, pruned.decode_seconds),
    )


def _median_ratio(dense: list[float], pruned: list[float]) -> float:
    return statistics.median(slow / fast for slow, fast in zip(dense, pruned, strict=True))
