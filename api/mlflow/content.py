"""What MLflow is told about the end of a job: parameters, metrics, tags and documents.

A job is one run. Of several sizes, each is a run of its own below the job's. MLflow compares, sorts
and draws runs by their parameters and metrics. Within one run, metrics only go by step, which is a
whole number and so no axis for sparsities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api.jobs.journal import JournalEntry, Outcome
from api.jobs.state import JobState
from api.mlflow.figures import Figures, Judged
from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.report.document import REPORT_HTML, REPORT_JSON
from strucprune_core.report.html.view import flat, model_name
from strucprune_core.report.visible_text import visible
from strucprune_core.spec import JobSpec

# Tags by which a run is found again.
JOB_ID, RUN, SIZE = "strucprune.job_id", "strucprune.run", "strucprune.size"
# MLflow's own tags.
_RUN_NAME, _USER, _SOURCE = "mlflow.runName", "mlflow.user", "mlflow.source.name"

# MLflow takes 250 characters of a name. Of a value it takes 6,000, servers before 2.8 take 500.
_PART_CHARACTERS = 70
_VALUE_CHARACTERS = 500
# Far more than a job has; so that no report fills a server.
_MOST_METRICS = 500
_MOST_PARAMS = 300
_SECTIONS = ("model", "output", "pruning", "calibration", "evaluation", "runtime")
# A name may also hold spaces, colons and slashes, which MLflow's pages group by.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class RunContent:
    """What one run of MLflow holds.

    Attributes:
        job_id: The job.
        run: Its run, which ended.
        size: Of several sizes, which one; empty for the job itself.
        failed: Whether it came to nothing.
        started_ms: Unix milliseconds.
        ended_ms: Unix milliseconds.
        documents: Keys of its documents under the job's output.
    """

    job_id: str
    run: int
    size: str
    failed: bool
    started_ms: int
    ended_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    documents: tuple[str, ...]


def contents_of(
    job_id: str, entry: JournalEntry, outcome: Outcome, figures: Figures, started_at: float
) -> list[RunContent]:
    """The job's run, and after it those of its sizes.

    Args:
        job_id: The job.
        entry: What was asked for.
        outcome: How its run ended.
        figures: Those of its report; empty if it has none.
        started_at: Unix seconds.
    """
    summary = outcome.summary or {}
    sizes = summary.get("sizes") or []
    job = _content(
        job_id,
        entry,
        outcome,
        started_at,
        spec=entry.spec,
        metrics=_job_metrics(summary, figures),
    )
    by_size = entry.spec.by_size()
    return [
        job,
        *(
            _content(
                job_id,
                entry,
                outcome,
                started_at,
                spec=by_size.get(size["name"], entry.spec),
                metrics=_size_metrics(summary, size, figures.of_size(size["name"])),
                size=size,
            )
            for size in sizes
        ),
    ]


def _content(
    job_id: str,
    entry: JournalEntry,
    outcome: Outcome,
    started_at: float,
    *,
    spec: JobSpec,
    metrics: Mapping[str, float],
    size: Mapping[str, Any] | None = None,
) -> RunContent:
    failed = outcome.state != JobState.SUCCEEDED or (size is not None and bool(size["rejected"]))
    folder = "" if size is None else f"{size['folder']}/"
    name = spec.name or model_name(spec.model.uri)
    if outcome.run > 1:
        name = f"{name}, run {outcome.run}"
    output = spec.output.uri_prefix.rstrip("/")
    about = {
        _RUN_NAME: name if size is None else f"{name} {size['name']}",
        _USER: entry.tenant,
        _SOURCE: "strucprune",
        JOB_ID: job_id,
        RUN: str(outcome.run),
        SIZE: "" if size is None else size["name"],
        "strucprune.state": outcome.state.value,
        "strucprune.tenant": entry.tenant,
        "strucprune.model_uri": spec.model.uri,
        "strucprune.output_uri": None if failed else f"{output}/{folder}".rstrip("/"),
        **_why(outcome, size),
        **_labels(spec.labels),
    }
    return RunContent(
        job_id=job_id,
        run=outcome.run,
        size=about[SIZE] or "",
        failed=failed,
        started_ms=round(started_at * 1000),
        ended_ms=round(outcome.finished_at * 1000),
        params=_params(spec),
        metrics=metrics,
        tags={key: _value(text) for key, text in about.items() if text is not None},
        documents=()
        if failed
        else tuple(folder + each for each in (REPORT_JSON, REPORT_HTML, MODEL_CARD)),
    )


def _why(outcome: Outcome, size: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Why it came to nothing."""
    if size is not None:
        best = str(bool(size.get("best_of_its_size"))).lower()
        return {"strucprune.best_of_its_size": best, "strucprune.rejected": size["rejected"]}
    error = outcome.error or {}
    return {f"strucprune.error.{part}": error.get(part) for part in ("code", "message", "remedy")}


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in sorted(labels.items()):
        key = f"strucprune.label.{_part(name)}"
        found.setdefault(key, value)
    return found


def _params(spec: JobSpec) -> dict[str, str]:
    """The specification, a parameter for each field that has a value."""
    asked = spec.model_dump(mode="json", include=set(_SECTIONS))
    leaves = {name: text for name, text in flat(asked).items() if text not in ("null", "[]", "{}")}
    named = {".".join(map(_part, name.split("."))): text for name, text in leaves.items()}
    return {name: _value(named[name]) for name in [*named][:_MOST_PARAMS]}


def _job_metrics(summary: Mapping[str, Any], figures: Figures) -> dict[str, float]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for section in ("parameters", "bytes", "perplexity"):
        for part in ("before", "after", "ratio"):
            found.append(((f"{section}_{part}",), _of(summary.get(section), part)))
    found += [
        (("sparsity_reached",), _of(summary.get("sparsity"), "reached")),
        (("seconds",), summary.get("seconds")),
        (("host_peak_bytes",), _of(summary.get("peak_memory_bytes"), "host")),
        (("device_peak_bytes",), _of(summary.get("peak_memory_bytes"), "device")),
    ]
    return _metrics([*found, *figures.named()])


def _size_metrics(
    summary: Mapping[str, Any], size: Mapping[str, Any], judged: Judged
) -> dict[str, float]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for section in ("parameters", "bytes", "perplexity"):
        found.append(((f"{section}_before",), _of(summary.get(section), "before")))
        found.append(((f"{section}_after",), size.get(section)))
    found += [
        (("perplexity_ratio",), size.get("perplexity_ratio")),
        (("sparsity_reached",), size.get("sparsity")),
    ]
    return _metrics([*found, *judged.named()])


def _metrics(figures: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, value in figures:
        number = _finite(value)
        if number is not None and len(found) < _MOST_METRICS:
            found.setdefault("/".join(map(_part, path)), number)
    return found


def _of(section: Any, part: str) -> Any:
    return section.get(part) if isinstance(section, Mapping) else None


def _finite(value: Any) -> float | None:
    """A number that MLflow can keep."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _part(text: str) -> str:
    """A part of a name: no separators, and neither empty nor a step in a path."""
    harmless = _NOT_IN_NAMES.sub("_", text[:_PART_CHARACTERS])
    return harmless if harmless.strip(".") else f"_{harmless}"


def _value(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= _VALUE_CHARACTERS else f"{shown[: _VALUE_CHARACTERS - 1]}…"
