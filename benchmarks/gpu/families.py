"""Tiny models of all families, pruned on the CPU and on the device: the same result?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.jobs import Text, Units, job, make_model, run
from benchmarks.gpu.record import Keep
from benchmarks.runtimes.prunings import FAMILIES, MIXTURES
from benchmarks.runtimes.tiny import tiny_config
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import StrucPruneError
from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import next_token_logits
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.storage.local import LocalStore

OUTPUT_TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit. Both compute in float32."""

DAMAGE_TOLERANCE = 1e-3
"""Other widths are a near tie if the predicted damage of both differs by at most this share."""

PERPLEXITY_TOLERANCE = 0.005
"""Relative, of the pruned model's perplexity. Both results are stored in bfloat16."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is tried."""

    families: Sequence[str] = (*FAMILIES, *MIXTURES)
    vocabulary: int = 512
    text: Text = field(default_factory=lambda: Text(16, 64))
    windows: int = 4
    """Of random tokens, that outputs and perplexity are of."""
    scale: float = 0.15
    """Of the weights: layers matter, and experts are told apart."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a device made of a model: the dense model's logits, then the pruned one."""

    logits: Tensor
    widths: list[int]
    damage: float
    perplexity: float


def measure(device: str, folder: Path, keep: Keep, settings: Settings = Settings()) -> None:
    """Compare the families one after the other."""
    rows: dict[str, Any] = {}
    about = {
        "output_tolerance": OUTPUT_TOLERANCE,
        "damage_tolerance": DAMAGE_TOLERANCE,
        "perplexity_tolerance": PERPLEXITY_TOLERANCE,
    }
    for family in dict.fromkeys(settings.families):
        try:
            rows[family] = _row(family, device, folder / family, settings)
        except (StrucPruneError, torch.OutOfMemoryError) as error:
            rows[family] = {"error": str(error), "agrees": False}
        keep({**about, "families": rows})


def _row(family: str, device: str, folder: Path, settings: Settings) -> dict[str, Any]:
    raw = tiny_config(family, settings.vocabulary).to_dict()
    model = make_model(folder, raw, settings.text, "cpu", scale=settings.scale)
    return compared(*(_result(model, each, folder, settings) for each in ("cpu", device)))


def _result(model: tuple[Path, Path], device: str, folder: Path, settings: Settings) -> Result:
    root = folder / f"on_{device}_{len(list(folder.iterdir()))}"
    # In float32, since the CPU is what is compared with.
    spec = job(model, root, settings.text, device, runtime={"precision": "float32"})
    report = run(spec, root, Units(lambda found: None))
    assert isinstance(report, Report)  # Nothing stops it.
    draw = np.random.default_rng(0)
    shape = (settings.windows, settings.text.sequence_length)
    tokens = draw.integers(0, settings.vocabulary, size=shape, dtype=np.int32)
    dense, pruned = _stream(model[0], device), _stream(root / "out", device)
    hidden = final_hidden(dense, tokens, folder, lambda: None)
    logits = next_token_logits(dense, hidden.reshape(-1, hidden.shape[-1]))
    return Result(
        logits=logits.cpu(),
        widths=[layer.width_after for layer in report.layers],
        damage=sum(layer.predicted_damage for layer in report.layers),
        perplexity=perplexity(pruned, tokens, folder),
    )


def _stream(model: Path, device: str) -> ModelStream:
    facts = inspect_model(LocalStore(model))
    return ModelStream(facts.config, TensorReader(facts.index), torch.device(device))


def compared(expected: Result, found: Result) -> dict[str, Any]:
    """How far two devices agree on a model: first that of the CPU."""
    largest = float(expected.logits.abs().max())
    output = float((found.logits - expected.logits).abs().max()) / largest
    damage = abs(found.damage / expected.damage - 1.0)
    share = abs(found.perplexity / expected.perplexity - 1.0)
    same = found.widths == expected.widths
    return {
        "output_difference": output,
        "widths_equal": same,
        "damage_difference": damage,
        "perplexity_difference": share,
        "agrees": output <= OUTPUT_TOLERANCE
        and (same or damage <= DAMAGE_TOLERANCE)
        and share <= PERPLEXITY_TOLERANCE,
    }
