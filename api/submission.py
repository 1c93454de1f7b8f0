"""Submits a job: checks it, reserves place and output, journals it, queues it, rings the doorbell.

The order matters. After a crash between two steps, the client's retry or the reconciler completes
the rest. The answer is 202 only if the job is in the journal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from http import HTTPStatus

from api.admission import admit_job, output_issues
from api.allow_list import uri_issues
from api.extension import extension_issues, workspace_of
from api.inspection.verdict import Verdict
from api.job_limits import (
    deadline_issues,
    device_issues,
    label_issues,
    priority_issues,
    with_deadline,
    with_gpu_memory,
)
from api.jobs.archive import recall
from api.jobs.doorbell import ring_if_missing
from api.jobs.journal import ID_HEX_DIGITS, JournalEntry, new_id
from api.jobs.ledger import LedgerUnavailable
from api.jobs.limits import TenantLimits
from api.jobs.record import JobRecord, PredictedTime
from api.jobs.sequel import deleted
from api.jobs.state import JobState
from api.jobs.tracing import TRACEPARENT
from api.problems import ApiError, invalid
from api.request import Notifications
from api.services import Services
from api.settings import Settings
from api.webhooks.outbox import Subscription
from api.webhooks.targets import WebhookNotAllowed, parse_target
from strucprune_core.errors import StrucPruneError
from strucprune_core.plan.partial import PartialJob
from strucprune_core.plan.pins import pinned_parts, pinned_spec
from strucprune_core.plan.places import named_uris
from strucprune_core.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted job; `replayed` if an earlier request had already submitted it."""

    record: JobRecord
    replayed: bool


def submit(
    services: Services,
    tenant: str,
    spec: JobSpec,
    idempotency_key: str | None,
    notifications: Notifications | None = None,
    extends: str | None = None,
) -> Submission:
    """Accept a job once per idempotency key.

    Raises:
        ApiError: 422 if the job cannot work, or if the key was used for another body or for a
            deleted job; 409 if another job that has not ended has the output; 429 if the tenant has
            reached its limit of jobs.
        LedgerUnavailable: the ledger does not answer.
        StorageError: the journal does not answer.
        InspectionUnavailable: as `examine`.
    """
    job_id = _job_id(tenant, idempotency_key)
    entry = JournalEntry(
        tenant=tenant,
        # The job keeps this deadline if the limit changes later. The fingerprint covers the request
        # as it was sent, so that a replay succeeds also under another limit.
        spec=with_deadline(spec, services.settings.limits_of(tenant)),
        fingerprint=fingerprint(spec, notifications, extends),
        # By the clock that all processes share. Rounded to the microseconds that a view shows, so
        # that a filter by the shown time matches this job.
        created_at=round(services.ledger.now(), 6),
    )
    # Before the inspection: a replay must not fail because the job already writes to its output
    # prefix.
    earlier = services.journal.read_spec(job_id) if idempotency_key is not None else None
    if earlier is None:
        verdict, judged = examine(services, tenant, spec, notifications, extends)
        if verdict.issues or verdict.estimate is None:
            raise invalid(verdict.issues)
        if idempotency_key is not None and _is_deleted(services, job_id):
            raise _key_of_deleted()
        admit_job(services, tenant, job_id, spec.output.uri_prefix)
        scratch_bytes = verdict.estimate.workspace_bytes
        # The commits that were judged are those of the job; a replay compares the request.
        judged = with_deadline(judged, services.settings.limits_of(tenant))
        owner = workspace_of(services, extends)
        entry = entry.model_copy(
            update={
                "spec": judged,
                "scratch_bytes": scratch_bytes,
                "extends": extends,
                "workspace_of": owner,
                "predicted": {
                    name: PredictedTime.model_validate(each.model_dump())
                    for name, each in verdict.times.items()
                },
            }
        )
        # Before the job is journalled: a crash in between must not lose an accepted job's messages.
        _subscribe(services, job_id, entry, notifications)
        if owner is not None:
            services.journal.share_workspace(owner, job_id)
        if services.journal.write_spec(job_id, entry):
            new = entry.as_new_job(job_id)
            services.ledger.create(new.model_copy(update={"traceparent": TRACEPARENT.get()}))
            record = services.ledger.get(job_id)
            return Submission(_announced(services, record), replayed=False)
        earlier = services.journal.read_spec(job_id) or entry
    return Submission(_replay(services, job_id, earlier, entry), replayed=True)


def _subscribe(
    services: Services, job_id: str, entry: JournalEntry, notifications: Notifications | None
) -> None:
    if notifications is not None:
        subscription = Subscription(
            tenant=entry.tenant,
            webhook_url=notifications.webhook_url,
            events=notifications.events,
            fingerprint=entry.fingerprint,
            created_at=entry.created_at,
            format=notifications.format,
        )
        services.outbox.subscribe(job_id, subscription)


def examine(
    services: Services,
    tenant: str,
    spec: JobSpec,
    notifications: Notifications | None = None,
    extends: str | None = None,
) -> tuple[Verdict, JobSpec]:
    """Judge a job: what would keep it from working. Reads nothing at a URI that is not allowed.

    The verdict comes with the job as it was judged: a branch of a hub is replaced by its commit,
    and a job for a GPU has a limit of device memory.

    Blocks until a helper has judged the job, so the caller must hold a turn of
    `services.inspections`.

    Raises:
        InspectionUnavailable: no helper has answered in time.
        StorageError: the job extends another one, and the journal does not answer.
        LedgerUnavailable: it does, and the ledger does not answer.
    """
    about_webhook = webhook_issues(notifications, tenant, services.settings)
    allowed = not uri_issues(spec, tenant, services.settings)
    try:
        judged = pinned_spec(spec, services.stores.pinned) if allowed else None
    except StrucPruneError:
        judged = None
    if judged is None:  # The other places are checked all the same.
        return Verdict(
            [*examine_parts(services, tenant, PartialJob.of(spec)), *about_webhook]
        ), spec
    limits = services.settings.limits_of(tenant)
    judged = with_gpu_memory(judged, services.settings.gpu_memory_bytes)
    found = _judge(services, judged, limits)
    late = [
        *_issues_of_limits(judged, limits),
        *about_webhook,
        *extension_issues(services, tenant, judged, extends),
    ]
    return (replace(found, issues=[*found.issues, *late]) if late else found), judged


def examine_parts(services: Services, tenant: str, job: PartialJob) -> list[StrucPruneError]:
    """What is wrong with the parts of a job that are known, as `examine` of a whole job.

    Raises:
        InspectionUnavailable: as `examine`.
    """
    limits = services.settings.limits_of(tenant)
    refused = uri_issues(job, tenant, services.settings)
    for issue in refused:
        job = job.without(str(issue.field))
    job, unpinned = pinned_parts(job, services.stores.pinned)
    found = _judge(services, job, limits) if named_uris(job) else Verdict()
    issues = [*refused, *unpinned, *found.issues, *_issues_of_limits(job, limits)]
    if job.output is not None and not any(each.field == "output.uri_prefix" for each in issues):
        issues += output_issues(services, tenant, job.output.uri_prefix)
    return issues


def _judge(services: Services, job: JobSpec | PartialJob, limits: TenantLimits) -> Verdict:
    return services.inspectors.judge(
        job,
        limits,
        services.stores.open,
        task_downloads=services.settings.task_downloads,
        rates={each.name: each.rates for each in services.worker_classes.all()},
    )


def _issues_of_limits(job: JobSpec | PartialJob, limits: TenantLimits) -> list[StrucPruneError]:
    return [
        *deadline_issues(job, limits),
        *priority_issues(job, limits),
        *device_issues(job),
        *label_issues(job),
    ]


def webhook_issues(
    notifications: Notifications | None, tenant: str, settings: Settings
) -> list[WebhookNotAllowed]:
    """What is wrong with the job's webhook."""
    if notifications is None:
        return []
    if tenant not in settings.webhook_secrets:
        return [
            WebhookNotAllowed(
                "there is no secret to sign your organisation's webhooks with",
                field="notifications",
                remedy="Ask the service's operator for one, or leave notifications out.",
            )
        ]
    try:
        parse_target(notifications.webhook_url, settings.webhook_policy)
    except WebhookNotAllowed as error:
        return [error]
    return []


def fingerprint(
    spec: JobSpec, notifications: Notifications | None = None, extends: str | None = None
) -> str:
    """SHA-256 (hex) of the whole request, defaults filled in."""
    request = spec.model_dump(mode="json")
    if extends is not None:
        request["extends"] = extends
    if notifications is not None:
        request["notifications"] = notifications.fingerprinted()
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _job_id(tenant: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return new_id()
    # A tenant's name holds no NUL, so two pairs cannot make the same text.
    digest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).hexdigest()
    return f"job_{digest[:ID_HEX_DIGITS]}"


def _replay(
    services: Services, job_id: str, earlier: JournalEntry, entry: JournalEntry
) -> JobRecord:
    if earlier.fingerprint != entry.fingerprint:
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "This Idempotency-Key was used for a job with another body. Use a new key.",
        )
    # The earlier request may have crashed before this step, or Redis may have been lost since.
    record = recall(services.journal, services.ledger, job_id)
    if record is None and _is_deleted(services, job_id):
        raise _key_of_deleted()
    return _announced(services, record)


def _is_deleted(services: Services, job_id: str) -> bool:
    return deleted(services.journal, job_id, services.journal.standing(job_id))


def _key_of_deleted() -> ApiError:
    return ApiError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "idempotency_key_reused",
        "The job of this Idempotency-Key has been deleted. Use a new key.",
    )


def _announced(services: Services, record: JobRecord | None) -> JobRecord:
    """The job. Rings the doorbell if it is queued."""
    if record is None:
        raise LedgerUnavailable("The job ledger lost the job while it was being submitted.")
    if record.state == JobState.QUEUED:
        ring_if_missing(services.ledger, services.doorbell)
    return record
