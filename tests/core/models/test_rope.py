from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from strucprune_core.models.config import RopeConfig
from strucprune_core.models.rope import cosines_and_sines, inverse_frequencies, rotate

ROPES = {
    "default": RopeConfig(),
    "theta": RopeConfig(theta=500.0),
    "linear": RopeConfig(type="linear", factor=4.0),
    "llama3": RopeConfig(
        theta=500000.0,
        type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_angles_are_those_of_transformers(rope: RopeConfig, head_dim: int) -> None:
    parameters: dict[str, object] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        parameters["factor"] = rope.factor
    if rope.type == "llama3":
        parameters |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        }
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300)[None])
    ours = cosines_and_sines(inverse_frequencies(rope, head_dim), 300)
    torch.testing.assert_close(ours, (cosines[0], sines[0]), rtol=1e-5, atol=1e-5)


def test_rotation_keeps_lengths_and_relative_angles() -> None:
    rotations = cosines_and_sines(inverse_frequencies(RopeConfig(), 16), 20)
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x.expand(20, 16), *rotations)
    torch.testing.assert_close(rotated[0], x)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm().expand(20))
    products = rotated @ rotated.T  # depends on the distance of positions only
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:], rtol=1e-4, atol=1e-4)
