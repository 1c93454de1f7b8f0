"""Which exports a model can have, by its config and tokenizer. No torch.

A format that cannot express the model is refused before any heavy work.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import get_args

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, Mend, naming_field
from strucprune_core.export import fp8
from strucprune_core.export.gguf_layout import Q8_0_BLOCK
from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.export.tokenizer_json import TOKENIZER
from strucprune_core.models.config import LayerConfig, ModelConfig
from strucprune_core.spec import GGUF_EXPORTS, Export, PruningSpec

FIELD = "pruning.exports"
# Families whose tensors and arithmetic are llama's.
FAMILIES = ("llama", "mistral")
ROPE_TYPES = ("default", "linear", "llama3")


def check_export(
    export: Export, pruning: PruningSpec, config: ModelConfig, index: CheckpointIndex
) -> None:
    """Check that an export can hold what a job will make of a model.

    A tokenizer that has yet to be converted is checked by `check_vocabulary` once the job has it.

    Raises:
        InvalidSpec: it cannot; names the field `pruning.exports`.
        InvalidCheckpoint: the tokenizer's files are malformed.
        StorageError: the store refused or failed.
    """
    check_shape(export, pruning, config)
    if export in GGUF_EXPORTS and TOKENIZER in index.other_files:
        check_vocabulary(config, index)


def check_vocabulary(config: ModelConfig, index: CheckpointIndex) -> None:
    """Check that a GGUF file can hold a model's tokenizer.

    Raises:
        InvalidSpec: it cannot; names the field `pruning.exports`.
        InvalidCheckpoint: the tokenizer's files are malformed.
        StorageError: the store refused or failed.
    """
    with naming_field("model.uri"):
        read_vocabulary(index.store, index.other_files, index.config, config.vocab_size)


def check_shape(export: Export, pruning: PruningSpec, config: ModelConfig) -> None:
    """The same without the tokenizer: from the config alone.

    Raises:
        InvalidSpec: the export cannot hold the result.
    """
    if export == "fp8":
        _check_fp8(pruning, config)
        return
    if config.family not in FAMILIES:
        raise _refusal(
            export, pruning, f"models of family '{config.family}', only {' and '.join(FAMILIES)}"
        )
    if config.activation != "silu":
        raise _refusal(export, pruning, f"the activation '{config.activation}'")
    if config.qkv_bias or config.attention_output_bias or config.ffn_bias:
        raise _refusal(export, pruning, "biases in attention or FFN")
    if any(_slides(block, config) for block in config.blocks):
        raise _refusal(export, pruning, "sliding windows shorter than the context")
    ropes = {block.rope for block in config.blocks}
    if len(ropes) > 1 or any(rope is None or rope.type not in ROPE_TYPES for rope in ropes):
        raise _refusal(export, pruning, f"rotary positions other than {', '.join(ROPE_TYPES)}")
    if export in GGUF_EXPORTS:
        _check_gguf(export, pruning, config)
    else:
        _check_heads(pruning, config)


def check_installed(exports: Iterable[Export]) -> None:
    """Check that what exports are made with is installed here.

    Raises:
        InvalidSpec: it is not.
    """
    if "fp8" in exports and find_spec(fp8.PACKAGE) is None:
        raise InvalidSpec(
            "the fp8 export is made with the package compressed-tensors, which is not installed",
            field=FIELD,
            remedy="Install it (pip install 'strucprune[fp8]'), or leave 'fp8' out.",
            mends=[_without("fp8", exports)],
        )


def _check_gguf(export: Export, pruning: PruningSpec, config: ModelConfig) -> None:
    if "ffn_blocks" in pruning.structures:
        raise InvalidSpec(
            "llama.cpp leaves out the attention of a layer without an FFN, so a GGUF file cannot "
            "hold a model that lost FFN blocks",
            field=FIELD,
            remedy=f"Remove 'attention_blocks' or 'layers', or leave '{export}' out.",
            mends=[_without(export, pruning.exports)],
        )
    if any("ffn" in block.without for block in config.blocks):
        raise _refusal(export, pruning, "layers without an FFN")
    if _may_begin_without_attention(pruning, config):
        raise _refusal(
            export, pruning, "a first layer without attention, of which llama.cpp asks the heads"
        )
    if export == "gguf_q8_0" and config.hidden_size % Q8_0_BLOCK:
        raise _refusal(
            export,
            pruning,
            f"a hidden size that is no multiple of {Q8_0_BLOCK} ({config.hidden_size})",
        )


def _check_fp8(pruning: PruningSpec, config: ModelConfig) -> None:
    """Runtimes quantise linear modules, each with a matrix of its own in the files."""
    if config.generic is not None:
        raise _refusal("fp8", pruning, f"models of architecture '{config.family}'")
    if config.transposed:
        raise _refusal(
            "fp8", pruning, "matrices that are stored transposed, which runtimes do not quantise"
        )
    if any(block.names.router is not None for block in config.blocks):
        raise _refusal("fp8", pruning, "mixtures of experts")
    if config.family == "opt":
        raise _refusal(
            "fp8",
            pruning,
            "models of family 'opt', of whose FFN transformers quantises the inputs of all tokens "
            "together and vLLM those of each: they would compute different things",
        )


def possible_exports(config: ModelConfig, index: CheckpointIndex) -> list[Export]:
    """The exports that a job on a model can have if it removes FFN channels only.

    Raises:
        StorageError: the store refused or failed.
    """
    pruning = PruningSpec(sparsity=0.5)
    possible: list[Export] = []
    for export in get_args(Export):
        try:
            check_export(export, pruning, config, index)
        except (InvalidSpec, InvalidCheckpoint):
            continue
        possible.append(export)
    return possible


def _may_begin_without_attention(pruning: PruningSpec, config: ModelConfig) -> bool:
    """Whether the first layer of the result may lack attention: that of the model, or a later one.

    A job on attention blocks leaves it there (`plan.blocks.candidates`).
    """
    may_be_first = config.blocks if "layers" in pruning.structures else config.blocks[:1]
    return any("attention" in block.without for block in may_be_first)


def _slides(block: LayerConfig, config: ModelConfig) -> bool:
    return block.window is not None and block.window < config.max_position_embeddings


def _check_heads(pruning: PruningSpec, config: ModelConfig) -> None:
    """Runtimes assume heads of width hidden_size / heads, and equally many in all layers."""
    if {"kv_groups", "query_heads"} & set(pruning.structures):
        raise InvalidSpec(
            "the block_configs export has one number of query heads for all layers, so heads "
            "cannot be removed",
            field=FIELD,
            remedy="Use structures ['ffn_channels'], or leave 'block_configs' out.",
            mends=[
                Mend("pruning.structures", ["ffn_channels"]),
                _without("block_configs", pruning.exports),
            ],
        )
    heads = {block.query_heads for block in config.blocks} - {0}
    if any(count * config.head_dim != config.hidden_size for count in heads):
        raise _refusal(
            "block_configs", pruning, "heads whose widths do not add up to the hidden size"
        )


def _without(export: str, exports: Iterable[str]) -> Mend:
    return Mend(FIELD, [each for each in exports if each != export])


def _refusal(export: str, pruning: PruningSpec, what: str) -> InvalidSpec:
    return InvalidSpec(
        f"the {export} export does not support {what}",
        field=FIELD,
        remedy=f"Leave '{export}' out of pruning.exports.",
        mends=[_without(export, pruning.exports)],
    )
