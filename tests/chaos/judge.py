"""What became of every job, by the journal, the object store and the API."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from embedded.stack import STATE_BUCKET, WORK_BUCKET
from strucprune_core.client import ClientError, Event, StrucPruneClient
from strucprune_core.report.document import MANIFEST, REPORT_HTML, REPORT_JSON
from tests.chaos.arena import Arena
from tests.chaos.orders import Order, outcome, read
from tests.support.jobs import objects_below

# They tell of times and of memory, which differ from run to run.
_OF_THE_RUN = frozenset({REPORT_JSON, REPORT_HTML, MANIFEST})
_ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Result:
    """What a job has published: digests of the files that do not depend on the run, and figures."""

    files: dict[str, str]
    perplexity: Any


@dataclass
class Verdict:
    """Complaints, a line each."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    corrupted: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is nothing to complain about."""
        return not (self.lost or self.duplicated or self.corrupted or self.stuck)

    def lines(self) -> list[str]:
        """All complaints."""
        return [
            f"{name}: {line}"
            for name in ("lost", "duplicated", "corrupted", "stuck")
            for line in getattr(self, name)
        ]


def judge(
    arena: Arena, client: StrucPruneClient, orders: list[Order], twins: dict[str, Result]
) -> Verdict:
    """The verdict on all orders, once nothing is broken any more.

    Args:
        arena: Where it happened.
        client: Of a service that works again.
        orders: What was submitted.
        twins: What an undisturbed job of each kind has published.
    """
    verdict = Verdict()
    named: dict[str, list[str]] = {}
    for job in client.list():
        named.setdefault(job.labels["order"], []).append(job.id)
    for order in orders:
        jobs = named.get(order.name, [])
        if len(jobs) > 1:
            verdict.duplicated.append(f"order {order.name} has become the jobs {jobs}")
        if order.fault:
            verdict.lost.append(f"order {order.name}, {order.job_id}: {order.fault}")
        if not order.job_id:
            if not order.fault:
                verdict.stuck.append(f"order {order.name} was never accepted")
        elif order.job_id not in jobs:
            verdict.lost.append(f"{order.job_id} is in no list")
        _judge(arena, client, order, twins[order.kind], verdict)
    return verdict


def _judge(
    arena: Arena, client: StrucPruneClient, order: Order, twin: Result, verdict: Verdict
) -> None:
    if not order.job_id:
        return
    if read(arena, STATE_BUCKET, f"state/jobs/{order.job_id}/spec.json") is None:
        verdict.lost.append(f"{order.job_id} is not in the journal")
    try:
        job = client.get(order.job_id)
    except ClientError as error:
        verdict.lost.append(f"{order.job_id} is unknown: {error}")
        return
    if not job.ended:
        verdict.stuck.append(f"{order.job_id} is still {job.state}, attempt {job.attempt}")
        return
    document = outcome(arena, order.job_id, job.run)
    if document is None:
        verdict.lost.append(f"{order.job_id} is {job.state}, and the journal does not know")
    elif (told := json.loads(document)["state"]) != job.state:
        verdict.duplicated.append(f"{order.job_id} is {job.state}; the journal says {told}")
    for run, first in order.ends.items():
        if outcome(arena, order.job_id, run) != first:
            verdict.duplicated.append(f"{order.job_id}: the end of run {run} was changed")
    again = ran_after_its_end([*client.events(order.job_id)])
    if again is not None:
        verdict.duplicated.append(f"{order.job_id}: run {again} went on after its end")
    output = f"output/{order.name}"
    if job.state == "succeeded":
        complaint = differs(arena, output, twin)
    else:
        complaint = _strays(arena, output, twin)
    if complaint:
        verdict.corrupted.append(f"{order.job_id}, {job.state}: {complaint}")


def ran_after_its_end(events: list[Event]) -> int | None:
    """The run that a worker took after it had ended, if any."""
    over: set[int] = set()
    for event in events:
        if event.type != "state":
            continue
        run = event.data["run"]
        if event.data["state"] in _ENDED:
            over.add(run)
        elif run in over:
            return int(run)
    return None


def result_of(arena: Arena, output: str) -> Result:
    """What lies under an output prefix, all of it."""
    files = {name: _digest(arena, output, name) for name in objects_below(arena, output)}
    report = json.loads(read(arena, WORK_BUCKET, f"{output}/{REPORT_JSON}") or b"{}")
    kept = {name: digest for name, digest in files.items() if name not in _OF_THE_RUN}
    return Result(kept, report.get("perplexity"))


def differs(arena: Arena, output: str, twin: Result) -> str:
    """In what a finished output differs from the undisturbed one; "" if in nothing."""
    manifest = read(arena, WORK_BUCKET, f"{output}/{MANIFEST}")
    if manifest is None:
        return "there is no manifest"
    listed = {entry["name"]: entry["sha256"] for entry in json.loads(manifest)["files"]}
    there = {name for name in objects_below(arena, output) if name != MANIFEST}
    if there != set(listed):
        return f"files {sorted(there ^ set(listed))} are listed or there, not both"
    for name, digest in listed.items():
        if _digest(arena, output, name) != digest:
            return f"{name} is not what the manifest says"
    result = result_of(arena, output)
    if result != twin:
        changed = [name for name in twin.files if result.files.get(name) != twin.files[name]]
        return f"{changed or 'files or figures'} are not those of an undisturbed run"
    return ""


def _strays(arena: Arena, output: str, twin: Result) -> str:
    """What a job that did not succeed has left in its output and should not; "" if nothing.

    A worker that was about to publish may have begun; it may not have written anything else.
    """
    for name in objects_below(arena, output):
        if name not in _OF_THE_RUN and _digest(arena, output, name) != twin.files.get(name):
            return f"{name} is no file of an undisturbed run"
    return ""


def _digest(arena: Arena, output: str, name: str) -> str:
    return hashlib.sha256(read(arena, WORK_BUCKET, f"{output}/{name}") or b"").hexdigest()
