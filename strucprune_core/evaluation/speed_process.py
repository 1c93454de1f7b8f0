"""Measures one model in transformers, whole, in a process of its own: its peak memory is its own.

    python -m strucprune_core.evaluation.speed_process    a Request on standard input
    one line of JSON for each line of standard input       until that ends

Nothing is asked of a hub, and no code that lies beside a model is run: pruned models are built by
this library's classes (`strucprune_core.register`).
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from pydantic import BaseModel, ConfigDict

# What makes the kernel end this process rather than the job's, should memory run out.
_OOM_SCORE = "1000"
_PROC = Path("/proc/self")


class Request(BaseModel):
    """What is measured.

    Attributes:
        folder: A checkpoint.
        device: As torch names it.
        threads: Of torch.
        prompt: Token ids.
        new_tokens: Tokens that are written after it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    device: str
    threads: int
    prompt: list[int]
    new_tokens: int


class Loaded(BaseModel):
    """The first answer: the model is loaded."""

    runtime: str
    dtype: str


class Round(BaseModel):
    """The answer to each line "round": one prompt and its continuation.

    Attributes:
        first_token_seconds: From the prompt to the first new token.
        decode_seconds: From there to the last one.
    """

    first_token_seconds: float
    decode_seconds: float


class Peak(BaseModel):
    """The answer to a line "peak".

    Attributes:
        bytes: Most memory since the model was loaded: on an accelerator what is allocated there,
            on the CPU resident memory above that of the process without the model.
    """

    bytes: int


Asked = Literal["round", "peak"]


class _Model:
    """A loaded model.

    Args:
        request: What is measured.
    """

    def __init__(self, request: Request) -> None:
        # Imported before memory is looked at: what the libraries take is not the model's.
        import transformers

        import strucprune_core.register  # noqa: F401 - registers the classes of pruned models

        transformers.logging.disable_progress_bar()
        self._request = request
        self._device = torch.device(request.device)
        self._without = _resident("VmRSS")
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            request.folder, dtype="auto", trust_remote_code=False, local_files_only=True
        )
        self._model.to(self._device).eval()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_peak()
        self.loaded = Loaded(
            runtime=f"transformers {transformers.__version__}",
            dtype=str(self._model.dtype).removeprefix("torch."),
        )
        parameters = inspect.signature(self._model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.inference_mode()
    def round(self) -> Round:
        """Run the prompt, and write the most probable tokens after it."""
        tokens = torch.tensor([self._request.prompt], device=self._device)
        began = self._now()
        token, cache = self._step(tokens, None)
        first = self._now()
        for _ in range(self._request.new_tokens):
            token, cache = self._step(token, cache)
        return Round(first_token_seconds=first - began, decode_seconds=self._now() - first)

    def peak(self) -> Peak:
        """Most memory since the model was loaded."""
        if self._device.type == "cuda":
            return Peak(bytes=int(torch.cuda.max_memory_allocated(self._device)))
        return Peak(bytes=max(0, _resident("VmHWM") - self._without))

    def _step(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        given = {} if cache is None else {"past_key_values": cache}
        out = self._model(tokens, use_cache=True, **given, **self._last_only)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def _now(self) -> float:
        """The time, once all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _resident(name: str) -> int:
    """A figure of the process's resident memory in bytes; its peak where /proc is missing."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> None:
    """Forget the peak so far, where the kernel can: loading takes more than running."""
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def serve(source: TextIO, sink: TextIO) -> None:
    """Load the model of the first line, and answer the others.

    Args:
        source: Requests, a line each.
        sink: Answers, a line of JSON each.
    """
    request = Request.model_validate_json(source.readline())
    torch.set_num_threads(request.threads)
    model = _Model(request)
    _answer(sink, model.loaded)
    for line in source:
        _answer(sink, model.round() if line.strip() == "round" else model.peak())


def _answer(sink: TextIO, answer: BaseModel) -> None:
    sink.write(answer.model_dump_json() + "\n")
    sink.flush()


def main() -> int:
    """Serve standard input; the exit status. A failure is the last line: {"error": "..."}."""
    sink = sys.stdout
    sys.stdout = sys.stderr  # Libraries may print: that must not get between the answers.
    with contextlib.suppress(OSError):
        (_PROC / "oom_score_adj").write_text(_OOM_SCORE)
    try:
        serve(sys.stdin, sink)
    except Exception as error:
        sink.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
