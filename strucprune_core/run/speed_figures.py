"""Figures of a speed measurement, from the measurements as they were recorded. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from strucprune_core.report.document import (
    MeasuredModel,
    SpeedFigures,
    SpeedReport,
    SpeedRun,
    Spread,
)
from strucprune_core.run.artifacts import SpeedValues


def speed_report(values: SpeedValues) -> SpeedReport:
    """The report of a measurement that was done."""
    runs = [SpeedRun.model_validate(run) for run in values.runs]
    dense, pruned = (_of(runs, name) for name in ("dense", "pruned"))
    return SpeedReport(
        runtime=values.runtime,
        device=values.device,
        dtype=values.dtype,
        threads=values.threads,
        prompt_tokens=values.prompt_tokens,
        new_tokens=values.new_tokens,
        dense=_figures(dense, values, values.peak_bytes["dense"]),
        pruned=_figures(pruned, values, values.peak_bytes["pruned"]),
        prefill_gain=_gain(
            [run.first_token_seconds for run in dense], [run.first_token_seconds for run in pruned]
        ),
        decode_gain=_gain(
            [run.decode_seconds for run in dense], [run.decode_seconds for run in pruned]
        ),
        runs=runs,
    )


def _of(runs: Sequence[SpeedRun], model: MeasuredModel) -> list[SpeedRun]:
    """A model's measurements: the n-th is of round n."""
    return [run for run in runs if run.model == model]


def _figures(runs: Sequence[SpeedRun], values: SpeedValues, peak_bytes: int) -> SpeedFigures:
    first = [run.first_token_seconds for run in runs]
    decode = [run.decode_seconds for run in runs]
    return SpeedFigures(
        first_token_seconds=_spread(first),
        prefill_tokens_per_second=_spread([values.prompt_tokens / each for each in first]),
        decode_tokens_per_second=_spread([values.new_tokens / each for each in decode]),
        peak_bytes=peak_bytes,
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), least=min(values), most=max(values))


def _gain(dense_seconds: Sequence[float], pruned_seconds: Sequence[float]) -> float:
    """How many times as fast the pruned model is.

    The median over rounds of the ratio within a round: whatever else the machine does slows both.
    """
    return median(
        before / after for before, after in zip(dense_seconds, pruned_seconds, strict=True)
    )
