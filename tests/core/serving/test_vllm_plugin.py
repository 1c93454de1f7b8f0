"""The plugin for vLLM, without vLLM: `make runtimes` loads models in the real one."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from strucprune_core.export.layouts import CLASS_STEMS
from strucprune_core.export.runtimes import RUNTIMES
from strucprune_core.serving.shapes import (
    EXPERT_MULTIPLE,
    LayerShape,
    check_split,
    expert_width,
    layer_shapes,
)
from strucprune_core.serving.vllm_plugin import served_classes

ROOT = Path(__file__).parents[3]
GROUP = "vllm.general_plugins"


def entry_point() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["entry-points"][GROUP]["strucprune"])


def test_the_entry_point_imports_nothing_heavy() -> None:
    module, _, function = entry_point().partition(":")
    code = (
        f"import sys, {module}\n"
        f"assert callable({module}.{function})\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_family_that_is_said_to_load_has_a_class() -> None:
    """Read from the source: the module itself needs vLLM."""
    source = (ROOT / "strucprune_core/serving/vllm_models.py").read_text("utf-8")
    written = {each.name for each in ast.parse(source).body if isinstance(each, ast.ClassDef)}
    assert set(served_classes().values()) <= written
    (said,) = [
        set(form.families)
        for runtime in RUNTIMES
        if runtime.name == "vLLM"
        for form in runtime.loads
        if form.form == "per_layer"
    ]
    assert said == set(served_classes())
    assert said < set(CLASS_STEMS)


SHAPES = [
    LayerShape(8, 4, (96,)),
    LayerShape(4, 2, (60,)),
    LayerShape(0, 0, (80,)),
    LayerShape(4, 1, ()),
    LayerShape(4, 4, (17, 30)),
]


def test_shapes_are_read() -> None:
    section = {"layers": [{"ffn": [17, 30], "query_heads": 4, "kv_heads": 2}]}
    assert layer_shapes(section) == [LayerShape(4, 2, (17, 30))]
    with pytest.raises(ValueError, match="lists no layers"):
        layer_shapes({"tensors": {}})


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_sizes_that_divide_every_layer(devices: int) -> None:
    check_split(SHAPES, devices)


@pytest.mark.parametrize(
    ("shapes", "devices", "words"),
    [
        (SHAPES, 8, "layer 1 of this pruned model has 4 query heads"),
        ([LayerShape(8, 3, ())], 2, "layer 0 of this pruned model has 3 key-value heads"),
        ([LayerShape(8, 3, ())], 4, "3 key-value heads"),
        ([LayerShape(4, 4, (95,))], 2, "95 FFN channels"),
    ],
    ids=str,
)
def test_a_size_that_does_not_divide_is_refused_with_the_numbers(
    shapes: list[LayerShape], devices: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        check_split(shapes, devices)
    assert f"tensor parallel size {devices} does not divide" in str(error.value)
    assert "Sizes that divide all layers: 1" in str(error.value)


def test_experts_of_a_layer_get_one_width() -> None:
    assert expert_width(LayerShape(4, 4, (17, 30)), 1) == EXPERT_MULTIPLE
    assert expert_width(LayerShape(4, 4, (17, 33)), 1) == 2 * EXPERT_MULTIPLE
    assert expert_width(LayerShape(4, 4, (17, 30)), 4) == 4 * EXPERT_MULTIPLE
