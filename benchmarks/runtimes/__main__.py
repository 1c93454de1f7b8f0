"""Loads a pruned SmolLM2-135M and its exports in transformers, MLX, llama.cpp and vLLM.

    python -m benchmarks.runtimes                # everything: `make runtimes`
    python -m benchmarks.runtimes --reuse        # with the same checkpoints again
    python -m benchmarks.runtimes --reuse --cases 'vLLM-*'    # these, and what they need

Each runtime gets an environment of its own under `--root`, made on the first run (several GB, most
of it vLLM's). Greedy tokens and logits must be those of transformers on the same checkpoint; tokens
may part at a near tie. With `--cases`, rows of other cases stay as they were recorded.

    python -m benchmarks.runtimes --reuse --rounds 5 --json benchmarks/results/runtimes_speed.json

also times SmolLM2 beside the dense model, in turns, so that whatever else the machine does slows
both. Tiny random models of other families are never timed.

Exit code 1 if a runtime does not load what the library says it loads
(`strucprune_core.export.runtimes`), loads what it is said not to, or computes something else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

from pydantic import TypeAdapter
from tokenizers import Tokenizer

from benchmarks.runtimes.cases import CASES, Case
from benchmarks.runtimes.checkpoints import (
    Recipe,
    ensure_dense_gguf,
    ensure_pruned,
    has_fewer_heads,
    missing_blocks,
    quantised,
    weight_bytes,
)
from benchmarks.runtimes.commands import Command, failures, run_commands
from benchmarks.runtimes.comparison import agreement, gain, rates
from benchmarks.runtimes.environments import make_environment, make_tools
from benchmarks.runtimes.protocol import Answer, ModelEntry, Output, Request, Timing, ask
from benchmarks.runtimes.prunings import PRUNINGS
from benchmarks.runtimes.table import Row, commands_table, markdown, speeds_table
from benchmarks.runtimes.tiny import ensure_tiny
from benchmarks.runtimes.verdict import problems
from embedded.model import ensure_model
from embedded.text import ensure_texts
from strucprune_core.spec import GGUF_EXPORTS

DENSE, PRUNED = "dense", "pruned"
# Added to prose, for tokenizers: contractions, digits, runs of blanks, letters beyond ASCII.
_ODD_TEXT = "I'll pay 12,345.67 for a naïve café; 日本語 🙂.\n\n\n    def f(x):\n\treturn x**2  \n"
_TEXT_CHARACTERS = 4000


def main() -> int:
    """Run the benchmark; 1 if a claim of the library is wrong."""
    options = _parse(sys.argv[1:])
    texts = ensure_texts()
    model = options.model or ensure_model()
    recipe = Recipe(
        model=model,
        calibration=options.calibration or texts.calibration,
        sparsity=options.sparsity,
        samples=options.samples,
        sequence_length=options.sequence_length,
    )
    cases = chosen_cases(options.cases)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = (options.evaluation or texts.evaluation).read_text("utf-8")
    request = _request(options, tokenizer, text)
    text_tokens = tokenizer.encode(request.text, add_special_tokens=False).ids
    folder = options.root / "checkpoints"
    dense_gguf = cache(partial(ensure_dense_gguf, root=folder, reuse=options.reuse))
    tools = partial(make_tools, options.root, options.threads, options.pip_args.split())
    checkpoints, models = {}, {}
    for name in dict.fromkeys(case.checkpoint for case in cases):
        _say(f"pruning: {name}")
        pruning = PRUNINGS[name]
        models[name] = (
            ensure_tiny(
                pruning.family,
                model,
                folder,
                faint_blocks=bool(pruning.missing),
                shape=pruning.shape,
            )
            if pruning.tiny
            else model
        )
        own = replace(recipe, model=models[name])
        checkpoints[name] = ensure_pruned(name, own, folder, reuse=options.reuse)
        if missing_blocks(checkpoints[name]) != list(pruning.missing):
            raise SystemExit(f"{name} lacks {missing_blocks(checkpoints[name])}")
    references: dict[tuple[str, bool], Mapping[str, Output]] = {}
    rows = _recorded(options.json, cases) if options.cases else {}
    commands = _recorded_commands(options.json) if options.cases else []
    for together in sessions(cases):
        _say(f"{together[0].runtime}: {', '.join(case.name for case in together)}")
        paths = {
            case: _paths(
                case, models[case.checkpoint], checkpoints[case.checkpoint], dense_gguf, tools
            )
            for case in together
        }
        for case, answer in _try(paths, request, options).items():
            reference = references.get(case.compared_with)
            checkpoint = checkpoints[case.checkpoint]
            facts = Facts(
                missing_blocks(checkpoint),
                has_fewer_heads(checkpoint, models[case.checkpoint]),
                recipe.samples * recipe.sequence_length,
            )
            row = _row(case, facts, paths[case], answer, request, reference, text_tokens)
            rows[case] = row
            if case.compared_with not in references:
                if PRUNED in answer.errors:
                    raise SystemExit(f"{case.name} is what others are compared with: {row.error}")
                references[case.compared_with] = answer.outputs
        ordered = [rows[each] for each in CASES if each in rows]
        # After every session: a stopped run keeps what it measured.
        _write(options, recipe, ordered, commands)
    for name, directory in {} if options.cases else checkpoints.items():
        if not PRUNINGS[name].tiny:
            _say(f"commands of the card of {name}")
            folders = (tools(), options.root / "mlx" / "bin")
            commands += run_commands(name, directory, folders, options.limit_seconds)
    _write(options, recipe, ordered, commands)
    print(markdown(ordered))
    print(commands_table(commands))
    print(speeds_table(ordered))
    wrong = [problem for row in ordered for problem in problems(row)] + failures(commands)
    for problem in wrong:
        print(problem, file=sys.stderr)
    return int(bool(wrong))


def chosen_cases(patterns: Sequence[str]) -> list[Case]:
    """Cases whose names match a pattern, all if there is none, and what they are compared with."""
    if not patterns:
        return list(CASES)
    matched = {
        case for case in CASES if any(fnmatchcase(case.name, pattern) for pattern in patterns)
    }
    references: dict[tuple[str, bool], Case] = {}
    for case in CASES:
        references.setdefault(case.compared_with, case)
    matched |= {references[case.compared_with] for case in matched}
    return [case for case in CASES if case in matched]


def sessions(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that share a process, which takes long to start: tiny models of a runtime.

    Those that are loaded beside the dense model have a process each.
    """
    found: dict[Case | str, list[Case]] = {}
    for case in cases:
        shared = PRUNINGS[case.checkpoint].tiny and not case.shows_dense
        key = case.runtime if shared else case
        found.setdefault(key, []).append(case)
    return list(found.values())


def _recorded(path: Path, cases: Sequence[Case]) -> dict[Case, Row]:
    """Rows of a file, without those of these cases and of cases that there are no more."""
    if not path.exists():
        return {}
    rows = TypeAdapter(list[Row]).validate_python(json.loads(path.read_text("utf-8"))["rows"])
    by_name = {(row.runtime, row.form, row.checkpoint, row.how): row for row in rows}
    known = {
        case: by_name.get((case.runtime, case.form, case.checkpoint, case.how))
        for case in CASES
        if case not in cases
    }
    return {case: row for case, row in known.items() if row is not None}


def _recorded_commands(path: Path) -> list[Command]:
    if not path.exists():
        return []
    recorded = json.loads(path.read_text("utf-8"))["commands"]
    return TypeAdapter(list[Command]).validate_python(recorded)


def _paths(
    case: Case,
    model: Path,
    checkpoint: Path,
    dense_gguf: Callable[[Path, bool], Path],
    tools: Callable[[], Path],
) -> Paths:
    """The files of a case; quantises them first if it says so."""
    dense = model
    if case.form in GGUF_EXPORTS:
        dense = dense_gguf(model, case.form == "gguf_q8_0")
    pruned = case.pruned_path(checkpoint)
    if case.how == "Q4_K_M":
        dense, pruned = (quantised(each, case.how, tools()) for each in (dense, pruned))
    return Paths(dense, pruned)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtimes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--root", type=Path, default=Path(".cache/runtimes"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/runtimes.json"))
    parser.add_argument(
        "--cases", nargs="+", default=[], help="patterns of names, as in progress messages"
    )
    parser.add_argument("--reuse", action="store_true", help="prune only what is not there yet")
    parser.add_argument("--model", type=Path, help="a llama; default: SmolLM2-135M")
    parser.add_argument("--calibration", type=Path, help="default: the text of embedded.text")
    parser.add_argument("--evaluation", type=Path, help="where prompts come from")
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=32, help="of each greedy continuation")
    parser.add_argument("--prefill-tokens", type=int, default=128, help="of the timed prompt")
    parser.add_argument("--decode-tokens", type=int, default=32, help="timed after the first")
    parser.add_argument("--rounds", type=int, default=0, help="of timing; 0: none")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-seconds", type=float, default=1800.0, help="of one session")
    parser.add_argument("--pip-args", default="", help="more options for pip, as one text")
    return parser.parse_args(arguments)


def _request(options: argparse.Namespace, tokenizer: Tokenizer, text: str) -> Request:
    """The work, without models: passages of the text, evenly spaced."""
    tokens = tokenizer.encode(text).ids
    needed = max(options.prompts * options.prompt_tokens, options.prefill_tokens)
    if len(tokens) < needed:
        raise SystemExit(f"--evaluation has {len(tokens)} tokens; {needed} are needed")
    starts = [number * (len(tokens) // options.prompts) for number in range(options.prompts)]
    timing = Timing(tokens[: options.prefill_tokens], options.decode_tokens, options.rounds)
    return Request(
        models=[],
        prompts=[tokens[start : start + options.prompt_tokens] for start in starts],
        new_tokens=options.new_tokens,
        text=text[:_TEXT_CHARACTERS] + _ODD_TEXT,
        threads=options.threads,
        timing=timing if options.rounds else None,
    )


@dataclass(frozen=True, slots=True)
class Paths:
    """The models of a case."""

    dense: Path
    pruned: Path


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a pruned checkpoint: see `table.Row`."""

    missing: Sequence[str]
    fewer_heads: bool
    calibration_tokens: int


def _try(
    paths: Mapping[Case, Paths], request: Request, options: argparse.Namespace
) -> dict[Case, Answer]:
    """Run the cases of a session; the dense model is there only if both are timed."""
    first = next(iter(paths))
    models = [
        ModelEntry(f"{case.name}-{PRUNED}", str(each.pruned.resolve()), case.how)
        for case, each in paths.items()
    ]
    timing = request.timing if first.timed else None
    if timing is not None or first.shows_dense:
        models.insert(0, ModelEntry(f"{first.name}-{DENSE}", str(paths[first].dense.resolve())))
    environment = make_environment(
        first.runtime, options.root, options.threads, options.pip_args.split()
    )
    answer = ask(
        environment.command,
        replace(request, models=models, timing=timing),
        options.root / "sessions" / first.name,
        environment.variables,
        options.limit_seconds,
    )
    return {case: _own(case, answer) for case in paths}


def _own(case: Case, answer: Answer) -> Answer:
    """What a session says of a case's models, by `DENSE` and `PRUNED`."""
    names = {f"{case.name}-{kind}": kind for kind in (DENSE, PRUNED)}
    return Answer(
        outputs={names[name]: each for name, each in answer.outputs.items() if name in names},
        errors={names[name]: each for name, each in answer.errors.items() if name in names},
        speeds={names[name]: each for name, each in answer.speeds.items() if name in names},
        versions=answer.versions,
    )


def _row(
    case: Case,
    facts: Facts,
    paths: Paths,
    answer: Answer,
    request: Request,
    reference: Mapping[str, Output] | None,
    text_tokens: list[int],
) -> Row:
    timing = request.timing
    agreements = {
        name: agreement(output, reference[name])
        for name, output in answer.outputs.items()
        if reference is not None
    }
    timed = timing is not None and {DENSE, PRUNED} <= set(answer.speeds)
    speeds = answer.speeds
    return Row(
        runtime=case.runtime,
        versions=answer.versions,
        form=case.form,
        checkpoint=case.checkpoint,
        family=case.family,
        tiny=PRUNINGS[case.checkpoint].tiny,
        missing=facts.missing,
        fewer_heads=facts.fewer_heads,
        calibration_tokens=facts.calibration_tokens,
        threads=request.threads,
        how=case.how,
        claimed=case.claimed,
        error=_without_place(answer.errors.get(PRUNED)),
        dense_bytes=weight_bytes(paths.dense),
        pruned_bytes=weight_bytes(paths.pruned),
        dense_agreement=agreements.get(DENSE),
        agreement=agreements.get(PRUNED),
        same_text_tokens=_same_tokens(answer.outputs.get(PRUNED), text_tokens),
        dense=rates(speeds[DENSE], timing) if timed and timing else None,
        pruned=rates(speeds[PRUNED], timing) if timed and timing else None,
        gain=gain(speeds[DENSE], speeds[PRUNED]) if timed else None,
        speeds=speeds,
    )


def _same_tokens(output: Output | None, wanted: list[int]) -> bool | None:
    if output is None or output.text_tokens is None:
        return None
    return output.text_tokens == wanted


def _write(
    options: argparse.Namespace, recipe: Recipe, rows: Sequence[Row], commands: Sequence[Command]
) -> None:
    content = {
        "model": recipe.model.name,
        "sparsity": recipe.sparsity,
        "cpus": os.cpu_count(),
        "prefill_tokens": options.prefill_tokens,
        "decode_tokens": options.decode_tokens,
        "rows": [asdict(row) for row in rows],
        "commands": [asdict(command) for command in commands],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_place(error: str | None) -> str | None:
    """An error without where this repository happens to lie."""
    return None if error is None else error.replace(f"{Path.cwd()}/", "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
