"""Judging a checkpoint outside a job: `strucprune evaluate` and `strucprune verify`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch

from strucprune_core.calibration.own_tokenizer import with_tokenizer
from strucprune_core.calibration.text import Text, digest, first_windows
from strucprune_core.calibration.text_process import text_tokens
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import NumericalFailure, naming_field
from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.evaluation.reload_check import compare_with_transformers
from strucprune_core.models.devices import choose_device
from strucprune_core.models.finite_weights import check_finite_weights
from strucprune_core.models.own_head import with_own_head
from strucprune_core.models.streaming import ModelStream, open_stream
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS, Tiles
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import (
    check_sequence_length,
    check_text,
    inspect_model,
    read_model,
)
from strucprune_core.report.published import check_digests
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.storage.open import open_object, open_store, pinned


def evaluate_model(
    model: str,
    text: str,
    *,
    sequences: int,
    sequence_length: int,
    device: str,
    micro_batch_tokens: int,
    tick: Callable[[float], None],
) -> dict[str, Any]:
    """Perplexity of a model on consecutive windows of a text, streamed.

    Args:
        model: Directory, s3 or hf URI.
        text: Path, s3 or hf URI.
        sequences: Windows.
        sequence_length: Tokens per window.
        device: "auto", "cpu", "cuda" or "cuda:1".
        micro_batch_tokens: Tokens pushed through a layer at a time.
        tick: Called with the share that is done, in [0, 1].

    Raises:
        StrucPruneError: see `errors`.
    """
    with naming_field("model.uri"):
        model = pinned(model)
    with naming_field("text"):
        text = pinned(text)
    facts = read_model(model, open_store)
    check_sequence_length(sequence_length, facts.config, "sequence_length")
    with naming_field("text"):
        store, name = open_object(text)
        check_text(store, name, sequences=sequences, sequence_length=sequence_length)
    source = Text(store, name, "text")
    ids = text_tokens(with_tokenizer(facts.index), source, vocab_size=facts.config.vocab_size)
    windows = first_windows(ids, sequences, sequence_length, source.field)
    tiles = Tiles(micro_batch_tokens=micro_batch_tokens)
    config = with_own_head(facts.config, facts.index, lambda: None)
    stream = _stream(replace(facts, config=config), choose_device(device), tiles)
    total = facts.config.layers + math.ceil(facts.config.vocab_size / tiles.vocabulary_rows)
    done = iter(range(1, total + 1))
    with scratch_directory() as scratch:
        value = perplexity(
            stream,
            windows,
            scratch,
            lambda: tick(next(done, total) / total),
        )
    if not math.isfinite(value):
        _say_why_not_finite(facts)
    return {
        "model": model,
        "perplexity": value,
        "sequences": sequences,
        "sequence_length": sequence_length,
        "tokens": sequences * (sequence_length - 1),
        "text": text,
        "text_sha256": digest(source),
    }


def verify_checkpoint(uri: str) -> dict[str, Any]:
    """Check a checkpoint's files against its manifest, its tensors, and transformers' own forward.

    Raises:
        InvalidCheckpoint: a file is missing, altered, or not what the config says.
        NumericalFailure: transformers computes other logits than the streamed forward.
    """
    with naming_field("DIR"):
        uri = pinned(uri)
        store = open_store(uri)
        files = check_digests(store)
        facts = inspect_model(store)
    tokens = np.random.Generator(np.random.PCG64(0)).integers(
        0, facts.config.vocab_size, (VERIFY_SEQUENCES, VERIFY_TOKENS), dtype=np.int32
    )
    stream = _stream(facts, torch.device("cpu"), Tiles())
    names = set(facts.index.tensors)
    with scratch_directory() as scratch:
        result = compare_with_transformers(
            stream, stream, facts.index.config_bytes, names, tokens, scratch
        )
    return {"checkpoint": uri, "valid": True, "files": files, **result}


def _say_why_not_finite(facts: ModelFacts) -> NoReturn:
    """Name the tensor that makes a perplexity infinite or NaN, if it is one.

    Raises:
        InvalidCheckpoint: a tensor holds values that are not finite.
        NumericalFailure: none does.
    """
    check_finite_weights(TensorReader(facts.index), facts.config, lambda done, total: None)
    raise NumericalFailure(
        "the model's perplexity is not finite",
        field="model.uri",
        remedy="Its activations overflow, or its tokenizer belongs to another model.",
    )


def _stream(facts: ModelFacts, device: torch.device, tiles: Tiles) -> ModelStream:
    return open_stream(facts.config, TensorReader(facts.index), device, tiles)
