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
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import StrucPruneError
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

ANY_RATIO = 1e9  # Random weights may lose anything.


@dataclass(frozen=True, slots=True)
class Settings:
    """What is tried."""

    families: Sequence[str] = (*FAMILIES, *MIXTURES)
    vocabulary: int = 512
    text: Text = field(default_factory=lambda: Text(16, 64))
    scale: float = 0.15
    """Of the weights: layers matter, and experts are told apart."""


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
    outputs = [_logits(model[0], each, folder, settings) for each in ("cpu", device)]
    reports = [
        _report(model, folder / f"{number}", each, settings)
        for number, each in enumerate(("cpu", device))
    ]
    return compared(outputs, reports)


def _logits(model: Path, device: str, folder: Path, settings: Settings) -> Tensor:
    store = LocalStore(model)
    reader = TensorReader(open_checkpoint(store))
    stream = ModelStream(inspect_model(store).config, reader, torch.device(device))
    draw = np.random.default_rng(0)
    shape = (2, settings.text.sequence_length)
    tokens = draw.integers(0, settings.vocabulary, size=shape, dtype=np.int32)
    hidden = final_hidden(stream, tokens, folder, lambda: None)
    return next_token_logits(stream, hidden.reshape(-1, hidden.shape[-1])).cpu()


def _report(model: tuple[Path, Path], root: Path, device: str, settings: Settings) -> Report:
    text = settings.text
    evaluation = {
        "uri": str(model[1]),
        "sequences": text.samples // 2,
        "sequence_length": text.sequence_length,
        "max_perplexity_ratio": ANY_RATIO,
    }
    report = run(
        job(model, root, text, device, evaluation=evaluation), root, Units(lambda found: None)
    )
    assert isinstance(report, Report)  # Nothing stops it.
    return report


def compared(outputs: Sequence[Tensor], reports: Sequence[Report]) -> dict[str, Any]:
    """How far two devices agree on a model: first that of the CPU."""
    (expected, found), (here, there) = outputs, reports
    output = float((found - expected).abs().max() / expected.abs().max())
    damages = [sum(layer.predicted_damage for layer in report.layers) for report in reports]
    damage = abs(damages[1] - damages[0]) / max(abs(damages[0]), 1e-30)
    widths = [[layer.width_after for layer in report.layers] for report in reports]
    assert here.perplexity is not None  # Both are evaluated.
    assert there.perplexity is not None
    perplexity = abs(there.perplexity.after / here.perplexity.after - 1.0)
    same = widths[0] == widths[1]
    return {
        "output_difference": output,
        "widths_equal": same,
        "damage_difference": damage,
        "perplexity_difference": perplexity,
        "agrees": output <= OUTPUT_TOLERANCE
        and (same or damage <= DAMAGE_TOLERANCE)
        and perplexity <= PERPLEXITY_TOLERANCE,
    }
