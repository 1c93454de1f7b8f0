"""Decoder layers one after another: a thread reads the next one while this one is in use.

At most one layer is ahead. The thread works for one pass and ends with it, however that ends. What
it fails with is raised where the layer is asked for, as if it had been read there.

On a CUDA device the thread copies on a stream of its own, so that copies overlap with products; the
stream that computes waits for them. torch's allocator frees a tensor for the stream that it was
made on, so every tensor is marked as used by the other one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

T = TypeVar("T")
W = TypeVar("W", bound=Mapping[str, Tensor])

Alive = Callable[[], None]
"""Called between tensors; raises if nobody waits for them any more."""


class Abandoned(Exception):
    """The pass ended before the layer was wanted. Nobody sees this."""


def in_turn(
    order: Iterable[int], read: Callable[[int, Alive], W], device: torch.device
) -> Iterator[tuple[int, W]]:
    """(number, layer) in order. Drop a layer before you ask for the next one: one is ahead already.

    Args:
        order: Numbers of layers.
        read: Reads one, whole; runs in the thread, in the grad mode of the caller, and its tensors
            count as the caller's.
        device: Where its tensors are.
    """
    if device.type != "cuda":
        yield from one_ahead(order, read)
        return
    copying = _copy_stream(device)

    def read_beside(number: int, alive: Alive) -> tuple[W, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            weights = read(number, alive)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(copying)
        return weights, copied

    for number, (weights, copied) in one_ahead(order, read_beside):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for tensor in weights.values():
            tensor.record_stream(computing)
        yield number, weights
        del weights


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: memory that is freed on a stream is used again on that stream only."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def one_ahead(order: Iterable[int], read: Callable[[int, Alive], T]) -> Iterator[tuple[int, T]]:
    """(number, what `read` makes of it) in order, the next one made by a thread meanwhile.

    Args:
        order: Numbers.
        read: Makes what is wanted; called in the thread, with a function to call now and then.
    """
    surroundings, over = _surroundings(), threading.Event()

    def alive() -> None:
        if over.is_set():
            raise Abandoned

    def task(number: int) -> T:
        with surroundings():
            return read(number, alive)

    numbers = iter(order)
    number = next(numbers, None)
    with ThreadPoolExecutor(1, "layers-ahead") as pool:
        try:
            coming = None if number is None else pool.submit(task, number)
            while number is not None and coming is not None:
                made, this = coming.result(), number
                number = next(numbers, None)
                coming = None if number is None else pool.submit(task, number)
                yield this, made
                del made  # Or it would live beside the next two.
        finally:
            over.set()  # The pool waits for its thread.


def _surroundings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What holds for tensors made in this thread, to be entered in another one."""
    modes = _get_current_dispatch_mode_stack()
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    @contextlib.contextmanager
    def same() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for mode in modes:  # Such as `run.tensor_bytes`, which counts memory.
                stack.enter_context(mode)
            yield

    return same
