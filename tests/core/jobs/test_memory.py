"""The whole model is never in memory: a model much larger than what pruning may hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.tiny_llama import make_tiny_llama

LAYERS, HIDDEN, WIDTH = 48, 512, 1024
# Growth over the freshly imported process that the job may show, as a share of the model's bytes.
ALLOWED_SHARE = 0.3

_RUN = """
import json, sys
from pathlib import Path
import strucprune_core.evaluation.transformers_reference
from strucprune_core.run.memory_meter import anonymous_bytes
from strucprune_core.spec import JobSpec
from tests.core.jobs.tiny_job import run, tiny_spec

model, text, root = (Path(argument) for argument in sys.argv[1:4])
spec = tiny_spec(model, text, root / "out", pruning=json.loads(sys.argv[4]))
before = anonymous_bytes()
report = run(spec, root)
print(report.memory.host_peak_bytes.measured - before)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deep model, in one file per layer, so that making it does not take the memory either."""
    directory = tmp_path_factory.mktemp("deep") / "model"
    # The tiny model gives tokenizer and config; the weights are those of a deep one.
    make_tiny_llama(directory, layers=1, hidden=HIDDEN, intermediate=WIDTH, heads=8, kv_heads=4)
    _deepen(directory)
    return directory


@pytest.mark.parametrize(
    "pruning",
    [
        {},
        {"energy": "gradient", "rounds": 2, "recover": {"steps": 1}, "distill": {"steps": 1}},
    ],
    ids=str,
)
def test_peak_memory_is_that_of_a_layer(
    model: Path, tmp_path: Path, text_file: Path, pruning: dict[str, Any]
) -> None:
    model_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert model_bytes > 400e6
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _RUN,
            str(model),
            str(text_file),
            str(tmp_path),
            json.dumps(pruning),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert 0 < grown < ALLOWED_SHARE * model_bytes


def _deepen(model: Path) -> None:
    """Turn a model of one layer into one of `LAYERS`."""
    from safetensors.torch import load_file

    dense = load_file(model / "model.safetensors")
    first = {name: tensor for name, tensor in dense.items() if ".layers.0." in name}
    rest = {name: tensor for name, tensor in dense.items() if name not in first}
    (model / "model.safetensors").unlink()
    shards = [rest]
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        shards.append(
            {
                name.replace(".layers.0.", f".layers.{layer}."): tensor
                if tensor.dim() == 1
                else torch.randn(tensor.shape, generator=generator) * 0.02
                for name, tensor in first.items()
            }
        )
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, model / name)
        weight_map |= dict.fromkeys(shard, name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((model / "config.json").read_text())
    config["num_hidden_layers"] = LAYERS
    (model / "config.json").write_text(json.dumps(config))
