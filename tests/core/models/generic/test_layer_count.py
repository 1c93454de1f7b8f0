"""The number of layers in config.json against that in the files, before torch is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from tests.core.models.generic.tiny import save_tiny


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def olmo2(tmp_path: Path) -> Path:
    return save_tiny("olmo2", tmp_path / "model")


@pytest.mark.parametrize(
    ("count", "remedy"),
    [
        (5, "Copy the model again"),
        (3, "num_nextn_predict_layers"),
        (10**9, "Correct"),
        ("4", "Correct"),
    ],
)
def test_another_number_is_refused(olmo2: Path, count: Any, remedy: str) -> None:
    edit_config(olmo2, num_hidden_layers=count)
    with pytest.raises(InvalidCheckpoint) as refused:
        inspect_model(LocalStore(olmo2))
    assert "num_hidden_layers" in str(refused.value)
    assert remedy in str(refused.value.remedy)


def test_layers_that_see_images_are_bounded_too(tmp_path: Path) -> None:
    model = save_tiny("gemma3", tmp_path / "model")
    edit_config(model, vision_config={"num_hidden_layers": 10**9})
    with pytest.raises(InvalidCheckpoint, match="num_hidden_layers"):
        inspect_model(LocalStore(model))
