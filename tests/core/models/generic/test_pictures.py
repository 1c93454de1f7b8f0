"""Models that see images, pruned: what they say of a text and of a picture.

Each is compared with the dense class whose channels were set to zero by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from strucprune_core.models.generic.architectures import architecture
from tests.coverage.examine import pruned_model
from tests.coverage.tiny import tiny_config, tiny_model
from tests.support.cut_by_hand import filled_up

IMAGE, START = 100, 101  # Token ids.
SEEN = 4  # Tokens of a picture, of each model below.


def plain_picture(config: Any) -> dict[str, Tensor]:
    """A picture as pixels."""
    size = config.vision_config.image_size
    return {"pixel_values": noise(1, 3, size, size)}


def sized_picture(config: Any) -> dict[str, Tensor]:
    """A picture as pixels, whose size is said."""
    size = config.vision_config.image_size
    return {**plain_picture(config), "image_sizes": torch.tensor([[size, size]])}


def patches(config: Any) -> dict[str, Tensor]:
    """A picture of 4 x 4 patches, of which four at a time become a token."""
    vision = config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return {"pixel_values": noise(16, width), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def placed_patches(config: Any) -> dict[str, Tensor]:
    """A picture of 6 x 6 patches, of which nine at a time become a token."""
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6))[None]
    width = 3 * config.vision_config.patch_size**2
    return {"pixel_values": noise(1, 36, width), "image_position_ids": places}


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Seeing:
    """A model that sees images.

    Attributes:
        picture: What it is given of one.
        changes: Of its tiny config.
        vision: Of the part that sees.
    """

    picture: Callable[[Any], dict[str, Tensor]]
    changes: dict[str, Any]
    vision: dict[str, Any]


INDEXED = {"image_token_index": IMAGE}
NAMED = {"image_token_id": IMAGE, "vision_start_token_id": START}
QWEN = {"depth": 2, "num_heads": 4, "out_hidden_size": 64}
MODELS = {
    "gemma4": Seeing(
        placed_patches,
        {"image_token_id": IMAGE},
        {
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 16,
        },
    ),
    "llama4": Seeing(
        plain_picture,
        INDEXED,
        {
            "image_size": 56,
            "intermediate_size": 256,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
    ),
    "llava": Seeing(plain_picture, INDEXED, {"image_size": 64}),
    "mistral3": Seeing(sized_picture, INDEXED, {"image_size": 64}),
    "qwen2_5_vl": Seeing(
        patches,
        NAMED,
        {**QWEN, "fullatt_block_indexes": [1]},
    ),
    "qwen3_5": Seeing(patches, NAMED, {**QWEN, "num_position_embeddings": 16}),
    "qwen3_vl": Seeing(
        patches,
        NAMED,
        {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_text_and_pictures_are_read_as_by_weights_cut_by_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    seeing, found = MODELS[name], architecture(name)
    assert found is not None
    dense = tiny_model(tiny_config(name, **seeing.changes, vision_config=seeing.vision))
    narrow = pruned_model(dense, found)
    assert fewer(narrow, dense)
    filled_up(dense, narrow.state_dict())
    text = torch.arange(5, 17)[None]
    picture = seeing.picture(dense.config)
    ids = torch.cat([text, torch.tensor([[START, *[IMAGE] * SEEN]]), text.flip(-1)], dim=1)
    kinds = (ids == IMAGE).long()
    with torch.inference_mode():
        for given in (
            {"input_ids": text},
            {"input_ids": ids, "mm_token_type_ids": kinds, **picture},
        ):
            torch.testing.assert_close(
                narrow(**given).logits, dense(**given).logits, rtol=1e-5, atol=1e-5
            )
        other = narrow(**{**given, "pixel_values": -picture["pixel_values"]}).logits
    assert not torch.allclose(narrow(**given).logits, other, atol=1e-3)  # It does look.


def fewer(narrow: Any, dense: Any) -> bool:
    """Whether one has fewer parameters, and the same tensors for images."""
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    wide = {name: tensor.shape for name, tensor in dense.state_dict().items()}
    changed = {name for name in wide if shapes[name] != wide[name]}
    return bool(changed) and not any("vis" in name for name in changed)
