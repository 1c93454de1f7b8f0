"""The reload check: what transformers computes from written files against what it should be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strucprune_core.errors import NumericalFailure
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import next_token_logits

VERIFY_SEQUENCES, VERIFY_TOKENS = 2, 64
# Largest logit difference that float32 rounding explains, relative to the largest logit (with an
# absolute floor for tiny models).
VERIFY_TOLERANCE = 1e-3


@torch.inference_mode()
def compare_with_transformers(
    expected: ModelStream,
    written: ModelStream,
    config_json: bytes,
    tensor_names: set[str],
    tokens: np.typing.NDArray[np.int32],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare our forward on `expected` with transformers' on `written`.

    Returns:
        `reference`, `tokens`, `max_abs_logit_difference` and `tolerance`.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than were written.
        NumericalFailure: the logits differ by more than rounding.
    """
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.evaluation.transformers_reference import REFERENCE, reference_logits

    with (
        tempfile.TemporaryDirectory(prefix="strucprune-") as scratch,
        final_hidden(expected, tokens, Path(scratch), tokens.size, tick) as last,
    ):
        wanted = next_token_logits(expected, last[:, -1])
    found = reference_logits(written, config_json, tensor_names, tokens)
    difference = float((wanted - found).abs().max())
    tolerance = VERIFY_TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= tolerance:  # `not <=`, so that NaN fails too.
        raise NumericalFailure(
            f"{REFERENCE} computes logits from the files that differ by {difference:.3g} from the "
            f"expected ones (tolerance {tolerance:.3g})",
            remedy="The checkpoint must not be used. Please report this.",
        )
    return {
        "reference": REFERENCE,
        "tokens": int(tokens.size),
        "max_abs_logit_difference": difference,
        "tolerance": tolerance,
    }
