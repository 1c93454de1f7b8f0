from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from strucprune_core.models.config import RopeConfig
from strucprune_core.models.decoder import rotations_of
from strucprune_core.models.families import parse_config
from strucprune_core.models.rope import cosines_and_sines, inverse_frequencies, rotate

CONTEXT = 128
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("head_dim", [4, 64, 128])
@pytest.mark.parametrize("length", [20, 300])
def test_angles_are_those_of_transformers(name: str, head_dim: int, length: int) -> None:
    """Within and beyond the context, which is where `dynamic` and `longrope` change."""
    parameters = dict(ROPES[name])
    if name == "longrope":
        parameters["short_factor"] = [1.0 + 0.1 * pair for pair in range(head_dim // 2)]
        parameters["long_factor"] = [2.0 + 0.3 * pair for pair in range(head_dim // 2)]
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        rope_parameters=parameters,
    )
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    rope = parse_config(config.to_dict()).blocks[0].rope
    assert rope is not None
    ours = rotations_of(rope, head_dim, length, torch.device("cpu"))
    torch.testing.assert_close(ours, (cosines[0], sines[0]), rtol=1e-4, atol=1e-4)


def test_rotation_keeps_lengths_and_relative_angles() -> None:
    rotations = cosines_and_sines(inverse_frequencies(RopeConfig(), 16, 20), 20)
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x.expand(20, 16), *rotations)
    torch.testing.assert_close(rotated[0], x)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm().expand(20))
    products = rotated @ rotated.T  # depends on the distance of positions only
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:], rtol=1e-4, atol=1e-4)
