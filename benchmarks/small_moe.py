"""A small mixture of experts, trained on one text: for benchmarks where no real one is at hand.

The architecture is transformers' `qwen3_moe`. The tokenizer is made of the text too: with few
tokens, the time goes into experts and not into the head. Training is next token prediction by AdamW
on windows drawn from the text, with the loss of Fedus et al. 2021 (Switch Transformer,
arXiv:2101.03961, equation 4) that spreads tokens over experts. Some minutes of it make a poor
language model, but one whose experts differ and whose router chooses among them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

_END_OF_TEXT = "<|endoftext|>"
_MADE_OF = "made_of.json"
_CLIP = 1.0
_NEWS = 20  # Steps.
_WARM_UP = 0.05  # Share of the steps.


@dataclass(frozen=True)
class Recipe:
    """What the model is, and how it is trained.

    Attributes:
        vocabulary: Tokens of the tokenizer.
        layers: Decoder layers, each with experts.
        hidden: Width of the residual stream.
        experts: Of a layer.
        chosen: Experts that a token is sent to.
        width: Channels of an expert.
        steps: Steps of training.
        batch: Windows of a step.
        length: Tokens of a window.
        rate: Highest learning rate; it falls to a tenth along a cosine.
        balance: Weight of the loss that spreads tokens.
    """

    vocabulary: int = 4096
    layers: int = 4
    hidden: int = 192
    experts: int = 16
    chosen: int = 2
    width: int = 128
    steps: int = 600
    batch: int = 16
    length: int = 128
    rate: float = 3e-3
    balance: float = 0.01

    def config(self) -> Qwen3MoeConfig:
        """The model's config."""
        return Qwen3MoeConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            moe_intermediate_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 64),
            num_key_value_heads=max(1, self.hidden // 64),
            head_dim=64,
            num_experts=self.experts,
            num_experts_per_tok=self.chosen,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            router_aux_loss_coef=self.balance,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )


def ensure(directory: Path, text: str, recipe: Recipe, seed: int) -> Path:
    """A trained model's directory; trains on the first call.

    Args:
        directory: Where it is kept.
        text: What it is trained on.
        recipe: How it is trained.
        seed: Of the weights and the windows.

    Raises:
        ValueError: it holds a model that was made of something else.
    """
    made_of = {
        "recipe": asdict(recipe),
        "seed": seed,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if directory.exists():
        if json.loads((directory / _MADE_OF).read_text(encoding="utf-8")) != made_of:
            raise ValueError(f"{directory} was trained otherwise: choose another directory")
        return directory
    part = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = _tokenizer(text, recipe.vocabulary)
    tokens = np.array(tokenizer.encode(text).ids, dtype=np.int32)
    _trained(tokens, recipe, seed).save_pretrained(part)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_END_OF_TEXT, eos_token=_END_OF_TEXT
    ).save_pretrained(part)
    (part / _MADE_OF).write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")
    part.rename(directory)
    return directory


def _tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _trained(tokens: NDArray[np.int32], recipe: Recipe, seed: int) -> Any:
    """A model trained from random weights."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(recipe.config()).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    began = time.monotonic()
    for step, windows in enumerate(_windows(tokens, recipe, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(step / recipe.steps)
        ids = torch.from_numpy(windows).long()
        output = model(ids, labels=ids, output_router_logits=True, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % _NEWS == 0:
            seconds = time.monotonic() - began
            line = f"training, step {step}: loss {output.loss.item():.3f}, {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
    return model.eval()


def _windows(tokens: NDArray[np.int32], recipe: Recipe, seed: int) -> Iterator[NDArray[np.int32]]:
    """Batches of windows that begin anywhere in the text."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(recipe.steps):
        starts = generator.integers(0, len(tokens) - recipe.length + 1, recipe.batch)
        yield np.stack([tokens[start : start + recipe.length] for start in starts])


def _schedule(progress: float) -> float:
    """The learning rate's share of its highest value."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
