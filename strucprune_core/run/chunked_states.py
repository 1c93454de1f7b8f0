"""Hidden states between the layers of the calibration pass, in the chunks that are handed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strucprune_core.run.artifacts import Capture, Embed
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array

Rows = NDArray[np.float32]


class Entering:
    """A layer's input. What the layer before has not handed on yet is waited for.

    Args:
        job: The job.
        layer: The layer.
    """

    def __init__(self, job: Job, layer: int) -> None:
        self._job, self.layer = job, layer

    def chunk(self, sequences: range) -> Rows:
        """The input of a chunk, (sequences x length x d), memory-mapped and read-only.

        Raises:
            GivenBack, LostFile: see `run.following`.
        """
        if self.layer == 0:
            return self._job.units.array(Embed().hidden)[sequences.start : sequences.stop]
        file = Capture(self.layer - 1).chunk(sequences)
        array: Rows = np.load(self._job.following.path(file), mmap_mode="r")
        return array

    def probe_windows(self) -> Rows:
        """The part of the probe windows, (sequences x tokens x d)."""
        split, last = self._job.split, self._job.split.train + self._job.split.probe_sequences
        parts = [
            self.chunk(chunk)[: last - chunk.start, : split.probe_tokens]
            for chunk in self._job.chunks
            if split.train <= chunk.start < last
        ]
        return np.concatenate(parts)


class Leaving:
    """A layer's output: chunks that are handed on, but for the last layer one file.

    Args:
        job: The job.
        unit: The unit that writes it.
        draft: Where it writes.
    """

    def __init__(self, job: Job, unit: Capture, draft: Draft) -> None:
        self._job, self._unit, self._draft = job, unit, draft
        self._is_last = unit.layer == job.config.layers - 1
        self._whole: np.memmap[tuple[int, ...], Any] | None = None

    @contextmanager
    def chunk(self, sequences: range, shape: tuple[int, ...]) -> Iterator[Rows]:
        """The output of a chunk, to be filled in: handed on at the end.

        Args:
            sequences: The chunk.
            shape: Of this output, (sequences x length x d).
        """
        if self._is_last:
            if self._whole is None:
                whole = (self._job.spec.calibration.samples, *shape[1:])
                self._whole = new_array(self._draft.path(Capture.hidden), whole)
            yield self._whole[sequences.start : sequences.stop]
            self._whole.flush()
            return
        name = self._unit.chunk(sequences).name
        output = new_array(self._draft.path(name), shape)
        yield output
        output.flush()
        self._draft.hand_on(name)
