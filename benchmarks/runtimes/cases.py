"""What is tried: a runtime, and the form of a pruned checkpoint that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.runtimes.protocol import How
from benchmarks.runtimes.prunings import (
    FAMILIES,
    GENERIC,
    IN_FP8,
    MIXTURES,
    PRUNINGS,
    WITH_FEWER_HEADS,
)
from strucprune_core.export.checks import FAMILIES as EXPORTED
from strucprune_core.export.runtimes import HEADS, RUNTIMES, Form, LoadableForm
from strucprune_core.spec import GGUF_EXPORTS

Runtime = Literal[
    "transformers", "transformers 4.51", "transformers 4.57", "MLX", "llama.cpp", "vLLM"
]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        runtime: That is to load it.
        form: Of the result.
        checkpoint: Of `prunings.PRUNINGS`.
        how: With the checkpoint's own code or without; or what llama.cpp makes of the file first.
    """

    runtime: Runtime
    form: Form
    checkpoint: str
    how: How = "plain"

    @property
    def name(self) -> str:
        """Of a folder, and in progress messages."""
        runtime = self.runtime.replace(".", "_").replace(" ", "_")
        return "-".join([runtime, self.form, self.checkpoint, self.how])

    @property
    def family(self) -> str:
        """Of the model."""
        return PRUNINGS[self.checkpoint].family

    @property
    def claimed(self) -> bool:
        """Whether the library says that the runtime loads this."""
        name, _, release = self.runtime.partition(" ")
        return any(
            form.form == self.form
            and self.family in form.families
            and not PRUNINGS[self.checkpoint].structures.intersection(form.not_without)
            and not (form.full_heads and PRUNINGS[self.checkpoint].structures & HEADS)
            and self._reached(form, release)
            for runtime in RUNTIMES
            if runtime.name == name
            for form in runtime.loads
        )

    def _reached(self, form: LoadableForm, release: str) -> bool:
        """Whether a release, "" for the newest, is as late as the form asks for."""
        least = form.blocks_since if PRUNINGS[self.checkpoint].missing else form.since
        return not release or least is None or _numbers(least) <= _numbers(release)

    @property
    def compared_with(self) -> tuple[str, bool]:
        """Cases of which this is the same are compared with the first of them.

        A checkpoint in FP8 computes something else; in Q8_0 its values are only rounded.
        """
        return self.checkpoint, self.form == "fp8"

    @property
    def timed(self) -> bool:
        """Whether its speed is measured, beside the dense model's.

        On a CPU, FP8 is computed in float32: slower than without.
        """
        return self.claimed and not PRUNINGS[self.checkpoint].tiny and self.form != "fp8"

    @property
    def shows_dense(self) -> bool:
        """Whether the dense model is loaded beside it, timed or not.

        What fewer bits do to the dense model says what they may do to this one.
        """
        pruning = PRUNINGS[self.checkpoint]
        wanted = not pruning.tiny or pruning.settings.get("exports") == ["gguf_q8_0"]
        computes_it = self.runtime in ("transformers", "llama.cpp") and self.form != "fp8"
        return self.claimed and wanted and computes_it

    def pruned_path(self, checkpoint: Path) -> Path:
        """What the runtime gets of a checkpoint's directory."""
        folder = checkpoint if self.form in ("per_layer", "uniform") else checkpoint / self.form
        return folder / "model.gguf" if self.form in GGUF_EXPORTS else folder


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


_EARLIER: tuple[Runtime, ...] = ("transformers 4.51", "transformers 4.57")
_IN_EARLIER: tuple[tuple[Form, str, How], ...] = (
    ("uniform", "uniform", "plain"),
    ("per_layer", "per_layer", "trust_remote_code"),
    ("per_layer", "per_layer_heads", "trust_remote_code"),
)
_REAL = (
    Case("transformers", "uniform", "uniform"),
    Case("transformers", "per_layer", "per_layer", "trust_remote_code"),
    Case("transformers", "per_layer", "per_layer", "load_pretrained"),
    Case("transformers", "per_layer", "per_layer", "register"),
    Case("transformers", "per_layer", "per_layer_256", "trust_remote_code"),
    Case("transformers", "per_layer", "per_layer_heads", "trust_remote_code"),
    Case("transformers", "per_layer", "per_layer_heads", "register"),
    *(
        Case(release, form, checkpoint, how)
        for release in _EARLIER
        for form, checkpoint, how in _IN_EARLIER
    ),
    Case("transformers", "fp8", "per_layer", "register"),
    Case("transformers", "fp8", "uniform"),
    Case("transformers", "uniform", "uniform_heads"),
    Case("MLX", "uniform", "uniform"),
    Case("MLX", "uniform", "uniform_heads"),
    Case("MLX", "block_configs", "per_layer"),
    Case("MLX", "block_configs", "per_layer_256"),
    Case("MLX", "per_layer", "per_layer"),
    Case("llama.cpp", "gguf", "uniform"),
    Case("llama.cpp", "gguf", "per_layer"),
    Case("llama.cpp", "gguf", "per_layer_heads"),
    Case("llama.cpp", "gguf_q8_0", "per_layer"),
    Case("llama.cpp", "gguf", "per_layer", "Q4_K_M"),
    Case("llama.cpp", "gguf", "per_layer_256", "Q4_K_M"),
    Case("vLLM", "uniform", "uniform"),
    Case("vLLM", "uniform", "uniform_heads"),
    Case("vLLM", "block_configs", "per_layer", "trust_remote_code"),
    Case("vLLM", "block_configs", "per_layer_256", "trust_remote_code"),
    Case("vLLM", "per_layer", "per_layer"),
    Case("vLLM", "per_layer", "per_layer_heads"),
    Case("vLLM", "fp8", "per_layer"),
    Case("vLLM", "fp8", "uniform"),
)


def _uniform(checkpoint: str) -> tuple[Case, ...]:
    return (
        Case("transformers", "uniform", checkpoint),
        Case("vLLM", "uniform", checkpoint),
        Case("MLX", "uniform", checkpoint),
    )


def _by_layer(checkpoint: str) -> tuple[Case, ...]:
    return (
        Case("transformers", "per_layer", checkpoint, "register"),
        *(Case(release, "per_layer", checkpoint, "trust_remote_code") for release in _EARLIER),
        Case("vLLM", "per_layer", checkpoint),
    )


def _in_fp8(checkpoint: str) -> tuple[Case, ...]:
    return (
        Case("transformers", "fp8", checkpoint, "register"),
        Case("vLLM", "fp8", checkpoint),
    )


def _in_q8_0(checkpoint: str) -> tuple[Case, ...]:
    return (
        Case("transformers", "per_layer", checkpoint, "register"),
        Case("llama.cpp", "gguf_q8_0", checkpoint),
    )


def _exported(checkpoint: str) -> tuple[Case, ...]:
    exports = PRUNINGS[checkpoint].settings["exports"]
    return (
        Case("transformers", "per_layer", checkpoint, "register"),
        *([Case("llama.cpp", "gguf", checkpoint)] if "gguf" in exports else []),
        Case("vLLM", "block_configs", checkpoint, "trust_remote_code"),
        Case("MLX", "block_configs", checkpoint),
    )


# For each checkpoint transformers comes first: the others are compared with it.
CASES = (
    *_REAL,
    *(
        case
        for family in FAMILIES
        for case in (
            *_by_layer(f"{family}_heads"),
            *_by_layer(f"{family}_blocks"),
            *_uniform(f"{family}_uniform"),
        )
    ),
    *(
        case
        for family in EXPORTED
        for name in ("channels", "no_attention", "exported_blocks")
        for case in _exported(f"{family}_{name}")
    ),
    *(case for family in WITH_FEWER_HEADS for case in _uniform(f"{family}_uniform_heads")),
    *_uniform("llama_odd_heads"),
    *(case for family in IN_FP8 for case in _in_fp8(f"{family}_fp8")),
    *(case for family in EXPORTED for case in _in_q8_0(f"{family}_q8_0")),
    *(case for family in ("llama", "gpt2", "gpt_neox") for case in _uniform(f"{family}_layers")),
    *(case for family in MIXTURES for case in _uniform(f"{family}_experts")),
    *(
        Case("transformers", "per_layer", f"{family}_channels", how)
        for family in GENERIC
        for how in ("register", "trust_remote_code")
    ),
)
