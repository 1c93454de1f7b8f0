"""Warnings where a job will do slightly else than asked for. No torch.

`plan.inspection` refuses what cannot be done at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from strucprune_core.calibration.tokenizer_config import TOKENIZER, tokenizer_source
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.quantised import DEFAULT_DTYPE
from strucprune_core.export.gguf_layout import Q8_0_BLOCK, GgufTensor
from strucprune_core.export.uniform_config import loading_family
from strucprune_core.method.allocation.budget import REACH_TOLERANCE, differs
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.sites import holdout_sequences, keeps_drafting
from strucprune_core.plan.uniform_heads import uniform_shape
from strucprune_core.spec import JobSpec, PruningSpec


def sparsity_warning(asked: float, reached: float) -> list[str]:
    """A sparsity that is further from the one asked for than `REACH_TOLERANCE`."""
    if not differs(asked, reached):
        return []
    return [
        f"pruning.sparsity: {asked:.4g} was asked for, {reached:.4g} is the nearest that whole "
        f"structures and pruning.multiple_of allow (off by more than {REACH_TOLERANCE:.0%})."
    ]


def search_warning(spec: JobSpec) -> list[str]:
    """Figures of a result whose sparsity is not known yet."""
    if not spec.tries:
        return []
    return [
        f"pruning.target.max_perplexity_ratio: the sparsity is found while the job runs, in "
        f"{spec.tries} tries. Figures of the result are for {spec.pruning.asked_sparsity:.4g}."
    ]


def block_warning(pruning: PruningSpec, config: ModelConfig) -> list[str]:
    """Matrices that Q8_0 may have to leave in 16 bits."""
    if "gguf_q8_0" not in pruning.exports:
        return []
    channels = "ffn_channels" in pruning.structures and pruning.multiple_of % Q8_0_BLOCK
    heads = {"kv_groups", "query_heads"} & set(pruning.structures) and config.head_dim % Q8_0_BLOCK
    if not channels and not heads:
        return []
    return [
        f"pruning.exports: Q8_0 stores {Q8_0_BLOCK} numbers of a row together. Matrices behind a "
        "width that is no multiple of that stay in 16 bits in gguf_q8_0. "
        f"Set pruning.multiple_of to {Q8_0_BLOCK}."
    ]


def left_wide_warning(tensors: Sequence[GgufTensor]) -> list[str]:
    """Matrices that Q8_0 has left in 16 bits.

    Args:
        tensors: Of the file.
    """
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    wide = sum(tensor.dtype != "Q8_0" for tensor in matrices)
    if not wide:
        return []
    return [
        f"pruning.exports: {wide} of {len(matrices)} matrices of gguf_q8_0 are stored in 16 bits, "
        f"since their rows are no multiples of {Q8_0_BLOCK} numbers. Set pruning.multiple_of to "
        f"{Q8_0_BLOCK} to have them in 8."
    ]


def quantised_warning(spec: JobSpec, index: CheckpointIndex) -> list[str]:
    """Weights that take more bytes in the result than in the model."""
    if index.quantised is None:
        return []
    dtype = spec.output.dtype or DEFAULT_DTYPE
    return [
        f"model.uri: the model is stored in {index.quantised}. It is dequantised as it is read, "
        f"and the result is stored in {dtype} (output.dtype)."
    ]


def tokenizer_warning(stored: Collection[str]) -> list[str]:
    """A tokenizer.json that the model lacks.

    Args:
        stored: Names of the model's own files.
    """
    source = tokenizer_source(stored)
    if source is None or source == TOKENIZER:
        return []
    return [
        f"model.uri: the model has no {TOKENIZER}. transformers makes one of {source}, which texts "
        "are read with; it is part of the result."
    ]


def drafting_warning(pruning: PruningSpec, config: ModelConfig) -> list[str]:
    """Tensors that draft further tokens, where the result cannot keep them."""
    if not config.drafting or keeps_drafting(pruning, config):
        return []
    names = [name for name, _ in config.drafting]
    return [
        f"The result is without the {len(names)} tensors that draft further tokens (multi-token "
        f"prediction, '{names[0]}' and so on): programs would build them by the numbers in "
        "config.json, which the job changes. The model's own predictions do not need them."
    ]


def family_warning(pruning: PruningSpec, config: ModelConfig) -> list[str]:
    """A result in layout `uniform` that is written as a model of another family."""
    shape = uniform_shape(pruning, config)
    family = None if shape is None else loading_family(shape)
    if shape is None or family is None or family == config.family:
        return []
    return [
        f"pruning.layout: config.json of the result names the model type '{family}'. "
        f"transformers' {config.family} cannot have {shape.blocks[0].query_heads} query heads with "
        f"a hidden size of {config.hidden_size}; {family} can, and computes the same."
    ]


def batch_warning(spec: JobSpec) -> list[str]:
    """Steps of distillation on fewer sequences than were asked for."""
    distill, samples = spec.pruning.distill, spec.calibration.samples
    left = samples - holdout_sequences(samples)
    if distill is None or distill.batch_sequences <= left:
        return []
    return [
        f"pruning.distill.batch_sequences: {distill.batch_sequences} were asked for, but "
        f"calibration.samples leaves {left} to train on; a step uses those."
    ]


def warnings_of_sizes(each: Mapping[str, Sequence[str]]) -> list[str]:
    """Warnings of several sizes, by the size's label: those of all once, the others by size."""
    said = list(each.values())
    of_all = [line for line in said[0] if all(line in lines for lines in said)]
    others = (f"{size}: {line}" for size, lines in each.items() for line in lines)
    known = {f"{size}: {line}" for size in each for line in of_all}
    return [*of_all, *(line for line in others if line not in known)]
