"""The verdict on a job before it is accepted: what is wrong with it, or what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from api.job_limits import model_issues, size_issues
from api.jobs.limits import TenantLimits
from strucprune_core.errors import Mend, StrucPruneError
from strucprune_core.export.runtimes import RuntimeSupport, runtime_support
from strucprune_core.plan.estimate import Estimate, estimate_job
from strucprune_core.plan.inspection import examine_job
from strucprune_core.plan.partial import PartialJob, examine_places
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.seconds import TimeEstimate, estimated_seconds, runs_on
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import InspectableStore


@dataclass(frozen=True, slots=True)
class Verdict:
    """Issues, or else an estimate, the runtimes that will load the result, and how long it takes.

    Attributes:
        times: On each class of workers that can run it.
    """

    issues: Sequence[StrucPruneError] = ()
    estimate: Estimate | None = None
    runtimes: Sequence[RuntimeSupport] | None = None
    times: Mapping[str, TimeEstimate] = field(default_factory=dict)


class VerdictMessage(BaseModel):
    """A verdict as it comes from a helper.

    Attributes:
        issues: `StrucPruneError.as_dict()` of each.
    """

    model_config = ConfigDict(extra="forbid")

    issues: list[dict[str, Any]]
    estimate: Estimate | None
    runtimes: list[RuntimeSupport] | None
    times: dict[str, TimeEstimate]

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        """The message of a verdict."""
        return cls(
            issues=[issue.as_dict() for issue in verdict.issues],
            estimate=verdict.estimate,
            runtimes=None if verdict.runtimes is None else list(verdict.runtimes),
            times=dict(verdict.times),
        )

    def verdict(self) -> Verdict:
        """The verdict of a message."""
        issues = tuple(map(revived, self.issues))
        return Verdict(issues, self.estimate, self.runtimes, self.times)


def judge(
    spec: JobSpec,
    limits: TenantLimits,
    open_store: Callable[[str], InspectableStore],
    *,
    task_downloads: bool = False,
    rates: Mapping[str, DeviceRates] | None = None,
) -> Verdict:
    """Examine a job whose URIs are allowed. Parses hostile files.

    Args:
        spec: The job.
        limits: The limits of its tenant, for its size.
        open_store: Opens the stores that the spec names.
        task_downloads: Whether data of tasks may come from a hub.
        rates: Of classes of workers by name.
    """
    found = examine_job(spec, open_store, task_downloads=task_downloads)
    spec = found.spec  # With the sparsity that a target comes to.
    issues = [*found.issues, *size_issues(spec, found, limits)]
    if issues or found.model is None:
        return Verdict(issues)
    first = next(iter(spec.by_size().values()))  # Sizes differ in nothing that a runtime minds.
    runtimes = runtime_support(found.model.config, first.pruning)
    times = {
        name: estimated_seconds(spec, found.model, each)
        for name, each in (rates or {}).items()
        if runs_on(spec, each)
    }
    return Verdict((), estimate_job(spec, found.model), runtimes, times)


def judge_parts(
    job: PartialJob,
    limits: TenantLimits,
    open_store: Callable[[str], InspectableStore],
    *,
    task_downloads: bool = False,
) -> Verdict:
    """`judge` of what is known of a job that is not complete. There is no estimate of it.

    Args:
        job: What is known of the job.
        limits: As of `judge`.
        open_store: As of `judge`.
        task_downloads: As of `judge`.
    """
    issues, model = examine_places(job, open_store, task_downloads=task_downloads)
    return Verdict([*issues, *(model_issues(model, limits) if model is not None else ())])


def revived(fields: dict[str, Any]) -> StrucPruneError:
    """The error that `as_dict` was called on; a plain `StrucPruneError` if its code is unknown."""
    kind = _kinds(StrucPruneError).get(str(fields.get("code")), StrucPruneError)
    layer = fields.get("layer")
    return kind(
        str(fields.get("message")),
        field=_text(fields.get("field")),
        remedy=_text(fields.get("remedy")),
        phase=_text(fields.get("phase")),
        layer=layer if isinstance(layer, int) else None,
        mends=_mends(fields.get("mends")),
    )


def _kinds(root: type[StrucPruneError]) -> dict[str, type[StrucPruneError]]:
    found: dict[str, type[StrucPruneError]] = {}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return {**found, root.code: root}  # of classes that share a code, the base class


def _mends(value: object) -> list[Mend]:
    found = [mend for mend in value if isinstance(mend, dict)] if isinstance(value, list) else []
    fields = [(_text(mend.get("field")), mend.get("value")) for mend in found]
    return [Mend(field, new) for field, new in fields if field is not None]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
