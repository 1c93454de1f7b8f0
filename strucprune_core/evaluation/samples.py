"""Samples: how the dense and the pruned model continue the same prompts, and where they differ.

Both models write the most probable token each time, so the same model writes the same text again.
The tokenizer is the model's own, and runs in the process that reads texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strucprune_core.calibration.tokenizer_session import TokenizerSession
from strucprune_core.errors import InvalidSpec, naming_field
from strucprune_core.evaluation.tasks.greedy import Prompt, answer
from strucprune_core.models.forward import Tick
from strucprune_core.models.streaming import ModelStream
from strucprune_core.report.document import Continuation, SampleReport
from strucprune_core.run.artifacts import SampleTokens

FIELD = "evaluation.prompts"


def write_samples(
    stream: ModelStream,
    session: TokenizerSession,
    prompts: Sequence[str],
    most_tokens: int,
    scratch: Path,
    tick: Tick = lambda: None,
) -> list[SampleTokens]:
    """Continue prompts.

    Args:
        stream: The model.
        session: Its tokenizer.
        prompts: What is continued.
        most_tokens: Most tokens of a continuation.
        scratch: Directory for keys and values.
        tick: Called after each layer of each position. It may raise.

    Raises:
        InvalidSpec: a prompt has no token, or with its continuation more than the model has
            positions for.
        InvalidText: the tokenizer cannot encode a prompt.
        ScratchUnavailable: the scratch directory has no space.
    """
    with naming_field(FIELD):
        encoded = session.encode(prompts)
    _check_lengths(encoded, most_tokens, stream.config.max_position_embeddings)
    end = session.tokens.end

    def ended(made: dict[int, list[int]]) -> set[int]:
        return {number for number, tokens in made.items() if tokens[-1] == end}

    asked = [Prompt(tuple(tokens), most_tokens) for tokens in encoded]
    written = answer(stream, asked, ended, scratch, tick)
    return [
        SampleTokens(tokens, made[:-1] if made[-1] == end else made, ended=made[-1] == end)
        for tokens, made in zip(encoded, written, strict=True)
    ]


def _check_lengths(encoded: Sequence[Sequence[int]], most_tokens: int, positions: int) -> None:
    for number, tokens in enumerate(encoded):
        if not tokens:
            raise InvalidSpec(
                f"the model's tokenizer makes no token of prompt {number + 1}",
                field=FIELD,
                remedy="Leave it out, or write some words.",
            )
        if len(tokens) + most_tokens > positions:
            raise InvalidSpec(
                f"prompt {number + 1} has {len(tokens):,} tokens, which with {most_tokens:,} more "
                f"are over the {positions:,} positions that the model has",
                field=FIELD,
                remedy="Shorten the prompt, or lower evaluation.sample_tokens.",
            )


def compare(
    session: TokenizerSession,
    prompts: Sequence[str],
    dense: Sequence[SampleTokens],
    pruned: Sequence[SampleTokens],
) -> list[SampleReport]:
    """Both models' continuations as text, split at the first token that differs.

    Args:
        session: The tokenizer of both.
        prompts: What was continued.
        dense: What the dense model wrote.
        pruned: What the pruned model wrote.
    """
    same = [
        _agreement(one.written, other.written) for one, other in zip(dense, pruned, strict=True)
    ]
    before, after = (_decoded(session, each, same) for each in (dense, pruned))
    return [
        _compared(prompt, count, (one, texts), (other, other_texts))
        for prompt, count, one, texts, other, other_texts in zip(
            prompts, same, dense, before, pruned, after, strict=True
        )
    ]


def _agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


# Texts of one continuation: up to the first difference, up to the token after it, and all.
_Texts = tuple[str, str, str]


def _decoded(
    session: TokenizerSession, samples: Sequence[SampleTokens], same: Sequence[int]
) -> list[_Texts]:
    """Decoded together with the prompt, without which a first word may lose its leading space."""
    parts: list[list[int]] = []
    for sample, count in zip(samples, same, strict=True):
        ends = (0, count, count + 1, len(sample.written))
        parts += [sample.prompt + sample.written[:end] for end in ends]
    texts = session.decode(parts)
    found: list[_Texts] = []
    for start in range(0, len(texts), 4):
        prompt, agreed, further, whole = texts[start : start + 4]
        # The prompt's own text may change at its end, where a character consists of several tokens.
        cut = len(_common(prompt, whole))
        found.append((agreed[cut:], further[cut:], whole[cut:]))
    return found


def _compared(
    prompt: str,
    count: int,
    dense: tuple[SampleTokens, _Texts],
    pruned: tuple[SampleTokens, _Texts],
) -> SampleReport:
    same = _common(_common(dense[1][0], dense[1][2]), pruned[1][2])
    return SampleReport(
        prompt=prompt,
        same=same,
        same_tokens=count,
        dense=_continuation(*dense, len(same)),
        pruned=_continuation(*pruned, len(same)),
    )


def _continuation(sample: SampleTokens, texts: _Texts, start: int) -> Continuation:
    _, further, whole = texts
    # Of a character that consists of several tokens, the first one alone is no text.
    stop = len(_common(further, whole))
    if stop <= start < len(whole):
        stop = start + 1
    return Continuation(
        token=whole[start:stop],
        rest=whole[max(start, stop) :],
        tokens=len(sample.written),
        ended=sample.ended,
    )


def _common(one: str, other: str) -> str:
    """What both begin with."""
    stop = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:stop]
