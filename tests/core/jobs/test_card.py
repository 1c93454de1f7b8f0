"""The model card and the licence files of a result."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from strucprune_core.checkpoint.terms import MAX_TERMS_BYTES
from strucprune_core.errors import InvalidCheckpoint
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.support.tiny_llama import make_tiny_llama

README = "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Secret ways of the dense model\n"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def card_of(directory: Path) -> str:
    return (directory / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the files that a hub's repository has."""
    root: Path = tmp_path_factory.mktemp("licensed")
    model = make_tiny_llama(root / "model")
    (model / "README.md").write_text(README)
    (model / "LICENSE").write_text("All rights granted.")
    (model / "Notice.txt").write_text("Made by somebody.")
    (model / "LICENSE.exe").write_bytes(b"MZ")
    return model


def test_a_result_says_what_it_is_and_ships_its_terms(
    licensed: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exports = {"exports": ["gguf", "block_configs"]}
    report = run(tiny_spec(licensed, text_file, out, pruning=exports, evaluation=EASY), tmp_path)
    card = card_of(out)
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["strucprune", "pruning", "structured-pruning"],
        "metrics": ["perplexity"],
    }
    for name in ("LICENSE", "Notice.txt"):
        assert (out / name).read_bytes() == (licensed / name).read_bytes()
        assert f"[{name}]({name})" in card
    assert not (out / "LICENSE.exe").exists()
    assert "Secret ways" not in card
    for path in (tmp_path, licensed):  # Paths tell of the machine.
        assert str(path) not in card
    assert report.perplexity is not None
    assert f"| perplexity | {report.perplexity.before:.2f} |" in card
    assert (
        f"| FFN channels | {report.before.ffn_channels:,} | {report.after.ffn_channels:,} |" in card
    )
    assert "vllm serve block_configs --trust-remote-code" in card
    assert "llama-cli -m gguf/model.gguf" in card
    assert "mlx_lm.generate --model block_configs" in card
    assert {"README.md", "LICENSE", "Notice.txt"} <= {entry.name for entry in report.files}


def test_blocks_that_went_are_named(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {"structures": ["attention_blocks", "ffn_blocks"], "sparsity": 0.4}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    card = card_of(tmp_path / "out")
    assert report.blocks
    for each in report.blocks:
        name = {"attention_blocks": "attention", "ffn_blocks": "the FFN"}[each.structure]
        assert f"{name} of layer {each.layer}" in card
    assert "The dense model's card names no licence." in card


@pytest.mark.parametrize("kind", ["per_layer", "uniform", "generic"])
def test_the_program_on_the_card_loads_the_result(
    kind: str, tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    model = save_tiny("olmo2", tmp_path / "olmo2") if kind == "generic" else tiny_model
    layout = {"layout": "uniform" if kind == "uniform" else "per_layer"}
    out = tmp_path / "out"
    run(tiny_spec(model, text_file, out, pruning=layout, evaluation=EASY), tmp_path)
    (program,) = (text for language, text in _FENCE.findall(card_of(out)) if language == "python")
    program += "print(type(model).__name__, len(tokenizer('one two')['input_ids']) > 0)\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        cwd=out,
        env={
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
    )
    name = {
        "per_layer": "StrucPruneLlamaForCausalLM",
        "uniform": "LlamaForCausalLM",
        "generic": "StrucPruneAny_olmo2_ForCausalLM",
    }[kind]
    assert done.stdout.split() == [name, "True"], done.stderr[-1500:]


def test_a_licence_that_is_no_text_is_refused(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    (model / "LICENSE").write_bytes(bytes(MAX_TERMS_BYTES + 1))
    with pytest.raises(InvalidCheckpoint, match="LICENSE has 1,048,577 bytes"):
        run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
