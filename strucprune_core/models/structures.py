"""What can be removed from a layer, and which slices of which tensors go with it. No torch.

A *site* is a matrix whose input columns are removed and whose rest is solved again: the down
projection of an FFN or of one expert, or the output projection of attention. Its *structures* are
removed whole: a channel is one column, a KV group all columns of the query heads that share a
key-value head.

    site.output     the matrix that is solved again, and which columns belong to structure j
    site.coupled    tensors that only lose the slices of structure j
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from strucprune_core.models.config import FeedForward, GenericLayer, LayerConfig, ModelConfig
from strucprune_core.models.tensors import layer_tensors

StructureKind = Literal[
    "ffn_channels",
    "kv_groups",
    "query_heads",
    "experts",
    "attention_blocks",
    "ffn_blocks",
    "layers",
]
SiteKind = Literal["ffn", "attention"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Structure j owns `size` indices along an axis, from offset + j * size."""

    offset: int
    size: int

    def indices(self, kept: Iterable[int]) -> list[int]:
        """Indices of the given structures, in their order."""
        return [
            self.offset + structure * self.size + step
            for structure in kept
            for step in range(self.size)
        ]


@dataclass(frozen=True, slots=True)
class CoupledTensor:
    """A tensor that loses slices with a structure.

    Attributes:
        role: Its name within the layer.
        axis: The axis that shrinks.
        segments: Where the structures lie on it, in the order that the kept slices are written.
        rest: Indices behind them that belong to no structure and stay.
    """

    role: str
    axis: int
    segments: tuple[Segment, ...]
    rest: range = range(0)

    def indices(self, kept: Sequence[int]) -> list[int]:
        """Indices along the axis that stay when the structures `kept` (ascending) stay."""
        cut = [index for segment in self.segments for index in segment.indices(kept)]
        return [*cut, *self.rest]


@dataclass(frozen=True, slots=True)
class Site:
    """One matrix that loses input columns, and the tensors coupled to them.

    Attributes:
        name: Unique within the layer: "ffn", "expert.3", "attention".
        kind: Sites of one kind in a layer share an energy.
        structures: How many there are.
        columns: Columns of the output matrix per structure.
        lockstep: Structures are removed in sets of this size, one of each of `lockstep` families
            (structure j is of family j // (structures / lockstep)); 1: each on its own.
        output: The matrix that is solved again; its axis is that of the columns.
        coupled: The other tensors that shrink.
        parameters: Parameters that one structure has in all these tensors.
    """

    name: str
    kind: SiteKind
    structures: int
    columns: int
    lockstep: int
    output: CoupledTensor
    coupled: tuple[CoupledTensor, ...]
    parameters: int

    @property
    def width(self) -> int:
        """Columns of the output matrix in all structures."""
        return self.structures * self.columns


def sites(config: ModelConfig, layer: int, kinds: Sequence[StructureKind]) -> list[Site]:
    """The sites of a layer, for the kinds of structures that may be removed.

    Experts and blocks are no sites: they go whole, and nothing of them is solved again (see
    `models.experts` and `models.blocks`).
    """
    block = config.blocks[layer]
    if block.generic is not None:
        each = block.generic.feed_forwards if "ffn_channels" in kinds else ()
        return [_generic_site(config, layer, feed_forward) for feed_forward in each]
    all_sites: list[Site] = []
    if "ffn_channels" in kinds and "ffn" not in block.without:
        all_sites += _ffn_sites(config, layer)
    if ("kv_groups" in kinds or "query_heads" in kinds) and "attention" not in block.without:
        all_sites.append(_attention_site(config, layer, whole_groups="kv_groups" in kinds))
    return all_sites


def shrink(block: LayerConfig, kept: dict[str, int], kinds: Sequence[StructureKind]) -> LayerConfig:
    """A layer's shape once each site (by name) keeps this number of structures."""
    if block.generic is not None:
        return _shrunk(block, block.generic, kept)
    widths = tuple(
        kept.get(_ffn_site_name(block, number), width)
        for number, width in enumerate(block.ffn_widths)
    )
    block = replace(block, ffn_widths=widths)
    if "attention" not in kept:
        return block
    if "kv_groups" in kinds:
        groups = kept["attention"]
        heads = groups * block.query_heads_per_kv_head
        return replace(block, kv_heads=groups, query_heads=heads)
    return replace(block, query_heads=kept["attention"])


def _generic_site(config: ModelConfig, layer: int, feed_forward: FeedForward) -> Site:
    width = feed_forward.channels
    coupled = [
        CoupledTensor(
            source.tensor,
            source.axis,
            tuple(Segment(offset * width, size) for offset, size in source.segments),
        )
        for source in feed_forward.sources
    ]
    output = CoupledTensor(feed_forward.output, feed_forward.axis, (Segment(0, 1),))
    return _site(config, layer, feed_forward.name, "ffn", width, 1, 1, output, coupled)


def _shrunk(block: LayerConfig, generic: GenericLayer, kept: dict[str, int]) -> LayerConfig:
    shapes = dict(generic.tensors)
    feed_forwards = []
    for each in generic.feed_forwards:
        width = kept.get(each.name, each.channels)
        feed_forwards.append(replace(each, channels=width))
        shapes[each.output] = _with_size(shapes[each.output], each.axis, width)
        for source in each.sources:
            size = width * sum(size for _, size in source.segments)
            shapes[source.tensor] = _with_size(shapes[source.tensor], source.axis, size)
    return replace(
        block,
        ffn_widths=tuple(each.channels for each in feed_forwards),
        generic=replace(generic, tensors=tuple(shapes.items()), feed_forwards=tuple(feed_forwards)),
    )


def _with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _ffn_site_name(block: LayerConfig, number: int) -> str:
    return "ffn" if block.names.router is None else f"expert.{number}"


def _ffn_sites(config: ModelConfig, layer: int) -> list[Site]:
    block = config.blocks[layer]
    names = block.names
    ffn_sites = []
    for number, width in enumerate(block.ffn_widths):
        whole = (Segment(0, 1),)
        coupled: list[CoupledTensor] = []
        for name in (names.gate, names.up):
            if name is not None:
                coupled += _rows(config, layer, name.format(number), whole)
        if names.gate_up is not None:
            both = (*whole, Segment(width, 1))
            coupled += _rows(config, layer, names.gate_up.format(number), both)
        down = _columns(config, names.down.format(number), whole)
        name = _ffn_site_name(block, number)
        ffn_sites.append(_site(config, layer, name, "ffn", width, 1, 1, down, coupled))
    return ffn_sites


def _attention_site(config: ModelConfig, layer: int, *, whole_groups: bool) -> Site:
    """KV groups, or query heads of which every KV group loses the same number."""
    block, width = config.blocks[layer], config.head_dim
    names = block.names
    per_group = block.query_heads_per_kv_head if whole_groups else 1
    query = Segment(0, per_group * width)
    coupled: list[CoupledTensor] = []
    if names.query_key_value is not None and config.qkv_interleaved:
        # Head by head [q k v]: only families with as many key-value as query heads do so.
        coupled += _rows(config, layer, names.query_key_value, (Segment(0, 3 * width),))
    elif names.query_key_value is not None:
        keys_at = block.query_heads * width
        values_at = keys_at + block.kv_heads * width
        keys_and_values = (Segment(keys_at, width), Segment(values_at, width))
        if whole_groups:
            coupled += _rows(config, layer, names.query_key_value, (query, *keys_and_values))
        else:
            rest = range(keys_at, values_at + block.kv_heads * width)
            coupled += _rows(config, layer, names.query_key_value, (query,), rest)
    else:
        coupled += _rows(config, layer, str(names.query), (query,))
        for name in (names.key, names.value) if whole_groups else ():
            coupled += _rows(config, layer, str(name), (Segment(0, width),))
    output = _columns(config, names.attention_output, (query,))
    count = block.kv_heads if whole_groups else block.query_heads
    lockstep = 1 if whole_groups else block.kv_heads
    columns = per_group * width
    return _site(config, layer, "attention", "attention", count, columns, lockstep, output, coupled)


def _rows(
    config: ModelConfig,
    layer: int,
    name: str,
    segments: tuple[Segment, ...],
    rest: range = range(0),
) -> list[CoupledTensor]:
    """A projection's output slices: rows of its weight (columns if transposed), and its bias."""
    coupled = [CoupledTensor(f"{name}.weight", 1 if config.transposed else 0, segments, rest)]
    if f"{name}.bias" in layer_tensors(config, layer):
        coupled.append(CoupledTensor(f"{name}.bias", 0, segments, rest))
    return coupled


def _columns(config: ModelConfig, name: str, segments: tuple[Segment, ...]) -> CoupledTensor:
    """A projection's input slices."""
    return CoupledTensor(f"{name}.weight", 0 if config.transposed else 1, segments)


def _site(
    config: ModelConfig,
    layer: int,
    name: str,
    kind: SiteKind,
    structures: int,
    columns: int,
    lockstep: int,
    output: CoupledTensor,
    coupled: list[CoupledTensor],
) -> Site:
    shapes = layer_tensors(config, layer)
    parameters = 0
    for tensor in (output, *coupled):
        shape = shapes[tensor.role]
        slices = sum(segment.size for segment in tensor.segments)
        others = [size for axis, size in enumerate(shape) if axis != tensor.axis]
        parameters += slices * (others[0] if others else 1)
    return Site(name, kind, structures, columns, lockstep, output, tuple(coupled), parameters)
