"""Which runtimes load a result, and which exports a model can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from strucprune_core.errors import InvalidSpec
from strucprune_core.export import runtimes
from strucprune_core.export.checks import check_shape, possible_exports
from strucprune_core.export.runtimes import (
    RUNTIMES,
    LoadableForm,
    Runtime,
    RuntimeSupport,
    runtime_support,
)
from strucprune_core.models.families import FAMILIES, parse_config
from strucprune_core.models.generic.architectures import generic_model_types
from strucprune_core.plan.inspection import examine_job, inspect_model
from strucprune_core.spec import Export, JobSpec, PruningSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import tiny_spec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048}
OPT = {**LLAMA, "model_type": "opt", "ffn_dim": 192, "word_embed_proj_dim": 64}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
# Exports that hold nothing but models with llama's tensors and arithmetic.
LLAMAS_ALONE = ["gguf", "gguf_q8_0", "block_configs"]


def pruning(**changes: Any) -> PruningSpec:
    return PruningSpec.model_validate({"sparsity": 0.3, **changes})


def support(config: dict[str, Any], **changes: Any) -> dict[str, RuntimeSupport]:
    found = runtime_support(parse_config(config), pruning(**changes))
    return {entry.runtime: entry for entry in found}


def folders(config: dict[str, Any], **changes: Any) -> list[str | None]:
    return [entry.folder for entry in support(config, **changes).values()]


def test_the_table_names_families_that_exist() -> None:
    for runtime in RUNTIMES:
        for form in runtime.loads:
            assert set(form.families) <= {*FAMILIES, *generic_model_types()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [".", ".", None, None]),
        ({"layout": "uniform"}, [".", ".", None, "."]),
        ({"exports": ["gguf"]}, [".", ".", "gguf", None]),
        ({"exports": ["block_configs"]}, [".", ".", None, "block_configs"]),
        (
            {"exports": ["block_configs", "gguf"]},
            [".", ".", "gguf", "block_configs"],
        ),
        ({"layout": "uniform", "exports": ["block_configs", "gguf"]}, [".", ".", "gguf", "."]),
        ({"exports": ["gguf_q8_0", "fp8"]}, [".", ".", "gguf_q8_0", None]),
    ],
    ids=str,
)
def test_folders_of_a_llama(changes: dict[str, Any], expected: list[str | None]) -> None:
    assert [runtime.name for runtime in RUNTIMES] == ["transformers", "vLLM", "llama.cpp", "MLX"]
    assert folders(LLAMA, **changes) == expected
    for entry in support(LLAMA, **changes).values():
        assert entry.loads == (entry.folder is not None)
        assert (entry.reason is None) == entry.loads
        assert entry.loads or entry.remedy is not None


def test_what_was_not_tried_is_not_said_to_be() -> None:
    for form in (form for runtime in RUNTIMES for form in runtime.loads):
        assert set(form.without_blocks) <= set(form.families)
        assert set(form.not_tried) <= set(form.families)
        assert form.form != "uniform" or not form.without_blocks
    blocks = ["ffn_channels", "attention_blocks"]
    for runtime in RUNTIMES:
        for form in runtime.loads:
            if form.form == "per_layer" and "llama" in form.families:
                found = support(LLAMA, structures=blocks)[runtime.name]
                assert found.tried == ("llama" in form.without_blocks)
    assert {entry.tried for entry in support(LLAMA).values()} == {True, None}


def test_a_form_that_was_not_tried_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = [
        LoadableForm(form="per_layer", families=("llama",), note="as it is"),
        LoadableForm(form="per_layer", families=("llama",), note="", not_tried=("llama",)),
        LoadableForm(form="per_layer", families=("llama",), note="", without_blocks=("llama",)),
    ]
    table = tuple(Runtime(name=str(number), loads=(each,)) for number, each in enumerate(forms))
    monkeypatch.setattr(runtimes, "RUNTIMES", table)
    assert [each.tried for each in support(LLAMA).values()] == [True, False, True]
    lost = support(LLAMA, structures=["attention_blocks"])
    assert [each.tried for each in lost.values()] == [False, False, True]
    layers = support(LLAMA, structures=["layers", "ffn_channels"])
    assert [each.tried for each in layers.values()] == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "structures", "loads"),
    [
        ({"model_type": "qwen2"}, ["ffn_channels"], [True, True, False, True]),
        ({"model_type": "qwen2"}, ["kv_groups"], [True, False, False, False]),
        ({"model_type": "qwen2"}, ["ffn_channels", "query_heads"], [True, False, False, False]),
        ({"model_type": "qwen2", "head_dim": 8}, ["ffn_channels"], [True, False, False, False]),
        ({"model_type": "phi3"}, ["kv_groups"], [True, True, False, False]),
        ({"model_type": "mixtral"}, ["kv_groups"], [True, True, False, False]),
        ({"model_type": "mixtral"}, ["ffn_channels"], [True, True, False, True]),
        ({"model_type": "qwen3", "head_dim": 8}, ["kv_groups"], [True, True, False, True]),
        ({}, ["kv_groups"], [True, True, False, True]),
    ],
    ids=str,
)
def test_heads_removed_where_a_runtime_derives_their_width(
    changes: dict[str, Any], structures: list[str], loads: list[bool]
) -> None:
    """vLLM and MLX ignore `head_dim` in some families; the other layout or none is offered."""
    found = support({**LLAMA, **changes}, layout="uniform", structures=structures)
    assert [entry.loads for entry in found.values()] == loads
    if not found["vLLM"].loads:
        assert found["vLLM"].remedy == "Use layout 'per_layer'."


@pytest.mark.parametrize(("structures", "loads"), [(["ffn_channels"], False), (["layers"], True)])
def test_mlx_has_one_width_of_ffns_in_gpt_neox(structures: list[str], loads: bool) -> None:
    config = {**LLAMA, "model_type": "gpt_neox", "num_key_value_heads": 4}
    found = support(config, layout="uniform", structures=structures)
    assert found["MLX"].loads == loads
    assert found["vLLM"].loads


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LLAMA, {}),
        (LLAMA, {"exports": ["fp8"]}),
        (LLAMA, {"structures": ["kv_groups"]}),
        ({**LLAMA, "model_type": "qwen2"}, {"layout": "uniform", "structures": ["kv_groups"]}),
    ],
)
def test_each_mend_makes_the_runtime_load_it(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    mends = [(entry, mend) for entry in support(config, **changes).values() for mend in entry.mends]
    assert mends
    for entry, mend in mends:
        assert str(entry.remedy)
        section, name = mend.field.split(".")
        assert section == "pruning"
        assert support(config, **{**changes, name: mend.value})[entry.runtime].loads


def test_what_to_change() -> None:
    found = support(LLAMA)
    assert found["llama.cpp"].remedy == (
        "Add 'gguf' to pruning.exports, or add 'gguf_q8_0' to pruning.exports."
    )
    assert found["MLX"].remedy == (
        "Use layout 'uniform', or add 'block_configs' to pruning.exports."
    )
    heads = support(LLAMA, structures=["kv_groups"])
    assert heads["MLX"].remedy == "Use layout 'uniform'."
    assert support(OPT)["llama.cpp"].remedy is None
    assert support(OPT)["transformers"].loads


@pytest.mark.parametrize(
    ("config", "changes", "refused"),
    [
        ({}, {}, []),
        ({"model_type": "mistral", "sliding_window": None}, {}, []),
        ({"model_type": "mistral", "sliding_window": 2048}, {}, []),
        ({"model_type": "mistral", "sliding_window": 1024}, {}, LLAMAS_ALONE),
        ({"model_type": "qwen2"}, {}, LLAMAS_ALONE),
        ({"attention_bias": True}, {}, LLAMAS_ALONE),
        ({"mlp_bias": True}, {}, LLAMAS_ALONE),
        ({"hidden_act": "gelu"}, {}, LLAMAS_ALONE),
        ({"hidden_size": 80, "head_dim": 20}, {}, ["gguf_q8_0"]),
        (GPT2, {}, [*LLAMAS_ALONE, "fp8"]),
        (MIXTRAL, {}, [*LLAMAS_ALONE, "fp8"]),
        (OPT, {}, [*LLAMAS_ALONE, "fp8"]),
        ({"head_dim": 32}, {}, ["block_configs"]),
        ({}, {"structures": ["kv_groups"]}, ["block_configs"]),
        ({}, {"structures": ["ffn_channels", "query_heads"]}, ["block_configs"]),
    ],
    ids=str,
)
def test_what_exports_cannot_hold(
    config: dict[str, Any], changes: dict[str, Any], refused: list[str]
) -> None:
    parsed = parse_config({**LLAMA, **config})
    for export in get_args(Export):
        if export in refused:
            with pytest.raises(InvalidSpec) as error:
                check_shape(export, pruning(**changes), parsed)
            assert error.value.field == "pruning.exports"
            assert f"'{export}'" in str(error.value.remedy)
        else:
            check_shape(export, pruning(**changes), parsed)


def test_a_job_is_refused_before_any_work(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    changes = {"structures": ["kv_groups"], "exports": ["gguf", "block_configs"]}
    spec: JobSpec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=changes)
    (issue,) = examine_job(spec, lambda uri: LocalStore(Path(uri))).issues
    assert issue.field == "pruning.exports"
    facts = inspect_model(LocalStore(tiny_model))
    assert possible_exports(facts.config, facts.index) == list(get_args(Export))


def test_an_export_is_named_once() -> None:
    with pytest.raises(ValueError, match="lists one kind twice"):
        pruning(exports=["gguf", "gguf"])
    with pytest.raises(ValueError, match="exports"):
        pruning(exports=["onnx"])
