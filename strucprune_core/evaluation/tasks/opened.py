"""A checkpoint opened to answer requests, outside a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strucprune_core.calibration.own_tokenizer import with_tokenizer
from strucprune_core.calibration.tokenizer_session import TokenizerSession
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import naming_field
from strucprune_core.evaluation.tasks.answers import Answers
from strucprune_core.models.devices import choose_device
from strucprune_core.models.forward import Tick
from strucprune_core.models.own_head import with_own_head
from strucprune_core.models.streaming import ModelStream, open_stream
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.inspection import read_model
from strucprune_core.plan.task_memory import CONTEXT_TOKENS, context_of
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.storage.open import open_store, pinned


@contextmanager
def open_answers(
    model: str,
    *,
    device: str,
    context_tokens: int = CONTEXT_TOKENS,
    micro_batch_tokens: int = 4096,
    tick: Tick = lambda: None,
) -> Iterator[Answers]:
    """A model that answers requests, until the block is left.

    Args:
        model: Directory, s3 or hf URI.
        device: "auto", "cpu", "cuda" or "cuda:1".
        context_tokens: Most tokens of a request; fewer if the model allows fewer.
        micro_batch_tokens: Tokens pushed through a layer at a time.
        tick: Called at safe points.

    Raises:
        StrucPruneError: see `errors`.
    """
    with naming_field("model.uri"):
        model = pinned(model)
    facts = read_model(model, open_store)
    config = with_own_head(facts.config, facts.index, lambda: None)
    tiles = Tiles(micro_batch_tokens=micro_batch_tokens)
    stream = open_stream(config, TensorReader(facts.index), choose_device(device), tiles)
    with scratch_directory() as scratch:
        most = context_of(config, context_tokens)
        with answers_of(stream, facts.index, scratch, tick=tick, context_tokens=most) as answers:
            yield answers


@contextmanager
def answers_of(
    stream: ModelStream,
    index: CheckpointIndex,
    scratch: Path,
    *,
    tick: Tick,
    context_tokens: int,
) -> Iterator[Answers]:
    """A streamed model that answers requests, until the block is left.

    Args:
        stream: The model.
        index: Its files, or those of another one with the same tokenizer.
        scratch: Directory for activations.
        tick: Called at safe points.
        context_tokens: Most tokens of a request.
    """
    index = with_tokenizer(index)
    with TokenizerSession(index, stream.config.vocab_size, tick) as tokenizer:
        ends = end_tokens(index.config)
        if tokenizer.tokens.end is not None:
            ends |= {tokenizer.tokens.end}
        yield Answers(stream, tokenizer, scratch, context_tokens, ends, tick)


def end_tokens(config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end an answer, of config.json: one or a list."""
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return frozenset(each for each in ids if type(each) is int)
