"""The unit `sizes`, which is about all sizes of a job: its report, from the reports of each."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from strucprune_core.errors import QualityCollapsed
from strucprune_core.plan.deviations import warnings_of_sizes
from strucprune_core.report.document import Report
from strucprune_core.report.html import render_html
from strucprune_core.report.sizes import SizeResult, SizesReport, pareto_front
from strucprune_core.report.sizes_card import sizes_card
from strucprune_core.run import artifacts
from strucprune_core.run.context import Job
from strucprune_core.run.phase_times import phase_times
from strucprune_core.run.size_files import entries_of_sizes
from strucprune_core.run.sizes import Sizes, rejection
from strucprune_core.run.workspace import Draft


def report_on_sizes(job: Sizes, draft: Draft) -> None:
    """Write the report as a document and as a page, and a card that lists the sizes.

    Raises:
        QualityCollapsed: no size is good enough.
    """
    if not job.accepted:
        raise _all_collapsed(job)
    document = _report(job)
    card = sizes_card(document).encode()
    files = entries_of_sizes(job, card)
    document = document.model_copy(update={"files": files})
    draft.path(artifacts.Report.card).write_bytes(card)
    text = document.model_dump_json(indent=2) + "\n"
    draft.path(artifacts.Report.json).write_text(text, encoding="utf-8")
    draft.path(artifacts.Report.html).write_text(render_html(document), encoding="utf-8")


def _report(job: Sizes) -> SizesReport:
    """The report without its files."""
    reports = {size: report_of(each) for size, each in job.jobs.items()}
    first = next(iter(reports.values()))
    results = [_result(size, job.jobs[size], report) for size, report in reports.items()]
    front = pareto_front([(each.after.bytes, each.perplexity) for each in results])
    return SizesReport(
        job_fingerprint=job.fingerprint,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=first.model,
        spec=job.spec.model_dump(mode="json"),
        environment=first.environment,
        before=first.before,
        perplexity_before=None if first.perplexity is None else first.perplexity.before,
        sizes=[
            result.model_copy(update={"best_of_its_size": best})
            for result, best in zip(results, front, strict=True)
        ],
        phases=phase_times(job.graph, job.workspace, job.predicted_seconds),
        files=[],
        warnings=_warnings(reports, results),
    )


def report_of(job: Job) -> Report:
    """The report of one size."""
    data = job.units.path(artifacts.Report().json).read_bytes()
    return Report.model_validate_json(data)


def _result(size: str, job: Job, report: Report) -> SizeResult:
    quality, rejected = report.perplexity, rejection(job)
    finite = quality is not None and math.isfinite(quality.after)
    return SizeResult(
        name=size,
        folder=size if rejected is None else None,
        rejected=rejected,
        sparsity=report.sparsity,
        after=report.after,
        perplexity=quality.after if quality is not None and finite else None,
        perplexity_ratio=quality.ratio if quality is not None and finite else None,
        task_retention=None if report.tasks is None else report.tasks.retention,
        tasks=report.tasks,
        speed=report.speed,
        samples=report.samples,
        best_of_its_size=False,
    )


def _warnings(reports: dict[str, Report], results: list[SizeResult]) -> list[str]:
    """Sizes that were rejected, and what each report says."""
    lines = [f"{each.name}: not published: {each.rejected}" for each in results if each.rejected]
    return [*lines, *warnings_of_sizes({size: each.warnings for size, each in reports.items()})]


def _all_collapsed(job: Sizes) -> QualityCollapsed:
    reasons = "; ".join(f"{size}: {rejection(each)}" for size, each in job.jobs.items())
    return QualityCollapsed(
        f"no size is good enough ({reasons})",
        field="pruning.sizes",
        remedy="Ask for smaller fractions, use more calibration text, or raise "
        "evaluation.max_perplexity_ratio if you want the models all the same.",
    )
