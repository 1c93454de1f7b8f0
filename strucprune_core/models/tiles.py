"""Sizes of the pieces resident at a time. No torch: planner and execution share them.

They are large enough for matrix products to run at full speed, and small next to a decoder layer.
"""

from __future__ import annotations

from dataclasses import dataclass

HOLDOUT_TOKENS = 4096
"""Most held-out tokens that are kept to compute a layer's error."""

VERIFY_SEQUENCES, VERIFY_TOKENS = 2, 64
"""Sequences that the reload checks run through a checkpoint, and their length."""

MODEL_CHECK_LAYERS = 6
"""Most layers that the check of the dense model runs."""


DEFAULT_TOKENS = 4096
"""Tokens of a micro-batch where nothing is known of the device."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes that make a job fit into memory; `plan.pieces` chooses them.

    Attributes:
        micro_batch_tokens: Tokens run through a layer at a time: whole sequences, at least one.
        weight_rows: Rows of a layer's matrix resident at a time; None: a whole layer.
        vocabulary_rows: Rows of the embedding or LM head resident at a time.
        head_tokens: Tokens multiplied with a vocabulary tile at a time: a tile of logits is 32 MiB
            by default.
        expert_by_expert: Whether matrices of a layer's experts are read when they are used, so that
            one expert is resident at a time. For layers in transformers' modules.
        operand_bytes: What the plan counts for an operand of a layer's matrix products: see
            `models.precision`.
        layers_ahead: Layers that are read, whole, before they are wanted: 0, or 1 while another one
            computes.
        resident_tokens: Hidden states of at most so many tokens stay on the device while they pass
            several layers. Those of more tokens are in scratch between layers.
    """

    micro_batch_tokens: int = DEFAULT_TOKENS
    weight_rows: int | None = None
    vocabulary_rows: int = 4096
    head_tokens: int = 2048
    expert_by_expert: bool = False
    operand_bytes: int = 4
    layers_ahead: int = 0
    resident_tokens: int = 0

    @property
    def whole_layers(self) -> bool:
        """Whether layers are resident whole."""
        return self.weight_rows is None and not self.expert_by_expert

    @property
    def reads_ahead(self) -> bool:
        """Whether a layer is read before it is wanted."""
        return self.layers_ahead > 0 and self.whole_layers
