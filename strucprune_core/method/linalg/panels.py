"""Sizes of the pieces of a solve. No torch: planner and execution share them."""

from __future__ import annotations

from dataclasses import dataclass

RESIDENT = 1 << 62
"""A panel that any matrix fits."""

WIDE_COLUMNS = 4096
"""Damage curves of more columns are computed in float32 first on a CPU, too: see `checked`."""

BLOCK_CHANNELS = 16
"""Channels that a damage curve removes at a time."""

RESIDENT_STEP = 128
"""Rows processed at a time in a matrix on the device, so that a panel stays in the caches."""

RESIDENT_ROWS = 1024
"""Rows of a weight matrix that are multiplied with such a matrix at a time."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Sizes of pieces.

    Attributes:
        panel: Rows of a matrix on the device at a time. A matrix of no more columns than this is on
            the device whole.
        superblock: Columns that a damage curve removes before it updates the rest of its matrices.
    """

    panel: int = RESIDENT
    superblock: int = 256

    def fits(self, columns: int) -> bool:
        """Whether a matrix of this number of columns is on the device whole."""
        return columns <= self.panel

    def step(self, columns: int) -> int:
        """Rows processed at a time in a matrix of this number of columns."""
        return min(columns, RESIDENT_STEP if self.fits(columns) else self.panel)

    def capacity(self, columns: int, most: int) -> int:
        """Columns that are removed, `most` at a time, between two updates of the matrices."""
        return min(columns, max(self.superblock, most) // most * most)

    def rows(self, columns: int) -> int:
        """Rows of a weight matrix that are multiplied with a matrix of this number of columns."""
        return RESIDENT_ROWS if self.fits(columns) else self.panel


ALL_RESIDENT = Panels()
"""Everything on the device."""
