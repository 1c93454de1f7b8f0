"""`make runtimes` without the runtimes: sessions, comparison, table; and transformers' session."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.runtimes import environments
from benchmarks.runtimes.__main__ import chosen_cases, sessions
from benchmarks.runtimes.cases import CASES, Case
from benchmarks.runtimes.checkpoints import has_fewer_heads
from benchmarks.runtimes.commands import Command, failures, run_commands
from benchmarks.runtimes.comparison import Agreement, Gain, Rates, agreement, gain, rates
from benchmarks.runtimes.inside import session
from benchmarks.runtimes.inside.hf_transformers import TransformersModel
from benchmarks.runtimes.protocol import ModelEntry, Output, Request, Speed, Timing, ask
from benchmarks.runtimes.prunings import PRUNINGS
from benchmarks.runtimes.table import Row, commands_table, markdown, speeds_table
from benchmarks.runtimes.verdict import LOGIT_TOLERANCE, problems, proved
from strucprune_core.export.runtimes import RUNTIMES
from strucprune_core.models.generic.architectures import generic_model_types
from tests.support.tiny_llama import make_tiny_llama

TIMING = Timing(prompt=[1, 2, 3, 4], new_tokens=2, rounds=3)
REQUEST = Request(
    models=[ModelEntry("dense", "d"), ModelEntry("pruned", "p")],
    prompts=[[1, 2], [3, 4, 5]],
    new_tokens=3,
    text="some text",
    threads=1,
    timing=TIMING,
)
ROW = Row(
    runtime="MLX",
    versions={"mlx": "0.32.0"},
    form="block_configs",
    checkpoint="per_layer",
    family="llama",
    tiny=False,
    missing=(),
    fewer_heads=False,
    calibration_tokens=512,
    threads=1,
    how="plain",
    claimed=True,
    error=None,
    dense_bytes=538_000_000,
    pruned_bytes=467_000_000,
    dense_agreement=Agreement(160, 160, 1e-5),
    agreement=Agreement(160, 160, 2e-5),
    same_text_tokens=None,
    dense=Rates(100.0, 10.0),
    pruned=Rates(125.0, 12.0),
    gain=Gain(1.25, 1.2),
    speeds={},
)


class Counter:
    """A model that counts upwards, and writes down when it is timed."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def next_logits(self, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.array([*prompt[:2], 0.5], np.float32)

    def greedy(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
        return [prompt[-1] + 1 + number for number in range(tokens)], [0.5] * tokens

    def timed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        self._calls.append(self._name)
        return float(len(self._calls)), 10.0 * len(self._calls)


def run_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: str = "", timed: bool = True
) -> tuple[dict[str, Any], list[str]]:
    calls: list[str] = []

    def load(entry: Mapping[str, Any]) -> Counter:
        if entry["name"] == broken:
            raise KeyError("no such architecture")
        return Counter(entry["name"], calls)

    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    models = [{"name": name, "path": "", "how": "plain"} for name in ("dense", "pruned")]
    timing = {"prompt": [1, 2], "new_tokens": 2, "rounds": 3} if timed else None
    request.write_text(
        json.dumps(
            {"models": models, "prompts": [[1, 2], [3, 4]], "new_tokens": 3, "timing": timing}
        )
    )
    monkeypatch.setattr(sys, "argv", ["session", str(request), str(answer)])
    session.serve(load, {"it": "1.0"})
    return json.loads(answer.read_text()), calls


def test_models_are_timed_in_turns_after_a_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = run_session(tmp_path, monkeypatch)
    assert calls == ["dense", "pruned", "pruned", "dense", "dense", "pruned", "pruned", "dense"]
    assert [each["prefill_seconds"] for each in answer["times"]["dense"]] == [4.0, 5.0, 8.0]
    assert answer["models"]["pruned"]["tokens"] == [[3, 4, 5], [5, 6, 7]]
    assert answer["models"]["pruned"]["margins"] == [[0.5] * 3] * 2
    logits = np.fromfile(answer["models"]["pruned"]["logits"], "<f4").reshape(2, -1)
    assert logits.tolist() == [[1.0, 2.0, 0.5], [3.0, 4.0, 0.5]]


def test_a_model_that_does_not_load_is_reported_and_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = run_session(tmp_path, monkeypatch, broken="pruned")
    assert answer["models"]["pruned"] == {"error": "KeyError: 'no such architecture'"}
    assert answer["models"]["dense"]["tokens"]
    assert not calls
    assert not answer["times"]


def test_models_that_are_not_timed_do_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    living = 0

    class Big(Counter):
        def __init__(self, name: str, calls: list[str]) -> None:
            nonlocal living
            super().__init__(name, calls)
            living += 1
            alive.append(living)

        def __del__(self) -> None:
            nonlocal living
            living -= 1

    monkeypatch.setitem(globals(), "Counter", Big)
    answer, calls = run_session(tmp_path, monkeypatch, timed=False)
    assert set(answer["models"]) == {"dense", "pruned"}
    assert not calls
    assert alive == [1, 1]


def ask_python(code: str, folder: Path, limit_seconds: float = 60.0) -> Any:
    return ask([sys.executable, "-c", code], REQUEST, folder, {"WHO": "me"}, limit_seconds)


def test_an_answer_is_read_back(tmp_path: Path) -> None:
    code = (
        "import array, json, os, sys\n"
        "request = json.load(open(sys.argv[1]))\n"
        "assert os.environ['WHO'] == 'me' and request['timing']['rounds'] == 3\n"
        "path = sys.argv[2] + '.f32'\n"
        "array.array('f', [1, 2, 3, 4]).tofile(open(path, 'wb'))\n"
        "times = {'pruned': [{'prefill_seconds': 1, 'decode_seconds': 2}] * 2}\n"
        "models = {'dense': {'error': 'no'}, 'pruned': {'tokens': [[1], [2]], 'logits': path}}\n"
        "json.dump({'versions': {'a': '1'}, 'models': models, 'times': times},"
        " open(sys.argv[2], 'w'))"
    )
    answer = ask_python(code, tmp_path / "new")
    assert answer.errors == {"dense": "no"}
    assert answer.outputs["pruned"].tokens == [[1], [2]]
    assert answer.outputs["pruned"].logits.tolist() == [[1, 2], [3, 4]]
    assert answer.speeds["pruned"] == Speed([1, 1], [2, 2])


def test_a_crash_is_an_error_of_every_model_and_old_answers_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text("{}")
    answer = ask_python(
        "import os; print('unknown architecture', flush=True); os.abort()", tmp_path
    )
    assert set(answer.errors) == {"dense", "pruned"}
    assert answer.errors["pruned"] == "the process ended with exit code -6: unknown architecture"


# Answers one more model than the file `done` counts, then crashes.
CRASHES = """
import array, json, os, sys
request = json.load(open(sys.argv[1]))
names = [entry["name"] for entry in request["models"]]
path = sys.argv[2] + ".f32"
array.array("f", [1, 2]).tofile(open(path, "wb"))
models = {}
for name in names:
    if name == "bad":
        print("out of luck", flush=True)
        os.abort()
    models[name] = {"tokens": [[1]], "margins": [[0.5]], "logits": path}
    answer = {"versions": {"a": "1"}, "models": models, "times": {}}
    json.dump(answer, open(sys.argv[2], "w"))
"""


def test_models_after_one_that_crashes_are_asked_again(tmp_path: Path) -> None:
    models = [ModelEntry(name, name) for name in ("one", "bad", "two", "three")]
    request = replace(REQUEST, models=models, prompts=[[1]], timing=None)
    answer = ask([sys.executable, "-c", CRASHES], request, tmp_path, {}, 60.0)
    assert answer.errors == {"bad": "the process ended with exit code -6: out of luck"}
    assert set(answer.outputs) == {"one", "two", "three"}
    assert answer.lost == ["bad"]
    assert answer.outputs["two"].margins == [[0.5]]


def test_a_session_that_hangs_is_stopped(tmp_path: Path) -> None:
    answer = ask_python("import time; time.sleep(60)", tmp_path, limit_seconds=0.3)
    assert answer.errors["dense"] == "the process did not end within 0 s"


def output(tokens: list[list[int]], logits: list[list[float]]) -> Output:
    margins = [[0.1 * (place + 1) for place in range(len(each))] for each in tokens]
    return Output(tokens, np.array(logits, np.float32), margins)


def test_tokens_count_up_to_the_first_difference() -> None:
    reference = output([[1, 2, 3], [4, 5, 6]], [[0.0, 1.0], [2.0, 3.0]])
    found = output([[1, 9, 3], [4, 5, 6]], [[0.0, 1.0], [2.25, 3.0]])
    assert agreement(found, reference) == Agreement(4, 6, 0.25, parting_margin=0.2)
    assert agreement(reference, reference) == Agreement(6, 6, 0.0)
    unknown = replace(reference, margins=None)
    assert agreement(unknown, reference).parting_margin is None
    with pytest.raises(ValueError, match="no margins"):
        agreement(reference, unknown)


def test_other_vocabularies_are_not_compared() -> None:
    reference = output([[1]], [[0.0, 1.0]])
    with pytest.raises(ValueError, match="shape"):
        agreement(output([[1]], [[0.0]]), reference)


def test_a_slow_moment_of_the_machine_does_not_change_the_gain() -> None:
    dense, pruned = Speed([2.0, 20.0, 2.0], [4.0, 4.0, 40.0]), Speed([1.0, 10.0, 1.0], [2, 2, 20])
    assert gain(dense, pruned) == Gain(2.0, 2.0)
    assert rates(dense, TIMING) == Rates(4 / 2.0, 2 / 4.0)


def test_everything_that_the_library_says_loads_is_a_case() -> None:
    generic = set(generic_model_types())
    said = {
        (runtime.name, form.form, family)
        for runtime in RUNTIMES
        for form in runtime.loads
        for family in set(form.families) - set(form.not_tried) - generic
    }
    claimed = [case for case in CASES if case.claimed and case.family not in generic]
    assert said == {(case.runtime.partition(" ")[0], case.form, case.family) for case in claimed}
    assert any(not case.claimed for case in CASES)
    assert {case.family for case in CASES} & generic


def test_cases_are_chosen_with_what_they_are_compared_with() -> None:
    assert chosen_cases([]) == list(CASES)
    vllm = Case("vLLM", "per_layer", "qwen3_blocks")
    chosen = chosen_cases(["vLLM-per_layer-qwen3_b*"])
    assert chosen == [Case("transformers", "per_layer", "qwen3_blocks", "register"), vllm]
    for case in CASES:
        first = next(each for each in CASES if each.checkpoint == case.checkpoint)
        assert first.runtime == "transformers"


def test_tiny_models_share_a_session_of_their_runtime() -> None:
    shared = sessions(CASES)
    assert sum(len(each) for each in shared) == len(CASES)
    for each in shared:
        assert len({case.runtime for case in each}) == 1
        assert len(each) == 1 or all(PRUNINGS[case.checkpoint].tiny for case in each)
        assert len(each) == 1 or not any(case.shows_dense for case in each)
    order = [case for each in shared for case in each]
    reference = Case("transformers", "per_layer", "qwen3_blocks", "register")
    assert order.index(reference) < order.index(Case("vLLM", "per_layer", "qwen3_blocks"))


def test_what_a_row_proves() -> None:
    blocks = replace(ROW, family="mistral", missing=["attention"])
    wrong = replace(ROW, family="qwen2", agreement=Agreement(160, 160, 1.0))
    refused = replace(ROW, family="qwen3", error="no such architecture")
    heads = replace(ROW, family="gemma2", fewer_heads=True)
    rows = [ROW, blocks, wrong, refused, heads]
    assert proved(rows, "MLX", "block_configs") == {"llama", "mistral", "gemma2"}
    assert proved(rows, "MLX", "block_configs", blocks=True) == {"mistral"}
    assert proved(rows, "MLX", "block_configs", heads=True) == {"gemma2"}
    assert not proved(rows, "MLX", "uniform")
    assert not proved(rows, "vLLM", "block_configs")


def test_the_table_has_a_line_for_each_row() -> None:
    broken = replace(ROW, form="per_layer", error="ValueError: a | b\n" + "long " * 99, gain=None)
    lines = markdown([ROW, broken]).splitlines()
    assert {line.count("|") for line in lines} == {7}
    assert lines[2] == (
        "| MLX 0.32.0 | `block_configs` | yes | 160 of 160 | 2e-05 | 538 → 467 MB |"
    )
    assert speeds_table([ROW, broken]).splitlines()[2:] == [
        "| MLX 0.32.0 | `block_configs` | 100 → 125 (1.25x) | 10.0 → 12.0 (1.20x) |"
    ]
    assert "no: ValueError: a / b long" in lines[3]
    tie = replace(ROW, agreement=Agreement(140, 160, 2e-5, 0.001))
    assert "| 140 of 160 (near tie: 0.001) |" in markdown([tie])


def test_what_contradicts_the_library_is_a_problem() -> None:
    assert not problems(ROW)
    assert not problems(replace(ROW, claimed=False, error="no such architecture"))
    assert not problems(replace(ROW, claimed=False, agreement=Agreement(9, 160, 13.7)))
    assert not problems(replace(ROW, agreement=Agreement(140, 160, 2e-5, LOGIT_TOLERANCE)))
    for wrong in (
        replace(ROW, error="no such architecture"),
        replace(ROW, claimed=False),
        replace(ROW, same_text_tokens=False),
        replace(ROW, agreement=Agreement(9, 9, 2 * LOGIT_TOLERANCE)),
        replace(ROW, dense_agreement=Agreement(9, 9, float("nan"))),
        replace(ROW, agreement=Agreement(140, 160, 2e-5, 3 * LOGIT_TOLERANCE)),
    ):
        assert len(problems(wrong)) == 1


def test_what_is_quantised_may_differ_as_its_reference_does_from_itself() -> None:
    row = replace(ROW, form="fp8", agreement=Agreement(42, 160, 1.5, 0.4, noise=2.0))
    assert not problems(row)
    for wrong in (
        replace(row, agreement=Agreement(42, 160, 2.5, 0.4, noise=2.0)),
        replace(row, agreement=Agreement(42, 160, 1.5, 4.5, noise=2.0)),
        replace(row, agreement=Agreement(160, 160, 0.1, noise=1e-6)),
    ):
        assert len(problems(wrong)) == 1
    assert "| 2 (own noise: 2) |" in markdown([row])


def test_fewer_bits_may_do_to_the_pruned_model_twice_what_they_do_to_the_dense_one() -> None:
    dense = Agreement(50, 160, 3.0, 1.0)
    row = replace(ROW, how="Q4_K_M", dense_agreement=dense, agreement=Agreement(40, 160, 5.0, 1.0))
    assert not problems(row)
    assert not problems(replace(row, form="gguf_q8_0", how="plain"))
    assert len(problems(replace(row, agreement=Agreement(40, 160, 6.5, 1.0)))) == 1
    assert len(problems(replace(row, agreement=Agreement(40, 160, 5.0, 13.0)))) == 1
    assert len(problems(replace(row, form="gguf", how="plain"))) == 4
    alone = replace(row, form="gguf_q8_0", how="plain", dense_agreement=None)
    assert len(problems(alone)) == 2


def test_commands_of_a_card_are_run_as_printed(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("llama-cli", 'pwd; echo "$@"'),
        ("mlx_lm.generate", "echo no such model >&2; exit 3"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "README.md").write_text(
        "With vLLM:\n\n```sh\nvllm serve .\n```\n\n```sh\nllama-cli -p 'a b'\n```\n\n"
        "```python\nllama-cli = 1\n```\n\n```sh\nmlx_lm.generate --model .\n```\n"
    )
    found = run_commands("pruned", tmp_path, [programs], limit_seconds=60.0)
    assert found == [
        Command("llama.cpp", "pruned", "llama-cli -p 'a b'", 0, f"{tmp_path}\n-p a b"),
        Command("MLX", "pruned", "mlx_lm.generate --model .", 3, "no such model"),
    ]
    assert [each[:27] for each in failures(found)] == ["MLX, card of pruned: `mlx_l"]
    assert failures([replace(found[0], output="")])
    assert failures([replace(found[0], exit_code=None)])
    assert commands_table(found).splitlines()[2] == "| `pruned` | `llama-cli -p 'a b'` | 0 |"


def test_heads_that_went_are_seen(tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    make_tiny_llama(dense)
    assert not has_fewer_heads(dense, dense)
    make_tiny_llama(pruned, heads=2, kv_heads=1)
    assert has_fewer_heads(pruned, dense)


def test_requirements_are_pinned_and_name_no_host() -> None:
    lists = sorted(environments.INSIDE.glob("*.txt"))
    assert len(lists) == 5
    for path in lists:
        for line in path.read_text().splitlines():
            assert "==" in line, line
    package = json.loads((environments.INSIDE / "package.json").read_text())
    lock = (environments.INSIDE / "package-lock.json").read_text()
    for name, version in package["dependencies"].items():
        assert json.loads(lock)["packages"][f"node_modules/{name}"]["version"] == version
    assert "://" not in lock


def test_the_reference_is_what_transformers_generates(tmp_path: Path) -> None:
    directory = str(make_tiny_llama(tmp_path / "model"))
    prompt = [5, 6, 7, 8]
    ours = TransformersModel({"path": directory, "how": "plain"})
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt])).logits[0, -1]
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
    assert np.abs(ours.next_logits(prompt) - wanted.numpy()).max() < 1e-5
    greedy, margins = ours.greedy(prompt, 8)
    assert len(greedy) == len(margins) == 8
    first, second = wanted.topk(2).values
    assert margins[0] == pytest.approx(float(first - second), abs=1e-5)
    # generate() never picks the end token here (min_new_tokens); ours would.
    end = greedy.index(0) if 0 in greedy else 8
    assert greedy[:end] == made[0, len(prompt) : len(prompt) + end].tolist()
    assert end > 0
    assert ours.noise(prompt) is None
    # Of a model whose activations are quantised, every linear module has this.
    ours._model.lm_head.quantization_scheme = "FP8"
    noise = ours.noise(prompt)
    assert noise is not None
    assert 0.0 < noise < 1e-3
    assert noise == ours.noise(prompt)
    prefill, decode = ours.timed(prompt, 4)
    assert prefill > 0.0
    assert decode > 0.0
