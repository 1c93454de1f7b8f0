"""The families that are written out are the oracle of those that run in transformers' modules."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from strucprune_core.export import layouts, modeling_strucprune
from strucprune_core.models import read_config
from strucprune_core.models.generic import size_keys
from strucprune_core.models.generic.architectures import table
from strucprune_core.report.document import RecoveryReport, Report
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import saved_variant
from tests.coverage.patterns import as_entry, as_stored, find_architecture

BOTH = ("own", "generic")


class Both:
    """One job on one model, by the family's own code and in transformers' modules."""

    def __init__(
        self, family: str, text: Path, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
    ) -> None:
        model, changes = saved_variant(family, root / "model"), {"evaluation": EASY} | changes
        self._root = root
        self.own = run(tiny_spec(model, text, root / "own", **changes), root / "1")
        as_generic(family, model, monkeypatch)
        self.generic = run(tiny_spec(model, text, root / "generic", **changes), root / "2")

    def widths(self) -> list[list[int]]:
        """Of each report the widths of all layers."""
        both = (self.own, self.generic)
        return [[layer.width_after for layer in each.layers] for each in both]

    def weights(self) -> list[dict[str, torch.Tensor]]:
        """The tensors that each has written."""
        return [
            {
                name: tensor
                for file in sorted((self._root / output).glob("*.safetensors"))
                for name, tensor in load_file(file).items()
            }
            for output in BOTH
        ]

    def assert_weights_agree(self, tolerance: float) -> None:
        """Every tensor, relative to its size."""
        own, generic = self.weights()
        assert own.keys() == generic.keys()
        for name, tensor in own.items():
            error = float((generic[name] - tensor).norm() / tensor.norm().clamp(min=1e-6))
            assert error <= tolerance, name


def as_generic(family: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the family's own code is not known, and its model has an entry of the table."""
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = find_architecture(as_stored(dense), torch.arange(3, 123).view(1, 120))
    monkeypatch.setattr(read_config, "_is_own", lambda raw: False)
    monkeypatch.setitem(table()["model_types"], family, {"architecture": as_entry(found)})
    # Without the key in a copy: a key taken out and put back is the last one, and others list them.
    _without(family, layouts, "CLASS_STEMS", monkeypatch)
    _without(f"strucprune_{family}", modeling_strucprune, "MODELS", monkeypatch)


def _without(key: str, module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = getattr(module, name)
    assert key in known
    monkeypatch.setattr(module, name, {each: known[each] for each in known if each != key})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3"])
def test_widths_and_perplexity(
    family: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Both(family, text_file, tmp_path, monkeypatch)
    widths = both.widths()
    assert widths[0] == widths[1]
    own, generic = both.own.perplexity, both.generic.perplexity
    assert own is not None
    assert generic is not None
    assert generic.before == pytest.approx(own.before, rel=1e-5)
    assert generic.after == pytest.approx(own.after, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_energies_from_gradients(
    family: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Both(family, text_file, tmp_path, monkeypatch, pruning={"energy": "gradient"})
    widths = both.widths()
    assert widths[0] == widths[1]
    np.testing.assert_allclose(_energies(both.generic), _energies(both.own), rtol=1e-3)
    both.assert_weights_agree(1e-4)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_recovery(
    family: str, mode: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens are one batch here, so whole sequences are no other batches than tokens."""
    training = {"sparsity": 0.5, "recover": {"mode": mode, "steps": 6}}
    both = Both(family, text_file, tmp_path, monkeypatch, pruning=training)
    widths = both.widths()
    assert widths[0] == widths[1]
    own, generic = (
        [layer.recovery for layer in each.layers if layer.recovery is not None]
        for each in (both.own, both.generic)
    )
    assert [each.status for each in own] == [each.status for each in generic]
    assert "accepted" in {each.status for each in own}
    # Errors are relative to what the FFN adds, or to what the layer adds.
    np.testing.assert_allclose(_improvements(generic), _improvements(own), rtol=1e-2)
    both.assert_weights_agree(1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_text_of_the_model_s_own(
    family: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values are kept by us or by transformers: the text is the same."""
    calibration = {"source": "self", "uri": None}
    both = Both(family, text_file, tmp_path, monkeypatch, calibration=calibration)
    own, generic = both.own.calibration, both.generic.calibration
    assert own is not None
    assert generic is not None
    assert own.text_sha256 == generic.text_sha256
    widths = both.widths()
    assert widths[0] == widths[1]


@pytest.mark.parametrize(("family", "key"), [("llama", "intermediate_size"), ("gpt2", "n_inner")])
def test_one_width_for_all_layers(
    family: str, key: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"ffn": dict.fromkeys(("mlp.down_proj.weight", "mlp.c_proj.weight"), key)}
    monkeypatch.setitem(size_keys.table()["model_types"], family, found)
    changes = {"pruning": {"layout": "uniform"}}
    both = Both(family, text_file, tmp_path, monkeypatch, **changes)
    widths = both.widths()
    assert widths[0] == widths[1]
    assert len(set(widths[0])) == 1
    both.assert_weights_agree(1e-4)
    own, generic = (json.loads((tmp_path / each / "config.json").read_text()) for each in BOTH)
    assert generic[key] == own[key] == widths[0][0]
    assert generic["model_type"] == own["model_type"] == family


def _improvements(recoveries: list[RecoveryReport]) -> list[float]:
    """Errors after training relative to those before."""
    return [
        each.error_after / each.error_before
        for each in recoveries
        if each.error_before is not None and each.error_after is not None
    ]


def _energies(report: Report) -> list[float]:
    return [layer.energy for layer in report.layers]
