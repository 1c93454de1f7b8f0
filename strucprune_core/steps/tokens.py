"""`tokens`: texts to token windows. `embed`: their embeddings, the input of the first layer."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.calibration.text import (
    Text,
    calibration_windows,
    digest,
    evaluation_windows,
    load_tokenizer,
)
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.vocabulary import embed
from strucprune_core.steps.job import Job
from strucprune_core.storage.open import split_object
from strucprune_core.units import Unit
from strucprune_core.workspace import Draft


def tokens(job: Job, unit: Unit, draft: Draft) -> None:
    """Write calibration.npy (samples x length) and evaluation.npy (sequences x length), int32."""
    tokenizer = load_tokenizer(bytes(job.index.store.read("tokenizer.json")))
    calibration = job.spec.calibration
    text = _text(job, calibration.uri, "calibration.uri")
    windows = calibration_windows(
        text, tokenizer, calibration.samples, calibration.sequence_length, calibration.seed
    )
    _save(job, draft, "calibration.npy", windows)
    draft.values["calibration_sha256"] = digest(text)
    if job.spec.evaluation is not None:
        text = _text(job, job.spec.evaluation.uri, "evaluation.uri")
        windows = evaluation_windows(
            text, tokenizer, job.spec.evaluation.sequences, job.spec.evaluation.sequence_length
        )
        _save(job, draft, "evaluation.npy", windows)
        draft.values["evaluation_sha256"] = digest(text)


@torch.inference_mode()
def embeddings(job: Job, unit: Unit, draft: Draft) -> None:
    """Write hidden.npy: the embedded calibration windows, (samples x length x d) float32."""
    windows = np.asarray(job.array("tokens", "calibration.npy"))
    out = np.lib.format.open_memmap(
        draft.path("hidden.npy"),
        mode="w+",
        dtype=np.float32,
        shape=(*windows.shape, job.config.hidden_size),
    )
    embed(job.dense, windows, out)
    out.flush()


def _text(job: Job, uri: str, field: str) -> Text:
    parent, name = split_object(uri)
    return Text(job.open_store(parent), name, field)


def _save(job: Job, draft: Draft, name: str, windows: np.typing.NDArray[np.int32]) -> None:
    if int(windows.max()) >= job.config.vocab_size:
        raise InvalidCheckpoint(
            f"the tokenizer gives token {int(windows.max())}, but the model has a vocabulary of "
            f"{job.config.vocab_size}",
            field="model.uri",
            remedy="Use the tokenizer.json that belongs to the model.",
        )
    np.save(draft.path(name), windows)
