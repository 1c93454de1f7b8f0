"""The forward pass of a decoder, driven by its `ModelConfig`; it holds no weights.

Every method takes the tensors of one layer as a mapping from *role* ("mlp.down_proj.weight") to
tensor, so that the caller decides where weights come from and how long they stay in memory. All of
them may be resident, or be read in panels of rows (`panels.StreamedLayer`).

Operands of matrix products may be bfloat16. The residual stream, norms, rotations, the softmax and
routing are float32 all the same.

Shapes: b sequences of n tokens, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from strucprune_core.models.attention import attend
from strucprune_core.models.config import Activation, LayerConfig, ModelConfig, RopeConfig
from strucprune_core.models.norms import normalise
from strucprune_core.models.panels import LayerWeights, StreamedLayer, linear, output_panels
from strucprune_core.models.rope import cosines_and_sines, inverse_frequencies
from strucprune_core.models.structures import SiteKind


@dataclass(frozen=True, slots=True)
class SiteInput:
    """Inputs that a site's output matrix was applied to.

    Attributes:
        rows: Its inputs, (m x columns of the site), of the dtype of products. For an expert each
            row is multiplied by the router's weight, so that rows @ W^T is what the expert adds to
            its tokens.
        tokens: The token, of b * n, that each row belongs to, (m,) int64; None: one row per token.
    """

    rows: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One layer's forward pass.

    Attributes:
        hidden: The layer's output on the residual stream, (b, n, d) float32.
        inputs: Input of each site, by the site's name, if they were to be recorded.
    """

    hidden: Tensor
    inputs: dict[str, SiteInput]


class Decoder:
    """The forward pass of one model's layers.

    Args:
        config: The model.
        dtype: Of the operands of matrix products: float32 or bfloat16.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.dtype = config, dtype

    def forward_layer(
        self,
        block: LayerConfig,
        hidden: Tensor,
        weights: LayerWeights,
        outputs: dict[SiteKind, Tensor] | None = None,
        *,
        record: Collection[SiteKind] = (),
    ) -> LayerTrace:
        """Run one decoder layer, of the shape `block`, on (b, n, d): causal, positions from 0.

        `outputs` receives the joint output of the sites of each kind, before any norm, (b, n, d)
        float32. `record` names the kinds of sites whose inputs are kept: they are most of a layer's
        memory.
        """
        inputs: dict[str, SiteInput] = {}
        attention, ffn = (inputs if kind in record else None for kind in ("attention", "ffn"))
        residual, source = self.attention_half(block, hidden, weights, attention, outputs)
        if "ffn" in block.without:
            return LayerTrace(residual, inputs)
        added = self.ffn_half(block, source, weights, ffn, outputs)
        return LayerTrace(self.join(block, residual, added, weights), inputs)

    def attention_half(
        self,
        block: LayerConfig,
        hidden: Tensor,
        weights: LayerWeights,
        inputs: dict[str, SiteInput] | None = None,
        outputs: dict[SiteKind, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The layer up to its FFN: the residual stream, and the FFN's input, (b, n, d) each.

        `inputs` receives the input of attention's site, `outputs` its output.
        """
        if "attention" in block.without:
            return hidden, hidden
        names = block.names
        post_norm = self.config.residual == "post_norm"
        x = hidden if post_norm else self._norm(names.attention_norm, hidden, weights)
        x = x.to(self.dtype)  # Here, so that what the norm put out is not held.
        output = self._attention(block, x, weights, inputs)
        if outputs is not None:
            outputs["attention"] = output = output.float()
        residual = hidden + self._norm(names.attention_output_norm, output, weights)
        if post_norm:
            residual = self._norm(names.attention_norm, residual, weights)
        return residual, hidden if self.config.residual == "parallel" else residual

    def ffn_half(
        self,
        block: LayerConfig,
        source: Tensor,
        weights: LayerWeights,
        inputs: dict[str, SiteInput] | None = None,
        outputs: dict[SiteKind, Tensor] | None = None,
    ) -> Tensor:
        """What the FFN adds to the residual stream, (b, n, d).

        `inputs` receives the inputs of its sites, `outputs` their joint output.
        """
        names = block.names
        if self.config.residual != "post_norm":
            source = self._norm(names.ffn_norm, source, weights)
        if names.router is None:
            source = source.to(self.dtype)
        output = self._ffn(block, source, weights, inputs)
        if outputs is not None:
            outputs["ffn"] = output = output.float()
        return self._norm(names.ffn_output_norm, output, weights)

    def join(
        self, block: LayerConfig, residual: Tensor, added: Tensor, weights: LayerWeights
    ) -> Tensor:
        """The layer's output, (b, n, d)."""
        output = residual + added
        if self.config.residual == "post_norm":
            return self._norm(block.names.ffn_norm, output, weights)
        return output

    def _norm(self, name: str | None, x: Tensor, weights: LayerWeights) -> Tensor:
        return x if name is None else normalise(self.config.norm, x, weights, name)

    def _attention(
        self,
        block: LayerConfig,
        x: Tensor,
        weights: LayerWeights,
        inputs: dict[str, SiteInput] | None,
    ) -> Tensor:
        groups = list(self.kv_head_panels(block, weights))
        if len(groups) == 1:
            mixed = self._mixed(block, x, weights, groups[0])
        else:
            width = block.query_heads_per_kv_head * self.config.head_dim
            mixed = x.new_empty(*x.shape[:2], width * block.kv_heads)
            for heads in groups:
                columns = slice(heads.start * width, heads.stop * width)
                mixed[..., columns] = self._mixed(block, x, weights, heads)
        mixed = mixed.to(self.dtype)
        if inputs is not None:
            inputs["attention"] = SiteInput(mixed.reshape(-1, mixed.shape[-1]))
        return self._linear(mixed, weights, block.names.attention_output)

    def kv_head_panels(self, block: LayerConfig, weights: LayerWeights) -> Iterator[range]:
        """Key-value heads to compute with at a time, so that their queries fill a panel."""
        separable = not self.config.transposed  # If transposed, every row belongs to all heads.
        if not (separable and isinstance(weights, StreamedLayer)):
            yield range(block.kv_heads)
            return
        step = max(1, weights.panel_rows // (block.query_heads_per_kv_head * self.config.head_dim))
        for start in range(0, block.kv_heads, step):
            yield range(start, min(start + step, block.kv_heads))

    def _mixed(self, block: LayerConfig, x: Tensor, weights: LayerWeights, heads: range) -> Tensor:
        """Attention's result for some key-value heads, (b, n, their query heads * head_dim)."""
        query, key, value = self._query_key_value(block, x, weights, heads)
        if block.names.query_norm is not None and block.names.key_norm is not None:
            query = normalise(self.config.norm, query, weights, block.names.query_norm)
            key = normalise(self.config.norm, key, weights, block.names.key_norm)
        return self.mix(block, query, key, value)

    def mix(self, block: LayerConfig, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention among the n positions, (b, n, heads * head_dim)."""
        rotations = None
        if block.rope is not None:
            length, device = query.shape[1], query.device
            rotations = rotations_of(block.rope, self.config.rotary_dims, length, device)
        return attend(
            query,
            key,
            value,
            rotations=rotations,
            scale=self.config.attention_scale,
            soft_cap=self.config.attention_soft_cap,
            window=block.window,
        )

    def _query_key_value(
        self, block: LayerConfig, x: Tensor, weights: LayerWeights, heads: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of some key-value heads, each (b, n, heads, head_dim)."""
        names, head_dim = block.names, self.config.head_dim
        per_kv_head = block.query_heads_per_kv_head
        shape = (*x.shape[:2], -1, head_dim)
        queries = _span(heads, per_kv_head * head_dim)
        keys = _span(heads, head_dim)
        if names.query_key_value is None:
            parts = ((names.query, queries), (names.key, keys), (names.value, keys))
            query, key, value = (
                self._linear(x, weights, str(name), outputs).view(shape) for name, outputs in parts
            )
            return query, key, value
        if self.config.qkv_interleaved:
            outputs = _span(heads, 3 * head_dim)
            fused = self._linear(x, weights, names.query_key_value, outputs)
            query, key, value = fused.view(*x.shape[:2], -1, 3 * head_dim).chunk(3, dim=-1)
            return query, key, value
        if len(heads) < block.kv_heads:
            keys_at = block.query_heads * head_dim
            values_at = keys_at + block.kv_heads * head_dim
            spans = (queries, _shifted(keys, keys_at), _shifted(keys, values_at))
            query, key, value = (
                self._linear(x, weights, names.query_key_value, span).view(shape) for span in spans
            )
            return query, key, value
        fused = self._linear(x, weights, names.query_key_value)
        query, key, value = torch.split(fused, [len(queries), len(keys), len(keys)], dim=-1)
        return query.reshape(shape), key.reshape(shape), value.reshape(shape)

    def _ffn(
        self,
        block: LayerConfig,
        x: Tensor,
        weights: LayerWeights,
        inputs: dict[str, SiteInput] | None,
    ) -> Tensor:
        if block.names.router is not None:
            return self._experts(block, x, weights, inputs)
        activations = self._activations(block, 0, x, weights)
        if inputs is not None:
            inputs["ffn"] = SiteInput(activations.reshape(-1, activations.shape[-1]))
        return self._linear(activations, weights, block.names.down)

    def _activations(
        self, block: LayerConfig, expert: int, x: Tensor, weights: LayerWeights
    ) -> Tensor:
        """Input of the down projection, (..., f)."""
        names, width = block.names, block.ffn_widths[expert]
        activate = _ACTIVATIONS[self.config.activation]
        if self.config.transposed:
            return activate(self._linear(x, weights, str(names.up).format(expert)))
        panels = list(output_panels(weights, width))
        if len(panels) == 1:
            return self._channels(block, expert, x, weights, panels[0])
        result = x.new_empty(*x.shape[:-1], width)
        for channels in panels:
            result[..., channels.start : channels.stop] = self._channels(
                block, expert, x, weights, channels
            )
        return result

    def _channels(
        self, block: LayerConfig, expert: int, x: Tensor, weights: LayerWeights, channels: range
    ) -> Tensor:
        """Some channels of the input of the down projection, (..., channels)."""
        names, activate = block.names, _ACTIVATIONS[self.config.activation]
        if names.gate_up is not None:
            name, width = names.gate_up.format(expert), block.ffn_widths[expert]
            if len(channels) == width:
                gate, up = self._linear(x, weights, name).chunk(2, dim=-1)
                return activate(gate) * up
            up = self._linear(x, weights, name, _shifted(channels, width))
            return activate(self._linear(x, weights, name, channels)) * up
        up = self._linear(x, weights, str(names.up).format(expert), channels)
        if names.gate is None:
            return activate(up)
        return activate(self._linear(x, weights, names.gate.format(expert), channels)) * up

    def _experts(
        self,
        block: LayerConfig,
        x: Tensor,
        weights: LayerWeights,
        inputs: dict[str, SiteInput] | None,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        logits = functional.linear(flat, weights[f"{block.names.router}.weight"])
        share, chosen = logits.softmax(-1).topk(self.config.experts_per_token, dim=-1)
        if self.config.normalise_routing:
            share = share / share.sum(-1, keepdim=True)
        output, flat = torch.zeros_like(flat), flat.to(self.dtype)
        for expert in range(len(block.ffn_widths)):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            rows = self._activations(block, expert, flat[tokens], weights)
            rows = (rows * share[tokens, place, None]).to(self.dtype)
            if inputs is not None:
                inputs[f"expert.{expert}"] = SiteInput(rows, tokens)
            added = self._linear(rows, weights, block.names.down.format(expert))
            output.index_add_(0, tokens, added.float())
            del rows, added  # Freed before the next expert's are made.
        return output.view_as(x)

    def _linear(
        self, x: Tensor, weights: LayerWeights, name: str, outputs: range | None = None
    ) -> Tensor:
        return linear(x, weights, name, transposed=self.config.transposed, outputs=outputs)


def _span(items: range, size: int) -> range:
    """Indices of consecutive items of equal size."""
    return range(items.start * size, items.stop * size)


def _shifted(items: range, by: int) -> range:
    return range(items.start + by, items.stop + by)


@lru_cache(maxsize=4)
def rotations_of(
    rope: RopeConfig, dims: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions of a sequence, each (length x dims)."""
    with torch.inference_mode(mode=False):  # The cached tensors may be used with autograd later.
        speeds = inverse_frequencies(rope, dims, length)
        return cosines_and_sines(speeds.to(device), length, rope.amplitude)


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": _tanh_gelu,
    "relu": functional.relu,
}
