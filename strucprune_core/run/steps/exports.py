"""`gguf`, `block_configs.s`, `check.*`: further forms of the result, read back and compared.

    <output>/                 the checkpoint
    <output>/gguf/            model.gguf
    <output>/block_configs/   a checkpoint of model type nemotron-nas

Exporting cuts, rounds, pads and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.checkpoint.writer import Shard, index_json, write_shard
from strucprune_core.evaluation.reload_check import (
    check_same_tensors,
    compare_with_transformers,
)
from strucprune_core.export import block_configs
from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.export.padded_source import PaddedSource
from strucprune_core.models.families import parse_config
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import check_tensors, expected_tensors
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import WRITTEN, Unit
from strucprune_core.run.context import Job
from strucprune_core.run.steps.assemble import (
    copied_files,
    produced,
    pruned_checkpoint,
    pruned_shards,
)
from strucprune_core.run.workspace import Draft
from strucprune_core.spec import Export
from strucprune_core.storage.overlay import OverlayStore

GGUF, BLOCKS = WRITTEN["gguf"], WRITTEN["block_configs"]


def export_gguf(job: Job, unit: Unit, draft: Draft) -> None:
    """Write model.gguf."""
    from strucprune_core.export.gguf_file import write_gguf

    config, index = job.pruned_config, job.index
    write_gguf(
        draft.path(GGUF),
        config,
        job.pruned_source(),
        job.stored_dtype,
        read_vocabulary(index.store, index.other_files, index.config, config.vocab_size),
        job.spec.model.uri.rstrip("/").rpartition("/")[2],
        job.tick,
    )


def export_blocks(job: Job, unit: Unit, draft: Draft) -> None:
    """Write shard.safetensors: one file of the export `block_configs`."""
    shard = block_shards(job)[unit.index]
    source = PaddedSource(
        job.pruned_source(), job.pruned_config, block_configs.padded(job.pruned_config)
    )
    write_shard(draft.path(BLOCKS), shard, produced(job, shard, source))


def block_shards(job: Job) -> list[Shard]:
    """The files of the export `block_configs`."""
    shapes = expected_tensors(block_configs.padded(job.pruned_config))
    return [
        replace(
            shard, tensors=tuple(replace(each, shape=shapes[each.name]) for each in shard.tensors)
        )
        for shard in job.padded_shards
    ]


def check_export(job: Job, unit: Unit, draft: Draft) -> None:
    """Read an export back and compare it: every tensor to the bit, and transformers' logits.

    Values: `reference`, `tokens`, `max_abs_logit_difference`, `tolerance`.

    Raises:
        InvalidCheckpoint: the export is not what was to be written.
        NumericalFailure: it computes something else.
    """
    check = _check_gguf if unit.name == "check.gguf" else _check_blocks
    draft.values |= check(job)


def _check_gguf(job: Job) -> dict[str, Any]:
    from strucprune_core.export.gguf_file import GgufFile, RoundedSource

    file = GgufFile(job.workspace.file("gguf", GGUF), job.pruned_config)
    config = parse_config(file.config)
    names = file.describe(config)
    wanted = RoundedSource(job.pruned_source(), plan_tensors(job.pruned_config, job.stored_dtype))
    check_same_tensors(wanted, file, sorted(expected_tensors(config)), job.tick)
    expected = job.stream(job.pruned_config, wanted)
    return _compare(job, expected, job.stream(config, file), file.config, names)


def _check_blocks(job: Job) -> dict[str, Any]:
    index = open_checkpoint(exported(job, "block_configs"))
    raw = block_configs.raw_config(index.config)
    config = parse_config(raw)
    check_tensors(config, index)
    pruned, reader = job.pruned_source(), TensorReader(index)
    check_same_tensors(
        PaddedSource(pruned, job.pruned_config, config), reader, sorted(index.tensors), job.tick
    )
    expected = job.stream(job.pruned_config, pruned)  # without the padding
    found = job.stream(config, reader)
    return _compare(job, expected, found, raw, set(index.tensors))


def _compare(
    job: Job, expected: ModelStream, found: ModelStream, raw: dict[str, Any], names: set[str]
) -> dict[str, Any]:
    """Compare the logits of what was read back (`raw`: its config.json) with those expected."""
    tokens = np.asarray(job.array("tokens", "calibration.npy"))
    return compare_with_transformers(
        expected,
        found,
        json.dumps(raw).encode(),
        names,
        tokens[:VERIFY_SEQUENCES, :VERIFY_TOKENS],
        job.scratch,
        lambda: job.tick(0, 1),
    )


def exported(job: Job, export: Export) -> OverlayStore:
    """The files of one export, by their names in its folder."""
    if export == "gguf":
        return OverlayStore({}, {GGUF: job.workspace.file("gguf", GGUF)})
    shards = block_shards(job)
    config = block_configs.config_json(job.index.config, block_configs.padded(job.pruned_config))
    contents = copied_files(job) | {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        block_configs.CONFIG_FILE: block_configs.configuration_code(),
    }
    if len(shards) > 1:
        contents[SHARD_INDEX] = index_json(shards)
    paths = {
        shard.file_name: job.workspace.file(f"block_configs.{number}", BLOCKS)
        for number, shard in enumerate(shards)
    }
    return OverlayStore(contents, paths)


def published(job: Job) -> OverlayStore:
    """Everything that goes to the output but the report: the checkpoint and its exports."""
    result = pruned_checkpoint(job)
    contents, paths = dict(result.contents), dict(result.paths)
    for export in job.spec.pruning.exports:
        files = exported(job, export)
        contents |= {f"{export}/{name}": data for name, data in files.contents.items()}
        paths |= {f"{export}/{name}": path for name, path in files.paths.items()}
    return OverlayStore(contents, paths)


def unit_files(job: Job) -> dict[str, str]:
    """The unit that wrote each file of weights, by its path under the output."""
    files = _numbered(pruned_shards(job), "assemble.{}".format)
    if "gguf" in job.spec.pruning.exports:
        files[f"gguf/{GGUF}"] = "gguf"
    if "block_configs" in job.spec.pruning.exports:
        shards = _numbered(block_shards(job), "block_configs.{}".format)
        files |= {f"block_configs/{name}": unit for name, unit in shards.items()}
    return files


def _numbered(shards: list[Shard], unit: Callable[[int], str]) -> dict[str, str]:
    return {shard.file_name: unit(number) for number, shard in enumerate(shards)}
