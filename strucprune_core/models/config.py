"""The shape and constants of a decoder, whatever its family. No torch.

A family file (`families/`) turns a checkpoint's `config.json` into one `ModelConfig`, on which all
other code depends instead of model types. `tensors` derives names and shapes from it, `structures`
what can be removed, `decoder` the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormKind = Literal["rms", "rms_plus_one", "layer"]
Residual = Literal["pre_norm", "post_norm", "parallel"]
BlockKind = Literal["attention", "ffn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; `rope` has the formulas.

    Attributes:
        theta: Base of the rotation speeds.
        type: How the speeds are scaled; "default" does not.
        factor: Stretch of the context ("linear", "dynamic", "yarn", "llama3").
        low_freq_factor: Below this many turns per original context, fully stretched ("llama3").
        high_freq_factor: Above this many turns per original context, kept ("llama3").
        original_max_position_embeddings: Context before the stretch, tokens (all but "default" and
            "linear").
        beta_slow, beta_fast: The same bounds for "yarn".
        truncate: Whether the bounds are rounded outwards to whole dimensions ("yarn").
        short_factors, long_factors: Stretch of each pair of dimensions for sequences within the
            original context, and beyond it ("longrope").
        amplitude: Rotated queries and keys are multiplied by it ("yarn", "longrope").
    """

    theta: float = 10_000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    amplitude: float = 1.0


@dataclass(frozen=True, slots=True)
class NormConfig:
    """A normalisation.

    Attributes:
        kind: "rms" scales by the weight, "rms_plus_one" by one plus the weight, "layer" is
            LayerNorm with a bias.
        eps: Added to the variance.
    """

    kind: NormKind
    eps: float


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of one decoder layer's modules, within the layer, by their function. None: absent.

    Attributes:
        query_key_value: All three in one matrix; then `query`, `key` and `value` are None.
        gate_up: Gate and up in one matrix; then `gate` and `up` are None.
        gate: None in an FFN without a gate.
        attention_norm: Before attention (after it in a post-norm model).
        ffn_norm: Before the FFN (after it in a post-norm model).
        attention_output_norm: On the attention's output, before it joins the residual stream.
        ffn_output_norm: On the FFN's output, before it joins the residual stream.
        router: Chooses experts; then the FFN's names hold `{}` for the expert's number.
    """

    attention_output: str
    down: str
    attention_norm: str
    ffn_norm: str
    query: str | None = None
    key: str | None = None
    value: str | None = None
    query_key_value: str | None = None
    gate: str | None = None
    up: str | None = None
    gate_up: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    attention_output_norm: str | None = None
    ffn_output_norm: str | None = None
    router: str | None = None


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Tensors outside the layers, and the prefix of a layer's names (`{}`: its number)."""

    embedding: str
    layer: str
    final_norm: str | None
    head: str
    positions: str | None = None
    project_in: str | None = None
    project_out: str | None = None
    head_bias: str | None = None  # Where it is not named as the head.


@dataclass(frozen=True, slots=True)
class ChannelSource:
    """A tensor whose slices make a channel of an FFN, before its activation.

    Attributes:
        tensor: Its name within the layer.
        axis: The axis of its outputs.
        segments: (offset, size) of channel j's slices: `size` of them from offset * channels
            + j * size. A fused gate and up matrix has two, (0, 1) and (1, 1); one whose rows
            alternate has (0, 2).
    """

    tensor: str
    axis: int
    segments: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The FFN of a layer that runs in transformers' modules (see `models.generic`).

    Attributes:
        name: Unique within the layer: "ffn", or "ffn." and where it is.
        channels: How many it has.
        output: Name within the layer of the matrix after the activation.
        axis: The axis of that matrix's inputs.
        sources: What makes the channels.
    """

    name: str
    channels: int
    output: str
    axis: int
    sources: tuple[ChannelSource, ...]


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a layer that runs in transformers' modules.

    Attributes:
        count: How many there are.
        own: Names within the layer of tensors that each expert has; `{}` is its number.
        sliced: (name, axis) of tensors with a slice for each expert. Slices behind the last
            expert's belong to none, and stay.
    """

    count: int
    own: tuple[str, ...]
    sliced: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class GenericLayer:
    """A layer that runs in transformers' modules: what its files hold of it.

    Attributes:
        tensors: Name within the layer and shape of each tensor.
        feed_forwards: FFNs whose channels can be removed.
        experts: Its routed experts; None if there are none, or it is not known which they are.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    feed_forwards: tuple[FeedForward, ...]
    experts: Experts | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens choose among the experts of a model that runs in transformers' modules.

    Attributes:
        count_keys: Keys of config.json that hold the number of experts of a layer.
        experts: That number.
        chosen: Experts that see a token.
        chosen_from: Where that number comes from, for messages.
        groups: Experts form so many groups of equal size, one after the other.
        chosen_groups: Groups that a token's experts are chosen from.
    """

    count_keys: tuple[str, ...]
    experts: int
    chosen: int
    chosen_from: str
    groups: int
    chosen_groups: int


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Keys and values of one layer that later layers attend to.

    Attributes:
        kind: Type of these layers: those of another type attend to another layer's.
        heads: Key-value heads.
        head_dim: Width of a head.
    """

    kind: str
    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class HandedOn:
    """What a layer returns beside hidden states, for the next one.

    Attributes:
        argument: Under which name the next one takes it.
        place: Where it is in what a layer returns.
        columns: Most numbers of a token; there are fewer where a sequence has fewer tokens.
        integers: Whether they are whole numbers: indices of tokens.
    """

    argument: str
    place: int
    columns: int
    integers: bool


@dataclass(frozen=True, slots=True)
class Carried:
    """What is stored of a token behind its hidden states, for layers that are given more.

    Attributes:
        token_id: Whether its id is.
        embedding: Columns of its row in the embedding's table; 0: it is not stored.
        keys: Keys and values that later layers attend to.
        handed: What a layer hands to the next one; None if nothing.
    """

    token_id: bool = False
    embedding: int = 0
    keys: tuple[SharedKeys, ...] = ()
    handed: HandedOn | None = None

    @property
    def columns(self) -> int:
        """Numbers of a token."""
        keys = sum(2 * each.heads * each.head_dim for each in self.keys)
        handed = 0 if self.handed is None else self.handed.columns
        return int(self.token_id) + self.embedding + keys + handed


@dataclass(frozen=True, slots=True)
class GenericModel:
    """A model that runs in transformers' modules.

    Attributes:
        config_json: Its config.json, from which transformers builds the modules.
        tensors: Name and shape of each tensor outside the layers.
        layer_returns: What a layer returns: "hidden" is its output alone; else a tuple, in which
            each place holds "hidden" or "none".
        keeps_scores: Whether attention holds a number for each pair of tokens and each head.
        streams: Shape of a token's hidden states between layers, where it is not one vector: they
            are stored in a row.
        streams_axis: Where layers have them: 0: before the batch; 1: one sequence after the other,
            as one long one; 2: behind the tokens.
        routing: Set where it is known what experts are.
        carried: What is stored behind them.
    """

    config_json: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    layer_returns: str | tuple[str, ...]
    keeps_scores: bool = False
    streams: tuple[int, ...] = ()
    streams_axis: int = 2
    routing: Routing | None = None
    carried: Carried = Carried()


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One decoder layer.

    Attributes:
        names: Its modules.
        query_heads: Query heads.
        kv_heads: Key-value heads; each serves as many query heads as every other.
        ffn_widths: Channels of the FFN, or of each expert.
        window: Most tokens that attention sees; None: all before.
        rope: Rotary positions; None: the layer has none.
        generic: Set for a layer that runs in transformers' modules, which know the rest.
        without: Blocks that were removed, with their norms: they add nothing to the residual
            stream. Without both the layer hands on what it is given.
    """

    names: LayerNames
    query_heads: int
    kv_heads: int
    ffn_widths: tuple[int, ...]
    window: int | None = None
    rope: RopeConfig | None = None
    generic: GenericLayer | None = None
    without: tuple[BlockKind, ...] = ()

    @property
    def is_removed(self) -> bool:
        """Whether nothing is left of the layer."""
        return len(self.without) == 2

    @property
    def query_heads_per_kv_head(self) -> int:
        """Query heads that share one key-value head."""
        return self.query_heads // self.kv_heads if self.kv_heads else 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder.

    Attributes:
        model_type: As in config.json.
        family: Model type of the dense model: "llama" also for our pruned llamas.
        embedding_size: Width of the token embedding; differs from `hidden_size` where matrices
            project between them.
        rotary_dims: Dimensions of a head that are rotated; the others stay.
        qkv_interleaved: A fused query-key-value matrix holds q, k, v head by head (else all queries
            first).
        transposed: Matrices are stored (in x out).
        position_offset: Rows of the position table before position 0.
        embedding_scale: Embeddings are multiplied by this.
        attention_scale: Attention logits are multiplied by this.
        attention_soft_cap, logit_soft_cap: z becomes cap * tanh(z / cap).
        experts_per_token: Experts that see a token, in layers with a router.
        normalise_routing: Weights of the chosen experts sum to one.
        generic: Set for a model that runs in transformers' modules, which know the rest.
        drafting: Name and shape of each tensor that drafts further tokens: see `models.drafting`.
    """

    model_type: str
    family: str
    names: ModelNames
    blocks: tuple[LayerConfig, ...]
    vocab_size: int
    hidden_size: int
    embedding_size: int
    head_dim: int
    rotary_dims: int
    max_position_embeddings: int
    norm: NormConfig
    activation: Activation
    residual: Residual
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    ffn_bias: bool
    attention_scale: float
    dtype: str
    embedding_scale: float = 1.0
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    qkv_interleaved: bool = False
    transposed: bool = False
    position_offset: int = 0
    experts_per_token: int = 0
    normalise_routing: bool = True
    generic: GenericModel | None = None
    drafting: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.blocks)

    @property
    def intermediate_sizes(self) -> tuple[int, ...]:
        """FFN channels of each layer, all experts together."""
        return tuple(sum(block.ffn_widths) for block in self.blocks)

    @property
    def ffn_channels(self) -> int:
        """FFN channels of all layers together."""
        return sum(self.intermediate_sizes)

    @property
    def head_matrix(self) -> str:
        """Tensor that turns hidden states into logits, (V x embedding size)."""
        return self.names.embedding if self.tie_word_embeddings else self.names.head

    @property
    def kv_cache_values_per_token(self) -> int | None:
        """Numbers that the key-value cache holds for each token; None if that is not known."""
        if self.generic is not None:  # Latent attention and recurrent layers keep other numbers.
            return None
        return sum(2 * block.kv_heads * self.head_dim for block in self.blocks)

    def with_blocks(self, blocks: Sequence[LayerConfig]) -> ModelConfig:
        """The same model with other layer shapes."""
        return replace(self, blocks=tuple(blocks))
