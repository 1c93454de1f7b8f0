"""Samples of a job: both models' greedy continuations, as transformers writes them, compared."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidSpec
from strucprune_core.pipeline import prune
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.spec import DEFAULT_PROMPTS, JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, RemoteStore, checkpoint_of, run, tiny_spec

PROMPTS = ["The model", "Once upon a time there was a layer of the model,", "naïve 東京 \x1b[31m"]
SAMPLES = {**EASY, "samples": True, "prompts": PROMPTS, "sample_tokens": 9}


def job(model: Path, text: Path, output: Path, **changes: Any) -> JobSpec:
    return tiny_spec(model, text, output, **{"evaluation": SAMPLES, **changes})


def by_transformers(model: Path, prompt: str, most: int) -> list[int]:
    tokens = Tokenizer.from_file(str(model / "tokenizer.json")).encode(prompt).ids
    loaded = AutoModelForCausalLM.from_pretrained(
        model, trust_remote_code=True, dtype=torch.float32
    )
    written: list[int] = []
    with torch.inference_mode():
        for _ in range(most):
            found = int(loaded(torch.tensor([tokens + written])).logits[0, -1].argmax())
            if found == loaded.config.eos_token_id:
                break
            written.append(found)
    return written


@pytest.fixture(scope="module")
def judged(
    tiny_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Path]:
    root = tmp_path_factory.mktemp("samples")
    return run(job(tiny_model, text_file, root / "out"), root), root


def test_both_models_write_what_transformers_computes(
    judged: tuple[Report, Path], tiny_model: Path
) -> None:
    report, root = judged
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert [sample.prompt for sample in report.samples] == PROMPTS
    for sample in report.samples:
        written = [by_transformers(model, sample.prompt, 9) for model in (tiny_model, root / "out")]
        prompt = tokenizer.encode(sample.prompt).ids
        for tokens, shown in zip(written, (sample.dense, sample.pruned), strict=True):
            whole = tokenizer.decode(prompt + tokens).removeprefix(tokenizer.decode(prompt))
            assert sample.same + shown.token + shown.rest == whole
            assert shown.tokens == len(tokens)
        pairs = zip(*written, strict=False)
        agreed = next((at for at, (a, b) in enumerate(pairs) if a != b), 9)
        assert sample.same_tokens == agreed
    assert any(sample.differs for sample in report.samples), "else the test shows little"


def test_samples_change_nothing_of_the_checkpoint(
    judged: tuple[Report, Path], tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    run(job(tiny_model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(judged[1] / "out")


def test_the_report_is_read_again(judged: tuple[Report, Path]) -> None:
    report, root = judged
    text = (root / "out/report.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text).samples == report.samples
    page = (root / "out/report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page


def test_a_model_that_is_elsewhere_is_read_once(
    judged: tuple[Report, Path], tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    spec = job(tiny_model, text_file, tmp_path / "out")
    found = run(spec, tmp_path, open_store=lambda uri: RemoteStore(Path(uri)))
    assert found.samples == judged[0].samples


def test_several_sizes_share_what_the_dense_model_writes(
    judged: tuple[Report, Path], tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    done: Counter[str] = Counter()

    def note(unit: FinishedUnit) -> None:
        done[unit.name] += 1

    spec = job(
        tiny_model, text_file, tmp_path / "out", pruning={"sparsity": None, "sizes": [0.3, 0.5]}
    )
    prune_sizes(spec, tmp_path, note)
    samples = {name for name in done if name.startswith("samples")}
    assert samples == {"samples.dense", "samples.pruned@0.3", "samples.pruned@0.5"}
    one = Report.model_validate_json((tmp_path / "out/0.3/report.json").read_text(encoding="utf-8"))
    assert one.samples == judged[0].samples


def prune_sizes(spec: JobSpec, root: Path, note: Any) -> None:
    from strucprune_core.pipeline import run_job

    run_job(
        spec,
        workspace=LocalStore(root / "workspace"),
        scratch=root / "scratch",
        open_store=lambda uri: LocalStore(Path(uri)),
        finished=note,
    )


def test_without_prompts_there_are_some(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    asked = {**EASY, "samples": True, "sample_tokens": 2}
    report = run(job(tiny_model, text_file, tmp_path / "out", evaluation=asked), tmp_path)
    assert [sample.prompt for sample in report.samples] == list(DEFAULT_PROMPTS)


def test_prompts_that_the_model_cannot_hold_are_refused_before_the_work(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    spec = job(
        model,
        text_file,
        tmp_path / "out",
        evaluation={**SAMPLES, "prompts": ["The " * 36], "sequence_length": 32},
    )
    done: list[str] = []
    with pytest.raises(InvalidSpec, match="40 positions") as caught:
        prune(
            spec,
            workspace=LocalStore(tmp_path / "workspace"),
            scratch=tmp_path / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
            finished=lambda unit: done.append(unit.name),
        )
    assert caught.value.field == "evaluation.prompts"
    assert "embed" not in done


def test_the_estimate_says_what_samples_cost(tiny_model: Path, text_file: Path) -> None:
    facts = inspect_model(LocalStore(tiny_model))
    without, few, many = (
        estimate_job(job(tiny_model, text_file, Path("out"), evaluation=evaluation), facts)
        for evaluation in (EASY, SAMPLES, {**SAMPLES, "sample_tokens": 19})
    )
    assert "samples" not in without.flops
    assert many.flops["samples"] > few.flops["samples"] > 0
    # Ten further tokens are ten more passes through the dense model.
    assert many.bytes_read - few.bytes_read == pytest.approx(10 * facts.index.total_bytes, rel=0.01)
    assert few.step_bytes["samples"] > 0
