"""transformers' modules with bfloat16 operands in matrix products, by torch's autocast.

Inside autocast linear layers, attention and convolutions convert their operands, while the softmax
and sums stay float32. Parameters of norms are float32, and so are hidden states. A sum of the
residual stream and what a layer adds to it is float32 then, unless the module converts its input:
that is found by the dtype of what it puts out, and refused.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from strucprune_core.errors import Mend, UnsupportedArchitecture


def operands_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Inside, operands of matrix products are converted to `dtype`; float32 converts nothing."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    # Without a cache: weights are of that dtype already, and would be held twice.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def check_residual(hidden: Tensor) -> None:
    """Refuse a layer that rounds the residual stream.

    Raises:
        UnsupportedArchitecture: its output is not float32.
    """
    if hidden.dtype != torch.float32:
        raise UnsupportedArchitecture(
            "the layers of this architecture round the residual stream to "
            f"{str(hidden.dtype).removeprefix('torch.')}",
            field="runtime.precision",
            remedy="Use precision float32.",
            mends=[Mend("runtime.precision", "float32")],
        )
