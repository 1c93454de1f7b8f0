"""Whose an output is that is not empty: this job's, if an earlier run broke off while it published.

Its reservation (report.json) is known from the workspace, or by the fingerprint in it where the
workspace is gone. Nothing of another job's is ever touched, nor a complete output.
"""

from __future__ import annotations

from dataclasses import dataclass

from strucprune_core.errors import OutputNotEmpty, naming_field
from strucprune_core.plan.inspection import check_output_usable
from strucprune_core.report.document import MANIFEST, REPORT_HTML, REPORT_JSON
from strucprune_core.report.html import render_html
from strucprune_core.report.sizes import AnyReport, read_report
from strucprune_core.run.publish import reserving_report, unfinished, withdraw
from strucprune_core.run.sizes import Sizes
from strucprune_core.run.workspace import LostFile
from strucprune_core.storage.store import Store


@dataclass(frozen=True)
class Reservation:
    """A report that reserves the output already, and that this job goes on from.

    Attributes:
        report: report.json as it lies there.
        ours: Whether this workspace wrote it; else a run of the same job did, whose workspace is
            gone.
    """

    report: bytes
    ours: bool


def find_reservation(output: Store, job: Sizes) -> Reservation | None:
    """With what this very job began to publish earlier; None if the output is empty.

    Raises:
        OutputNotEmpty: it holds something else.
    """
    with naming_field("output.uri_prefix"):
        try:
            check_output_usable(output)
            return None
        except OutputNotEmpty:
            report = reserving_report(output)
            if report is None:
                raise
            if report in (job.workspace.reservation(output.uri), _finished_report(job)):
                _check_same_inputs(output, report, job)
                return Reservation(report, ours=True)
            left = unfinished(output, job.fingerprint)
            if left is None:
                raise
            _check_same_environment(output, left, job)
            return Reservation(report, ours=False)


def _check_same_inputs(output: Store, report: bytes, job: Sizes) -> None:
    """Refuse to touch a complete output of this job whose inputs were others."""
    if output.stat(MANIFEST) is None:
        return
    if read_report(report).job_fingerprint != job.fingerprint:
        raise OutputNotEmpty(
            f"{output.uri} already holds this job's result for texts that were replaced since",
            remedy="Choose a new output prefix.",
        )


def _check_same_environment(output: Store, left: AnyReport, job: Sizes) -> None:
    """Refuse early what would be refused after all the work: another machine rounds otherwise."""
    if left.environment != job.first.environment:
        raise _left_by_another(output)


def _left_by_another(output: Store) -> OutputNotEmpty:
    return OutputNotEmpty(
        f"{output.uri} holds what a run of this job left that broke off while it published, on "
        "another machine or in another environment",
        field="output.uri_prefix",
        remedy="Remove report.json there and the files that it lists, or choose a new output "
        "prefix.",
    )


def _finished_report(job: Sizes) -> bytes | None:
    unit, name = job.document(REPORT_JSON)
    if job.workspace.manifest(unit) is None:
        return None
    try:
        return job.workspace.file(unit, name).read_bytes()
    except LostFile:  # The unit is done again.
        return None


def documents_under(
    reservation: Reservation, documents: dict[str, bytes], output: Store, job: Sizes
) -> dict[str, bytes]:
    """The documents to publish where an earlier run of this job has reserved the output.

    The earlier report stays if it is about the same bytes: it differs in times only. If not (a text
    was replaced, or another machine goes on), the files of the earlier run are removed, where it is
    certain whose they are and the output is not complete. The unfinished files of a killed writer
    are removed in any case.

    Raises:
        OutputNotEmpty: it is not to be removed.
    """
    earlier = read_report(reservation.report)
    new = read_report(documents[REPORT_JSON])
    complete = output.stat(MANIFEST) is not None
    if not reservation.ours and complete:  # The other run was at work all the time.
        raise OutputNotEmpty(
            f"another run of this job published to {output.uri} first",
            remedy="Use its result, or choose a new output prefix.",
        )
    same = (earlier.files, earlier.job_fingerprint) == (new.files, new.job_fingerprint)
    if not same and (complete or not reservation.ours):
        raise _left_by_another(output)
    output.remove_unfinished([entry.name for entry in earlier.files])
    if same:
        return {REPORT_JSON: reservation.report, REPORT_HTML: render_html(earlier).encode()}
    withdraw(output, earlier)
    return documents
