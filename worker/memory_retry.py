"""What another attempt does otherwise after memory ran out: once, half the tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strucprune_core.spec import JobSpec


def smaller_plan(spec: JobSpec, earlier: Mapping[str, Any] | None) -> dict[str, int] | None:
    """The next attempt's plan, or None if there has been one already.

    A sequence goes through a layer whole, so fewer tokens than the longest one has change nothing:
    then the plan is to try again as before, since others may have taken the memory.

    Args:
        spec: The job.
        earlier: The plan of the attempt that failed (`JobRecord.plan`).
    """
    if earlier is not None:
        return None
    longest = spec.calibration.sequence_length
    if spec.evaluation is not None:
        longest = max(longest, spec.evaluation.sequence_length)
    tokens = spec.runtime.micro_batch_tokens
    return {"micro_batch_tokens": min(tokens, max(longest, tokens // 2))}


def following(spec: JobSpec, plan: Mapping[str, Any] | None) -> JobSpec:
    """The job as an attempt with this plan runs it. The result's fingerprint stays the same."""
    if plan is None:
        return spec
    runtime = spec.runtime.model_copy(update={"micro_batch_tokens": plan["micro_batch_tokens"]})
    return spec.model_copy(update={"runtime": runtime})
