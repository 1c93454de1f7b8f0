"""What another attempt does otherwise after memory ran out: once, half the tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strucprune_core.spec import JobSpec

_TOKENS = "micro_batch_tokens"


def smaller_plan(spec: JobSpec, earlier: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The next attempt's plan, or None if there has been a smaller one already.

    A sequence goes through a layer whole, so fewer tokens than the longest one has change nothing:
    then the plan is to try again as before, since others may have taken the memory.

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
    tokens = spec.runtime.micro_batch_tokens
    return {**plan, _TOKENS: min(tokens, max(longest, tokens // 2))}


def following(spec: JobSpec, plan: Mapping[str, Any] | None) -> JobSpec:
    """The job as an attempt with this plan runs it. The result's fingerprint stays the same."""
    if plan is None or _TOKENS not in plan:
        return spec
    runtime = spec.runtime.model_copy(update={_TOKENS: plan[_TOKENS]})
    return spec.model_copy(update={"runtime": runtime})
