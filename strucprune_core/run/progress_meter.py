"""Turns finished units into a fraction of the job and an estimate of the time left. No torch.

Units are weighted by the seconds that they were predicted to take (`plan.unit_seconds`), so the
fraction moves at an even pace. The time left is what was predicted of the rest, corrected by how
the units that were done here compare with their prediction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from strucprune_core.plan.graph import Unit
from strucprune_core.run.progress import Phase, Progress, ProgressSink, StopSignal

# The last hundredth of the fraction is publishing.
UNITS_SHARE = 0.99
# The prediction counts as much as having seen this share of the job: with less, the first units
# would decide alone.
TRUST_SHARE = 0.05
# How often at most `alive` says so.
ALIVE_SECONDS = 1.0


class ProgressMeter:
    """Watches a run and reports to a sink. Also where the stop signal is asked."""

    def __init__(self, sink: ProgressSink, stop: StopSignal) -> None:
        self._sink = sink
        self._stop = stop
        self._costs: Mapping[str, float] = {}
        self._finished_cost = self._total_cost = self._skipped_cost = 0.0
        self._phase_done: dict[Phase, int] = {}
        self._phase_total: dict[Phase, int] = {}
        self._current: Unit | None = None
        self._begun: set[str] = set()
        self._began = time.monotonic()
        self._publishing_since: float | None = None
        self._last: Progress | None = None
        self._sent_at = self._began
        self._moved_bytes = -1

    def plan(self, units: Sequence[Unit], todo: Sequence[Unit], costs: Mapping[str, float]) -> None:
        """Set the whole graph, its pending part, and predicted seconds of each unit by name.

        May be called again when it turns out that more is to be done.
        """
        names = {unit.name for unit in todo}
        self._began, self._publishing_since, self._current = time.monotonic(), None, None
        self._begun.clear()
        self._phase_done.clear()
        self._phase_total.clear()
        self._costs = costs
        self._total_cost = sum(costs[unit.name] for unit in units) or 1.0
        self._skipped_cost = sum(costs[unit.name] for unit in units if unit.name not in names)
        self._finished_cost = self._skipped_cost
        for unit in units:
            self._phase_total[unit.phase] = self._phase_total.get(unit.phase, 0) + 1
            done = unit.name not in names
            self._phase_done[unit.phase] = self._phase_done.get(unit.phase, 0) + done

    def begin(self, unit: Unit) -> None:
        """A unit starts. The one before may still be on its way into the store."""
        self._current = unit
        self._begun.add(unit.name)
        self.tick(0, 1)

    def tick(self, done: int, total: int) -> None:
        """A safe point in the current unit, of which `done / total` is over.

        Raises:
            Stopped: the stop signal fired.
        """
        self._stop.check()
        if self._current is not None:
            share = min(1.0, done / total) if total else 0.0
            self._report(self._current.phase, self._costs[self._current.name] * (1.0 - share))

    def publishing(self, done_bytes: int, total_bytes: int) -> None:
        """A safe point while the result is copied to the output.

        Raises:
            Stopped: the stop signal fired.
        """
        self._stop.check()
        if not self._moves(done_bytes) and self._publishing_since is not None:
            return
        now = time.monotonic()
        self._publishing_since = self._publishing_since or now
        share = min(1.0, done_bytes / total_bytes) if total_bytes else 1.0
        eta = None
        if share > 0.02:
            eta = (now - self._publishing_since) * (1.0 - share) / share
        steps = self._phase_total[Phase.COMMITTING]
        fraction = UNITS_SHARE + (0.999 - UNITS_SHARE) * share
        self._send(Progress(Phase.COMMITTING, steps, steps, fraction, eta, self._phases()))

    def safe_point(self) -> None:
        """A safe point without progress, as while others are waited for.

        Raises:
            Stopped: the stop signal fired.
        """
        self._stop.check()
        self.alive()

    def storing(self, done_bytes: int) -> None:
        """A file is being stored: a sign of life as long as bytes move, and no safe point."""
        if self._moves(done_bytes):
            self.alive()

    def fetching(self, done_bytes: int) -> None:
        """A file is being fetched: a safe point, and a sign of life as long as bytes move.

        Raises:
            Stopped: the stop signal fired.
        """
        self._stop.check()
        self.storing(done_bytes)

    def _moves(self, done_bytes: int) -> bool:
        """Whether a transfer has progressed: one that hangs must not look alive."""
        moves = done_bytes != self._moved_bytes
        self._moved_bytes = done_bytes
        return moves

    def alive(self) -> None:
        """Report the last progress again, so that a long silence is not taken for a standstill."""
        if self._last is not None and time.monotonic() - self._sent_at > ALIVE_SECONDS:
            self._send(self._last)

    def end(self, unit: Unit) -> None:
        """A unit is finished. No other one is being computed."""
        self._current = None
        self._begun.discard(unit.name)
        self._finished_cost += self._costs[unit.name]
        self._phase_done[unit.phase] += 1
        self._report(unit.phase, 0.0)

    def give_back(self, unit: Unit) -> None:
        """A unit that was begun is not finished here. No other one is being computed."""
        self._current = None
        self._begun.discard(unit.name)

    def finish(self) -> None:
        """Everything is done."""
        self._send(Progress(Phase.COMMITTING, 1, 1, 1.0, 0.0, self._phases()))

    def _phases(self) -> dict[Phase, tuple[int, int]]:
        """Of each phase, steps that are finished, and all; publishing is one more of the last."""
        return {
            phase: (self._phase_done[phase], total + (phase is Phase.COMMITTING))
            for phase, total in self._phase_total.items()
        }

    def _report(self, phase: Phase, left_cost: float) -> None:
        """Report all that was begun, without what is left to compute of it."""
        done = self._finished_cost + sum(self._costs[name] for name in self._begun) - left_cost
        fraction = UNITS_SHARE * min(1.0, done / self._total_cost)
        trust = TRUST_SHARE * self._total_cost
        spent, worked = time.monotonic() - self._began, done - self._skipped_cost
        eta = (trust + spent) / (trust + worked) * (self._total_cost - done)
        done, total = self._phase_done[phase], self._phase_total[phase]
        unit = self._current.name if self._current is not None else None
        self._send(Progress(phase, done, total, fraction, eta, self._phases(), unit))

    def _send(self, progress: Progress) -> None:
        if self._last is not None and progress.fraction < self._last.fraction:
            # What was lost is done again; the fraction waits until that is made up for.
            progress = replace(progress, fraction=self._last.fraction)
        self._last, self._sent_at = progress, time.monotonic()
        self._sink(progress)
