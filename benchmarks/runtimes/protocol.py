"""The messages between the driver and a runtime's session: a request and an answer, both JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

How = Literal["plain", "trust_remote_code", "load_pretrained", "register", "Q4_K_M"]

# Lines of a crashed runtime's error output that are worth keeping.
_LAST_LINES = 3


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to load.

    Attributes:
        name: In request and answer.
        path: A checkpoint's directory, or a GGUF file.
        how: In transformers and vLLM: with the checkpoint's own code or without; in llama.cpp: what
            its quantiser made of the file before.
    """

    name: str
    path: str
    how: How = "plain"


@dataclass(frozen=True, slots=True)
class Timing:
    """What to time: `prompt` to the first new token (prefill), then `new_tokens` more (decode)."""

    prompt: list[int]
    new_tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Request:
    """Work for one session.

    Attributes:
        models: Loaded side by side; timed in turns.
        prompts: Token ids; each is continued greedily by `new_tokens`.
        new_tokens: Of every continuation.
        text: For runtimes whose file has a tokenizer of its own (GGUF) to tokenise.
        threads: Of the runtime.
        timing: None: nothing is timed.
    """

    models: list[ModelEntry]
    prompts: list[list[int]]
    new_tokens: int
    text: str
    threads: int
    timing: Timing | None


@dataclass(frozen=True, slots=True)
class Output:
    """What a loaded model said.

    Attributes:
        tokens: Greedy continuation of each prompt.
        logits: Of the token after each prompt, (prompts, vocabulary) float32.
        margins: By how much the logit of each token exceeds the next one; None from runtimes that
            do not say.
        text_tokens: Of the request's text; None from runtimes that read tokenizer.json.
        noise: How far the model's own logits move, over all prompts and their continuations, if its
            embeddings change by a millionth; None where it is not measured.
    """

    tokens: list[list[int]]
    logits: npt.NDArray[np.float32]
    margins: list[list[float]] | None = None
    text_tokens: list[int] | None = None
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of each round."""

    prefill_seconds: list[float]
    decode_seconds: list[float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a session measured.

    Attributes:
        outputs: By model; those that loaded.
        errors: By model; those that did not.
        speeds: By model; empty unless all loaded and were to be timed.
        versions: Of the runtime and its parts.
        lost: Models that a crash left without an answer, the one that was being tried first.
    """

    outputs: Mapping[str, Output]
    errors: Mapping[str, str]
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    lost: Sequence[str] = ()


def ask(
    command: Sequence[str],
    request: Request,
    folder: Path,
    environment: Mapping[str, str],
    limit_seconds: float,
) -> Answer:
    """Run sessions until every model has an answer, most often one.

    A session that crashes or hangs is an answer with an error for the model that it tried last, and
    where models are timed together, for all that had no answer.

    Args:
        command: Starts the session; paths of request and answer are added.
        request: The work.
        folder: For request, answer, logits and the session's output; made if it is not there.
        environment: Added to this process's.
        limit_seconds: After so long for each of its models, a session is killed.
    """
    found = _ask_once(command, request, folder, environment, limit_seconds)
    if request.timing is not None or len(found.lost) < 2:
        return found
    later = set(found.lost[1:])
    models = [entry for entry in request.models if entry.name in later]
    rest = ask(command, replace(request, models=models), folder, environment, limit_seconds)
    errors = {name: error for name, error in found.errors.items() if name not in later}
    return Answer(
        outputs={**found.outputs, **rest.outputs},
        errors={**errors, **rest.errors},
        versions={**found.versions, **rest.versions},
        lost=[*found.lost[:1], *rest.lost],
    )


def _ask_once(
    command: Sequence[str],
    request: Request,
    folder: Path,
    environment: Mapping[str, str],
    limit_seconds: float,
) -> Answer:
    folder.mkdir(parents=True, exist_ok=True)
    request_path, answer_path = folder / "request.json", folder / "answer.json"
    answer_path.unlink(missing_ok=True)
    request_path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    log_path = folder / "output.log"
    with log_path.open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                [*command, str(request_path.resolve()), str(answer_path.resolve())],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                timeout=limit_seconds * len(request.models),
                check=False,
            )
            ending = f"ended with exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"did not end within {limit_seconds:.0f} s"
    found = Answer(outputs={}, errors={})
    if answer_path.exists():
        found = read_answer(answer_path, len(request.prompts))
    names = [entry.name for entry in request.models]
    lost = [name for name in names if name not in found.outputs and name not in found.errors]
    if not lost:
        return found
    lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = " / ".join(lines[-_LAST_LINES:])
    error = f"the process {ending}: {said}" if said else f"the process {ending}"
    return replace(found, errors={**found.errors, **dict.fromkeys(lost, error)}, lost=lost)


def read_answer(path: Path, prompts: int) -> Answer:
    """A session's answer.

    Args:
        path: answer.json.
        prompts: How many there were.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    outputs, errors = {}, {}
    for name, found in raw["models"].items():
        if "error" in found:
            errors[name] = found["error"]
        else:
            logits = np.fromfile(found["logits"], "<f4").reshape(prompts, -1)
            outputs[name] = Output(
                found["tokens"],
                logits,
                found.get("margins"),
                found.get("text_tokens"),
                found.get("noise"),
            )
    speeds = {
        name: Speed(
            [each["prefill_seconds"] for each in rounds],
            [each["decode_seconds"] for each in rounds],
        )
        for name, rounds in raw["times"].items()
    }
    return Answer(outputs, errors, speeds, raw["versions"])
