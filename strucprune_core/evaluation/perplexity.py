"""Perplexity on consecutive windows, streamed: exp of the mean next-token loss in nats.

Each window is scored on its own, as is usual: the first token of a window is not predicted.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.forward import Tick, final_states
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import token_losses


@torch.inference_mode()
def perplexity(
    stream: ModelStream,
    windows: NDArray[np.int32],
    scratch: Path,
    tick: Tick = lambda: None,
) -> float:
    """Perplexity of a model; infinite if the loss overflows, NaN if its weights do.

    Args:
        stream: The model.
        windows: Token ids, (sequences x length).
        scratch: Directory for activations.
        tick: Called after each layer and vocabulary tile; may raise to stop.
    """
    hidden = final_states(stream, windows, scratch, tick)
    # All positions are scored; the last of a window, which predicts nothing, is dropped.
    targets = np.roll(windows, -1, axis=1).reshape(-1)
    losses = token_losses(stream, hidden.reshape(-1, hidden.shape[-1]), targets, tick)
    mean_loss = float(losses.reshape(windows.shape)[:, :-1].mean())
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf
