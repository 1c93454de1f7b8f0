r"""The streamed model as a model of lm-evaluation-harness, under the name `strucprune`.

Importing this module registers it. The harness finds models in its own registry and, up to release
0.4.13, looks for none elsewhere: no entry point would be read. So its command is started through
this package, which registers the model first:

    python -m strucprune_core.evaluation.tasks run --model strucprune \\
        --model_args pretrained=DIR --tasks piqa
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from strucprune_core.evaluation.tasks.answers import Answers
from strucprune_core.evaluation.tasks.opened import open_answers
from strucprune_core.plan.task_memory import CONTEXT_TOKENS

_HARNESS_DEFAULT = "cuda:0"


class AnsweringModel(LM):
    """What the harness calls, over `Answers`."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """See `Answers.log_likelihoods`."""
        return self._answers.log_likelihoods([request.args for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """See `Answers.rolling_log_likelihoods`."""
        return self._answers.rolling_log_likelihoods([request.args[0] for request in requests])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """See `Answers.continuations`."""
        return self._answers.continuations([request.args for request in requests])


@register_model("strucprune")
class StreamedModel(AnsweringModel):
    """A checkpoint by its place, as `--model_args` name it.

    Args:
        pretrained: Directory, s3 or hf URI.
        device: "auto", "cpu", "cuda" or "cuda:1". The harness's default, "cuda:0", is taken as
            "auto": it names it on machines without a GPU, too.
        max_length: Most tokens of a request.
        micro_batch_tokens: Tokens pushed through a layer at a time.
        batch_size: Not used: requests are batched by their tokens.
        max_batch_size: The same.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        max_length: int = CONTEXT_TOKENS,
        micro_batch_tokens: int = 4096,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            answers = stack.enter_context(
                open_answers(
                    pretrained,
                    device="auto" if device is None or device == _HARNESS_DEFAULT else device,
                    context_tokens=int(max_length),
                    micro_batch_tokens=int(micro_batch_tokens),
                )
            )
            super().__init__(answers)
            # The harness closes no model: its process and files end with the object.
            weakref.finalize(self, stack.pop_all().close)
