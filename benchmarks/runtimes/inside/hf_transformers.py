"""A session of transformers: the reference, and a runtime like the others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

import strucprune_core
from benchmarks.runtimes.inside.session import serve

# Of `TransformersModel.noise`: relative, about that of a sum in float32; and how often it is tried.
_CHANGE = 1e-6
_DRAWS = 5

# The option's name before release 4.56.
_DTYPE = "torch_dtype" if transformers.__version__ < "4.56" else "dtype"


class TransformersModel:
    """A model of transformers, float32."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        path, how = entry["path"], entry["how"]
        options = {_DTYPE: torch.float32}
        if how == "load_pretrained":
            self._model = strucprune_core.load_pretrained(path, **options)
        elif how == "register":
            import_module("strucprune_core.register")
            self._model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
        else:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                path, trust_remote_code=how == "trust_remote_code", **options
            )
        self._model.eval()

    @torch.inference_mode()
    def _step(self, tokens: Sequence[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits (vocabulary,) after the tokens, and the cache that holds them."""
        output = self._model(
            torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[0, -1], output.past_key_values

    def next_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `session.Model`."""
        return self._step(prompt, None)[0].numpy()

    def greedy(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
        """See `session.Model`."""
        found: list[int] = []
        margins: list[float] = []
        logits, cache = self._step(prompt, None)
        while True:
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
            found.append(int(logits.argmax()))
            if len(found) == tokens:
                return found, margins
            logits, cache = self._step(found[-1:], cache)

    @torch.inference_mode()
    def noise(self, tokens: Sequence[int]) -> float | None:
        """See `session.Rounded`."""
        if not any(hasattr(each, "quantization_scheme") for each in self._model.modules()):
            return None
        random = torch.Generator().manual_seed(0)

        def change(_module: Any, _arguments: Any, values: torch.Tensor) -> torch.Tensor:
            return values * (1 + _CHANGE * torch.randn(values.shape, generator=random))

        ids = torch.tensor([list(tokens)])
        logits = self._model(ids).logits
        with self._model.get_input_embeddings().register_forward_hook(change):
            moved = [self._model(ids).logits for _ in range(_DRAWS)]
        return max(float((each - logits).abs().max()) for each in moved)

    def timed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """See `session.Model`."""
        start = time.perf_counter()
        logits, cache = self._step(prompt, None)
        token = int(logits.argmax())
        first = time.perf_counter()
        for _ in range(tokens):
            logits, cache = self._step([token], cache)
            token = int(logits.argmax())
        return first - start, time.perf_counter() - first


if __name__ == "__main__":
    serve(
        TransformersModel,
        {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]},
    )
