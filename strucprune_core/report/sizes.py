"""The report of a job of several sizes: one line for each, which has a report of its own. No torch.

It lies in the job's output as `report.json`; the report of a size lies in the size's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, TypeAdapter

from strucprune_core.report.document import (
    SCHEMA_VERSION,
    Environment,
    FileEntry,
    ModelSummary,
    Part,
    PhaseTime,
    Report,
    SampleReport,
    SizeSummary,
    SparsitySummary,
    SpeedReport,
    TasksSummary,
)


class SizeResult(Part):
    """One size: what is left of the model, and how good that is."""

    name: str = Field(description="Its sparsity, as the job asked for it.")
    folder: str | None = Field(
        description="Where its checkpoint and its report are, under the output; null if rejected."
    )
    rejected: str | None = Field(description="Why it is not published; null if it is.")
    sparsity: SparsitySummary
    after: SizeSummary
    perplexity: float | None = Field(
        description="On the evaluation text; null if there is none, or if it is not finite."
    )
    perplexity_ratio: float | None = Field(description="Pruned / dense.")
    task_retention: float | None = Field(
        default=None,
        description="Share of the dense model's accuracy above chance that is kept on tasks; null "
        "if there are none.",
    )
    tasks: TasksSummary | None = Field(default=None, description="As in its own report.")
    speed: SpeedReport | None = Field(default=None, description="As in its own report.")
    samples: list[SampleReport] = Field(
        default_factory=list, description="As in its own report: the same prompts for each size."
    )
    best_of_its_size: bool = Field(
        description="No other size has as few bytes and as low a perplexity (the Pareto front)."
    )


class SizesReport(Part):
    """The results of one finished job of several sizes."""

    schema_version: str = SCHEMA_VERSION
    job_fingerprint: str = Field(
        description="SHA-256 over what determines the result: specification, model files, texts."
    )
    created_at: str = Field(description="UTC, ISO 8601.")
    model: ModelSummary
    spec: dict[str, Any] = Field(description="The JobSpec as it ran.")
    environment: Environment
    before: SizeSummary
    perplexity_before: float | None = Field(description="Of the dense model.")
    sizes: list[SizeResult] = Field(description="In the order in which the job lists them.")
    phases: list[PhaseTime] = Field(description="Work for all sizes; what they share counts once.")
    files: list[FileEntry]
    warnings: list[str] = Field(default_factory=list)


AnyReport = Report | SizesReport
_ANY_REPORT: TypeAdapter[AnyReport] = TypeAdapter(AnyReport)


def read_report(data: bytes) -> AnyReport:
    """The report that is stored as `report.json`.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _ANY_REPORT.validate_json(data)


def pareto_front(sizes: Sequence[tuple[int, float | None]]) -> list[bool]:
    """Which sizes no other one beats in both respects.

    Args:
        sizes: Bytes and perplexity of each; None: not known, or of no use.
    """

    def beaten(at: int) -> bool:
        size, perplexity = sizes[at]
        if perplexity is None:
            return True
        return any(
            other <= size and its <= perplexity and (other, its) != (size, perplexity)
            for other, its in sizes
            if its is not None
        )

    return [not beaten(at) for at in range(len(sizes))]
