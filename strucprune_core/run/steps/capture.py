"""`capture.l`: run one dense layer over the calibration tokens and keep its sites' statistics.

The text passes in chunks (`plan.chunks`). The layer's input is read as the layer before hands it on
(`run.following`), and the output of each chunk is handed on as soon as it is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from strucprune_core.calibration.degeneracy import refuse_rank
from strucprune_core.checkpoint.bundle import new_bundle, save_bundle
from strucprune_core.checkpoint.writer import PlannedTensor
from strucprune_core.method.gram import GramAccumulator, assumed_energy, token_weights
from strucprune_core.method.site_statistics import SiteStatistics
from strucprune_core.models.decoder import LayerTrace
from strucprune_core.models.experts import experts_of
from strucprune_core.models.forward import run_batches
from strucprune_core.models.structures import Site, SiteKind
from strucprune_core.models.tiles import HOLDOUT_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import largest_known
from strucprune_core.run.artifacts import Capture, CaptureValues
from strucprune_core.run.chunked_states import Entering, Leaving
from strucprune_core.run.context import Job
from strucprune_core.run.expert_choice import means_of
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.mapped_matrix import HostMatrix

if TYPE_CHECKING:
    from strucprune_core.models.generic.routed import ExpertSums


@torch.inference_mode()
def capture(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the layer's output, and what is known of its sites: Gram matrices, held-out inputs.

    Raises:
        InvalidText: the text is degenerate (see `calibration.degeneracy`).
        NumericalFailure: an output of an expert is not finite.
    """
    this = Capture(unit.index)
    entering = Entering(job, this.layer)
    layer = _Layer(job, entering, Leaving(job, this, draft))
    with _recorded(job, this.layer) as sums:  # Scores see no held-out text.
        statistics, total_weight = layer.sum_up(draft.path(Capture.grams))
    _refuse_degenerate(job, statistics)
    mean_weight = total_weight / (job.split.train * job.spec.calibration.sequence_length)
    save_bundle(draft.path(Capture.holdout), layer.hold_out(mean_weight))
    np.save(draft.path(Capture.probe_input), entering.probe_windows())
    experts = None if sums is None else means_of(sums, this.layer)
    draft.record(CaptureValues(statistics, experts))


@contextlib.contextmanager
def _recorded(job: Job, layer: int) -> Iterator[ExpertSums | None]:
    """Inside, sum up what a layer's experts do; None if they are not removed, or if it has none."""
    experts, modules = experts_of(job.config, layer), job.dense.modules
    if not job.removes_experts or experts is None or modules is None:
        yield None
        return
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.models.generic.routed import ExpertSums

    sums = ExpertSums(experts.count)
    with modules.recording(layer, sums):
        yield sums


def _refuse_degenerate(job: Job, statistics: dict[str, SiteStatistics]) -> None:
    if not job.spec.calibration.allow_degenerate:
        rank = largest_known(each.effective_rank for each in statistics.values())
        widest = max((each.columns for each in statistics.values()), default=0)
        refuse_rank(rank, widest, job.spec.calibration.place)


class _Layer:
    """A dense layer on its way through the text: first the training sequences, then held-out ones.

    Args:
        job: The job.
        entering: Its input.
        leaving: Its output, to be filled in.
    """

    def __init__(self, job: Job, entering: Entering, leaving: Leaving) -> None:
        self._job, self._entering, self._leaving = job, entering, leaving
        self._sites = job.sites(entering.layer)
        self._columns = {site.name: site.width for site in self._sites}
        self._weights = job.dense.layer(entering.layer)

    def sum_up(self, grams_file: Path) -> tuple[dict[str, SiteStatistics], float]:
        """Write the Gram matrices. Returns what else is known of sites, and all tokens' weight."""
        job, total_weight = self._job, 0.0
        planned = [
            PlannedTensor(site, "F32", (columns, columns))
            for site, columns in self._columns.items()
        ]
        with new_bundle(grams_file, planned) as arrays:
            files = {
                site: HostMatrix(array, job.device, job.transfers) for site, array in arrays.items()
            }
            grams = {
                site: GramAccumulator(
                    columns, job.room, None if job.panels.fits(columns) else files[site]
                )
                for site, columns in self._columns.items()
            }
            for done, trace in self._run(held_out=False):
                total_weight += _sum_up(trace, grams)
                del trace  # Not beside the next micro-batch's.
                job.tick(done, job.spec.calibration.samples)
            return _finish(self._sites, grams, total_weight, files), total_weight

    def hold_out(self, mean_weight: float) -> dict[str, Tensor]:
        """Per site its inputs on held-out tokens times sqrt(weight), (tokens x m) float32."""
        held_out = self._job.split.holdout * self._job.spec.calibration.sequence_length
        most = min(HOLDOUT_TOKENS, held_out)
        holdout = {
            site: _HeldOut(self._job, most, columns) for site, columns in self._columns.items()
        }
        for _, trace in self._run(held_out=True):
            _hold_out(trace, mean_weight, holdout)
            del trace
        return {site: kept.tensor() for site, kept in holdout.items()}

    def _run(self, *, held_out: bool) -> Iterator[tuple[int, LayerTrace]]:
        """Run one of both parts and fill in its output, a micro-batch at a time.

        Yields:
            How many sequences are through, and what the last ones made.
        """
        job = self._job
        kinds = {site.kind for site in self._sites}
        for chunk in job.chunks:
            if (chunk.start >= job.split.train) != held_out:
                continue
            given = self._entering.chunk(chunk)
            with self._leaving.chunk(chunk, given.shape) as output:
                batches = run_batches(
                    job.dense,
                    self._entering.layer,
                    self._weights,
                    given,
                    job.scratch,
                    job.safe_point,
                    record=kinds,
                )
                for rows, trace in batches:
                    job.dense.put(output, rows, trace.hidden)
                    yield chunk.start + rows.stop, trace
                    del trace


def _sum_up(trace: LayerTrace, grams: dict[str, GramAccumulator]) -> float:
    """Add a micro-batch to the sums; the sum of its token weights."""
    weights = token_weights(trace.hidden.flatten(0, 1))
    for site, sums in grams.items():
        seen = trace.inputs[site]
        sums.add(seen.rows, weights if seen.tokens is None else weights[seen.tokens])
    return float(weights.sum(dtype=torch.float64))


def _finish(
    sites: list[Site],
    grams: dict[str, GramAccumulator],
    total_weight: float,
    files: dict[str, HostMatrix],
) -> dict[str, SiteStatistics]:
    """Write the Gram matrices: one after the other, so that sums on the device go."""
    energies = {site: sums.energy(total_weight) for site, sums in grams.items()}
    means = {kind: _mean_energy(sites, kind, energies) for kind in {site.kind for site in sites}}
    kinds = {site.name: site.kind for site in sites}
    statistics: dict[str, SiteStatistics] = {}
    while grams:
        site, sums = grams.popitem()
        assumed = assumed_energy(sums.tokens, sums.columns, means[kinds[site]])
        rank = sums.finish(total_weight, files[site], assumed)
        statistics[site] = SiteStatistics(sums.tokens, sums.columns, energies[site], assumed, rank)
    return statistics


def _mean_energy(sites: list[Site], kind: SiteKind, energies: dict[str, float]) -> float:
    """Mean energy of a column over all sites of a kind."""
    columns = {site.name: site.width for site in sites if site.kind == kind}
    total = sum(energies[name] * count for name, count in columns.items())
    return total / sum(columns.values())


def _hold_out(trace: LayerTrace, mean_weight: float, holdout: dict[str, _HeldOut]) -> None:
    """Keep a micro-batch's inputs, scaled, as long as there is room."""
    scale = token_weights(trace.hidden.flatten(0, 1)).div_(mean_weight).sqrt_()
    for site, kept in holdout.items():
        seen = trace.inputs[site]
        factor = scale if seen.tokens is None else scale[seen.tokens]
        kept.add(seen.rows[: kept.room] * factor[: kept.room, None])


class _HeldOut:
    """At most so many rows, collected on the host: in a scratch file where a panel is smaller."""

    def __init__(self, job: Job, most: int, width: int) -> None:
        self.room, self._transfers = most, job.transfers
        if job.panels.fits(width):
            self._rows = torch.from_numpy(np.empty((most, width), dtype=np.float32))
        else:
            self._rows = job.room.matrix(most, width, torch.float32).tensor
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows, no more than there is room for."""
        self._transfers.count(to_host=rows.nbytes)
        self._rows[self._count : self._count + len(rows)] = rows.cpu()
        self._count += len(rows)
        self.room -= len(rows)

    def tensor(self) -> Tensor:
        """All rows, (count x width) float32."""
        return self._rows[: self._count]
