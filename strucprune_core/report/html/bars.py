"""Quality, memory and time as bars. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strucprune_core.report.document import (
    MemoryFigure,
    MemorySummary,
    PerplexitySummary,
    PhaseTime,
)
from strucprune_core.report.html.axes import drawable
from strucprune_core.report.numbers import duration, number, size

_COLOURS = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A named length, the length in words, and a colour class."""

    name: str
    value: float
    text: str
    style: str

    @property
    def length(self) -> float:
        """The value where it can be drawn, else nothing."""
        return max(0.0, self.value) if drawable(self.value) else 0.0


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars on one scale: below each other, or as the parts of one bar."""

    title: str
    bars: Sequence[Bar]

    @property
    def label(self) -> str:
        """The text for screen readers."""
        return f"{self.title}: " + ", ".join(f"{bar.name} {bar.text}" for bar in self.bars)

    @property
    def longest(self) -> float:
        """The length that fills the width where bars are below each other."""
        return max((bar.length for bar in self.bars), default=0.0) or 1.0

    @property
    def total(self) -> float:
        """The length that fills the width where bars are parts of one."""
        return sum(bar.length for bar in self.bars) or 1.0


def perplexity_bars(quality: PerplexitySummary) -> Bars:
    """Dense and pruned."""
    dense = Bar("Dense", quality.before, number(quality.before), "grey")
    return Bars("Perplexity", [dense, Bar("Pruned", quality.after, number(quality.after), "bar")])


def memory_bars(memory: MemorySummary) -> Bars:
    """Peaks as planned and as measured, and the dense weights for comparison."""
    device, host, dense = memory.device_peak_bytes, memory.host_peak_bytes, memory.whole_model_bytes
    bars = [*_peaks("Host peak", host), Bar("Dense weights alone", dense, size(dense), "grey")]
    # Nothing planned and nothing measured: there is only the host.
    if device.predicted or device.measured:
        bars = [*_peaks("Device peak", device), *bars]
    return Bars("Memory", bars)


def phase_bars(phases: Sequence[PhaseTime]) -> Bars:
    """Seconds of each phase."""
    bars = [
        Bar(phase.name, phase.seconds, duration(phase.seconds), f"s{place % _COLOURS}")
        for place, phase in enumerate(phases)
    ]
    return Bars("Time per phase", bars)


def _peaks(name: str, peaks: MemoryFigure) -> Iterator[Bar]:
    yield Bar(f"{name}, predicted", peaks.predicted, size(peaks.predicted), "planned")
    if peaks.measured is not None:
        yield Bar(f"{name}, measured", peaks.measured, size(peaks.measured), "bar")
