"""A result in layout `uniform` says the same to runtimes that know the old names of keys alone."""

from __future__ import annotations

from typing import Any

import pytest

from strucprune_core.export.earlier_keys import with_earlier_keys
from strucprune_core.models.families import parse_config
from tests.core.models.families import SHAPE, VARIANTS
from tests.core.models.reference import ROPES

NEW = ("rope_parameters", "num_local_experts")
SETS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in VARIANTS} | {
    f"{family}-{kind}": (family, {"rope_parameters": rope})
    for family in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gemma2")
    for kind, rope in ROPES.items()
}


@pytest.mark.parametrize(("variant", "changes"), SETS.values(), ids=SETS)
def test_either_set_of_keys_describes_the_model(variant: str, changes: dict[str, Any]) -> None:
    config_class, options = VARIANTS[variant]
    before = config_class(**{**options, **changes}).to_dict()
    family = before["model_type"]
    written = with_earlier_keys(before, family)
    assert {key: written[key] for key in before} == before
    old = {key: value for key, value in written.items() if key not in NEW or family == "mixtral"}
    old.pop("rope_parameters", None)
    for keys in (written, old):
        assert parse_config(keys) == parse_config(before)
    read = config_class.from_dict(written).to_dict()
    rotary = read.pop("rope_parameters", None), before.get("rope_parameters")
    if rotary[1] is not None:
        assert without_old_name(rotary[0]) == without_old_name(rotary[1])
    assert read.items() >= {k: v for k, v in before.items() if k != "rope_parameters"}.items()


def without_old_name(rope: dict[str, Any]) -> dict[str, Any]:
    """Without the kind's other name, which transformers keeps where it is given."""
    kinds = {key: value for key, value in rope.items() if isinstance(value, dict)}
    return {key: value for key, value in rope.items() if key != "type"} | {
        key: without_old_name(value) for key, value in kinds.items()
    }


def test_old_keys_stay_as_they_are() -> None:
    config = {**SHAPE, "rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert with_earlier_keys(config, "llama") == config
    both = {**config, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    assert with_earlier_keys(both, "llama") == both
