"""What is tried: a runtime, and the form of a pruned checkpoint that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.runtimes.protocol import How
from strucprune_core.export.runtimes import RUNTIMES, Form

Runtime = Literal[
    "transformers", "transformers 4.51", "transformers 4.57", "MLX", "llama.cpp", "vLLM"
]
FAMILY = "llama"
# Tried on tiny random models: in transformers as reference, and in vLLM.
TINY_FAMILIES = ("qwen2", "qwen3", "gemma3_text", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        runtime: That is to load it.
        form: Of the result.
        checkpoint: Of `checkpoints.PRUNINGS`.
        how: With the checkpoint's own code or without.
        family: Of the model; any but llama is a tiny random one.
    """

    runtime: Runtime
    form: Form
    checkpoint: str
    how: How = "plain"
    family: str = FAMILY

    @property
    def name(self) -> str:
        """Of a folder, and in progress messages."""
        runtime = self.runtime.replace(".", "_").replace(" ", "_")
        return "-".join([runtime, self.form, self.checkpoint, self.how])

    @property
    def claimed(self) -> bool:
        """Whether the library says that the runtime loads this."""
        return any(
            form.form == self.form and self.family in form.families
            for runtime in RUNTIMES
            if runtime.name == self.runtime.partition(" ")[0]
            for form in runtime.loads
        )

    def pruned_path(self, checkpoint: Path) -> Path:
        """What the runtime gets of a checkpoint's directory."""
        if self.form == "gguf":
            return checkpoint / "gguf" / "model.gguf"
        return checkpoint / "block_configs" if self.form == "block_configs" else checkpoint

    def dense_path(self, model: Path, dense_gguf: Path) -> Path:
        """What it is compared with."""
        return dense_gguf if self.form == "gguf" else model


_EARLIER: tuple[Runtime, ...] = ("transformers 4.51", "transformers 4.57")
_IN_EARLIER: tuple[tuple[Form, str, How], ...] = (
    ("uniform", "uniform", "plain"),
    ("per_layer", "per_layer", "trust_remote_code"),
    ("per_layer", "per_layer_heads", "trust_remote_code"),
)

# transformers comes first: the others are compared with it.
CASES = (
    Case("transformers", "uniform", "uniform"),
    Case("transformers", "per_layer", "per_layer", "trust_remote_code"),
    Case("transformers", "per_layer", "per_layer", "load_pretrained"),
    Case("transformers", "per_layer", "per_layer", "register"),
    Case("transformers", "per_layer", "per_layer_256", "trust_remote_code"),
    Case("transformers", "per_layer", "per_layer_heads", "trust_remote_code"),
    *(
        Case(release, form, checkpoint, how)
        for release in _EARLIER
        for form, checkpoint, how in _IN_EARLIER
    ),
    Case("MLX", "uniform", "uniform"),
    Case("MLX", "block_configs", "per_layer"),
    Case("MLX", "block_configs", "per_layer_256"),
    Case("MLX", "per_layer", "per_layer"),
    Case("llama.cpp", "gguf", "uniform"),
    Case("llama.cpp", "gguf", "per_layer"),
    Case("llama.cpp", "gguf", "per_layer_heads"),
    Case("vLLM", "uniform", "uniform"),
    Case("vLLM", "block_configs", "per_layer", "trust_remote_code"),
    Case("vLLM", "block_configs", "per_layer_256", "trust_remote_code"),
    Case("vLLM", "per_layer", "per_layer"),
    Case("vLLM", "per_layer", "per_layer_heads"),
    *(
        case
        for family in TINY_FAMILIES
        for case in (
            Case("transformers", "per_layer", family, "load_pretrained", family),
            Case("vLLM", "per_layer", family, family=family),
        )
    ),
)
