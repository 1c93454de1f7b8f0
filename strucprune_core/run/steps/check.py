"""`check.e`: read an export back and compare it with what it was written from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.evaluation.reload_check import check_same_tensors, compare_with_transformers
from strucprune_core.export import block_configs
from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.export.padded_source import PaddedSource
from strucprune_core.models.families import parse_config
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import check_tensors, expected_tensors
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Check, Gguf, ReloadValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.result_files import exported
from strucprune_core.run.workspace import Draft


def check(job: Job, unit: Unit, draft: Draft) -> None:
    """Compare every tensor to the bit, and logits with those of transformers; writes no file.

    Raises:
        InvalidCheckpoint: the export is not what was to be written.
        NumericalFailure: it computes something else.
    """
    compare = _check_gguf if unit.name == Check("gguf").unit else _check_block_configs
    draft.record(compare(job))


def _check_gguf(job: Job) -> ReloadValues:
    from strucprune_core.export.gguf_file import GgufFile, RoundedSource

    pruned = PrunedModel(job)
    file = GgufFile(job.units.path(Gguf().written), pruned.in_files)
    config = parse_config(file.config)
    names = file.describe(config)
    rounded = plan_tensors(pruned.in_files, pruned.stored_dtype)
    wanted = RoundedSource(pruned.source_of_files(), rounded)
    check_same_tensors(wanted, file, sorted(expected_tensors(config)), job.tick)
    expected = job.stream(pruned.in_files, wanted)
    return _compare(job, expected, job.stream(config, file), file.config, names)


def _check_block_configs(job: Job) -> ReloadValues:
    index = open_checkpoint(exported(job, "block_configs"))
    raw = block_configs.raw_config(index.config)
    config = parse_config(raw)
    check_tensors(config, index)
    pruned, reader = PrunedModel(job), TensorReader(index)
    wanted = PaddedSource(pruned.source_of_files(), pruned.in_files, config)
    check_same_tensors(wanted, reader, sorted(index.tensors), job.tick)
    expected = pruned.stream()  # without the padding
    return _compare(job, expected, job.stream(config, reader), raw, set(index.tensors))


def _compare(
    job: Job, expected: ModelStream, written: ModelStream, raw: dict[str, Any], names: set[str]
) -> ReloadValues:
    """Compare the logits of what was read back (`raw`: its config.json) with those expected."""
    tokens = np.asarray(job.units.array(Tokens().calibration))
    result = compare_with_transformers(
        expected,
        written,
        json.dumps(raw).encode(),
        names,
        tokens[:VERIFY_SEQUENCES, :VERIFY_TOKENS],
        job.scratch,
        lambda: job.tick(0, 1),
    )
    return ReloadValues(**result)
