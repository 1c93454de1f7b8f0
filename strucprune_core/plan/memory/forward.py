"""Bytes on the device while one decoder layer runs over a micro-batch. No torch.

Every term is a named line, and a test compares the sum with what tensors really take.

t tokens, d hidden size, Q and K columns of all queries and of all keys, f FFN channels, p rows of a
panel. Operands of matrix products (matrices, what meets them and what they put out) take
`Tiles.operand_bytes` each, everything else is float32.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from strucprune_core.models.config import Experts, GenericLayer, LayerConfig, ModelConfig
from strucprune_core.models.experts import expert_matrices, matrices_bytes
from strucprune_core.models.precision import layer_weights_bytes
from strucprune_core.models.structures import SiteKind
from strucprune_core.models.tensors import layer_tensors
from strucprune_core.models.tiles import Tiles

FP32_BYTES = 4
_EXPERT = re.compile(r"experts?[._]")
ALL_TOKENS = ("llama4", "llama4_text")
"""Families whose experts are given all tokens, times the router's weights."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: whole sequences of equal length."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """All its tokens."""
        return self.sequences * self.length


def micro_batch(tiles: Tiles, sequences: int, length: int) -> Batch:
    """The largest micro-batch from a number of sequences: whole sequences, at least one."""
    return Batch(min(sequences, max(1, tiles.micro_batch_tokens // length)), length)


@lru_cache(maxsize=16)
def _first_of_each(blocks: tuple[LayerConfig, ...]) -> tuple[int, ...]:
    first: dict[LayerConfig, int] = {}
    for number, block in enumerate(blocks):
        first.setdefault(block, number)
    return tuple(first.values())


def distinct_layers(config: ModelConfig) -> tuple[int, ...]:
    """One layer of each shape: what a layer takes does not depend on where it is."""
    return _first_of_each(config.blocks)


def layer_bytes(config: ModelConfig, layer: int, operand: int = FP32_BYTES) -> int:
    """A whole decoder layer, with so many bytes for a number of a matrix."""
    return layer_weights_bytes(config, layer, operand)


def resident_bytes(config: ModelConfig, layer: int, tiles: Tiles) -> int:
    """A decoder layer's tensors that stay while micro-batches follow one another."""
    if tiles.weight_rows is not None:
        return 0
    operand = tiles.operand_bytes
    whole, experts = layer_bytes(config, layer, operand), expert_matrices(config, layer)
    if not tiles.expert_by_expert or experts is None:
        return whole
    return whole - experts.count * matrices_bytes(config, layer, operand)


def pass_bytes(config: ModelConfig, batch: Batch, tiles: Tiles) -> int:
    """Peak while layer after layer runs, with the one that is read ahead."""
    layers = distinct_layers(config)
    running = max(forward_bytes(config, layer, batch, tiles) for layer in layers)
    return running + ahead_bytes(config, tiles)


def ahead_bytes(config: ModelConfig, tiles: Tiles) -> int:
    """The layer that is read before it is wanted."""
    if not tiles.reads_ahead or config.layers == 1:
        return 0
    operand = tiles.operand_bytes
    largest = max(layer_bytes(config, layer, operand) for layer in distinct_layers(config))
    return tiles.layers_ahead * largest


def forward_bytes(
    config: ModelConfig,
    layer: int,
    batch: Batch,
    tiles: Tiles,
    *,
    record: Collection[SiteKind] = (),
) -> int:
    """Peak while a layer runs, its weights and its input included.

    Args:
        config: The model.
        layer: Which layer.
        batch: What runs through it.
        tiles: How its matrices pass.
        record: Kinds of sites whose inputs are kept.
    """
    block = config.blocks[layer]
    if block.generic is not None:
        return _generic_bytes(config, layer, block.generic, batch, tiles, record="ffn" in record)
    t, d = batch.tokens, config.hidden_size
    resident = resident_bytes(config, layer, tiles)
    queries, operand = block.query_heads * config.head_dim, tiles.operand_bytes
    recorded = operand * t * queries if "attention" in record else 0
    channels = max(block.ffn_widths, default=0) if block.names.router is None else 0
    kept = operand * t * channels if "ffn" in record else 0
    state, given = FP32_BYTES * t * d, operand * t * d
    # A norm holds its input, the residual stream, its result and one product.
    terms = {"norm": 4 * state + recorded}
    if "attention" not in block.without:
        terms["attention"] = state + given + _attention(config, block, batch, tiles)
    if "ffn" not in block.without:
        ffn = _ffn(config, block, t, tiles, record="ffn" in record)
        terms["ffn"] = 2 * state + given + recorded + ffn
        terms["join"] = 3 * state + given + recorded + kept
    if block.names.ffn_output_norm is not None:
        terms["output_norm"] = 6 * state + recorded + kept
    return resident + max(terms.values())


def _generic_bytes(
    config: ModelConfig,
    layer: int,
    generic: GenericLayer,
    batch: Batch,
    tiles: Tiles,
    *,
    record: bool,
) -> int:
    """Most that a layer takes in transformers' modules, by the shapes of its matrices alone.

    A result of its widest matrix lives four times (its parts, an activation and a product), a
    hidden state seven; a mask has a number for each pair of tokens. Matrices of experts are joined
    into one parameter beside the tensors that they come from, and see copies of their tokens.
    """
    shapes, t = dict(generic.tensors), batch.tokens
    widest = max((max(shape) for shape in shapes.values() if len(shape) == 2), default=0)
    kept = sum(each.channels for each in generic.feed_forwards) if record else 0
    states = 7
    if generic.experts is None and _names_experts(generic):
        states = 14
    numbers = t * (states * config.hidden_size + 4 * widest)
    if generic.experts is not None:
        numbers = max(numbers, _routed(config, layer, generic.experts, t, tiles))
    numbers += t * kept + batch.length**2
    if config.generic is not None and config.generic.keeps_scores:
        heads = config.blocks[layer].query_heads
        numbers += 2 * heads * t * batch.length
    held = held_layer_bytes(config, layer, tiles)
    return held + max(_joining_bytes(config, layer, tiles), FP32_BYTES * numbers)


def held_layer_bytes(config: ModelConfig, layer: int, tiles: Tiles) -> int:
    """A layer's tensors while it runs in transformers' modules, and what these make of them."""
    generic, operand = config.blocks[layer].generic, tiles.operand_bytes
    whole, one = layer_bytes(config, layer, operand), matrices_bytes(config, layer, operand)
    experts = None if generic is None else generic.experts
    if experts is not None and tiles.expert_by_expert:
        return resident_bytes(config, layer, tiles) + 2 * one
    if experts is not None and not experts.own:
        return whole + 2 * one
    return 2 * whole if _names_experts(generic) else whole


def _joining_bytes(config: ModelConfig, layer: int, tiles: Tiles) -> int:
    """Copies of experts' matrices that live only until they are joined: of gate and up."""
    generic = config.blocks[layer].generic
    if tiles.expert_by_expert or not _names_experts(generic):
        return 0
    experts = None if generic is None else generic.experts
    if experts is None:
        return layer_bytes(config, layer, tiles.operand_bytes) * 2 // 3
    if not experts.own:
        return 0
    return experts.count * matrices_bytes(config, layer, tiles.operand_bytes) * 2 // 3


def _names_experts(generic: GenericLayer | None) -> bool:
    """Whether files hold matrices of single experts, or what is not known to be something else."""
    return generic is not None and any(_EXPERT.search(role) for role, _ in generic.tensors)


def _routed(config: ModelConfig, layer: int, experts: Experts, tokens: int, tiles: Tiles) -> int:
    """Numbers of experts: hidden states, and rows that pass experts.

    All experts at once get a row for each expert of a token; one of them may get every token.
    """
    routing = None if config.generic is None else config.generic.routing
    given = tokens * experts.count if config.family in ALL_TOKENS else 0
    rows = given or tokens * (1 if routing is None else routing.chosen)
    if tiles.expert_by_expert:
        rows = tokens
    d, inner = config.hidden_size, matrices_bytes(config, layer) // FP32_BYTES
    inner //= config.embedding_size
    # What gate and up put out, its activation and the product; with biases some more of them.
    shapes = layer_tensors(config, layer)
    biased = any(name.endswith("bias") and len(shapes[name]) == 2 for name, _ in experts.sliced)
    across = inner * 7 // 3 if biased else inner * 4 // 3
    return 6 * tokens * d + 3 * given * d + rows * (4 * d + across)


def _attention(config: ModelConfig, block: LayerConfig, batch: Batch, tiles: Tiles) -> int:
    """Bytes of attention, without the residual stream and its own input."""
    operand = tiles.operand_bytes
    t, d, width = batch.tokens, config.hidden_size, config.head_dim
    queries = block.query_heads * width
    panel = tiles.weight_rows
    heads = block.kv_heads
    if panel is not None and not config.transposed:
        heads = min(heads, max(1, panel // (block.query_heads_per_kv_head * width)))
    q, k = queries * heads // max(1, block.kv_heads), width * heads
    split = heads < block.kv_heads
    mixed = operand * t * queries if split else 0
    projected = operand * t * (q + 2 * k)
    if config.transposed or (block.names.query_key_value is not None and not split):
        projected *= 1 if config.qkv_interleaved else 2  # The fused result, and its parts' copies.
    # x cos, the rotated halves, their product with sin, and the sum; three live at once.
    rotated = FP32_BYTES * 3 * t * q if block.rope is not None else 0
    both = FP32_BYTES * t * (q + k) if block.rope is not None else 0
    scores = FP32_BYTES * _scores(config, block, batch)
    if operand < FP32_BYTES:  # What is rotated is rounded; under a soft cap a head is widened.
        both += operand * t * (q + k)
        scores += FP32_BYTES * 4 * t * width if config.attention_soft_cap is not None else 0
    inner = max(
        projected + operand * _panel(panel, d),
        projected + rotated,
        projected + both + scores + operand * 2 * t * q,
    )
    output = operand * (t * queries + _panel(panel, queries)) + _sums(config, t * d, tiles)
    return max(mixed + inner, output)


def _sums(config: ModelConfig, numbers: int, tiles: Tiles) -> int:
    """Bytes of what a matrix puts out.

    If it is stored transposed and passes in panels, products of operands are added in float32.
    """
    operand = tiles.operand_bytes
    if operand == FP32_BYTES or tiles.weight_rows is None or not config.transposed:
        return operand * numbers
    return (FP32_BYTES + operand) * numbers


def _scores(config: ModelConfig, block: LayerConfig, batch: Batch) -> int:
    """Masks, and scores where a soft cap needs them."""
    square = batch.length**2
    windowed = block.window is not None and block.window < batch.length
    mask = square // FP32_BYTES if windowed or config.attention_soft_cap is not None else 0
    if config.attention_soft_cap is not None:
        return mask + 3 * batch.sequences * square
    return mask + (square if windowed else 0)  # The mask as numbers to add.


def _ffn(
    config: ModelConfig, block: LayerConfig, tokens: int, tiles: Tiles, *, record: bool
) -> int:
    """Bytes of the FFN, without the residual stream, its sum with attention, and its input."""
    d, panel, operand = config.hidden_size, tiles.weight_rows, tiles.operand_bytes
    if block.names.router is not None:
        return _experts(config, block, tokens, tiles, record=record)
    f = block.ffn_widths[0]
    return max(
        _channels(config, block, tokens, f, tiles),
        operand * (tokens * f + _panel(panel, f)) + _sums(config, tokens * d, tiles),
    )


def _experts(
    config: ModelConfig, block: LayerConfig, tokens: int, tiles: Tiles, *, record: bool
) -> int:
    """As if one expert got every token, which may happen."""
    d, f, panel = config.hidden_size, max(block.ffn_widths), tiles.weight_rows
    operand, state = tiles.operand_bytes, FP32_BYTES * tokens * d
    # Those before it.
    every = operand * tokens * (config.experts_per_token - 1) * f if record else 0
    routing = 3 * tokens * len(block.ffn_widths)
    router = 0 if panel is None else d * len(block.ffn_widths)
    # In float32: rows times the router's weights, and what is added; operands are beside them.
    narrow = operand < FP32_BYTES
    one = max(
        operand * tokens * d + _channels(config, block, tokens, f, tiles),
        operand * tokens * f + FP32_BYTES * tokens * f + (operand * tokens * f if narrow else 0),
        operand * (tokens * (f + d) + _panel(panel, f)) + (state if narrow else 0),
    )
    # The input in float32 was counted as an operand.
    widened = state if narrow else 0
    return every + FP32_BYTES * (routing + router) + state + widened + one


def _channels(
    config: ModelConfig, block: LayerConfig, tokens: int, width: int, tiles: Tiles
) -> int:
    """Bytes of the FFN up to its channels, in panels if it is not resident."""
    d, panel, operand = config.hidden_size, tiles.weight_rows, tiles.operand_bytes
    gated = block.names.gate is not None or block.names.gate_up is not None
    if config.transposed:
        made = _sums(config, tokens * width, tiles)
        return made + operand * max(tokens * width, _panel(panel, width))
    p = width if panel is None else min(panel, width)
    split = p < width
    if gated:
        # Up, the gate, the activated gate, and the product: three live at once. If one matrix holds
        # gate and up, they are one result until the end.
        live = 4 if block.names.gate_up is not None and not split else 3
        inner = max(live * tokens * p, 2 * tokens * p + _panel(panel, d))
    else:
        inner = max(2 * tokens * p, tokens * p + _panel(panel, d))
    return operand * (inner + (tokens * width if split else 0))


def _panel(rows: int | None, columns: int) -> int:
    """A panel of a matrix; none where the layer is resident."""
    return 0 if rows is None else rows * columns
