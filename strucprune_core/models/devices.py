"""The device that a run uses."""

from __future__ import annotations

import contextlib
import platform
from functools import cache
from pathlib import Path

import torch

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.linalg.tf32 import tf32_products
from strucprune_core.models.precision import Precision
from strucprune_core.spec import is_device, is_gpu

# Compute capabilities of GPUs that compute at least half as fast in float64 as in float32: P100,
# V100, A100, H100 and H200, B200 (the table of throughputs in NVIDIA's CUDA C++ Programming Guide).
_FULL_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}

_CPU_INFO = Path("/proc/cpuinfo")


def choose_device(wanted: str, field: str = "runtime.device") -> torch.device:
    """The device of "auto", "cpu", "cuda", or "cuda:1" for the GPU of that number.

    Args:
        wanted: Its name.
        field: Where it was asked for.

    Raises:
        InvalidSpec: the name is unknown, or a GPU was asked for that is not there.
    """
    if not is_device(wanted):
        raise InvalidSpec(
            f"'{wanted}' is not a device", field=field, remedy="Use auto, cpu, cuda or cuda:1."
        )
    available = torch.cuda.is_available()
    if not is_gpu(wanted):
        return torch.device("cuda" if wanted == "auto" and available else "cpu")
    if not available:
        raise InvalidSpec(
            "no CUDA device is available to this process",
            field=field,
            remedy="Use 'auto' or 'cpu', or run where a GPU is visible.",
        )
    _check_number(wanted, field)
    return torch.device(wanted)


def _check_number(wanted: str, field: str) -> None:
    """Check that there is a GPU of that number.

    Raises:
        InvalidSpec: there is none.
    """
    count, number = torch.cuda.device_count(), wanted.partition(":")[2]
    if number and int(number) >= count:
        numbers = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InvalidSpec(
            f"there is no {wanted}: this process sees {count} GPU{'s' if count > 1 else ''}",
            field=field,
            remedy=f"Use {numbers}. CUDA_VISIBLE_DEVICES says which GPUs a process sees.",
        )


def computing_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which what names no GPU (streams, pinned memory) is for this one, not cuda:0."""
    if device.index is None:
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def matrix_products_in(precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Inside, a GPU computes float32 matrix products as the precision says.

    In `tf32` from operands rounded to 10 bits. In `bfloat16` as well: what is float32 there
    (logits, Gram matrices, routers) comes from activations of 7 bits. In `float32` from whole
    operands, whatever was set before.
    """
    return tf32_products(allowed=precision != "float32")


def solve_dtype(device: torch.device) -> torch.dtype:
    """What curves and solves are tried in: float64 on a CPU and on GPUs with as many units for it.

    Of the others a float64 product takes 32 to 64 times as long as one in float32.
    """
    if device.type != "cuda":
        return torch.float64
    full = torch.cuda.get_device_capability(device) in _FULL_FLOAT64
    return torch.float64 if full else torch.float32


@cache
def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with what tells it from others of that name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[each] for each in ("cpu family", "model") if facts.get(each)]
    kind = f" (family {numbers[0]}, model {numbers[1]})" if len(numbers) == 2 else ""
    return f"{name}{kind}"


def settle_vector_math() -> None:
    """Call torch's vectorised functions once from one thread, before any parallel call.

    A precaution: about one process in forty computed a cosine with different last bits on the same
    machine. The likely reason is a race in the library's first call, if that is parallel.
    """
    one = torch.ones(1)
    for function in (torch.exp, torch.log, torch.cos, torch.sin, torch.tanh, torch.erf):
        function(one)
