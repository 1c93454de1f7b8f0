"""Which calibration sequences give statistics, which are held out, and which windows are probed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from strucprune_core.plan.sites import holdout_sequences, probe_shape
from strucprune_core.spec import CalibrationSpec

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class TextSplit:
    """The calibration sequences by purpose.

    Attributes:
        train: Sequences that statistics are computed and layers are trained on: the first ones.
        holdout: Sequences that are kept out of that: the last ones.
        probe_sequences: Of these, how many are probed.
        probe_tokens: Tokens of a probed sequence, from its beginning.
    """

    train: int
    holdout: int
    probe_sequences: int
    probe_tokens: int

    @classmethod
    def of(cls, spec: CalibrationSpec) -> TextSplit:
        """The split of a job's calibration text."""
        holdout = holdout_sequences(spec.samples)
        return cls(spec.samples - holdout, holdout, *probe_shape(spec))

    def probe_windows(self, states: NDArray[Number]) -> NDArray[Number]:
        """The probe windows' part of all hidden states, or of all tokens."""
        last = self.train + self.probe_sequences
        return np.ascontiguousarray(states[self.train : last, : self.probe_tokens])
