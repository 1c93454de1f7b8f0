"""`tokens`, `tokens.evaluation`: from texts to windows of tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strucprune_core.calibration import text as plain
from strucprune_core.calibration.degeneracy import TokenCounts, refuse_tokens
from strucprune_core.calibration.text import Text, digest, draw_windows, first_windows, is_cut
from strucprune_core.calibration.text_process import text_tokens, tokenizer_facts
from strucprune_core.calibration.text_protocol import DocumentsRead
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.models.decoding import generate
from strucprune_core.plan.graph import CALIBRATION, EVALUATION, Unit
from strucprune_core.plan.inspection import check_texts_unchanged
from strucprune_core.run.artifacts import (
    EvaluationTokens,
    EvaluationTokensValues,
    Tokens,
    TokensValues,
)
from strucprune_core.run.context import Job
from strucprune_core.run.local_weights import local_weights
from strucprune_core.run.workspace import Draft
from strucprune_core.storage.open import split_object


def tokens(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the windows of the calibration or the evaluation text.

    Raises:
        InvalidText: a text is too short, unreadable or (the calibration text) degenerate.
    """
    if unit.name == Tokens().unit:
        _calibration(job, draft)
    else:
        _evaluation(job, draft)


def _calibration(job: Job, draft: Draft) -> None:
    drawn = _drawn(job)
    counts = TokenCounts.of(drawn.windows)
    if not job.spec.calibration.allow_degenerate:
        refuse_tokens(counts, job.config.vocab_size, job.spec.calibration.place)
    np.save(draft.path(Tokens.calibration), drawn.windows)
    draft.record(TokensValues(drawn.sha256, drawn.cut, counts))
    check_texts_unchanged(job.spec, job.open_store, job.texts, CALIBRATION)


def _evaluation(job: Job, draft: Draft) -> None:
    evaluation = job.spec.evaluation
    assert evaluation is not None  # noqa: S101 - else the graph has no such unit
    text = _text(job, evaluation.uri, EVALUATION)
    stream = text_tokens(job.index, text, vocab_size=job.config.vocab_size, wait=job.safe_point)
    windows = first_windows(stream, evaluation.sequences, evaluation.sequence_length, text.field)
    np.save(draft.path(EvaluationTokens.evaluation), windows)
    draft.record(EvaluationTokensValues(digest(text), TokenCounts.of(windows)))
    check_texts_unchanged(job.spec, job.open_store, job.texts, EVALUATION)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Calibration windows.

    Attributes:
        windows: Token ids, (samples x length).
        sha256: Of the text or documents that they come from, hex.
        cut: Whether there is more text than is read.
    """

    windows: NDArray[np.int32]
    sha256: str
    cut: bool


def _drawn(job: Job) -> _Drawn:
    """The calibration windows, from wherever the job takes its text."""
    spec = job.spec.calibration
    if spec.uri is None:
        windows = _written_by_the_model(job)
        return _Drawn(windows, hashlib.sha256(windows.tobytes()).hexdigest(), cut=False)
    text = _text(job, spec.uri, CALIBRATION)
    documents = spec.file_format != "text"
    read: list[DocumentsRead] = []
    stream = text_tokens(
        job.index,
        text,
        vocab_size=job.config.vocab_size,
        file_format=spec.file_format,
        document_field=spec.document_field if documents else "",
        chat=spec.chat_template,
        limit_bytes=plain.CALIBRATION_TEXT_BYTES,
        wait=job.safe_point,
        documents=read.append,
    )
    windows = draw_windows(stream, spec.samples, spec.sequence_length, spec.seed, text.field)
    if documents:
        return _Drawn(windows, read[0].sha256, read[0].cut)
    return _Drawn(windows, digest(text), is_cut(text))


def _written_by_the_model(job: Job) -> NDArray[np.int32]:
    """Sequences sampled from the dense model, (samples x length)."""
    spec = job.spec.calibration
    start, vocabulary = tokenizer_facts(job.index, job.config.vocab_size)
    generator = np.random.Generator(np.random.PCG64(spec.seed))
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
            lambda: job.tick(0, total),
        )


def _text(job: Job, uri: str, field: str) -> Text:
    parent, name = split_object(uri)
    return Text(job.open_store(parent), name, field, lambda: job.tick(0, 1))
