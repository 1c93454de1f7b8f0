"""One session of a Python runtime: reads a request, answers with greedy tokens, logits and times.

    python -m benchmarks.runtimes.inside.mlx_lm_models REQUEST.json ANSWER.json

The request (`benchmarks.runtimes.protocol.Request`) names models, prompts as token ids and what to
time. Logits go to a file of float32 beside the answer, (prompts, vocabulary). A model that does not
load is an answer too: its error.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


class Model(Protocol):
    """A model that a runtime has loaded."""

    def next_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits (vocabulary,) of the token after the prompt."""

    def greedy(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float] | None]:
        """The likeliest continuation, token by token; an end token does not end it.

        Beside it, by how much the logit of each token exceeds the next one, if that is known.
        """

    def timed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """Seconds to the first new token, and from there to the last of `1 + tokens`."""


@runtime_checkable
class Rounded(Protocol):
    """A model whose logits small roundings can change: activations are quantised."""

    def noise(self, tokens: Sequence[int]) -> float | None:
        """How far logits move, at any of the tokens, if the embeddings change by a millionth.

        None: its activations are not quantised.
        """


def serve(load: Callable[[Mapping[str, Any]], Model], versions: Mapping[str, str]) -> None:
    """Answer the request named on the command line.

    Args:
        load: Loads a model; gets its entry of the request (`path`, `how`).
        versions: Of the runtime and what it computes with.
    """
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer_path = Path(sys.argv[2])
    models: dict[str, Model] = {}
    answer: dict[str, Any] = {"versions": dict(versions), "models": {}, "times": {}}
    for entry in request["models"]:
        name = entry["name"]
        logits_path = answer_path.with_name(f"{answer_path.stem}-{name}.f32")
        try:
            model = load(entry)
            answer["models"][name] = _answers(model, request, logits_path)
        except Exception as error:  # of the runtime's own kinds; reported, not hidden
            answer["models"][name] = {"error": f"{type(error).__name__}: {error}"}
        else:
            if request["timing"]:
                models[name] = model
            del model
        gc.collect()
        _write(answer_path, answer)  # after every model: a crash loses the later ones only
    if models and len(models) == len(request["models"]):
        answer["times"] = _times(models, request["timing"])
        _write(answer_path, answer)


def _write(path: Path, answer: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(answer), encoding="utf-8")
    unfinished.replace(path)


def _answers(model: Model, request: Mapping[str, Any], logits_path: Path) -> dict[str, Any]:
    prompts = request["prompts"]
    logits = np.stack([model.next_logits(prompt) for prompt in prompts])
    logits.astype("<f4").tofile(logits_path)
    found = [model.greedy(prompt, request["new_tokens"]) for prompt in prompts]
    margins = [each for _, each in found if each is not None]
    noise = None
    if isinstance(model, Rounded):
        texts = [[*prompt, *tokens] for prompt, (tokens, _) in zip(prompts, found, strict=True)]
        noise = max((each for each in map(model.noise, texts) if each is not None), default=None)
    return {
        "tokens": [tokens for tokens, _ in found],
        "margins": margins or None,
        "noise": noise,
        "logits": str(logits_path),
    }


def _times(
    models: Mapping[str, Model], timing: Mapping[str, Any]
) -> dict[str, list[dict[str, float]]]:
    """Times of each model, round by round; who comes first changes from round to round."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for number in range(timing["rounds"] + 1):
        order = list(models)
        if number % 2:
            order.reverse()
        for name in order:
            prefill, decode = models[name].timed(timing["prompt"], timing["new_tokens"])
            if number:  # the first round only warms up
                times[name].append({"prefill_seconds": prefill, "decode_seconds": decode})
    return times
