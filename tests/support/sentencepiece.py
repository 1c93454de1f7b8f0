"""Tokenizers of the SentencePiece kind (Llama 2, Mistral), made without any download."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.support.text import make_text

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}


def learned_pieces() -> list[str]:
    """Pieces in the order in which they are learned, then characters, as in SentencePiece."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        [make_text(), "aaaa aaaaa  aa"], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    by_id = sorted(learner.get_vocab().items(), key=lambda entry: entry[1])
    pieces = [text for text, _ in by_id if len(text) > 1] + ["▁▁", "▁▁▁", "▁▁▁▁"]
    return pieces + sorted({letter for text in pieces for letter in text} | set("▁'é日"))


def sentencepiece_model() -> bytes:
    """A tokenizer.model of type BPE with byte fallback, as Llama 2 has."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # Its classes are made when it is imported.

    unknown, control, byte, normal = 2, 3, 6, 1
    model = proto.ModelProto()
    kinds = [unknown, control, control, *[byte] * len(BYTES)]
    for number, text in enumerate(["<unk>", "<s>", "</s>", *BYTES, *learned_pieces()]):
        piece = model.pieces.add()
        piece.piece, piece.score = text, -float(max(0, number - len(kinds)))
        piece.type = kinds[number] if number < len(kinds) else normal
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    data: bytes = model.SerializeToString()
    return data


def sentencepiece_tokenizer() -> dict[str, Any]:
    """A tokenizer.json as transformers makes it of a SentencePiece model of type BPE."""
    pieces = learned_pieces()
    vocab = {text: number for number, text in enumerate(["<unk>", "<s>", "</s>", *BYTES, *pieces])}
    merges = [
        [text[:cut], text[cut:]]
        for text in pieces
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **flags, "special": True}
            for number, text in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
