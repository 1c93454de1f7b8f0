"""Models of transformers whose parameters have a shape but no memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import __version__ as transformers_version

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.fields import FIELD

_REPLACING = threading.Lock()


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters made inside have a shape but no memory.

    The large ones never have any: a linear layer or an embedding is made on the meta device. One
    thread at a time: what is replaced meanwhile is everybody's.
    """
    with _REPLACING:
        yield from _replaced_makers()


def _replaced_makers() -> Iterator[None]:
    module_class: Any = nn.Module
    register = module_class.register_parameter
    makers: list[Any] = [nn.Linear, nn.Embedding]
    plain = [maker.__init__ for maker in makers]

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    def made_on_meta(make: Callable[..., None]) -> Callable[..., None]:
        return lambda self, *given, **options: make(self, *given, **{**options, "device": "meta"})

    module_class.register_parameter = on_meta
    for maker, make in zip(makers, plain, strict=True):
        maker.__init__ = made_on_meta(make)
    try:
        yield
    finally:
        module_class.register_parameter = register
        for maker, make in zip(makers, plain, strict=True):
            maker.__init__ = make


def skeleton(build: Callable[[], Any], device: torch.device) -> Any:
    """A model without memory for its parameters; buffers are real, on the device.

    Args:
        build: Makes it.
        device: Where it will compute.

    Raises:
        InvalidCheckpoint: transformers refuses its config.
    """
    try:
        with parameters_on_meta():
            model = build()
    except Exception as error:  # The classes raise anything for a bad config.
        raise InvalidCheckpoint(
            f"transformers {transformers_version} cannot build the model from config.json: {error}",
            field=FIELD,
            remedy="Correct config.json, or save the model again with transformers.",
        ) from error
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()
