"""Models whose towers for images need packages that are not installed: text runs without them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import AutoModel

_REPLACING = threading.Lock()


class Unseen(nn.Module):
    """Stands for a tower that cannot be built. The decoder of the text never calls it."""


def unseen_parts(model: nn.Module) -> tuple[str, ...]:
    """What the parameters of towers that were not built begin with."""
    return tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Unseen))


@contextlib.contextmanager
def towers_may_lack() -> Iterator[None]:
    """Inside, a part of a model that needs a package that is not installed becomes `Unseen`.

    One thread at a time: what is replaced meanwhile is everybody's.
    """
    auto: Any = AutoModel
    with _REPLACING:
        plain = auto.from_config

        def built(config: Any, **options: Any) -> nn.Module:
            try:
                part: nn.Module = plain(config, **options)
            except ImportError:  # transformers names the package in it.
                return Unseen()
            return part

        auto.from_config = staticmethod(built)
        try:
            yield
        finally:
            del auto.from_config  # The base class has the plain one.
