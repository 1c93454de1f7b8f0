"""Runs the units of a job in this process: all of them, or those that other workers leave.

    what is due ─ reserve one ─ compute it ─ again; wait where others have all that is due
                                    └─ store it, beside the next one

A unit is due once all units before it are finished, which they are when their files and manifests
are stored. Where it follows one (`run.following`), it is due once that one has handed on its first
file, whoever does it. On another machine storing takes time, so the next unit is computed
meanwhile: one that is due, or else one of a chain that reads what is being stored from this
machine's disk. Units are stored one after another, so no manifest is there before those that it
builds on; if one cannot be stored, nothing behind it is. What is stored stays reserved until it is
finished. With several processes, each looks at a unit once more after reserving it: its earlier
holder has either finished it or will not.

One of them, the leader, answers for the job. It alone does units again whose files are lost, and it
alone publishes. Helpers only do units that are not finished and can be done now.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from strucprune_core.errors import Stopped, naming_field
from strucprune_core.method.linalg.transfers import Transferred
from strucprune_core.plan.graph import (
    Unit,
    ancestors,
    must_be_finished,
    pending,
    publication,
)
from strucprune_core.run import artifacts
from strucprune_core.run.background import Background
from strucprune_core.run.context import Job
from strucprune_core.run.finished_layers import updates_of, updates_so_far
from strucprune_core.run.following import Following, GivenBack, OtherBytes
from strucprune_core.run.layer_updates import LayerSink, LayerUpdate, ignore_layers
from strucprune_core.run.memory_meter import MemoryMeter, return_free_memory
from strucprune_core.run.next_layer import LAYERWISE_KINDS, expect_next_layer
from strucprune_core.run.progress import FinishedUnit, UnitSink
from strucprune_core.run.progress_meter import ProgressMeter
from strucprune_core.run.report_on_sizes import report_on_sizes
from strucprune_core.run.reservations import UnitReservations
from strucprune_core.run.search import search
from strucprune_core.run.sizes import Sizes
from strucprune_core.run.step_table import STEPS
from strucprune_core.run.unit_errors import errors_of
from strucprune_core.run.workspace import Draft, LostFile, Stored, Workspace

log = logging.getLogger(__name__)

# Kinds of units beside which nothing is stored: what they measure is time.
ALONE_KINDS = frozenset({artifacts.Speed.kind})
# Kinds of units that may begin while what they read, of these kinds too, is being stored. Others
# ask for digests, or whether a unit is finished.
CHAINED_KINDS = frozenset(
    each.kind
    for each in (
        *(artifacts.Embed, artifacts.Capture, artifacts.Route, artifacts.Curve, artifacts.Gradient),
        *(artifacts.Trial, artifacts.Solve, artifacts.Replay, artifacts.Recover, artifacts.Refit),
        *(artifacts.Distill, artifacts.Assemble, artifacts.Verify, artifacts.Evaluate),
    )
)
# Most bytes that wait behind the unit that is being stored: disk that no estimate counts. Larger
# ones wait until nothing is being stored.
MOST_WAITING_BYTES = 64 * 2**20
# How long a process waits before it looks again at what others do: at first, and at most.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
# How soon a stop takes effect meanwhile.
_NAP_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """One process's part in a job.

    Attributes:
        sizes: The job with all its sizes.
        meter: Reports progress, and asks for stops.
        memory: Measures each unit.
        finished: Called with each unit that was done here.
        reservations: Which units others have.
        storing: Stores a unit while the next one is computed; its failures stop the meter.
        handing_on: The same of the files that a unit hands on while it runs.
        following: Waits for what others hand on.
        layers: Called by the leader with updates on layers, from its own units and those of others.
    """

    sizes: Sizes
    meter: ProgressMeter
    memory: MemoryMeter
    finished: UnitSink
    reservations: UnitReservations
    storing: Background[tuple[Stored, float]]
    handing_on: Background[None]
    following: Following
    layers: LayerSink = ignore_layers


@dataclass(frozen=True)
class _Computed:
    """A unit that is to be stored: its files, which go when `scratch` is closed, and measures.

    Attributes:
        began: Of the monotonic clock.
        seconds: What computing it took.
        size_bytes: Of its files.
    """

    unit: Unit
    draft: Draft
    scratch: ExitStack
    began_at: float
    began: float
    seconds: float
    host_peak_bytes: int
    device_peak_bytes: int | None
    transferred: Transferred
    size_bytes: int


def run_pending(run: Run) -> None:
    """Get everything done that is pending, here or by others; for the one that leads the job.

    Raises:
        StrucPruneError: see `errors`; a `LostFile` is a reason to look again at what is pending.
    """
    todo = _pending(run.sizes)
    if any(run.sizes.workspace.manifest(unit.name) is not None for unit in todo):
        # Pages of a listing are read at different times while others may be at work, so a file
        # counts as lost only if two listings lack it.
        run.sizes.workspace.refresh()
        todo = _pending(run.sizes)
    for unit in todo:
        run.sizes.workspace.forget(unit.name)  # A unit that runs again replaces its old manifest.
    pending_names = {unit.name for unit in todo}
    done = [unit for unit in run.sizes.graph if unit.name not in pending_names]
    _send(run, updates_so_far(run.sizes.first, [unit for _, unit in _shown(run.sizes, done)]))
    with _Work(run, todo, leads=True) as work:
        while work.left:
            if not work.do_one():
                work.wait()


def help_out(run: Run, patience_seconds: float) -> None:
    """Do units that the leader leaves, until there are none or none has come up for a while.

    Args:
        run: This process's part.
        patience_seconds: How long to wait where others have all that could be done.

    Raises:
        StrucPruneError: as `run_pending`.
    """
    workspace = run.sizes.workspace
    todo = [unit for unit in run.sizes.graph if workspace.manifest(unit.name) is None]
    with _Work(run, todo, leads=False) as work:
        idle_since = time.monotonic()
        while work.left and time.monotonic() - idle_since < patience_seconds:
            if work.do_one():
                idle_since = time.monotonic()
            else:
                work.wait()


class _Work:
    """What is left to do, by what this process knows. At its end nothing is being stored any more.

    Args:
        run: Its part in the job.
        todo: The units to be done, in the order of the graph.
        leads: Whether it does units again whose files are lost.
    """

    def __init__(self, run: Run, todo: list[Unit], *, leads: bool) -> None:
        self.left = {unit.name: unit for unit in todo}
        self._before = ancestors(run.sizes.graph)
        self._strictly = must_be_finished(run.sizes.graph)
        self._follows = {unit.name: unit.follows for unit in run.sizes.graph if unit.follows}
        self._run = run
        self._leads = leads
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._unstored: deque[_Computed] = deque()
        run.meter.plan(run.sizes.graph, todo, run.sizes.predicted_seconds)

    def do_one(self) -> bool:
        """Do a unit, or see that others did one. False if there is nothing to do now."""
        while self._unstored and self._run.storing.is_over:
            self._finish_storing()
        keeping = self._unstored[0].unit.name if self._unstored else None
        due = self._due()
        name = self._run.reservations.reserve(
            [unit.name for unit in due if self._can_be_done(unit)], keeping=keeping
        )
        if name is None:
            return self._finish_storing() or self._done_by_others(due)
        unit = self.left[name]
        if not self._done_by_others([unit]):
            if unit.kind in ALONE_KINDS:
                self._finish_storing_all()
            self._run.meter.begin(unit)
            if unit.kind in LAYERWISE_KINDS and not self._run.reservations.shared:
                expect_next_layer(*self._run.sizes.of(unit))
            try:
                self._run.following.begin(unit.name, self._follows)
                self._store(_compute(self._run, unit))
            except (GivenBack, OtherBytes) as reason:
                log.info("%s is given up: %r", unit.name, reason)
                self._run.meter.give_back(unit)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        return True

    def wait(self) -> None:
        """Give others some time; longer and longer while nothing happens."""
        until = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        while time.monotonic() < until:
            self._run.meter.safe_point()
            time.sleep(_NAP_SECONDS)

    def _due(self) -> list[Unit]:
        """Units that could be begun; last those that build on what is being stored."""
        stored = {each.unit.name: each.unit for each in self._unstored}
        due: list[Unit] = []
        chained: list[Unit] = []
        for unit in [*self.left.values()]:
            if unit.name in stored:
                continue
            missing = self._before[unit.name] & self.left.keys()
            if not missing or self._may_follow(unit, [*due, *chained]):
                due.append(unit)
            elif missing <= stored.keys() and (
                {unit.kind, *(stored[name].kind for name in missing)} <= CHAINED_KINDS
            ):
                chained.append(unit)
        return [unit for unit in (*due, *chained) if unit.name in self.left]

    def _may_follow(self, unit: Unit, begun: list[Unit]) -> bool:
        """Whether a unit may begin before those that it follows are finished.

        Args:
            unit: The unit.
            begun: Units that could have been begun, by others too. No other ones hand on anything.
        """
        if not unit.follows or not self._run.reservations.shared:
            return False
        if not self._strictly[unit.name].isdisjoint(self.left):
            return False
        names = {each.name for each in begun}
        running = [name for name in unit.follows if name in self.left]
        return all(name in names and self._hands_on(name, unit) for name in running)

    def _hands_on(self, name: str, to: Unit) -> bool:
        """Whether a unit is finished by now, or has handed on the first file that another reads."""
        workspace = self._run.sizes.workspace
        if workspace.look(name):
            self._end(self.left[name])
            return True
        first = next(file for file in to.reads if file.unit == name)
        return workspace.has_handed_on(*first)

    def _can_be_done(self, unit: Unit) -> bool:
        """Whether what a unit that is due reads is there.

        If not, a file was lost, which only the leader repairs; or another process has finished the
        unit and released what it read.
        """
        present = self._run.sizes.workspace.has_file
        handing_on = {name for name in unit.follows if name in self.left}
        return self._leads or all(
            owner in handing_on or present(owner, name) for owner, name in unit.reads
        )

    def _done_by_others(self, units: list[Unit]) -> bool:
        """Whether others have finished any of these units meanwhile."""
        if not self._run.reservations.shared:
            return False
        done = [unit for unit in units if self._run.sizes.workspace.look(unit.name)]
        for unit in done:
            self._end(unit)
        return bool(done)

    def _store(self, computed: _Computed) -> None:
        """Have a unit stored, after those before."""
        workspace = self._run.sizes.workspace
        try:
            while not self._may_wait(computed):
                self._finish_storing()
            self._run.following.settle()
            if workspace.is_remote:
                workspace.hold(computed.unit.name, computed.draft)
        except BaseException:
            computed.scratch.close()
            raise
        self._unstored.append(computed)
        self._run.storing.start(partial(_stored, workspace, computed))
        if not workspace.is_remote:
            # The disk is this machine's, and so would be the processor time of copying: there is
            # nothing to be gained.
            self._finish_storing()
            return
        for owner, name in computed.unit.releases:
            workspace.drop_local(owner, name)  # Else there would be a copy more on this disk.

    def _may_wait(self, computed: _Computed) -> bool:
        """Whether a unit may be stored after what is being stored, and wait for it until then."""
        if not self._unstored:
            return True
        waiting = [*self._unstored, computed][1:]
        fits = sum(each.size_bytes for each in waiting) <= MOST_WAITING_BYTES
        return fits and not self._run.reservations.shared  # One is kept beside the next one.

    def _finish_storing_all(self) -> None:
        while self._finish_storing():
            pass

    def _finish_storing(self) -> bool:
        """Wait for the first unit that is being stored: it is finished then. False if none is."""
        if not self._unstored:
            return False
        computed = self._unstored.popleft()
        unit, workspace = computed.unit, self._run.sizes.workspace
        try:
            stored, seconds = self._run.storing.result(self._run.meter.storing)
        except BaseException:
            computed.scratch.close()
            workspace.withdraw(unit.name)
            raise
        workspace.adopt(stored)
        if self._run.reservations.shared:
            for owner in {owner for owner, _ in unit.releases}:
                workspace.look(owner)  # Attempts that died may have left files of these names, too.
        for owner, name in unit.releases:
            workspace.release(owner, name)
        log.info("%s finished in %.1f s", unit.name, seconds)
        self._run.finished(
            FinishedUnit(
                unit.name,
                unit.kind,
                computed.began_at,
                seconds,
                computed.host_peak_bytes,
                computed.device_peak_bytes,
            )
        )
        self._end(unit)
        return True

    def __enter__(self) -> _Work:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._run.storing.abandon()  # At once means at once.
        first = error
        while self._unstored:
            try:
                # A unit that is being stored is better finished than stopped.
                self._finish_storing()
            except Exception as another:
                if first is None:
                    first = another
                elif another is not first and not isinstance(another, Stopped):
                    log.warning("storing a unit failed after another error: %s", another)
        if first is not None and error is None:
            raise first

    def _end(self, unit: Unit) -> None:
        del self.left[unit.name]
        self._run.meter.end(unit)
        if self._leads:
            for job, plain in _shown(self._run.sizes, [unit]):
                _send(self._run, updates_of(job, plain))


def _send(run: Run, updates: list[LayerUpdate]) -> None:
    if updates:
        run.layers(updates)


def _shown(sizes: Sizes, units: list[Unit]) -> list[tuple[Job, Unit]]:
    """Units that say something of layers which is shown while the job runs.

    Layers differ between sizes; those of the size that was named first are shown.
    """
    return [sizes.of(unit) for unit in units if unit.size in ("", sizes.first.size)]


def _pending(sizes: Sizes) -> list[Unit]:
    """The units to run: the unfinished ones, and those whose files are missing where needed."""
    units, workspace = [*sizes.graph, publication(sizes.graph)], sizes.workspace
    finished = {unit.name for unit in units if workspace.manifest(unit.name) is not None}
    needed = {read for unit in units for read in unit.reads}
    present = {read for read in needed if workspace.has_file(*read)}
    return pending(units, finished, present)[:-1]


def _compute(run: Run, unit: Unit) -> _Computed:
    """Compute one unit."""
    sizes, memory = run.sizes, run.memory
    began_at, began = time.time(), time.monotonic()
    return_free_memory()
    memory.take_host_peak()
    memory.take_device_peak()
    transfers = sizes.first.transfers
    transfers.take()
    with errors_of(unit), ExitStack() as scratch:
        draft = scratch.enter_context(sizes.workspace.draft())
        with memory.counting(), _handing_on(run, unit, draft):
            if unit.kind == artifacts.Sizes.kind:
                report_on_sizes(sizes, draft)
            elif unit.kind == artifacts.Search.kind:
                search(sizes, unit, draft)
            else:
                job, plain = sizes.of(unit)
                STEPS[unit.kind](job, plain, draft)
        seconds = round(time.monotonic() - began, 4)
        peaks = memory.take_host_peak(), memory.take_device_peak()
        left = scratch.pop_all()
        return _Computed(
            *(unit, draft, left, began_at, began, seconds, *peaks, transfers.take()),
            size_bytes=sum(path.stat().st_size for path in draft.directory.iterdir()),
        )


@contextmanager
def _handing_on(run: Run, unit: Unit, draft: Draft) -> Iterator[None]:
    """Inside, store the files that the unit hands on beside its computing, if others may want them.

    Afterwards nothing is being stored of it.
    """

    def wait() -> None:
        while run.handing_on.is_busy:
            with naming_field("workspace"):
                run.handing_on.result(run.meter.storing)

    if run.reservations.shared:
        draft.hand_on = lambda name: run.handing_on.start(
            partial(run.sizes.workspace.hand_on, unit.name, draft, name)
        )
    try:
        yield
    except BaseException:
        with suppress(Exception):
            wait()
        raise
    wait()


def _stored(workspace: Workspace, computed: _Computed) -> tuple[Stored, float]:
    """Store what was computed; and the seconds since it was begun."""
    with errors_of(computed.unit), computed.scratch, naming_field("workspace"):
        stored = workspace.store(
            computed.unit.name,
            computed.draft,
            seconds=computed.seconds,
            host_peak_bytes=computed.host_peak_bytes,
            device_peak_bytes=computed.device_peak_bytes,
            transferred=computed.transferred,
        )
        if workspace.is_remote and not stored.is_same:
            # What was computed meanwhile may build on this process's bytes.
            raise LostFile(
                f"another process has stored other bytes of {computed.unit.name}",
                computed.unit.name,
            )
    return stored, time.monotonic() - computed.began
