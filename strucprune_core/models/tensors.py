"""Names and shapes of a model's tensors, derived from its configuration. No torch."""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.checkpoint.header import FLOAT_DTYPES
from strucprune_core.checkpoint.index import MAX_HEADERS_BYTES, Allowance, CheckpointIndex
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.config import GenericModel, LayerConfig, ModelConfig, ModelNames
from strucprune_core.models.foreign_tensors import (
    misshaped_tensor,
    missing_tensor,
    other_kind,
    unknown_tensor,
)

Shapes = dict[str, tuple[int, ...]]

_INTEGERS = ("I64", "I32")
# Buffers that older tools wrote although the model derives them.
_DERIVED = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".decoder.version",
)

# What `allowance` assumes: tensors of a layer without those of experts, tensors of an expert (three
# matrices, with biases), and tensors outside of the layers.
_LAYER_TENSORS = 32
_EXPERT_TENSORS = 6
_OTHER_TENSORS = 64
# An entry of a header with a name of the usual length has some 130 bytes.
_ENTRY_BYTES = 256
_METADATA_BYTES = 2**20


def allowance(config: ModelConfig) -> Allowance:
    """What the headers of such a model may hold: twice what any family needs, and some metadata.

    It is computed without naming any tensor, so that large numbers in config.json cost nothing.
    """
    layers = sum(
        _LAYER_TENSORS + _EXPERT_TENSORS * len(block.ffn_widths) for block in config.blocks
    )
    tensors = 2 * (layers + _OTHER_TENSORS)
    return Allowance(tensors, min(MAX_HEADERS_BYTES, tensors * _ENTRY_BYTES + _METADATA_BYTES))


def expected_tensors(config: ModelConfig) -> Shapes:
    """Names and shapes of all tensors of the model."""
    if config.generic is not None:
        return _generic_tensors(config, config.generic)
    names, d, e = config.names, config.hidden_size, config.embedding_size
    tensors: Shapes = {names.embedding: (config.vocab_size, e)}
    if names.positions is not None:
        rows = config.max_position_embeddings + config.position_offset
        tensors[names.positions] = (rows, d)
    if names.project_in is not None:
        tensors[names.project_in] = (d, e)
    for layer in range(config.layers):
        for role, shape in layer_tensors(config, layer).items():
            tensors[tensor_name(config, layer, role)] = shape
    if names.final_norm is not None:
        tensors |= _norm(config, names.final_norm, d)
    if names.project_out is not None:
        tensors[names.project_out] = (e, d)
    if not config.tie_word_embeddings:
        tensors[names.head] = (config.vocab_size, e)
    return tensors


def stored_tensors(config: ModelConfig) -> Shapes:
    """Names and shapes of all tensors of the model's files: those that draft too."""
    return expected_tensors(config) | dict(config.drafting)


def _generic_tensors(config: ModelConfig, generic: GenericModel) -> Shapes:
    tensors = dict(generic.tensors)
    for layer in range(config.layers):
        for role, shape in layer_tensors(config, layer).items():
            tensors[tensor_name(config, layer, role)] = shape
    return tensors


def tensor_name(config: ModelConfig, layer: int, role: str) -> str:
    """Checkpoint name of a layer's tensor."""
    return config.names.layer.format(layer) + role


def down_role(config: ModelConfig, layer: int) -> str:
    """Role of the matrix after the activation in the FFN of a layer without experts."""
    return f"{config.blocks[layer].names.down}.weight"


def layer_tensors(config: ModelConfig, layer: int) -> Shapes:
    """Roles (names within the layer) and shapes of one decoder layer's tensors."""
    block = config.blocks[layer]
    if block.generic is not None:
        return {} if block.is_removed else dict(block.generic.tensors)
    tensors: Shapes = {}
    if "attention" not in block.without:
        tensors |= _attention(config, block)
    if "ffn" not in block.without:
        tensors |= _ffn(config, block)
    return tensors | _norms(config, block)


def _attention(config: ModelConfig, block: LayerConfig) -> Shapes:
    names, d = block.names, config.hidden_size
    queries, keys = block.query_heads * config.head_dim, block.kv_heads * config.head_dim
    tensors: Shapes = {}
    if names.query_key_value is not None:
        width = queries + 2 * keys
        tensors |= _linear(config, names.query_key_value, width, d, config.qkv_bias)
    else:
        for name, width in ((names.query, queries), (names.key, keys), (names.value, keys)):
            tensors |= _linear(config, str(name), width, d, config.qkv_bias)
    tensors |= _linear(config, names.attention_output, d, queries, config.attention_output_bias)
    for name in (names.query_norm, names.key_norm):
        if name is not None:
            tensors |= _norm(config, name, config.head_dim)
    return tensors


def _ffn(config: ModelConfig, block: LayerConfig) -> Shapes:
    names, d = block.names, config.hidden_size
    tensors: Shapes = {}
    if names.router is not None:
        tensors[f"{names.router}.weight"] = (len(block.ffn_widths), d)
    for expert, width in enumerate(block.ffn_widths):
        for name in (names.gate, names.up):
            if name is not None:
                tensors |= _linear(config, name.format(expert), width, d, config.ffn_bias)
        if names.gate_up is not None:
            tensors |= _linear(config, names.gate_up.format(expert), 2 * width, d, config.ffn_bias)
        tensors |= _linear(config, names.down.format(expert), d, width, config.ffn_bias)
    return tensors


def _norms(config: ModelConfig, block: LayerConfig) -> Shapes:
    names = block.names
    norms: list[str | None] = []
    if "attention" not in block.without:
        norms += [names.attention_norm, names.attention_output_norm]
    if "ffn" not in block.without:
        norms += [names.ffn_norm, names.ffn_output_norm]
    tensors: Shapes = {}
    for name in norms:
        if name is not None:
            tensors |= _norm(config, name, config.hidden_size)
    return tensors


def _linear(config: ModelConfig, name: str, outputs: int, inputs: int, bias: bool) -> Shapes:
    shape = (inputs, outputs) if config.transposed else (outputs, inputs)
    return {f"{name}.weight": shape, **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(config: ModelConfig, name: str, width: int) -> Shapes:
    bias = {f"{name}.bias": (width,)} if config.norm.kind == "layer" else {}
    return {f"{name}.weight": (width,), **bias}


def with_full_names(names: ModelNames, index: CheckpointIndex) -> CheckpointIndex:
    """The checkpoint with its tensors named as the whole model names them.

    GPT-2 and OPT were published without the prefix of their base model ("wte.weight" instead of
    "transformer.wte.weight"); transformers reads both.
    """
    prefix, _, first = names.embedding.partition(".")
    if names.embedding in index.tensors or first not in index.tensors:
        return index
    full = {
        name if name == names.head else f"{prefix}.{name}": info
        for name, info in index.tensors.items()
    }
    return replace(index, tensors={name: replace(info, name=name) for name, info in full.items()})


def check_tensors(config: ModelConfig, index: CheckpointIndex) -> None:
    """Compare the tensors in the files with those that the config promises.

    Raises:
        InvalidCheckpoint: a tensor is missing, misshaped, not floating-point, or unknown (it would
            be lost silently).
    """
    # Each expert has at least one tensor. Checked before names are made, which would fill the
    # memory if the numbers in config.json are absurd.
    least = sum(len(block.ffn_widths) for block in config.blocks)
    if least > len(index.tensors):
        raise InvalidCheckpoint(
            f"config.json describes at least {least} tensors, the files hold {len(index.tensors)}",
            remedy="Copy the model again, or use the config.json that was saved with it.",
        )
    expected = expected_tensors(config)
    stored = expected | dict(config.drafting)
    if config.generic is not None:
        _check_kind(config, index)
    unknown = [
        name for name in index.tensors if name not in stored and not _is_redundant(config, name)
    ]
    if config.names.head in index.tensors:  # Also where it is tied: its values may differ.
        stored.setdefault(config.names.head, (config.vocab_size, config.embedding_size))
    copied = _copied(config)
    for name, shape in stored.items():
        info = index.tensors.get(name)
        if info is None:
            raise missing_tensor(name, config.names.head, unknown)
        # Checked before the shape, which is another one for packed numbers.
        if info.dtype not in FLOAT_DTYPES and not (info.dtype in _INTEGERS and name in copied):
            raise InvalidCheckpoint(
                f"tensor '{name}' has dtype {info.dtype}; only {', '.join(FLOAT_DTYPES)} "
                f"can be pruned",
                remedy="Use the unquantised model.",
            )
        if info.shape != shape:
            raise misshaped_tensor(name, info.shape, shape)
    if unknown:
        raise unknown_tensor(unknown[0], config, expected, unknown)


def _check_kind(config: ModelConfig, index: CheckpointIndex) -> None:
    """A model whose tensors are those of the files, whatever they are, must be a language model."""
    error = other_kind([*index.tensors])
    if error is None and config.head_matrix not in index.tensors:
        error = missing_tensor(config.head_matrix, config.names.head, ())
    if error is not None:
        raise error


def _copied(config: ModelConfig) -> set[str]:
    """Tensors of a generic model that make no channels and no vocabulary: some hold integers."""
    if config.generic is None:
        return set()
    found = {name for name, _ in config.generic.tensors}
    found -= {config.names.embedding, config.names.head}
    for layer, block in enumerate(config.blocks):
        if block.generic is not None:
            cut = {
                name
                for each in block.generic.feed_forwards
                for name in (each.output, *(source.tensor for source in each.sources))
            }
            names = {name for name, _ in block.generic.tensors} - cut
            found |= {tensor_name(config, layer, name) for name in names}
    return found


def _is_redundant(config: ModelConfig, name: str) -> bool:
    if name == config.names.head:
        return config.tie_word_embeddings
    return is_derived(name)


def is_derived(name: str) -> bool:
    """Whether a tensor has the name of a buffer that models compute themselves."""
    return name.endswith(_DERIVED)
