"""Results of jobs side by side, from their reports. No torch.

Reports are read as JSON, so that fields of a newer service do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One result: of a job, or one size of a job of several.

    Attributes:
        size: Its folder; "" where the job has one result.
        structures: What was removed.
        evaluation: What perplexity was measured on: text, windows, their length; "" if on nothing.
        text_sha256: Digest of that text; None where the report does not have it.
        perplexity_after: None if it was not measured, or is not finite.
        task_retention: Share of the accuracy above chance that is kept; None if not measured.
        decode_gain: How many times as fast tokens are written; None if not measured.
        seconds: Of the whole job.
    """

    job: str
    size: str
    model: str
    model_digest: str
    structures: str
    sparsity_requested: float
    sparsity_reached: float
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    kv_cache_bytes_per_token_after: int | None
    evaluation: str
    text_sha256: str | None
    perplexity_before: float | None
    perplexity_after: float | None
    perplexity_ratio: float | None
    task_retention: float | None
    prefill_gain: float | None
    decode_gain: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Its figures by name, as JSON and CSV have them."""
        return asdict(self)


def results_of(job_id: str, report: Mapping[str, Any]) -> Iterator[Result]:
    """The published results in a job's report."""
    if "sizes" not in report:
        perplexity = report.get("perplexity") or {}
        retention = (report.get("tasks") or {}).get("retention")
        yield _result(
            job_id, "", report, report, perplexity.get("after"), perplexity.get("ratio"), retention
        )
        return
    for size in report["sizes"]:
        if size["folder"] is not None:
            yield _result(
                job_id,
                size["folder"],
                report,
                size,
                size["perplexity"],
                size["perplexity_ratio"],
                size.get("task_retention"),
            )


def _result(
    job_id: str,
    size: str,
    report: Mapping[str, Any],
    own: Mapping[str, Any],
    perplexity: float | None,
    ratio: float | None,
    retention: float | None,
) -> Result:
    """One result.

    Args:
        job_id: Of its job.
        size: Its folder.
        report: What all results of the job share.
        own: The part of the report that is about this one.
        perplexity: After pruning.
        ratio: Pruned / dense.
        retention: On tasks.
    """
    before, after, speed = report["before"], own["after"], own.get("speed") or {}
    measured = report.get("perplexity") or {}
    return Result(
        job=job_id,
        size=size,
        model=report["model"]["uri"],
        model_digest=report["model"]["digest"],
        structures=" ".join(report["spec"]["pruning"]["structures"]),
        sparsity_requested=own["sparsity"]["requested"],
        sparsity_reached=own["sparsity"]["reached"],
        parameters_before=before["parameters"],
        parameters_after=after["parameters"],
        bytes_before=before["bytes"],
        bytes_after=after["bytes"],
        kv_cache_bytes_per_token_after=after.get("kv_cache_bytes_per_token"),
        evaluation=_evaluation(report["spec"]),
        text_sha256=measured.get("text_sha256"),
        perplexity_before=measured.get("before", report.get("perplexity_before")),
        perplexity_after=perplexity,
        perplexity_ratio=ratio,
        task_retention=retention,
        prefill_gain=speed.get("prefill_gain"),
        decode_gain=speed.get("decode_gain"),
        seconds=sum(phase["seconds"] for phase in report["phases"]),
    )


def _evaluation(spec: Mapping[str, Any]) -> str:
    asked = spec.get("evaluation")
    if not asked:
        return ""
    return f"{asked['uri']} {asked['sequences']} x {asked['sequence_length']}"


def perplexities_compare(results: Sequence[Result]) -> bool:
    """Whether all perplexities are of one dense model on the same windows of one text."""
    judged = [each for each in results if each.perplexity_after is not None]
    measures = {(each.model_digest, each.evaluation) for each in judged}
    texts = {each.text_sha256 for each in judged} - {None}
    return len(measures) <= 1 and len(texts) <= 1
