"""What a job publishes, as stores: files of weights in the workspace, small files in memory.

<output>/                 the checkpoint
<output>/gguf/            model.gguf
<output>/gguf_q8_0/       model.gguf
<output>/fp8/             the checkpoint, its matrices in FP8
<output>/block_configs/   a checkpoint of model type nemotron-nas
"""

from __future__ import annotations

import json

from strucprune_core.calibration.tokenizer_config import TOKENIZER_CONFIG
from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX
from strucprune_core.checkpoint.index import SIDE_FILES
from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.checkpoint.writer import Shard, index_json
from strucprune_core.export import block_configs, fp8, layouts
from strucprune_core.export.layer_keys import with_layers
from strucprune_core.export.layouts import expert_side_files, side_files, vanilla_side_files
from strucprune_core.export.tokenizer_class import with_tokenizer_class
from strucprune_core.export.tokenizer_json import TOKENIZER
from strucprune_core.models.blocks import kept_layers
from strucprune_core.models.drafting import says_no_drafting
from strucprune_core.models.experts import routing_of, with_count
from strucprune_core.models.pruned_shapes import family_of
from strucprune_core.models.tensors import expected_tensors, stored_tensors
from strucprune_core.report.document import FileEntry
from strucprune_core.run.artifacts import Assemble, BlockConfigs, File, Fp8, Gguf, GgufQ80
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.shards import as_written
from strucprune_core.spec import GGUF_EXPORTS, Export
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.overlay import OverlayStore


def checkpoint_shards(job: Job) -> list[Shard]:
    """The files of the pruned checkpoint; one of which all layers went holds no tensor."""
    pruned = PrunedModel(job)
    return as_written(job.shards.checkpoint, stored_tensors(pruned.in_files), pruned.new_names)


def block_shards(job: Job) -> list[Shard]:
    """The files of the export `block_configs`."""
    pruned = PrunedModel(job)
    shapes = expected_tensors(block_configs.padded(pruned.in_files))
    return as_written(job.shards.block_configs, shapes, pruned.new_names)


def fp8_shards(job: Job) -> list[Shard]:
    """The files of the export `fp8`."""
    pruned = PrunedModel(job)
    matrices = fp8.quantised_matrices(pruned.in_files)
    shapes = fp8.with_factors(stored_tensors(pruned.in_files), matrices)
    names = pruned.new_names
    if names is not None:
        names = names | {old + fp8.FACTORS: new + fp8.FACTORS for old, new in names.items()}
    return as_written(job.shards.fp8, shapes, names)


def pruned_checkpoint(job: Job) -> OverlayStore:
    """The assembled checkpoint."""
    shards = [shard for shard in checkpoint_shards(job) if shard.tensors]
    contents = _side_files(job)
    if len(job.shards.checkpoint) > 1:
        contents[SHARD_INDEX] = index_json(shards)
    return _store(job, contents, _checkpoint_units(job))


def _side_files(job: Job) -> dict[str, bytes]:
    """Small files of the pruned checkpoint but the index of its shards."""
    layout, pruned = job.spec.pruning.layout, PrunedModel(job)
    dense = job.index.config
    if job.config.drafting and not pruned.config.drafting:
        dense = says_no_drafting(dense)
    if job.removes_experts_alone:
        contents = expert_side_files(layout, dense, pruned.config)
    elif job.removes_experts:
        routing = routing_of(pruned.config)
        dense = with_count(dense, routing, routing.experts)
        contents = side_files(layout, dense, pruned.config)
    else:
        dense = with_layers(dense, job.config, kept_layers(pruned.config))
        if layout == "uniform" and job.spec.pruning.removes_blocks:
            contents = vanilla_side_files(dense, pruned.in_files)
        else:
            contents = side_files(layout, dense, pruned.in_files)
    contents |= _copied_files(job)
    if layouts.is_renamed(contents, job.config.family):
        _name_tokenizer_class(job, contents)
    return contents


def exported(job: Job, export: Export) -> OverlayStore:
    """The files of one export, by their names in its folder."""
    if export in GGUF_EXPORTS:
        return _store(job, {}, _export_units(job, export))
    if export == "fp8":
        return _fp8(job)
    shards = [shard for shard in block_shards(job) if shard.tensors]
    config = block_configs.config_json(
        job.index.config, block_configs.padded(PrunedModel(job).in_files)
    )
    contents = _copied_files(job) | {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        block_configs.CONFIG_FILE: block_configs.configuration_code(),
    }
    _name_tokenizer_class(job, contents)
    if len(job.shards.block_configs) > 1:
        contents[SHARD_INDEX] = index_json(shards)
    return _store(job, contents, _export_units(job, export))


def _fp8(job: Job) -> OverlayStore:
    """The checkpoint's small files, with what config.json says of FP8."""
    contents = _side_files(job)
    config = fp8.config_json(json.loads(contents[CONFIG]), PrunedModel(job).in_files)
    contents[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    if len(job.shards.fp8) > 1:
        contents[SHARD_INDEX] = index_json([shard for shard in fp8_shards(job) if shard.tensors])
    return _store(job, contents, _export_units(job, "fp8"))


def result(job: Job, card: bytes) -> OverlayStore:
    """Everything that goes to the output but the report: the checkpoint, its exports, its card."""
    checkpoint = pruned_checkpoint(job)
    contents, paths = dict(checkpoint.contents), dict(checkpoint.paths)
    contents |= _terms(job) | {MODEL_CARD: card}
    for export in job.spec.pruning.exports:
        files = exported(job, export)
        contents |= {f"{export}/{name}": data for name, data in files.contents.items()}
        paths |= {f"{export}/{name}": path for name, path in files.paths.items()}
    return OverlayStore(contents, paths)


def file_entries(job: Job, files: OverlayStore) -> list[FileEntry]:
    """The files of a result with their digests."""
    entries = [
        FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data))
        for name, data in files.contents.items()
    ]
    for name, file in _weight_files(job).items():
        stored = job.workspace.stored_file(*file)
        entries.append(FileEntry(name=name, bytes=stored.bytes, sha256=stored.sha256))
    return sorted(entries, key=lambda entry: entry.name)


def _weight_files(job: Job) -> dict[str, File]:
    """Every file of weights, by its path under the output."""
    files = _checkpoint_units(job)
    for export in job.spec.pruning.exports:
        of_export = _export_units(job, export).items()
        files |= {f"{export}/{name}": file for name, file in of_export}
    return files


def _checkpoint_units(job: Job) -> dict[str, File]:
    """Those that hold something: a file planned for experts alone may have lost them all."""
    shards = enumerate(checkpoint_shards(job))
    return {shard.file_name: Assemble(number).written for number, shard in shards if shard.tensors}


def _export_units(job: Job, export: Export) -> dict[str, File]:
    """The files of weights of an export, by their names in its folder."""
    if export == "gguf":
        return {Gguf.written: Gguf().written}
    if export == "gguf_q8_0":
        return {GgufQ80.written: GgufQ80().written}
    shards = fp8_shards(job) if export == "fp8" else block_shards(job)
    kind = Fp8 if export == "fp8" else BlockConfigs
    return {
        shard.file_name: kind(number).written
        for number, shard in enumerate(shards)
        if shard.tensors
    }


def _copied_files(job: Job) -> dict[str, bytes]:
    """The dense model's tokenizer and similar files, which pruning leaves alone."""
    present = [name for name in SIDE_FILES if name in job.index.other_files]
    return {name: bytes(job.index.store.read(name)) for name in present}


def _terms(job: Job) -> dict[str, bytes]:
    """The dense model's licence and notice files; what its README says is in the card."""
    names = [name for name in job.index.terms if name != MODEL_CARD]
    return {name: bytes(job.index.store.read(name)) for name in names}


def _name_tokenizer_class(job: Job, contents: dict[str, bytes]) -> None:
    """Let AutoTokenizer find the dense model's tokenizer by another model type."""
    if TOKENIZER in contents:
        found = contents.get(TOKENIZER_CONFIG, b"{}")
        model_type = family_of(str(job.index.config.get("model_type")))
        contents[TOKENIZER_CONFIG] = with_tokenizer_class(found, model_type)


def _store(job: Job, contents: dict[str, bytes], files: dict[str, File]) -> OverlayStore:
    return OverlayStore(contents, {name: job.units.path(file) for name, file in files.items()})
