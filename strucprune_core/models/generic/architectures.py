"""The architectures whose channels are known: a table made by `python -m tests.coverage`. No torch.

The table holds, for each model type of transformers that is not written out in `families`, how its
files name the decoder layers, and which slices of which tensors make a channel. It was found by
trying on tiny models (`models.generic.detect`), and every entry was pruned and loaded again. What a
job's own config makes of it is checked on its own layers before any heavy work
(`evaluation.model_check`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from strucprune_core.models.config import ChannelSource, ModelNames

TABLE = "architectures.json"


@dataclass(frozen=True, slots=True)
class ChannelPattern:
    """Channels of an FFN, wherever a layer has these tensors.

    Attributes:
        output: Name within the layer of the matrix after the activation.
        axis: The axis of that matrix's inputs.
        sources: What makes the channels.
    """

    output: str
    axis: int
    sources: tuple[ChannelSource, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What files and modules of a model type look like.

    Attributes:
        layer: What the names of a layer's tensors begin with; `{}` is its number.
        embedding: Tensor of the token embedding.
        head: Tensor of the LM head.
        head_bias: Tensor of its bias; None if there is none.
        tied: Whether the head is the embedding where config.json does not say.
        layer_returns: See `config.GenericModel`.
        keeps_scores: See `config.GenericModel`.
        encoder: Whether its layers see what follows a token, unless config.json says `is_decoder`.
        streams_key: Key of config.json with the number of hidden states of a token, between
            layers; None if it is one.
        streams_apart: Whether they are apart, not one long vector.
        streams_axis: Where, see `config.GenericModel`.
        streams_more: How many more there are than the key says.
        tokens_key: Key of config.json that is 0 where layers are given nothing that depends on
            token ids; "" if they always are; None if they never are.
        reads_embedding: Whether what they are given depends on the tokens' embeddings too.
        shares_keys: Whether config.json can let later layers attend to keys and values of earlier
            ones (`num_kv_shared_layers`).
        handed: What a layer returns for the next one: (argument, place, key of config.json with the
            number of columns, whether they are integers), see `config.HandedOn`.
        spared_key: Key of config.json that says which layers keep all channels; None if none do.
        spared_numbers: Whether it lists the numbers of these layers; else it has a value for each
            layer, not 0 for these.
        context_key: Key of config.json with the longest sequence; None if there is none.
        channels: The FFNs whose channels can be removed.
        other_names: (layer, embedding, head) as other files of the architecture have them: those
            of older releases, or of a language model by itself.
    """

    layer: str
    embedding: str
    head: str
    head_bias: str | None
    tied: bool
    layer_returns: str | tuple[str, ...]
    context_key: str | None
    channels: tuple[ChannelPattern, ...]
    other_names: tuple[tuple[str, str, str], ...] = ()
    keeps_scores: bool = False
    encoder: bool = False
    streams_key: str | None = None
    streams_apart: bool = False
    streams_axis: int = 2
    streams_more: int = 0
    tokens_key: str | None = None
    reads_embedding: bool = False
    shares_keys: bool = False
    handed: tuple[str, int, str, bool] | None = None
    spared_key: str | None = None
    spared_numbers: bool = False

    def named_as_in(self, tensors: Collection[str]) -> Architecture:
        """The architecture with the names that these tensors have."""
        for layer, embedding, head in self.other_names:
            if self.embedding not in tensors and embedding in tensors:
                return replace(self, layer=layer, embedding=embedding, head=head)
        return self

    @property
    def names(self) -> ModelNames:
        """The names of what lies outside the layers, and of the layers."""
        return ModelNames(self.embedding, self.layer, None, self.head, head_bias=self.head_bias)


@cache
def table() -> dict[str, Any]:
    """The table as it is stored: `transformers` (the version) and `model_types`."""
    text = resources.files("strucprune_core.models.generic").joinpath(TABLE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def architecture(model_type: str) -> Architecture | None:
    """The entry of a model type; None if it is not in the table, or refused there."""
    entry = table()["model_types"].get(model_type, {})
    return architecture_of(entry["architecture"]) if "architecture" in entry else None


def generic_model_types() -> tuple[str, ...]:
    """The model types that the table has channels for."""
    entries = table()["model_types"].items()
    return tuple(name for name, entry in entries if "architecture" in entry)


def refusal(model_type: str) -> str | None:
    """Why a model type that transformers has cannot be pruned; None if it can, or is unknown."""
    reason: str | None = table()["model_types"].get(model_type, {}).get("refused")
    return reason


def architecture_of(entry: dict[str, Any]) -> Architecture:
    """An entry as stored, made an object."""
    returns = entry["layer_returns"]
    return Architecture(
        layer=entry["layer"],
        embedding=entry["embedding"],
        head=entry["head"],
        head_bias=entry["head_bias"],
        tied=entry["tied"],
        layer_returns=returns if isinstance(returns, str) else tuple(returns),
        context_key=entry["context_key"],
        channels=tuple(
            ChannelPattern(
                each["output"],
                each["axis"],
                tuple(
                    ChannelSource(
                        source["tensor"],
                        source["axis"],
                        tuple((offset, size) for offset, size in source["segments"]),
                    )
                    for source in each["sources"]
                ),
            )
            for each in entry["channels"]
        ),
        other_names=tuple(
            (layer, embedding, head) for layer, embedding, head in entry.get("other_names", ())
        ),
        keeps_scores=entry.get("keeps_scores", False),
        encoder=entry.get("encoder", False),
        streams_key=entry.get("streams_key"),
        streams_apart=entry.get("streams_apart", False),
        streams_axis=entry.get("streams_axis", 2),
        streams_more=entry.get("streams_more", 0),
        tokens_key=entry.get("tokens_key"),
        reads_embedding=entry.get("reads_embedding", False),
        shares_keys=entry.get("shares_keys", False),
        handed=_handed(entry.get("handed")),
        spared_key=entry.get("spared_key"),
        spared_numbers=entry.get("spared_numbers", False),
    )


def _handed(stored: list[Any] | None) -> tuple[str, int, str, bool] | None:
    if stored is None:
        return None
    argument, place, key, integers = stored
    return argument, place, key, integers
