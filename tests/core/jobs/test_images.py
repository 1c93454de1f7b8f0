"""Whole jobs on models that see images as well: text is pruned, what sees is copied as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from strucprune_core.export.loading import load_pretrained
from strucprune_core.models.read_config import header_allowance, read_config
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.coverage.tiny import tiny_config
from tests.support.cut_by_hand import filled_up


def in_one_file(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    tensors: dict[str, Tensor] = load_file(directory / "model.safetensors")
    return tensors


def picture(config: Any, tokens: Tensor) -> dict[str, Tensor]:
    """What the model is given of a picture, and token ids that leave room for it."""
    size = config.vision_config.image_size
    generator = torch.Generator().manual_seed(3)
    ids = tokens.clone()
    ids[:, 2 : 2 + config.mm_tokens_per_image] = config.image_token_id
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(len(tokens), 3, size, size, generator=generator),
        "token_type_ids": (ids == config.image_token_id).long(),
    }


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gemma3") / "model"
    return save_tiny("gemma3", directory, mm_tokens_per_image=49)


def test_text_is_pruned_and_pictures_are_seen_as_before(
    gemma3: Path, text_file: Path, tmp_path: Path
) -> None:
    report = run(tiny_spec(gemma3, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert report.after.parameters < report.before.parameters
    before, after = in_one_file(gemma3), in_one_file(tmp_path / "out")
    assert before.keys() == after.keys()
    seeing = [name for name in before if "vision" in name or "projector" in name]
    assert seeing
    for name in seeing:
        assert torch.equal(before[name], after[name]), name
    pruned = load_pretrained(str(tmp_path / "out")).eval()
    assert type(pruned).__mro__[2].__name__ == "Gemma3ForConditionalGeneration"
    length = pruned.config.mm_tokens_per_image + 20
    given = picture(pruned.config, torch.arange(5, 5 + length).view(1, length))
    wide = AutoModelForImageTextToText.from_pretrained(gemma3).eval()
    filled_up(wide, pruned.state_dict())
    with torch.inference_mode():
        found, wanted = pruned(**given).logits, wide(**given).logits
        other = pruned(**{**given, "pixel_values": -given["pixel_values"]}).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, other)  # It does look at the picture.


def test_the_context_and_the_head_are_those_of_the_decoder(gemma3: Path) -> None:
    from strucprune_core.checkpoint.index import open_checkpoint
    from strucprune_core.storage.local import LocalStore

    config, _ = read_config(open_checkpoint(LocalStore(gemma3)))
    assert config.max_position_embeddings == 131072
    assert config.tie_word_embeddings
    assert config.layers == 4


def test_parts_that_count_no_blocks_may_have_many_tensors() -> None:
    """What sees images of Gemma 3n has 548 tensors, and its config.json does not say so.

    Its own class needs timm and torchvision, which are not among what tests install. By hand, with
    both, a tiny text decoder was pruned beside the whole tower: its logits on a picture are those
    of the same weights cut by hand.
    """
    raw = json.loads(json.dumps(tiny_config("gemma3n").to_dict()))
    found = header_allowance(raw)
    assert found.tensors > 926
    many = {f"part_{number}": raw["vision_config"] for number in range(1000)}
    assert header_allowance({**raw, **many}).tensors < 3 * found.tensors
