"""Chunks in which a layer's output is handed on to the pass of the next layer. No torch.

A chunk is some whole sequences of the calibration text. Another worker may begin with the next
layer as soon as the first chunk is stored, and stays a chunk behind (`run.following`).

    train │ chunk │ chunk │ … │ held-out │ chunk │ …

The rule: a chunk consists of whole micro-batches, of which there is no other division. So chunks
change no rounding, and follow from the specification as micro-batches do. There are at most
`MOST_CHUNKS` of the sequences that are trained on. Where experts are read one at a time, which is
once for all sequences of a pass, these are one chunk.
"""

from __future__ import annotations

import math

from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.sites import holdout_sequences
from strucprune_core.spec import CalibrationSpec

# As many workers can be at work on neighbouring layers: the last of them begins when the first one
# is done with its layer. Each chunk costs some requests to the store.
MOST_CHUNKS = 16


def chunks(spec: CalibrationSpec, tiles: Tiles) -> list[range]:
    """The sequences of each chunk, in order; none holds both trained and held-out ones."""
    train = spec.samples - holdout_sequences(spec.samples)
    if tiles.expert_by_expert:
        return [range(train), range(train, spec.samples)]
    micro_batch = max(1, tiles.micro_batch_tokens // spec.sequence_length)
    step = micro_batch * math.ceil(train / (MOST_CHUNKS * micro_batch))
    return [
        range(start, min(start + step, part.stop))
        for part in (range(train), range(train, spec.samples))
        for start in range(part.start, part.stop, step)
    ]
