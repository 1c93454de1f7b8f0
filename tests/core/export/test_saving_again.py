"""A pruned checkpoint that is loaded, changed and saved by transformers loads in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from strucprune_core.export.loading import load_pretrained
from strucprune_core.export.modeling_strucprune import CONFIGS
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import random_model
from tests.core.models.reference import random_tokens, reference_logits
from tests.support.text import make_text
from tests.support.tiny_llama import save_tokenizer

VARIANTS = (
    "llama",
    "qwen2",
    "gemma2",
    "phi3",
    "opt",
    "gpt2",
    "gpt_neox-serial",
    "mixtral",
    "qwen3_moe-mixed",
)

# Loads each directory in both ways and prints the logits of a few tokens.
_NEW_PROCESS = """
import json, sys, torch
from transformers import AutoModelForCausalLM
directories, tokens = json.load(sys.stdin)
found = {}
with torch.inference_mode():
    for directory in directories:
        model = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=torch.float32
        )
        found[directory] = model.eval()(torch.tensor(tokens)).logits[0, -1].tolist()
print(json.dumps(found))
"""


def in_a_new_process(directories: list[Path], tokens: Any, home: Path) -> dict[str, torch.Tensor]:
    """Logits of checkpoints as a user's process computes them that knows nothing of strucprune."""
    done = subprocess.run(
        [sys.executable, "-c", _NEW_PROCESS],
        input=json.dumps([[str(directory) for directory in directories], tokens.tolist()]),
        capture_output=True,
        text=True,
        cwd=home,
        env={"HF_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {directory: torch.tensor(logits) for directory, logits in found.items()}


def prune_one(variant: str, root: Path, text_file: Path, layout: str) -> Path:
    model = random_model(variant)
    model.save_pretrained(root / "model")
    save_tokenizer(root / "model", text=make_text(), vocab=model.config.vocab_size)
    pruning = {"layout": layout, "sparsity": 0.5 if layout == "uniform" else 0.3}
    spec = tiny_spec(root / "model", text_file, root / "out", pruning=pruning, evaluation=EASY)
    run(spec, root)
    return root / "out"


def changed(model: Any) -> Any:
    """As after merging an adapter: weights have other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.03)
    return model.eval()


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_what_was_loaded_can_be_saved(tmp_path: Path, text_file: Path, layout: str) -> None:
    tokens = random_tokens(1, 12, 512)
    wanted: dict[str, torch.Tensor] = {}
    for variant in VARIANTS if layout == "per_layer" else VARIANTS[:3]:
        pruned = prune_one(variant, tmp_path / variant, text_file, layout)
        for way, load in (
            ("ours", load_pretrained),
            ("remote", lambda p: AutoModelForCausalLM.from_pretrained(p, trust_remote_code=True)),
        ):
            model = changed(load(str(pruned)))
            saved = tmp_path / variant / way
            model.save_pretrained(saved)
            wanted[str(saved)] = reference_logits(model, tokens)[0, -1]
            half = tmp_path / variant / f"{way}-bfloat16"
            model.to(torch.bfloat16).save_pretrained(half)
            assert json.loads((half / "config.json").read_bytes())["dtype"] == "bfloat16"
            again = load_pretrained(str(half), dtype=torch.float32).eval()
            wanted[str(half)] = reference_logits(again, tokens)[0, -1]
    found = in_a_new_process([Path(name) for name in wanted], tokens, tmp_path)
    for name, logits in wanted.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-4, atol=1e-4, msg=name)


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Auto classes as a process has them that has not imported `strucprune_core.register`.

    Programs of the documentation import it, in whichever process of the tests runs them.
    """
    for mapping in (CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", {})


@pytest.mark.usefixtures("unregistered")
def test_loading_leaves_nothing_behind(tmp_path: Path, text_file: Path) -> None:
    pruned = prune_one("llama", tmp_path, text_file, "per_layer")
    load_pretrained(str(pruned))
    assert not set(CONFIGS) & set(CONFIG_MAPPING)
    with pytest.raises(ValueError, match="trust_remote_code"):  # still asks the user
        AutoModelForCausalLM.from_pretrained(str(pruned), trust_remote_code=False)
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    plain.save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_bytes())
    assert "auto_map" not in config
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(loaded) is LlamaForCausalLM
    # Code that travels with a checkpoint runs beside ours, in either order.
    remote = AutoModelForCausalLM.from_pretrained(str(pruned), trust_remote_code=True)
    ours = load_pretrained(str(pruned))
    assert type(remote) is not type(ours)
    tokens = random_tokens(1, 8)
    torch.testing.assert_close(reference_logits(remote, tokens), reference_logits(ours, tokens))
