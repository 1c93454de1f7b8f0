"""The reload check: compares what transformers computes from written files with what it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strucprune_core.errors import InvalidCheckpoint, NumericalFailure
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.streaming import ModelStream, WeightSource
from strucprune_core.models.vocabulary import next_token_logits

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
    scratch: Path,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare our forward on `expected` with transformers' on `written`.

    Hidden states of `expected` are kept in the directory `scratch` meanwhile.

    Returns:
        `reference`, `tokens`, `max_abs_logit_difference` and `tolerance`.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than were written.
        NumericalFailure: the logits differ by more than rounding.
    """
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.evaluation.transformers_reference import REFERENCE, reference_logits

    last = final_hidden(expected, tokens, scratch, tick)
    wanted = next_token_logits(expected, last[:, -1])
    if written.modules is None:
        computed = reference_logits(written, config_json, tensor_names, tokens)
    else:
        from strucprune_core.evaluation.generic_check import reloaded_logits

        computed = reloaded_logits(written, config_json, tokens, REFERENCE)
    difference = float((wanted - computed).abs().max())
    tolerance = VERIFY_TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= tolerance:  # `not <=`, so that NaN fails too.
        raise NumericalFailure(
            f"{REFERENCE} computes logits from the files that differ by {difference:.3g} from the "
            f"expected ones (tolerance {tolerance:.3g})",
            remedy="Do not use the checkpoint, and please report this.",
        )
    return {
        "reference": REFERENCE,
        "tokens": int(tokens.size),
        "max_abs_logit_difference": difference,
        "tolerance": tolerance,
    }


def check_same_tensors(
    expected: WeightSource,
    written: WeightSource,
    names: Sequence[str],
    tick: Callable[[int, int], None],
) -> None:
    """Compare two sources to the bit, with one tensor of each in memory.

    Args:
        expected: The tensors to be written.
        written: The tensors read back.
        names: Tensors of both.
        tick: Called with tensors (done, total) before each one: safe points to stop at.

    Raises:
        InvalidCheckpoint: a tensor differs.
    """
    for number, name in enumerate(names):
        tick(number, len(names))
        wanted, stored = expected.tensor(name, dtype=None), written.tensor(name, dtype=None)
        if wanted.dtype != stored.dtype or not torch.equal(wanted, stored):
            raise InvalidCheckpoint(
                f"tensor '{name}' of the export is not the one to be written",
                remedy="Do not use the export, and please report this.",
            )
        del wanted, stored  # or they would stay while the next two are read
