"""The damage curve of a wide FFN in float64, and in float32 with its checks.

    .venv/bin/python -m benchmarks.wide_curve [--channels 11008] [--hidden 4096] [--json FILE]

One layer of LLaMA-7B's shape by default. The statistics are those of made-up activations: some
strong directions, and energies of channels that differ widely. Prints processor time, and how much
the two curves differ. Needs about 8 GB of memory at the default width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.output import tell, write_result
from strucprune_core.method.layer.damage_curve import DamageCurve, damage_curve
from strucprune_core.method.linalg.matrices import Room

_SHARES = (0.1, 0.3, 0.5, 0.7)
_CPU = torch.device("cpu")


def statistics(channels: int, seed: int = 0) -> Tensor:
    """A Gram matrix: of a few strong directions, and of channels by themselves."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(channels // 8, channels, generator=draw)
    directions *= torch.logspace(0, -2, len(directions))[:, None]
    energies = torch.randn(channels, generator=draw).exp()
    directions *= energies.sqrt()
    gram = directions.T @ directions
    gram.diagonal().add_(energies)
    return gram


def timed(gram: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[DamageCurve, float]:
    """A curve, and the processor seconds that it took."""
    began = time.process_time()
    curve = damage_curve(gram, weight, room=Room(_CPU, dtype=dtype))
    return curve, time.process_time() - began


def compare(channels: int, hidden: int) -> dict[str, Any]:
    """Both curves of one site."""
    gram = statistics(channels)
    weight = torch.randn(hidden, channels, generator=torch.Generator().manual_seed(1))
    wide, seconds = timed(gram, weight, torch.float64)
    narrow, seconds_narrow = timed(gram, weight, torch.float32)
    same = {}
    for share in _SHARES:
        count = int(share * channels)
        first = [set(curve.order[:count].tolist()) for curve in (wide, narrow)]
        damage = [float(curve.damage[:count].sum()) for curve in (wide, narrow)]
        same[f"{share:g}"] = {
            "same_channels": len(first[0] & first[1]) / count,
            "damage_ratio": damage[1] / damage[0],
        }
    return {
        "channels": channels,
        "hidden": hidden,
        "threads": torch.get_num_threads(),
        "float64_cpu_seconds": round(seconds, 2),
        "float32_cpu_seconds": round(seconds_narrow, 2),
        "float32_was_used": narrow.dtype == torch.float32,
        "by_share_removed": same,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wide_curve", description=__doc__)
    parser.add_argument("--channels", type=int, default=11_008)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    result = compare(options.channels, options.hidden)
    tell(json.dumps(result, indent=2))
    write_result(options.json, result)


if __name__ == "__main__":
    main()
