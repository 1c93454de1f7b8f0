"""Whole jobs that remove attention blocks, FFN blocks and layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidSpec
from strucprune_core.export.loading import load_pretrained
from strucprune_core.run.layer_updates import LayerUpdate, merged
from strucprune_core.spec import PruningSpec
from tests.core.jobs.tiny_job import EASY, checkpoint_of, run, tiny_spec
from tests.core.models.families import VARIANTS, saved_variant
from tests.core.models.generic.tiny import save_tiny
from tests.core.models.reference import open_stream, streamed_logits
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_variant(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama") / "model", layers=6)


def tokens() -> torch.Tensor:
    return torch.arange(5, 29).view(2, 12)


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


def test_every_family_loses_blocks_and_reloads(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    """Blocks of both kinds, which may leave nothing of a layer."""
    pruning = {"sparsity": 0.5, "structures": ["attention_blocks", "ffn_blocks"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.blocks
    assert report.after.parameters < report.before.parameters
    assert [each.kl for each in report.blocks][-1] > 0
    theirs = loaded(tmp_path / "out")
    assert sum(each.numel() for each in theirs.parameters()) == report.after.parameters
    with torch.inference_mode():
        whole = theirs(tokens()).logits
        generated = theirs.generate(tokens(), max_new_tokens=4, do_sample=False)
        without_cache = theirs.generate(
            tokens(), max_new_tokens=4, do_sample=False, use_cache=False
        )
    assert torch.equal(generated, without_cache)
    mine = streamed_logits(open_stream(tmp_path / "out"), tokens().numpy(), tmp_path)
    assert torch.allclose(torch.as_tensor(mine), whole, atol=2e-4)


@pytest.mark.parametrize("variant", ["qwen2-window", "gemma3", "gpt2", "qwen3_moe-mixed"])
def test_layers_keep_their_kind(variant: str, text_file: Path, tmp_path: Path) -> None:
    """Windows, rotary positions and experts of the layers that stay: the job reloads the files."""
    model = saved_variant(variant, tmp_path / "model")
    pruning = {"sparsity": 0.5, "structures": ["layers"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    dense, left = open_stream(model).config, open_stream(tmp_path / "out").config
    gone = {each.layer for each in report.blocks}
    assert left.model_type == dense.model_type
    assert left.blocks == tuple(b for layer, b in enumerate(dense.blocks) if layer not in gone)


def test_layers_alone_load_in_the_vanilla_class(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {"sparsity": 0.34, "structures": ["layers"]}
    run(tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 4)
    assert not list((tmp_path / "out").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(model.model.layers) == 4


def test_a_block_that_does_nothing_goes_first(llama: Path, text_file: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((llama / name).read_bytes())
    pruning = {"sparsity": 0.2, "structures": ["attention_blocks", "ffn_blocks"]}
    spec = tiny_spec(tmp_path / "model", text_file, tmp_path / "out", pruning=pruning)
    report = run(spec, tmp_path)
    first = {(each.layer, each.structure) for each in report.blocks[:2]}
    assert first == {(3, "attention_blocks"), (1, "ffn_blocks")}
    assert report.blocks[1].kl == pytest.approx(0.0, abs=1e-5)


def test_blocks_and_channels_share_a_budget(llama: Path, text_file: Path, tmp_path: Path) -> None:
    structures = ["ffn_channels", "attention_blocks"]
    pruning = {"sparsity": 0.3, "structures": structures}
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.sparsity.reached == pytest.approx(0.3, abs=0.02)
    assert report.sparsity.channels_removed > 0
    assert [each.structure for each in report.blocks] == ["attention_blocks"] * len(report.blocks)
    mine, theirs = load_pretrained(str(tmp_path / "out")).eval(), loaded(tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(mine(tokens()).logits, theirs(tokens()).logits)


def test_layers_and_channels_share_a_budget(llama: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {"sparsity": 0.5, "structures": ["ffn_channels", "layers"]}
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.sparsity.reached == pytest.approx(0.5, abs=0.03)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_hidden_layers"] == 6 - len(report.blocks)


def test_a_model_without_blocks_is_pruned_again(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning: dict[str, Any] = {"sparsity": 0.3, "structures": ["attention_blocks"]}
    once = tiny_spec(llama, text_file, tmp_path / "a", pruning=pruning, evaluation=EASY)
    first = run(once, tmp_path / "1")
    for number, structures in enumerate((["ffn_channels", "kv_groups"], ["layers"])):
        pruning = {"sparsity": 0.4, "structures": structures, "layout": "per_layer"}
        spec = tiny_spec(
            tmp_path / "a",
            text_file,
            tmp_path / f"b{number}",
            pruning=pruning,
            evaluation=EASY,
        )
        again = run(spec, tmp_path / f"2{number}")
        assert again.after.parameters < first.after.parameters
        loaded(tmp_path / f"b{number}")


def test_blocks_go_before_the_model_is_trained(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {
        "sparsity": 0.3,
        "structures": ["attention_blocks", "ffn_blocks"],
        "distill": {"steps": 3, "batch_sequences": 2},
    }
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.distillation is not None
    assert len(report.distillation.losses) == 3
    loaded(tmp_path / "out")


@pytest.mark.parametrize(
    ("structures", "mode"),
    [
        (["ffn_channels", "ffn_blocks"], "sequential"),
        (["ffn_channels", "layers"], "parallel"),
        (["layers"], "sequential"),
        (["attention_blocks", "kv_groups"], "sequential"),
    ],
)
def test_ffns_that_are_left_are_trained(
    llama: Path, text_file: Path, tmp_path: Path, structures: list[str], mode: str
) -> None:
    pruning = {
        "sparsity": 0.5,
        "structures": structures,
        "recover": {"steps": 40, "mode": mode},
        "layout": "per_layer",
        "allocation": "threshold",
    }
    calibration = {"samples": 16, "sequence_length": 64}
    spec = tiny_spec(
        llama,
        text_file,
        tmp_path / "out",
        pruning=pruning,
        calibration=calibration,
        evaluation=EASY,
    )
    report = run(spec, tmp_path)
    assert report.blocks
    trained = {layer.index for layer in report.layers if layer.recovery is not None}
    assert trained == {layer.index for layer in report.layers if layer.width_after}
    assert [layer for layer in report.layers if layer.refit is not None] == []
    status = {layer.recovery.status for layer in report.layers if layer.recovery is not None}
    # What random whole layers did, FFNs of others do not learn.
    assert structures == ["layers"] or "accepted" in status
    loaded(tmp_path / "out")


def test_a_generic_model_without_layers_is_trained(text_file: Path, tmp_path: Path) -> None:
    model = save_tiny("olmo2", tmp_path / "model")
    pruning = {"sparsity": 0.5, "structures": ["layers"], "recover": {"steps": 5}}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    trained = {layer.index for layer in report.layers if layer.recovery is not None}
    assert trained == {layer.index for layer in report.layers if layer.width_after}


def test_blocks_go_where_channels_alone_cannot_meet_the_budget(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {
        "sparsity": 0.6,
        "structures": ["ffn_channels", "layers"],
        "min_keep_fraction": 0.9,
    }
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert len(report.blocks) > 2
    assert report.sparsity.reached >= 0.6


def test_the_only_block_that_may_go_goes(llama: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {
        "sparsity": 0.16,
        "structures": ["layers"],
        "max_sparsity_by_layer": {str(layer): 0.0 for layer in range(6) if layer != 3},
    }
    report = run(tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert [each.layer for each in report.blocks] == [3]


@pytest.mark.parametrize("export", ["gguf", "block_configs"])
def test_exports_of_a_model_whose_first_attention_does_nothing(
    llama: Path, text_file: Path, tmp_path: Path, export: str
) -> None:
    """llama.cpp asks the first layer for the width of heads; block_configs can lack it anywhere."""
    dense = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        dense.model.layers[0].self_attn.o_proj.weight.zero_()
    dense.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((llama / name).read_bytes())
    pruning = {"sparsity": 0.16, "structures": ["attention_blocks"], "exports": [export]}
    spec = tiny_spec(tmp_path / "model", text_file, tmp_path / "out", pruning=pruning)
    report = run(spec, tmp_path)
    assert (report.blocks[0].layer == 0) == (export == "block_configs")
    pruning = {"sparsity": 0.3, "exports": ["gguf"]}
    again = tiny_spec(tmp_path / "out", text_file, tmp_path / "again", pruning=pruning)
    if export == "gguf":
        run(again, tmp_path / "2")
        return
    with pytest.raises(InvalidSpec, match="first layer without attention") as refused:
        run(again, tmp_path / "2")
    assert refused.value.field == "pruning.exports"


@pytest.mark.parametrize("changes", [{"energy": "gradient"}, {"allocation": "softmax"}], ids=str)
def test_what_blocks_alone_do_not_use_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not used where blocks alone go"):
        PruningSpec.model_validate({"sparsity": 0.3, "structures": ["ffn_blocks"], **changes})


def test_watchers_learn_which_blocks_go(llama: Path, text_file: Path, tmp_path: Path) -> None:
    """What was told last of each layer is what the report says."""
    pruning = {"sparsity": 0.4, "structures": ["ffn_channels", "attention_blocks"]}
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    told: list[LayerUpdate] = []
    report = run(spec, tmp_path, layers=told.extend)
    assert report.blocks
    latest = merged(told)
    assert [each.width_after for each in latest] == [each.width_after for each in report.layers]
    assert [each.query_heads_after for each in latest] == [
        each.query_heads_after for each in report.layers
    ]


@pytest.mark.parametrize("architecture", ["olmo2", "cohere", "glm4"])
def test_a_generic_model_loses_layers(architecture: str, text_file: Path, tmp_path: Path) -> None:
    model = save_tiny(architecture, tmp_path / "model")
    pruning = {"sparsity": 0.5, "structures": ["layers"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.num_hidden_layers == report.model.layers - len(report.blocks)


def test_protected_layers_stay(llama: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {
        "sparsity": 0.34,
        "structures": ["layers"],
        "max_sparsity_by_layer": {"1": 0.0, "2": 0.5},
    }
    report = run(tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert not {each.layer for each in report.blocks} & {1, 2}


def test_a_resumed_job_makes_the_same_bytes(llama: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {"sparsity": 0.34, "structures": ["ffn_channels", "layers"]}
    results = []
    for number in range(2):
        spec = tiny_spec(
            llama, text_file, tmp_path / f"out{number}", pruning=pruning, evaluation=EASY
        )
        run(spec, tmp_path / str(number))
        results.append(checkpoint_of(tmp_path / f"out{number}"))
    assert results[0] == results[1]


@pytest.mark.parametrize("sparsity", [0.9, 0.02])
def test_a_sparsity_out_of_reach_is_refused(
    llama: Path, text_file: Path, tmp_path: Path, sparsity: float
) -> None:
    pruning = {"sparsity": sparsity, "structures": ["layers"]}
    with pytest.raises(InvalidSpec, match=r"pruning\.sparsity|sparsity") as refused:
        run(tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert refused.value.field == "pruning.sparsity"


@pytest.mark.parametrize(
    ("structures", "exports"),
    [
        (["attention_blocks"], ["gguf", "block_configs"]),
        (["attention_blocks", "ffn_blocks", "ffn_channels"], ["block_configs"]),
        (["layers", "ffn_channels"], ["gguf", "block_configs"]),
    ],
    ids=["attention", "both", "layers"],
)
def test_exports_say_what_is_missing(
    llama: Path, text_file: Path, tmp_path: Path, structures: list[str], exports: list[str]
) -> None:
    """The job compares every tensor and the logits of what it reads back."""
    pruning = {"sparsity": 0.4, "structures": structures, "exports": exports}
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert [each.name for each in report.exports] == exports


def test_gguf_cannot_hold_layers_without_an_ffn(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {"sparsity": 0.4, "structures": ["ffn_blocks"], "exports": ["gguf"]}
    with pytest.raises(InvalidSpec, match=r"llama\.cpp") as refused:
        run(tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert refused.value.field == "pruning.exports"


def test_the_next_matrix_is_solved_again(llama: Path, text_file: Path, tmp_path: Path) -> None:
    """A bias-like attention block: its output can be put into the FFN behind it."""
    pruning = {"sparsity": 0.3, "structures": ["attention_blocks"]}
    calibration = {"samples": 32, "sequence_length": 64}
    spec = tiny_spec(
        llama,
        text_file,
        tmp_path / "out",
        pruning=pruning,
        calibration=calibration,
        evaluation=EASY,
    )
    report = run(spec, tmp_path)
    refits = [layer.refit for layer in report.layers if layer.refit is not None]
    assert refits
    for each in refits:
        assert each.error_before is not None
        assert each.error_after is not None
        assert each.taken == (each.error_after < each.error_before)
    assert any(each.taken for each in refits)


def test_layers_that_depend_on_their_place_stay(text_file: Path, tmp_path: Path) -> None:
    """Its attention is scaled by the layer's number."""
    model = save_tiny("diffllama", tmp_path / "model")
    pruning = {"sparsity": 0.5, "structures": ["layers"]}
    with pytest.raises(InvalidSpec, match="computes something else") as refused:
        run(tiny_spec(model, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert refused.value.field == "pruning.structures"


def test_a_rule_by_number_keeps_layers(text_file: Path, tmp_path: Path) -> None:
    model = save_tiny("olmo2", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config.pop("layer_types", None)
    (model / "config.json").write_text(json.dumps({**config, "full_attention_interval": 4}))
    pruning = {"sparsity": 0.5, "structures": ["layers"]}
    with pytest.raises(InvalidSpec, match="full_attention_interval") as refused:
        run(tiny_spec(model, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    assert refused.value.field == "pruning.structures"


@pytest.mark.parametrize("structures", [["layers"], ["ffn_channels", "attention_blocks"]])
def test_watchers_see_what_became_of_layers(
    llama: Path, text_file: Path, tmp_path: Path, structures: list[str]
) -> None:
    pruning = {"sparsity": 0.4, "structures": structures}
    spec = tiny_spec(llama, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    seen: dict[int, LayerUpdate] = {}

    def watch(updates: Sequence[LayerUpdate]) -> None:
        for update in merged([*seen.values(), *updates]):
            seen[update.index] = update

    report = run(spec, tmp_path, layers=watch)
    assert report.blocks
    for layer in report.layers:
        update = seen[layer.index]
        assert (update.width_after, update.query_heads_after) == (
            layer.width_after,
            layer.query_heads_after,
        )
