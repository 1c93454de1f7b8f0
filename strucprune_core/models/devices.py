"""The device that a run uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.precision import Precision


def choose_device(wanted: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda".

    Raises:
        InvalidSpec: the name is unknown, or "cuda" was asked for and there is none.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise InvalidSpec(
            f"'{wanted}' is not a device", field="runtime.device", remedy="Use auto, cpu or cuda."
        )
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InvalidSpec(
            "no CUDA device is available to this process",
            field="runtime.device",
            remedy="Use 'auto' or 'cpu', or run where a GPU is visible.",
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


@contextlib.contextmanager
def matrix_products_in(precision: Precision) -> Iterator[None]:
    """Inside, a GPU computes float32 matrix products as the precision says.

    In `tf32` from operands rounded to 10 bits. In `bfloat16` as well: what is float32 there
    (logits, Gram matrices, routers) comes from activations of 7 bits. In `float32` from whole
    operands, whatever was set before.
    """
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        products.allow_tf32 = before


def settle_vector_math() -> None:
    """Call torch's vectorised functions once from one thread, before any parallel call.

    A precaution: about one process in forty computed a cosine with different last bits on the same
    machine. The likely reason is a race in the library's first call, if that is parallel.
    """
    one = torch.ones(1)
    for function in (torch.exp, torch.log, torch.cos, torch.sin, torch.tanh, torch.erf):
        function(one)
