"""How much the requests of tasks may take. No torch: planner and run share it."""

from __future__ import annotations

from strucprune_core.models.config import ModelConfig
from strucprune_core.spec import JobSpec

BATCH_BYTES = 4 << 30
"""Most bytes of hidden states, or of keys and values, of requests that pass the layers together."""

BATCH_TOKENS = 1 << 18
"""Most tokens of such requests: what their scores take does not depend on the model's width."""

CONTEXT_TOKENS = 2048
"""Most tokens of a request; a longer one loses its beginning. The harness's own default."""

_FP32_BYTES = 4
# A guess, for the progress and the estimate of work alone: how many documents a task has, and
# tokens of its requests.
_DOCUMENTS, _TOKENS = 2000, 200


def batch_tokens(width: int) -> int:
    """Most tokens of requests that pass the layers together, of a model of this width."""
    return min(BATCH_TOKENS, BATCH_BYTES // (_FP32_BYTES * width))


def context_of(config: ModelConfig, most: int = CONTEXT_TOKENS) -> int:
    """Most tokens of a request: no more than the model has positions for."""
    return min(most, config.max_position_embeddings)


def task_tokens(spec: JobSpec) -> int:
    """About how many tokens a model is given for the tasks of a job."""
    judged = spec.evaluation
    if judged is None:
        return 0
    return len(judged.tasks) * min(judged.limit or _DOCUMENTS, _DOCUMENTS) * _TOKENS
