"""The plan of the attempt after one that ran out of memory: half the tokens at a time, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strucprune_core.models.tiles import DEFAULT_TOKENS
from strucprune_core.spec import JobSpec

_TOKENS = "micro_batch_tokens"


def smaller_plan(spec: JobSpec, earlier: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The next attempt's plan, or None if the failed attempt had a smaller plan already.

    A micro-batch holds whole sequences, so it cannot have fewer tokens than the longest one. Then
    the plan repeats the present size: other processes may have taken the memory.

    Args:
        spec: The job.
        earlier: The plan of the attempt that failed (`JobRecord.plan`).
    """
    plan = dict(earlier or {})
    if _TOKENS in plan:
        return None
    longest = spec.calibration.sequence_length
    if spec.evaluation is not None:
        longest = max(longest, spec.evaluation.sequence_length)
    # Where the planner chose, what it has without a limit: with the smaller number as the most it
    # takes no more than before.
    tokens = spec.runtime.micro_batch_tokens or DEFAULT_TOKENS
    return {**plan, _TOKENS: min(tokens, max(longest, tokens // 2))}


def following(spec: JobSpec, plan: Mapping[str, Any] | None) -> JobSpec:
    """The specification for an attempt with this plan. Its fingerprint stays the same."""
    if plan is None or _TOKENS not in plan:
        return spec
    runtime = spec.runtime.model_copy(update={_TOKENS: plan[_TOKENS]})
    return spec.model_copy(update={"runtime": runtime})
