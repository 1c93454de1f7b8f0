"""Jobs that have ended, as the journal holds them, with what they published."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from api.jobs.journal import JournalEntry, Outcome
from api.jobs.state import JobState
from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.report.document import REPORT_HTML, REPORT_JSON, Report
from strucprune_core.report.sizes import AnyReport, SizesReport
from strucprune_core.spec import JobSpec
from tests.support.reports import made_sizes, made_speed, make_report
from worker.solve import summary_of

ERROR = {"code": "out_of_memory", "message": "There was too little.", "remedy": "Use more."}


def report_of_one() -> Report:
    """Of one size, with tasks and speed."""
    return make_report(2, tasks=made_sizes().sizes[0].tasks, speed=made_speed())


def entry_of(output: Path, **changes: Any) -> JournalEntry:
    """A request of tenant acme."""
    job = {
        "model": {"uri": "s3://models/smollm2"},
        "output": {"uri_prefix": str(output)},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": "s3://models/text.txt"},
        "labels": {"team": "nlp"},
        **changes,
    }
    spec = JobSpec.model_validate(job)
    return JournalEntry(tenant="acme", spec=spec, fingerprint="f", created_at=time.time() - 60)


def succeeded(report: AnyReport, run: int = 1) -> Outcome:
    """The end of a job that published this report."""
    return Outcome(
        state=JobState.SUCCEEDED, summary=summary_of(report), run=run, finished_at=time.time()
    )


def failed(run: int = 1) -> Outcome:
    """The end of a job that ran out of memory."""
    return Outcome(state=JobState.FAILED, error=ERROR, run=run, finished_at=time.time())


def publish(output: Path, report: AnyReport) -> None:
    """Write the documents that a job writes, of several sizes those of each."""
    folders = {""}
    if isinstance(report, SizesReport):
        folders |= {size.folder for size in report.sizes if size.folder}
    for folder in folders:
        place = output / folder
        place.mkdir(parents=True)
        content = report.model_dump_json() if folder == "" else report_of_one().model_dump_json()
        (place / REPORT_JSON).write_text(content, encoding="utf-8")
        (place / REPORT_HTML).write_text(f"<!DOCTYPE html>page of {folder}", encoding="utf-8")
        (place / MODEL_CARD).write_text(f"card of {folder}", encoding="utf-8")
