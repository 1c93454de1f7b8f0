"""How memory grows with the model: planned for the shapes of OPT and LLaMA, measured for some.

    .venv/bin/python -m benchmarks.memory_scaling --json benchmarks/results/memory_scaling.json \
        --plot docs/memory_scaling.svg
    .venv/bin/python -m benchmarks.memory_scaling --measure opt-125m opt-350m

The planned peak on the device is that of `strucprune estimate` without a limit, at 32 x 512
calibration tokens and 24 x 1024 for evaluation. It is compared with a resident layer (the layer,
its Gram matrix and what is made of it when channels are removed) and a resident model, in float32.
The exponent of a family is the slope of a straight line through log(peak) over log(N).

A peak does not depend on the number of layers. So a shape is measured on a model of two layers with
random weights. The whole job runs under a limit, which counts live tensors: what it takes without
one. So its pieces may be others, but not larger in all.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.line_plot import Axis, Line, Plot
from benchmarks.output import write_result
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.memory.device import device_terms
from strucprune_core.plan.pieces import MARGIN, plan_job
from strucprune_core.spec import JobSpec

MEASURED_LAYERS = 2
# Hidden size, FFN channels, layers, heads, key-value heads (Zhang et al. 2022, table 1; Touvron et
# al. 2023; Grattafiori et al. 2024).
OPT = {
    "opt-125m": (768, 3072, 12, 12),
    "opt-350m": (1024, 4096, 24, 16),
    "opt-1.3b": (2048, 8192, 24, 32),
    "opt-2.7b": (2560, 10240, 32, 32),
    "opt-6.7b": (4096, 16384, 32, 32),
    "opt-13b": (5120, 20480, 40, 40),
    "opt-30b": (7168, 28672, 48, 56),
    "opt-66b": (9216, 36864, 64, 72),
    "opt-175b": (12288, 49152, 96, 96),
}
LLAMA = {
    "llama-7b": (4096, 11008, 32, 32, 32, 32000),
    "llama-13b": (5120, 13824, 40, 40, 40, 32000),
    "llama-33b": (6656, 17920, 60, 52, 52, 32000),
    "llama-65b": (8192, 22016, 80, 64, 64, 32000),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128256),
    "llama-3-405b": (16384, 53248, 126, 128, 8, 128256),
}


@dataclass(frozen=True)
class Row:
    """One shape; bytes."""

    family: str
    name: str
    parameters: int
    planned: int
    resident_layer: int
    resident_model: int
    largest_step: str
    measured: int | None = None
    planned_for_measured: int | None = None


def main() -> int:
    """Plan all shapes and measure some."""
    options = _parse(sys.argv[1:])
    rows = [_row(family, name, raw) for family, name, raw in _shapes()]
    rows = [_measured(row) if row.name in options.measure else row for row in rows]
    exponents = {
        family: _exponent([row for row in rows if row.family == family])
        for family in dict.fromkeys(row.family for row in rows)
    }
    print(table(rows, exponents))
    write_result(options.json, {"exponents": exponents, "rows": [asdict(row) for row in rows]})
    if options.plot:
        options.plot.write_text(plot(rows, exponents), encoding="utf-8")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = [name for _, name, _ in _shapes()]
    parser.add_argument("--measure", nargs="*", choices=names, default=[], metavar="SHAPE")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--plot", type=Path, help="where the SVG goes")
    return parser.parse_args(arguments)


def _shapes() -> list[tuple[str, str, dict[str, Any]]]:
    families = {"OPT": list(OPT), "LLaMA": list(LLAMA)}
    return [
        (family, name, raw_config(name)) for family, names in families.items() for name in names
    ]


def raw_config(name: str) -> dict[str, Any]:
    """The shape's config.json."""
    if name in OPT:
        hidden, channels, layers, heads = OPT[name]
        return {
            "model_type": "opt",
            "hidden_size": hidden,
            "ffn_dim": channels,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "word_embed_proj_dim": 512 if name == "opt-350m" else hidden,
            "do_layer_norm_before": name != "opt-350m",
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "activation_function": "relu",
            "enable_bias": True,
            "tie_word_embeddings": True,
        }
    hidden, channels, layers, heads, kv_heads, vocabulary = LLAMA[name]
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": channels,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _job(model: str = "/model", **more: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"uri": model},
            "output": {"uri_prefix": "/out"},
            "pruning": {"sparsity": 0.3},
            "calibration": {"uri": "/text.txt", "samples": 32, "sequence_length": 512},
            "evaluation": {"uri": "/text.txt", "sequences": 24, "sequence_length": 1024},
            **more,
        }
    )


def _row(family: str, name: str, raw: dict[str, Any]) -> Row:
    config = parse_config(raw)
    plan = plan_job(_job(), config)
    whole = device_terms(_job(), config, replace(plan.tiles, weight_rows=None), Panels())
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    return Row(
        family=family,
        name=name,
        parameters=parameters,
        planned=plan.device_peak_bytes,
        resident_layer=max(whole.values()),
        resident_model=4 * parameters,
        largest_step=max(plan.device_terms, key=plan.device_terms.__getitem__),
    )


def _exponent(rows: list[Row]) -> float:
    sizes = np.log([row.parameters for row in rows])
    return float(np.polyfit(sizes, np.log([row.planned for row in rows]), 1)[0])


def _measured(row: Row) -> Row:
    """Run the job on two layers of the shape and count."""
    from benchmarks.random_model import save_random_model
    from strucprune_core.pipeline import prune
    from strucprune_core.storage.local import LocalStore

    raw = {**raw_config(row.name), "num_hidden_layers": MEASURED_LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = save_random_model(root / "model", raw)
        (root / "workspace").mkdir()
        limit = math.ceil(plan_job(_job(), parse_config(raw)).device_peak_bytes * MARGIN)
        spec = _job(
            str(root / "model"),
            output={"uri_prefix": str(root / "out")},
            calibration={"uri": str(text), "samples": 32, "sequence_length": 512},
            evaluation={
                "uri": str(text),
                "sequences": 4,
                "sequence_length": 1024,
                "max_perplexity_ratio": 1e9,
            },
            runtime={"device_memory_bytes": limit},
        )
        plan = plan_job(spec, parse_config(raw))
        report = prune(spec, workspace=LocalStore(root / "workspace"), scratch=root / "scratch")
    print(f"{row.name}: {report.memory.device_peak_bytes.measured}", file=sys.stderr, flush=True)
    return replace(
        row,
        measured=report.memory.device_peak_bytes.measured,
        planned_for_measured=plan.device_peak_bytes,
    )


def table(rows: list[Row], exponents: dict[str, float]) -> str:
    """Everything as Markdown."""
    lines = [
        "| model | parameters | planned | largest step | resident layer | resident model "
        "| measured (two layers) | planned for it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.parameters / 1e9:.2f} B | {_shown(row.planned)} "
            f"| {row.largest_step} | {_shown(row.resident_layer)} | {_shown(row.resident_model)} "
            f"| {_shown(row.measured)} | {_shown(row.planned_for_measured)} |"
        )
    fits = ", ".join(f"{family} N^{exponent:.2f}" for family, exponent in exponents.items())
    return "\n".join([*lines, "", f"Planned peak grows as {fits}."])


def _shown(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"


def plot(rows: list[Row], exponents: dict[str, float]) -> str:
    """Bytes over parameters, as an SVG document."""
    lines: list[Line] = []
    for family, exponent in exponents.items():
        own = [row for row in rows if row.family == family]
        named = {
            f"{family}: StrucPrune, N^{exponent:.2f}": [row.planned for row in own],
            f"{family}: resident layer": [row.resident_layer for row in own],
            f"{family}: resident model": [row.resident_model for row in own],
        }
        for place, (title, values) in enumerate(named.items()):
            points = zip([row.parameters for row in own], values, strict=True)
            lines.append(Line(title, tuple(points), ours=place == 0))
    marks = tuple(
        ((row.parameters, row.measured), f"{row.name}, measured: {_shown(row.measured)}")
        for row in rows
        if row.measured is not None
    )
    return Plot(
        "Peak memory on the device over the size of the model",
        _powers([row.parameters for row in rows], lambda size: f"{size / 1e9:g} B"),
        _powers([value for line in lines for _, value in line.points], _unit),
        dots=False,
        marks=marks,
        below=f"parameters{' (dots: measured)' if marks else ''}",
    ).svg(lines)


def _powers(values: Sequence[float], label: Callable[[float], str]) -> Axis:
    """A logarithmic axis between powers of ten."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = tuple((10.0**power, label(10.0**power)) for power in range(low, high + 1))
    return Axis(10.0**low, 10.0**high, ticks, log=True)


def _unit(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size / 1e3:g} kB"


if __name__ == "__main__":
    sys.exit(main())
