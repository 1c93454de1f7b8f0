"""Exports as their users will read them, and what they were written from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from strucprune_core.checkpoint.index import open_checkpoint, read_in
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.export import block_configs, fp8
from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.export.padded_source import PaddedSource
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.read_config import read_config
from strucprune_core.models.streaming import ModelStream, WeightSource
from strucprune_core.models.tensors import check_tensors, expected_tensors
from strucprune_core.run.artifacts import Gguf, GgufQ80
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.result_files import exported
from strucprune_core.spec import Export


@dataclass(frozen=True)
class WrittenExport:
    """An export, read again.

    Attributes:
        config: Its shape.
        config_json: Its config.json, as transformers understands it without the export's format.
        names: Its tensors, under the checkpoint's names.
        source: Their values.
        wanted: The values that were to be written, as they are read again.
    """

    config: ModelConfig
    config_json: bytes
    names: Iterable[str]
    source: WeightSource
    wanted: WeightSource

    def stream(self, job: Job) -> ModelStream:
        """The model that was read again."""
        return job.stream(self.config, self.source)


def reopened_export(job: Job, export: Export) -> WrittenExport:
    """Read an export's layout.

    Raises:
        InvalidCheckpoint: it is not what was to be written.
    """
    if export == "block_configs":
        return _block_configs(job)
    return _fp8(job) if export == "fp8" else _gguf(job, quantised=export == "gguf_q8_0")


def _gguf(job: Job, *, quantised: bool) -> WrittenExport:
    # Imports gguf, which only these exports need.
    from strucprune_core.export.gguf_file import GgufFile, RoundedSource

    pruned = PrunedModel(job)
    written = GgufQ80().written if quantised else Gguf().written
    file = GgufFile(job.units.path(written), pruned.in_files)
    config = parse_config(file.config)
    names = file.describe(config)
    planned = plan_tensors(pruned.in_files, pruned.stored_dtype, quantised=quantised)
    wanted = RoundedSource(pruned.source_of_files(), planned)
    raw = json.dumps(file.config).encode()
    return WrittenExport(config, raw, names, file, wanted)


def _block_configs(job: Job) -> WrittenExport:
    index = open_checkpoint(exported(job, "block_configs"))
    raw = block_configs.raw_config(index.config)
    config = parse_config(raw)
    check_tensors(config, index)
    pruned, reader = PrunedModel(job), TensorReader(index)
    wanted = PaddedSource(pruned.source_of_files(), pruned.in_files, config)
    raw_bytes = json.dumps(raw).encode()
    return WrittenExport(config, raw_bytes, set(index.tensors), reader, wanted)


def _fp8(job: Job) -> WrittenExport:
    from strucprune_core.export.fp8_source import Fp8Reading

    # In float32: a factor times a number of FP8 is exact there.
    opened = read_in(open_checkpoint(exported(job, "fp8")), "float32")
    config, index = read_config(opened)
    check_tensors(config, index)
    pruned = PrunedModel(job)
    matrices = fp8.quantised_matrices(pruned.in_files)
    wanted = Fp8Reading(pruned.source_of_files(), matrices)
    names = set(expected_tensors(config))
    return WrittenExport(config, index.config_bytes, names, TensorReader(index), wanted)
