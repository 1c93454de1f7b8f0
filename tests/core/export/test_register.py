"""Auto classes load pruned models without remote code once `strucprune_core.register` is imported.

Each test loads in a new process, because a registration lasts as long as its process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from embedded.stack import ROOT
from strucprune_core.export.loading import load_pretrained
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.core.models.reference import random_tokens, reference_logits
from tests.support.tiny_experts import save_tiny_experts

# Loads each directory as a user would who forgot `trust_remote_code`, and saves it again.
_REGISTERED = """
import builtins, json, sys
def nobody_is_asked(prompt=""):
    raise AssertionError(prompt)
builtins.input = nobody_is_asked
import strucprune_core
assert "torch" not in sys.modules and "transformers" not in sys.modules
import strucprune_core.register, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
found = {}
with torch.inference_mode():
    for source, target in json.load(sys.stdin):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        assert type(model).__module__ == "strucprune_core.export.modeling_strucprune"
        assert type(AutoConfig.from_pretrained(source)) is type(model.config)
        tokens = AutoTokenizer.from_pretrained(source)("one two three", return_tensors="pt")
        found[source] = model(tokens["input_ids"]).logits[0, -1].tolist()
        model.save_pretrained(target)
        again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        assert torch.equal(again(tokens["input_ids"]).logits[0, -1], torch.tensor(found[source]))
print(json.dumps([tokens["input_ids"].tolist(), found]))
"""


def in_a_new_process(code: str, home: Path, *, given: Any = None, arguments: Any = ()) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *(["-c", code] if "\n" in code else [code]), *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=home,
        env={
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    root: Path = tmp_path_factory.mktemp("models")
    return {
        "own": tiny_model,
        "generic": save_tiny("olmo2", root / "olmo2"),
        "experts": save_tiny_experts("mixtral", root / "mixtral"),
    }


def test_auto_classes_load_every_kind(
    models: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """An own family, one that runs in transformers' modules, and layers with unequal experts."""
    changes: dict[str, dict[str, Any]] = {
        "experts": {"structures": ["experts"], "layout": "per_layer", "energy": "forward"}
    }
    pairs = []
    for name, model in models.items():
        out = tmp_path / name / "out"
        pruning = changes.get(name, {})
        run(tiny_spec(model, text_file, out, pruning=pruning, evaluation=EASY), tmp_path / name)
        pairs.append([str(out), str(tmp_path / name / "again")])
    printed = in_a_new_process(_REGISTERED, tmp_path, given=pairs)
    tokens, found = json.loads(printed.splitlines()[-1])
    with torch.inference_mode():
        for directory, logits in found.items():
            model_class = load_pretrained(directory, dtype=torch.float32).eval()
            wanted = model_class(torch.tensor(tokens)).logits[0, -1]
            torch.testing.assert_close(torch.tensor(logits), wanted, msg=directory)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_a_pruned_model_is_fine_tuned_with_lora(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    """The example: the loss falls, and the merged model reloads with its own code alone."""
    run(tiny_spec(tiny_model, text_file, tmp_path / "pruned", evaluation=EASY), tmp_path)
    arguments = ("pruned", str(text_file), "tuned")
    printed = in_a_new_process(
        str(ROOT / "docs/examples/lora.py"), tmp_path, arguments=arguments
    ).splitlines()
    losses = [float(line.partition("loss ")[2]) for line in printed if line.startswith("step")]
    assert sum(losses[-4:]) < sum(losses[:4])
    merged, pruned = tmp_path / "tuned/merged", tmp_path / "pruned"
    changed = load_file(merged / "model.safetensors")
    before = load_file(pruned / "model.safetensors")
    moved = {name for name, tensor in changed.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "q_proj" in name or "v_proj" in name}
    remote = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True).eval()
    tokens = random_tokens(1, 8)
    mine = load_pretrained(str(merged)).eval()
    torch.testing.assert_close(reference_logits(remote, tokens), reference_logits(mine, tokens))
    assert (tmp_path / "tuned/adapter/adapter_model.safetensors").exists()
