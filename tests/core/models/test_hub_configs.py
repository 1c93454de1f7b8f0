"""Configs of real models, in the words that their publishers used."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import expected_tensors
from tests.core.models.hub_configs import HUB


@pytest.mark.parametrize("name", HUB)
def test_parameters_are_as_many_as_published(name: str) -> None:
    config, millions = HUB[name]
    shapes = expected_tensors(parse_config(config))
    found = sum(math.prod(shape) for shape in shapes.values())
    assert found / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("name", HUB)
def test_old_words_mean_what_transformers_makes_of_them(name: str) -> None:
    config, _ = HUB[name]
    rest = {k: v for k, v in copy.deepcopy(config).items() if k not in ("model_type", "auto_map")}
    normalised = AutoConfig.for_model(config["model_type"], **rest)
    assert parse_config(config) == parse_config(normalised.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(normalised)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shapes = expected_tensors(parse_config(config))
    assert parameters == sum(math.prod(shape) for shape in shapes.values())
