"""A session of MLX on the CPU."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from benchmarks.runtimes.inside.session import serve


class MlxModel:
    """A model of mlx-lm, in the dtype of its files."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._model, _ = load_model(Path(entry["path"]))

    def _step(self, tokens: Sequence[int], cache: Any) -> Any:
        logits = self._model(mx.array([list(tokens)]), cache=cache)[0, -1]
        mx.eval(logits)
        return logits

    def next_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `session.Model`."""
        logits = self._step(prompt, make_prompt_cache(self._model))
        return np.array(logits.astype(mx.float32))

    def greedy(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], None]:
        """See `session.Model`."""
        cache = make_prompt_cache(self._model)
        found = [int(mx.argmax(self._step(prompt, cache)).item())]
        while len(found) < tokens:
            found.append(int(mx.argmax(self._step(found[-1:], cache)).item()))
        return found, None

    def timed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """See `session.Model`."""
        start = time.perf_counter()
        cache = make_prompt_cache(self._model)
        token = int(mx.argmax(self._step(prompt, cache)).item())
        first = time.perf_counter()
        for _ in range(tokens):
            token = int(mx.argmax(self._step([token], cache)).item())
        return first - start, time.perf_counter() - first


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    serve(MlxModel, {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")})
