"""The figures of a report that its job's summary does not have.

The report is read from the tenant's bucket, where it may have been replaced, and may be of a newer
release. So only what is needed is read of it, all of it may be absent, and the names that it holds
are made harmless (`keys`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# A report has some 300 bytes per layer or expert, so this is enough for 10,000 of them. Parsing
# takes a multiple of it.
MAX_PARSED_BYTES = 4 * 2**20
_MOST = 1000


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Metric(_Part):
    name: str
    value: float
    standard_error: float | None = None


class _Task(_Part):
    task: str
    metrics: Annotated[list[_Metric], Field(max_length=_MOST)] = []


class _Tasks(_Part):
    dense: Annotated[list[_Task], Field(max_length=_MOST)] = []
    pruned: Annotated[list[_Task], Field(max_length=_MOST)] = []
    retention: float | None = None


class _Speed(_Part):
    prefill_gain: float
    decode_gain: float


class _Phase(_Part):
    name: str
    seconds: float


class Judged(_Part):
    """How one result was judged."""

    tasks: _Tasks | None = None
    speed: _Speed | None = None

    def named(self) -> Iterator[tuple[tuple[str, ...], float | None]]:
        """Its figures, each by the parts of its name."""
        if self.speed is not None:
            yield ("speed", "prefill_gain"), self.speed.prefill_gain
            yield ("speed", "decode_gain"), self.speed.decode_gain
        if self.tasks is None:
            return
        yield ("task_retention",), self.tasks.retention
        for model, scores in (("dense", self.tasks.dense), ("pruned", self.tasks.pruned)):
            for score in scores:
                for metric in score.metrics:
                    path = ("task", score.task, metric.name)
                    yield (*path, model), metric.value
                    yield (*path, f"{model}_stderr"), metric.standard_error


class _Size(Judged):
    name: str


class Figures(Judged):
    """What is read of a report; of several sizes, each has figures of its own."""

    phases: Annotated[list[_Phase], Field(max_length=_MOST)] = []
    sizes: Annotated[list[_Size], Field(max_length=_MOST)] = []

    def of_size(self, name: str) -> Judged:
        """Those of one size; empty if the report has none."""
        return next((each for each in self.sizes if each.name == name), Judged())

    def named(self) -> Iterator[tuple[tuple[str, ...], float | None]]:
        """Its figures, each by the parts of its name."""
        for phase in self.phases:
            yield ("phase_seconds", phase.name), phase.seconds
        yield from super().named()


def read_figures(report: bytes) -> Figures | None:
    """The figures of a report; None if it is none, or too large for one."""
    if len(report) > MAX_PARSED_BYTES:
        return None
    try:
        return Figures.model_validate_json(report)
    except ValidationError:
        return None
