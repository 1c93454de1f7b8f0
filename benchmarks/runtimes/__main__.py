"""Loads a pruned SmolLM2-135M and its exports in transformers, MLX, llama.cpp and vLLM.

    python -m benchmarks.runtimes                # everything: `make runtimes`
    python -m benchmarks.runtimes --reuse        # the same checkpoints again, for new timings

Each runtime gets an environment of its own under `--root`, made on the first run (several GB, most
of it vLLM's). Every checkpoint is loaded beside the dense model. Greedy tokens and logits must be
those of transformers on the same checkpoint. Both models are timed in turns, so that whatever else
the machine does slows both. Exit code 1 if a runtime does not load what the library says it loads
(`strucprune_core.export.runtimes`), loads what it is said not to, or computes something else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.runtimes.cases import CASES, FAMILY, Case
from benchmarks.runtimes.checkpoints import (
    Recipe,
    ensure_dense_gguf,
    ensure_pruned,
    weight_bytes,
)
from benchmarks.runtimes.comparison import agreement, gain, rates
from benchmarks.runtimes.environments import make_environment
from benchmarks.runtimes.protocol import Answer, ModelEntry, Output, Request, Timing, ask
from benchmarks.runtimes.table import Row, markdown
from benchmarks.runtimes.tiny import ensure_tiny
from embedded.model import ensure_model
from embedded.text import ensure_texts

DENSE, PRUNED = "dense", "pruned"
# Greedy continuations may part where 16-bit weights decide a near tie, so tokens alone are no
# criterion; logits (about 20 wide here) may differ by the rounding of weights and sums.
LOGIT_TOLERANCES = {"gguf": 0.25}
LOGIT_TOLERANCE = 0.01
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
    cases = [case for case in CASES if case.runtime in ("transformers", *options.runtimes)]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = (options.evaluation or texts.evaluation).read_text("utf-8")
    request = _request(options, tokenizer, text)
    text_tokens = tokenizer.encode(request.text, add_special_tokens=False).ids
    folder = options.root / "checkpoints"
    dense_gguf = ensure_dense_gguf(model, folder, reuse=options.reuse)
    checkpoints, models = {}, {FAMILY: model}
    for name, family in dict.fromkeys((case.checkpoint, case.family) for case in cases):
        _say(f"pruning: {name}")
        if family not in models:
            models[family] = ensure_tiny(family, model, folder)
        of_family = replace(recipe, model=models[family])
        checkpoints[name] = ensure_pruned(name, of_family, folder, reuse=options.reuse)
    references: dict[str, Mapping[str, Output]] = {}
    rows = []
    for case in cases:
        _say(case.name)
        dense = case.dense_path(models[case.family], dense_gguf)
        pruned = case.pruned_path(checkpoints[case.checkpoint])
        answer = _try(case, dense, pruned, request, options)
        rows.append(
            _row(case, dense, pruned, answer, request, references.get(case.checkpoint), text_tokens)
        )
        _write(options, recipe, rows)  # after every row: a stopped run keeps what it measured
        if case.checkpoint not in references:
            if PRUNED in answer.errors:
                raise SystemExit(f"{case.name} is what others are compared with: {rows[-1].error}")
            references[case.checkpoint] = answer.outputs
    print(markdown(rows))
    wrong = [problem for row in rows for problem in _problems(row)]
    for problem in wrong:
        print(problem, file=sys.stderr)
    return int(bool(wrong))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    runtimes = list(dict.fromkeys(case.runtime for case in CASES))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtimes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--root", type=Path, default=Path(".cache/runtimes"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/runtimes.json"))
    parser.add_argument(
        "--runtimes", nargs="+", choices=runtimes, default=runtimes, help="transformers always runs"
    )
    parser.add_argument("--reuse", action="store_true", help="prune only what is not there yet")
    parser.add_argument("--model", type=Path, help="a llama; default: SmolLM2-135M")
    parser.add_argument("--calibration", type=Path, help="default: the text of embedded.text")
    parser.add_argument("--evaluation", type=Path, help="where prompts come from")
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=32, help="of each greedy continuation")
    parser.add_argument("--prefill-tokens", type=int, default=128, help="of the timed prompt")
    parser.add_argument("--decode-tokens", type=int, default=32, help="timed after the first")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0: none")
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


def _try(
    case: Case, dense: Path, pruned: Path, request: Request, options: argparse.Namespace
) -> Answer:
    """Run a case; what is not said to load is tried without the dense model beside it."""
    models = [ModelEntry(PRUNED, str(pruned.resolve()), case.how)]
    if case.claimed:
        models.insert(0, ModelEntry(DENSE, str(dense.resolve())))
    environment = make_environment(
        case.runtime, options.root, options.threads, options.pip_args.split()
    )
    return ask(
        environment.command,
        replace(request, models=models, timing=request.timing if case.claimed else None),
        options.root / "sessions" / case.name,
        environment.variables,
        options.limit_seconds,
    )


def _row(
    case: Case,
    dense: Path,
    pruned: Path,
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
        how=case.how,
        claimed=case.claimed,
        error=answer.errors.get(PRUNED),
        dense_bytes=weight_bytes(dense),
        pruned_bytes=weight_bytes(pruned),
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


def _problems(row: Row) -> list[str]:
    """What of a row contradicts the library."""
    name = f"{row.runtime}, {row.form} of {row.checkpoint} ({row.how})"
    if row.error is not None:
        return [f"{name}: said to load, but: {row.error}"] if row.claimed else []
    found = [] if row.claimed else [f"{name}: loads, which strucprune_core does not say"]
    if row.same_text_tokens is False:
        found.append(f"{name}: its tokenizer splits text differently from tokenizer.json")
    tolerance = LOGIT_TOLERANCES.get(row.form, LOGIT_TOLERANCE)
    for kind, each in ((PRUNED, row.agreement), (DENSE, row.dense_agreement)):
        # Not `>`: a logit that is not a number is no agreement either.
        if each is not None and not each.max_abs_logit_difference <= tolerance:
            found.append(
                f"{name}: logits of the {kind} model are {each.max_abs_logit_difference:.3g} away"
                f" from transformers', more than {tolerance}"
            )
    return found


def _write(options: argparse.Namespace, recipe: Recipe, rows: Sequence[Row]) -> None:
    content = {
        "model": recipe.model.name,
        "sparsity": recipe.sparsity,
        "calibration": {"samples": recipe.samples, "sequence_length": recipe.sequence_length},
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "rounds": options.rounds,
        "prefill_tokens": options.prefill_tokens,
        "decode_tokens": options.decode_tokens,
        "rows": [asdict(row) for row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
