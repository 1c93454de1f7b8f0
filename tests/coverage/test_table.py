"""The table of architectures: what it says of a sample is found again, and users read the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models.generic import size_keys
from strucprune_core.models.generic.architectures import (
    architecture,
    generic_model_types,
    refusal,
    table,
)
from strucprune_core.models.generic.describe import describe
from strucprune_core.models.generic.expert_table import expert_architecture
from strucprune_core.models.generic.layer_table import refusals, why_layers_stay
from tests.coverage.detect import NotPrunable
from tests.coverage.examine import TOLERANCE, examine
from tests.coverage.layers import examine_layers
from tests.coverage.patterns import as_entry
from tests.coverage.reasons import REASONS
from tests.coverage.sizes import TABLE as SIZES
from tests.coverage.sizes import find_size_keys
from tests.coverage.table import (
    PAGE,
    TABLE,
    as_stored,
    generic_names,
    language_models,
    page,
    seeing_models,
)

SAMPLE = [
    "bloom",  # ALiBi; a fused attention matrix.
    "cohere",  # Attention and FFN side by side; a factor of the logits.
    "deepseek_v4",  # Token ids for layers, beside several hidden states.
    "deepseek_v3",  # Latent attention; shared experts beside routed ones.
    "falcon_h1",  # A recurrent mixer, with buffers that are not stored.
    "gemma3n",  # Inputs for each layer, keys of earlier ones; what sees images cannot be built.
    "glm4",  # A fused gate and up matrix.
    "granite",  # Factors of embeddings and residuals.
    "hy_v4",  # A layer hands on what it has chosen.
    "mllama",  # Layers that only run on images.
    "molmo2",  # Tensors that are split when they are loaded.
    "olmo2",  # Norms after the blocks.
    "phi",  # A bias of the head.
    "prophetnet",  # Several hidden states of a token, in one long sequence.
    "qwen2_5_vl",  # Images; names by the class instead of the model type.
    "qwen4_exp_text",  # Several hidden states of a token.
    "roberta",  # Positions that leave padding out; a tied bias of the head.
    "starcoder2",  # Biases; a tied head.
]


def entries() -> dict[str, Any]:
    found: dict[str, Any] = table()["model_types"]
    return found


@pytest.mark.parametrize("name", SAMPLE)
def test_what_the_table_says_is_found_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    found = examine(name)
    assert as_entry(found.architecture) == entries()[name]["architecture"]
    assert found.dense_difference <= TOLERANCE
    assert found.reload_difference <= TOLERANCE


@pytest.mark.parametrize("name", ["glm4", "gpt_bigcode", "longcat_flash", "qwen2_5_vl", "bloom"])
def test_what_the_table_says_of_sizes_is_found_again(name: str) -> None:
    assert find_size_keys(name) == size_keys.table()["model_types"][name]


def test_every_architecture_has_its_sizes() -> None:
    found = size_keys.table()["model_types"]
    assert size_keys.table()["transformers"] == transformers.__version__
    assert sorted(found) == sorted(generic_model_types())
    assert SIZES.read_text(encoding="utf-8") == as_stored(found)
    without = [name for name in found if None in size_keys.embedding_keys(name)]
    assert len(without) < len(found) / 10


@pytest.mark.parametrize("name", ["bitnet", "gpt_oss", "hrm_text", "jetmoe"])
def test_what_is_refused_has_the_reason_of_its_examination(name: str) -> None:
    with pytest.raises(NotPrunable) as caught:
        examine(name)
    assert refusal(name) == REASONS.get(name, str(caught.value))


def test_every_architecture_of_transformers_is_in_the_table() -> None:
    assert table()["transformers"] == transformers.__version__
    assert sorted(entries()) == sorted(generic_names())
    for entry in entries().values():
        assert len(entry) == 1
        assert entry.keys() <= {"architecture", "refused"}


def test_the_page_is_that_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(entries())
    assert TABLE.read_text(encoding="utf-8") == as_stored(entries())


def test_the_page_lists_every_architecture_and_counts_them() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (own|generic|refused) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == language_models() + seeing_models()
    kinds = dict(rows)
    with_experts = {name for name in kinds if expert_architecture(name) is not None}
    generic = {name for name, kind in rows if kind == "generic"}
    own = {name for name, kind in rows if kind == "own"}
    assert generic == (set(generic_model_types()) | with_experts) - own
    pruned = [name for name in language_models() if kinds[name] != "refused"]
    assert f"Of the {len(language_models())} language models" in text
    assert f"StrucPrune prunes {len(pruned)}:" in text


def test_reasons_are_sentences_for_users() -> None:
    for entry in entries().values():
        if "refused" in entry:
            assert re.fullmatch(r"[a-z][\w ,:;/'-]{20,110}", entry["refused"]), entry["refused"]


def test_no_reason_is_given_for_what_is_pruned() -> None:
    assert {name: refusal(name) for name in REASONS} == REASONS


def test_an_encoder_is_refused_though_its_class_can_be_a_decoder() -> None:
    bert = architecture("bert")
    assert bert is not None
    with pytest.raises(UnsupportedArchitecture, match="is an encoder"):
        describe({"model_type": "bert"}, {}, bert)


@pytest.mark.parametrize("name", ["glm4", "qwen2_5_vl", "falcon_h1"])
def test_what_the_table_says_of_layers_is_found_again(name: str) -> None:
    assert why_layers_stay(name) is None
    assert examine_layers(name) <= TOLERANCE


@pytest.mark.parametrize("name", ["diffllama", "minicpm3"])
def test_layers_that_depend_on_their_place_stay(name: str) -> None:
    with pytest.raises(NotPrunable) as caught:
        examine_layers(name)
    assert str(caught.value) == why_layers_stay(name)


def test_reasons_of_layers_are_of_architectures_in_the_table() -> None:
    assert set(refusals()) <= set(generic_model_types())
