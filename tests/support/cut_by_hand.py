"""A dense model with the weights of a pruned one: what cutting by hand must compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def filled_up(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a dense model the weights of a pruned one, with zeros where channels went.

    The matrices before and after an activation must be tensors of their own.
    """
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        target = state[name]
        target.zero_()
        target[tuple(slice(size) for size in tensor.shape)] = tensor
