"""Names that other files of an architecture give to its layers, embedding and head."""

from __future__ import annotations

from strucprune_core.models.generic.architectures import Architecture
from strucprune_core.models.generic.names import ParameterNames

# (layer, embedding, head) as published files have them.
_CANDIDATES = (
    ("model.layers.{}.", "model.embed_tokens.weight", "lm_head.weight"),
    (
        "language_model.model.layers.{}.",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    ),
    (
        "model.language_model.layers.{}.",
        "model.language_model.embed_tokens.weight",
        "lm_head.weight",
    ),
    ("language_model.layers.{}.", "language_model.embed_tokens.weight", "lm_head.weight"),
)


def other_names(
    found: Architecture, names: ParameterNames, role: str
) -> tuple[tuple[str, str, str], ...]:
    """The other names by which transformers knows the same parameters; `role` is one of a layer."""

    def parameters(layer: str, embedding: str) -> tuple[str, str]:
        stored = (layer.format(0) + role, embedding)
        first, second = (names.parameter_of(name)[0] for name in stored)
        return first, second

    own = parameters(found.layer, found.embedding)
    return tuple(
        each
        for each in _CANDIDATES
        if each[0] != found.layer and parameters(each[0], each[1]) == own
    )
