"""What a harness asks of a language model, answered by a streamed one.

Texts become tokens as in the harness's own backend for transformers (`hf`), so that both score the
same tokens. Its rules, in short: a continuation's tokens are those of context and continuation
together after those of the context alone; blanks at the end of a context belong to the
continuation; without a context, the token that begins texts stands for it; what is too long loses
its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strucprune_core.calibration.tokenizer_session import TokenizerSession
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, InvalidText
from strucprune_core.evaluation.tasks.greedy import Prompt, answer
from strucprune_core.evaluation.tasks.scoring import Continuation, Score, score
from strucprune_core.models.forward import Tick
from strucprune_core.models.streaming import ModelStream
from strucprune_core.plan.task_memory import CONTEXT_TOKENS

FIELD = "evaluation.tasks"
_DEFAULT_ANSWER_TOKENS = 256
_LIMIT_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings of generation that change nothing where the most probable token is taken.
_HARMLESS = {"until", "do_sample", "temperature", "top_p", "top_k", *_LIMIT_KEYS}


@dataclass(slots=True)
class Cut:
    """How many requests lost their beginning, because they were longer than the context."""

    requests: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """A streamed model that answers requests.

    Attributes:
        stream: The model.
        tokenizer: Its tokenizer.
        scratch: Directory for activations.
        context_tokens: Most tokens of a request, its answer included.
        end_tokens: Tokens that end an answer.
        tick: Called at safe points; may raise.
        cut: Counts requests that were too long.
    """

    stream: ModelStream
    tokenizer: TokenizerSession
    scratch: Path
    context_tokens: int = CONTEXT_TOKENS
    end_tokens: frozenset[int] = frozenset()
    tick: Tick = lambda: None
    cut: Cut = field(default_factory=Cut)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of (context, continuation): the log-probability in nats, and whether it is greedy.

        Raises:
            InvalidText: a continuation has no tokens, or more than the model may be given.
        """
        requests = [self._fitted(request) for request in self._encoded_pairs(pairs)]
        return [(found.log_likelihood, found.greedy) for found in self._score(requests)]

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of whole texts, in nats: every token counts once.

        Raises:
            InvalidCheckpoint: the model has no token that begins a text.
        """
        windows: list[Continuation] = []
        numbers: list[int] = []
        for number, tokens in enumerate(self._encode(texts)):
            made = list(rolling_windows(tokens, self._start(), self.context_tokens))
            windows += made
            numbers += [number] * len(made)
        sums = [0.0] * len(texts)
        for number, found in zip(numbers, self._score(windows), strict=True):
            sums[number] += found.log_likelihood
        return sums

    def continuations(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Greedy answers to (prompt, settings): `until` ends them, `max_gen_toks` limits them.

        Raises:
            InvalidSpec: the settings ask for anything but greedy decoding.
        """
        settings = [AnswerSettings.of(given) for _, given in requests]
        encoded = self._encode([prompt for prompt, _ in requests])
        prompts = [
            self._prompt(tokens, each.most) for tokens, each in zip(encoded, settings, strict=True)
        ]
        until = [self._ends(each.until) for each in settings]

        def ended(made: dict[int, list[int]]) -> set[int]:
            texts = self.tokenizer.decode(list(made.values()))
            return {
                number
                for (number, tokens), text in zip(made.items(), texts, strict=True)
                if tokens[-1] in self.end_tokens or any(stop in text for stop in until[number])
            }

        found = answer(self.stream, prompts, ended, self.scratch, self.tick)
        texts = self.tokenizer.decode(found)
        return [_before_any(text, stops) for text, stops in zip(texts, until, strict=True)]

    def _score(self, requests: Sequence[Continuation]) -> list[Score]:
        return score(self.stream, requests, self.scratch, self.tick)

    def _encoded_pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Continuation]:
        moved = [_blanks_moved(context, continuation) for context, continuation in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved if context))
        lengths = dict(zip(contexts, map(len, self._encode(contexts)), strict=True))
        whole = iter(self._encode([a + b for a, b in moved if a]))
        alone = iter(self.tokenizer.encode([b for a, b in moved if not a], special_tokens=False))
        for context, continuation in moved:
            if context:
                tokens, given = next(whole), lengths[context]
            else:
                tokens, given = next(alone), 1
                if tokens and tokens[0] != self._start():
                    tokens = [self._start(), *tokens]
            if not 0 < given < len(tokens):
                raise InvalidText(
                    f"the continuation {continuation[:80]!r} has no tokens of its own",
                    field=FIELD,
                    remedy="Correct the task: each choice and target needs some text.",
                )
            yield Continuation(tuple(tokens[:given]), tuple(tokens[given:]))

    def _fitted(self, request: Continuation) -> Continuation:
        """What is too long loses its beginning."""
        most, scored = self.context_tokens, request.scored
        if len(scored) > most:
            raise InvalidText(
                f"a continuation has {len(scored)} tokens, and the model is given at most {most}",
                field=FIELD,
                remedy="Choose another task, or a model with a longer context.",
            )
        room = most + 1 - len(scored)  # The last token is predicted, not given.
        if len(request.given) <= room:
            return request
        self.cut.requests += 1
        return Continuation(request.given[-room:], scored)

    def _prompt(self, tokens: list[int], most: int) -> Prompt:
        room = self.context_tokens - most
        if room < 1:
            raise InvalidSpec(
                f"a task asks for answers of {most} tokens, and the model is given at most "
                f"{self.context_tokens}",
                field=FIELD,
                remedy="Choose another task, or a model with a longer context.",
            )
        if len(tokens) > room:
            self.cut.requests += 1
        return Prompt(tuple(tokens[-room:]) or (self._start(),), most)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts; the token that begins texts is not put before itself."""
        start = self.tokenizer.tokens.start
        written = "" if start is None else self.tokenizer.decode([[start]], special_tokens=True)[0]
        begun = [bool(written) and text.startswith(written) for text in texts]
        parts = {
            each: iter(
                self.tokenizer.encode(
                    [text for text, is_begun in zip(texts, begun, strict=True) if is_begun == each],
                    special_tokens=not each,
                )
            )
            for each in (False, True)
        }
        return [next(parts[each]) for each in begun]

    def _start(self) -> int:
        """The token that begins texts."""
        start = self.tokenizer.tokens.start
        if start is None:
            raise InvalidCheckpoint(
                "the tokenizer names no token that begins or ends a text, so a text without a "
                "context cannot be scored",
                field="model.uri",
                remedy="Add bos_token or eos_token to tokenizer_config.json.",
            )
        return start

    def _ends(self, until: tuple[str, ...]) -> tuple[str, ...]:
        """What ends an answer: the text of the token that ends texts, too."""
        end = self.tokenizer.tokens.end
        if end is None:
            return until
        return (*until, *self.tokenizer.decode([[end]], special_tokens=True))


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How an answer is made.

    Attributes:
        until: Texts that end it; they are no part of it.
        most: Most tokens.
    """

    until: tuple[str, ...]
    most: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AnswerSettings:
        """The settings of a request.

        Raises:
            InvalidSpec: they ask for anything but greedy decoding.
        """
        other = sorted(set(given) - _HARMLESS)
        if given.get("do_sample") or float(given.get("temperature") or 0.0) > 0.0 or other:
            what = f"with {', '.join(other)}" if other else "that are drawn at random"
            raise InvalidSpec(
                f"a task asks for answers {what}; answers are greedy",
                field=FIELD,
                remedy="Choose a task with do_sample: false.",
            )
        until = given.get("until") or []
        limits = [given[key] for key in _LIMIT_KEYS if given.get(key) is not None]
        stops = (until,) if isinstance(until, str) else tuple(until)
        most = int(limits[0]) if limits else _DEFAULT_ANSWER_TOKENS
        return cls(tuple(stop for stop in stops if stop), most)


def rolling_windows(tokens: Sequence[int], start: int, most: int) -> Iterator[Continuation]:
    """Windows in which every token of a text is scored once.

    The first window begins after `start`; each further one scores what is left, up to `most`
    tokens, and is given as many tokens before it as fit, at least one.

    Args:
        tokens: The text.
        start: The token that begins texts.
        most: Most tokens that the model is given.
    """
    done = 0
    while done < len(tokens):
        scored = tuple(tokens[done : done + most])
        room = max(1, most + 1 - len(scored))
        given = tuple(tokens[max(0, done - room) : done]) if done else (start,)
        yield Continuation(given, scored)
        done += len(scored)


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of the context, before the continuation instead."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _before_any(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
