"""A real Llama checkpoint, small enough for milliseconds, with a real trained tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.text import make_text

_END_OF_TEXT = "<|endoftext|>"
# Random initial weights give near-equal logits; a larger spread makes layers matter.
_INITIALIZER_RANGE = 0.1


def make_tiny_llama(
    directory: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    intermediate: int = 192,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 512,
    tie: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    text: str | None = None,
) -> Path:
    """Write config.json, safetensors, tokenizer files and generation_config.json.

    Args:
        directory: Created if missing.
        vocab: Rows of the embedding; the tokenizer learns at most as many tokens.
        tie: Share the embedding with the head.
        max_shard_size: Smaller than the model gives several files and an index.
        text: What the tokenizer is trained on; made-up prose if None.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        initializer_range=_INITIALIZER_RANGE,
        tie_word_embeddings=tie,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    save_tokenizer(directory, text=text or make_text(), vocab=vocab)
    return directory


def save_tokenizer(directory: Path, *, text: str, vocab: int = 512) -> None:
    """Train a byte-level BPE tokenizer on `text` and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END_OF_TEXT,
        eos_token=_END_OF_TEXT,
        pad_token=_END_OF_TEXT,
    ).save_pretrained(directory)
