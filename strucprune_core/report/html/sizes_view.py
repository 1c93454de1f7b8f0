"""What the page of a job of several sizes shows beyond the plain fields of its report. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from strucprune_core.report.html.axes import Axis, linear_axis
from strucprune_core.report.html.bars import Bars, phase_bars
from strucprune_core.report.html.tables import Table, file_table, metric_text, phase_table
from strucprune_core.report.html.view import flat, job_name, model_name
from strucprune_core.report.numbers import (
    ABSENT,
    change,
    count,
    duration,
    number,
    percent,
    size,
)
from strucprune_core.report.sizes import SizesReport

_HEIGHT = 180


@dataclass(frozen=True, slots=True)
class Point:
    """A model in a plot over size; `x` is a share of the width."""

    name: str
    text: str
    x: float
    y: float
    style: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the bytes of the checkpoint, from small to large; a line joins some points."""

    title: str
    note: str
    axis: Axis
    points: Sequence[Point]
    joined: Sequence[Point]
    label: str
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What each model writes after a prompt, by the model's name; the dense one's is first."""

    prompt: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class SizesView:
    """What the template needs apart from the report. Tables and curves of nothing have no rows."""

    model: str
    name: str | None
    lead: str
    curves: Sequence[Curve]
    table: Table
    task_table: Table
    speed_table: Table
    samples: Sequence[Sample]
    spec: Mapping[str, str]
    phases: Bars
    phase_table: Table
    file_table: Table


def sizes_view_of(report: SizesReport) -> SizesView:
    """Compute what the template needs."""
    return SizesView(
        model=model_name(report.model.uri),
        name=job_name(report.spec),
        lead=_lead(report),
        curves=[curve for curve in _curves(report) if len(curve.points) > 1],
        table=_table(report),
        task_table=_task_table(report),
        speed_table=_speed_table(report),
        samples=_samples(report),
        spec=flat(report.spec),
        phases=phase_bars(report.phases),
        phase_table=phase_table(report.phases),
        file_table=file_table(report.files),
    )


def _lead(report: SizesReport) -> str:
    good = [each for each in report.sizes if each.folder is not None]
    sizes = ", ".join(size(each.after.bytes) for each in good)
    rejected = len(report.sizes) - len(good)
    text = f"One dense model of {size(report.before.bytes)}, measured once, became {sizes}."
    return f"{text} {rejected} of the sizes asked for were not published." if rejected else text


def _curves(report: SizesReport) -> list[Curve]:
    """Perplexity, accuracy on tasks, and speed, as far as they were measured."""
    sizes = report.sizes
    perplexities = {each.name: each.perplexity for each in sizes}
    kept = {each.name: each.task_retention for each in sizes}
    gains = {each.name: each.speed.decode_gain for each in sizes if each.speed is not None}
    front = [each.name for each in sizes if each.best_of_its_size]
    every = [each.name for each in sizes]
    return [
        _curve(
            report,
            "Perplexity over the checkpoint's size",
            "Lower is better. The line joins the sizes that no other one beats in both respects.",
            ("perplexity {}", number),
            {"dense": report.perplexity_before, **perplexities},
            front,
        ),
        _curve(
            report,
            "Accuracy over the checkpoint's size",
            "Higher is better: the share of the dense model's accuracy above chance that is kept "
            "on tasks.",
            ("accuracy kept {}", percent),
            {"dense": 1.0, **kept} if any(each is not None for each in kept.values()) else {},
            every,
        ),
        _curve(
            report,
            "Speed over the checkpoint's size",
            "Higher is better: how many times as fast as the dense model tokens are written.",
            ("×{} while writing", number),
            {"dense": 1.0, **gains} if gains else {},
            every,
        ),
    ]


def _curve(
    report: SizesReport,
    title: str,
    note: str,
    reading: tuple[str, Callable[[float], str]],
    values: Mapping[str, float | None],
    joined: Sequence[str],
) -> Curve:
    """A plot of one figure.

    Args:
        report: The report.
        title: Of the plot.
        note: What it shows.
        reading: How a value is put into words.
        values: By model, "dense" or a size; None: not known.
        joined: Sizes that the line joins with the dense model.
    """
    words, shown = reading
    most = report.before.bytes
    bytes_of = {"dense": most} | {each.name: each.after.bytes for each in report.sizes}
    rejected = {each.name for each in report.sizes if each.rejected}
    points = []
    for name, value in values.items():
        if value is None:
            continue
        at_hand = "violet" if name in joined else "grey"
        style = "blue" if name == "dense" else "rose" if name in rejected else at_hand
        text = f"{size(bytes_of[name])}, {words.format(shown(value))}"
        points.append(Point(name, text, bytes_of[name] / most, value, style))
    points.sort(key=lambda each: each.x)
    return Curve(
        title=title,
        note=note,
        axis=linear_axis([each.y for each in points] or [0.0], _HEIGHT),
        points=points,
        joined=[each for each in points if each.name in ("dense", *joined)],
        label="; ".join(f"{each.name}: {each.text}" for each in points),
        most_bytes=most,
    )


def _task_table(report: SizesReport) -> Table:
    """Every metric of every task: of the dense model and of each size."""
    judged = [(each.name, each.tasks) for each in report.sizes if each.tasks is not None]
    rows = []
    if judged:
        _, first = judged[0]
        for place, task in enumerate(first.dense):
            for each_metric, metric in enumerate(task.metrics):
                cells = [metric_text(each.pruned[place].metrics[each_metric]) for _, each in judged]
                rows.append([task.task, metric.name, metric_text(metric), *cells])
    names = [name for name, _ in judged]
    return Table("Tasks", ["Task", "Metric", "Dense", *names], rows, mono=["Metric"])


def _speed_table(report: SizesReport) -> Table:
    """How fast each size is, and how many times as fast as the dense model in the same minutes."""
    rows = []
    for each in report.sizes:
        if each.speed is not None:
            pruned = each.speed.pruned
            rows.append(
                [
                    each.name,
                    number(pruned.prefill_tokens_per_second.median, 3),
                    f"×{number(each.speed.prefill_gain, 3)}",
                    number(pruned.decode_tokens_per_second.median, 3),
                    f"×{number(each.speed.decode_gain, 3)}",
                    duration(pruned.first_token_seconds.median),
                    size(pruned.peak_bytes),
                ]
            )
    head = [
        "Size",
        "Prefill, tokens/s",
        "Gain",
        "Decode, tokens/s",
        "Gain",
        "First token",
        "Memory",
    ]
    return Table("Speed", head, rows)


def _samples(report: SizesReport) -> list[Sample]:
    """Each prompt with what the models make of it."""
    shown = [each for each in report.sizes if each.samples]
    if not shown:
        return []
    found = []
    for place, sample in enumerate(shown[0].samples):
        texts = [("dense", sample.dense_text)]
        texts += [(each.name, each.samples[place].pruned_text) for each in shown]
        found.append(Sample(sample.prompt, texts))
    return found


def _table(report: SizesReport) -> Table:
    before = report.before
    dense = ["dense", count(before.parameters), ABSENT, size(before.bytes), ABSENT]
    rows = [[*dense, number(report.perplexity_before, none=ABSENT), *[ABSENT] * 3]]
    for each in report.sizes:
        verdict = "best of its size" if each.best_of_its_size else ABSENT
        rows.append(
            [
                each.name,
                count(each.after.parameters),
                change(before.parameters, each.after.parameters),
                size(each.after.bytes),
                percent(each.sparsity.reached),
                number(each.perplexity, none=ABSENT),
                number(each.perplexity_ratio, none=ABSENT),
                ABSENT if each.task_retention is None else percent(each.task_retention),
                "not published" if each.rejected else verdict,
            ]
        )
    head = ["Size", "Parameters", "Change", "Checkpoint", "Removed", "Perplexity", "Ratio"]
    return Table("All sizes", [*head, "Accuracy kept", ""], rows)
