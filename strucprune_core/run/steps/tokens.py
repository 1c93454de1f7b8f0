"""`tokens`: texts to token windows. `embed`: their embeddings, the input of the first layer."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from strucprune_core.calibration.chat import ChatRenderer
from strucprune_core.calibration.documents import (
    document_tokens,
    end_of_text,
    read_records,
    start_of_text,
)
from strucprune_core.calibration.text import (
    Text,
    calibration_windows,
    digest,
    draw_windows,
    evaluation_windows,
    load_tokenizer,
)
from strucprune_core.calibration.tokenizer_config import check_chat_template, read_tokenizer_config
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.decoding import generate
from strucprune_core.models.vocabulary import embed
from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import split_object


def tokens(job: Job, unit: Unit, draft: Draft) -> None:
    """Write calibration.npy (samples x length) and evaluation.npy (sequences x length), int32."""
    tokenizer = load_tokenizer(bytes(job.index.store.read("tokenizer.json")))
    windows, draft.values["calibration_sha256"] = _calibration(job, tokenizer)
    _save(job, draft, "calibration.npy", windows)
    if job.spec.evaluation is not None:
        text = _text(job, job.spec.evaluation.uri, "evaluation.uri")
        windows = evaluation_windows(
            text, tokenizer, job.spec.evaluation.sequences, job.spec.evaluation.sequence_length
        )
        _save(job, draft, "evaluation.npy", windows)
        draft.values["evaluation_sha256"] = digest(text)


def _calibration(job: Job, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], str]:
    """The calibration windows, and the SHA-256 (hex) of the text or documents they come from."""
    spec = job.spec.calibration
    if spec.uri is None:
        windows = _written_by_the_model(job, tokenizer)
        return windows, hashlib.sha256(windows.tobytes()).hexdigest()
    text = _text(job, spec.uri, "calibration.uri")
    if spec.file_format == "text":
        windows = calibration_windows(
            text, tokenizer, spec.samples, spec.sequence_length, spec.seed
        )
        return windows, digest(text)
    settings = read_tokenizer_config(job.index.store, job.index.other_files)
    chat = None
    if spec.chat_template:
        chat = ChatRenderer(tokenizer, check_chat_template(settings), settings.special_tokens)
    sha = hashlib.sha256()
    stream = document_tokens(
        text,
        read_records(text, spec.file_format, spec.document_field),
        tokenizer,
        end=end_of_text(tokenizer, settings, job.index.config),
        chat=chat,
        seen=sha.update,
    )
    windows = draw_windows(stream, spec.samples, spec.sequence_length, spec.seed, text.field)
    return windows, sha.hexdigest()


def _written_by_the_model(job: Job, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Sequences sampled from the dense model, (samples x length)."""
    spec = job.spec.calibration
    settings = read_tokenizer_config(job.index.store, job.index.other_files)
    start = start_of_text(tokenizer, settings, job.index.config)
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    vocabulary = min(tokenizer.get_vocab_size(), job.config.vocab_size)
    first = generator.integers(0, vocabulary, spec.samples, dtype=np.int32)
    if start is not None:
        first[:] = start
    total = job.config.layers * (spec.sequence_length - 1)
    done = iter(range(1, total + 1))
    with local_weights(job.index, job.scratch, lambda: job.tick(0, 1)) as index:
        return generate(
            job.stream(job.config, TensorReader(index)),
            first,
            spec.sequence_length,
            spec.seed,
            job.scratch,
            lambda: job.tick(next(done), total),
        )


@contextlib.contextmanager
def local_weights(
    index: CheckpointIndex, scratch: Path, tick: Callable[[], None]
) -> Iterator[CheckpointIndex]:
    """The checkpoint with its weights on this machine, for what reads them many times over."""
    if all(index.store.local_path(name) is not None for name in index.file_sizes):
        yield index
        return
    with scratch_directory(scratch) as folder:
        for name in index.file_sizes:
            index.store.download(name, folder / name, lambda done: tick())
        yield replace(index, store=LocalStore(folder))


@torch.inference_mode()
def embeddings(job: Job, unit: Unit, draft: Draft) -> None:
    """Write hidden.npy: the embedded calibration windows, (samples x length x d) float32."""
    windows = np.asarray(job.array("tokens", "calibration.npy"))
    out = new_array(draft.path("hidden.npy"), (*windows.shape, job.config.hidden_size))
    embed(job.dense, windows, out, lambda: job.tick(0, 1))
    out.flush()


def _text(job: Job, uri: str, field: str) -> Text:
    parent, name = split_object(uri)
    return Text(job.open_store(parent), name, field, lambda: job.tick(0, 1))


def _save(job: Job, draft: Draft, name: str, windows: NDArray[np.int32]) -> None:
    if int(windows.max()) >= job.config.vocab_size:
        raise InvalidCheckpoint(
            f"the tokenizer gives token {int(windows.max())}, but the model has a vocabulary of "
            f"{job.config.vocab_size}",
            field="model.uri",
            remedy="Use the tokenizer.json that belongs to the model.",
        )
    np.save(draft.path(name), windows)
