"""The export `fp8`: what is written is what is read, by us, by its package and by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import strucprune_core.register  # noqa: F401 - transformers finds our classes
from strucprune_core.checkpoint.index import open_checkpoint, read_in
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.export import fp8, fp8_source
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import saved_variant
from tests.support.fp8 import HIGHEST
from tests.support.fp8 import quantise as plainly
from tests.support.tiny_llama import make_tiny_llama

# Runtimes quantise activations; on the random models of these tests that moves logits by so much.
ACTIVATIONS = 0.15


def test_numbers_are_those_of_the_formula() -> None:
    values = torch.randn(40, 48) * torch.logspace(-3, 3, 40)[:, None]
    stored, factors = fp8_source.quantise(values)
    expected, grid = plainly(values, (1, 48), torch.float32)
    assert torch.equal(stored.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(factors, grid)
    read = fp8_source.dequantise(stored, factors)
    assert torch.equal(read, expected.float() * grid)
    assert float(stored.float().abs().max()) == HIGHEST


def test_a_row_of_zeros_stays_one() -> None:
    stored, factors = fp8_source.quantise(torch.zeros(2, 16))
    assert not fp8_source.dequantise(stored, factors).any()
    assert (factors > 0).all()


class _Rows:
    """A source of one matrix that counts what is in memory together."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.most = values, 0

    def rows(self, name: str, start: int, stop: int, **kwargs: Any) -> Tensor:
        self.most = max(self.most, stop - start)
        return self.values[start:stop]

    def tensor(self, name: str, **kwargs: Any) -> Tensor:
        return self.values


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _Rows(torch.randn(70, 32).bfloat16())
    whole, factors = fp8_source.quantise(source.values)
    monkeypatch.setattr(fp8_source, "_CHUNK_ELEMENTS", 3 * 32)
    given = fp8_source.Fp8Source(source, {"a.weight": (70, 32)})
    assert torch.equal(given.tensor("a.weight", dtype=None).float(), whole.float())
    assert torch.equal(given.tensor("a.weight_scale", dtype=None), factors)
    assert torch.equal(given.rows("a.weight", 5, 64, dtype=None).float(), whole[5:64].float())
    assert torch.equal(given.rows("a.weight_scale", 5, 64, dtype=None), factors[5:64])
    assert source.most == 3


def test_the_section_is_the_package_s_own() -> None:
    preset = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"]).model_dump()
    ours = QuantizationConfig(config_groups={"group_0": fp8.SCHEME}).config_groups["group_0"]
    found = ours.model_dump()
    assert found == preset


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    root = tmp_path_factory.mktemp("fp8")
    model = make_tiny_llama(root / "model", layers=2, intermediate=96, dtype=torch.bfloat16)
    pruning = {"structures": ["ffn_channels", "kv_groups"], "exports": ["fp8"], "sparsity": 0.35}
    run(tiny_spec(model, text_file, root / "out", pruning=pruning, evaluation=EASY), root)
    return root / "out"


def test_what_the_files_hold(pruned: Path) -> None:
    wide, narrow = (load_file(pruned / each / "model.safetensors") for each in (".", "fp8"))
    config = json.loads((pruned / "fp8/config.json").read_text())
    section = config.pop("quantization_config")
    assert config == json.loads((pruned / "config.json").read_text())
    assert section["ignore"] == ["lm_head", "model.embed_tokens"]
    QuantizationConfig.model_validate(section)
    for name, values in wide.items():
        if values.dim() == 2 and "layers." in name:
            stored, factors = fp8_source.quantise(values)
            assert torch.equal(narrow.pop(name).float(), stored.float()), name
            assert torch.equal(narrow.pop(f"{name}_scale"), factors), name
        else:
            assert torch.equal(narrow.pop(name), values), name
    assert not narrow


def logits(model: Any) -> Tensor:
    ids = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: Tensor = model(ids).logits
    return found


def compare_with_transformers(folder: Path) -> None:
    """transformers' own loading of an export against the plain model with the weights that we read.

    With the same weights the logits are the same; quantised activations move them a little.
    """
    index = read_in(open_checkpoint(LocalStore(folder / "fp8")), "float32")
    reader = TensorReader(index)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sixteen = logits(plain)
    missing = plain.load_state_dict({n: reader.tensor(n) for n in index.tensors}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    expected = logits(plain)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "fp8", dtype=torch.float32)
    quantised = logits(loaded)
    linear = [m for m in loaded.modules() if hasattr(m, "quantization_scheme")]
    assert len(linear) == sum(n.endswith("_scale") for n in stored_names(folder / "fp8"))
    for module in linear:
        module.quantization_enabled = False
    assert (logits(loaded) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert distance(quantised, expected) <= ACTIVATIONS
    assert distance(quantised, sixteen) <= 2 * ACTIVATIONS
    assert not torch.equal(quantised, expected)


def stored_names(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_transformers_computes_with_the_weights_that_we_read(pruned: Path) -> None:
    compare_with_transformers(pruned)


@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        ("llama-biases", "per_layer"),
        ("mistral", "uniform"),
        ("qwen2", "per_layer"),
        ("qwen3", "per_layer"),
        ("gemma2", "per_layer"),
        ("gemma3", "uniform"),
        ("phi3", "per_layer"),
        ("gpt_neox", "per_layer"),
        ("gpt_neox-serial", "uniform"),
    ],
)
def test_every_family_that_is_exported(
    variant: str, layout: str, tmp_path: Path, text_file: Path
) -> None:
    model = saved_variant(variant, tmp_path / "model")
    pruning = {"exports": ["fp8"], "layout": layout, "sparsity": 0.4}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    (export,) = run(spec, tmp_path).exports
    assert export.perplexity is not None
    compare_with_transformers(tmp_path / "out")
