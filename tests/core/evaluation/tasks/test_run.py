"""Tasks on a tiny model: the numbers of the harness's own backend, by ours and by the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidSpec, Stopped, StrucPruneError
from strucprune_core.evaluation.tasks.answers import Answers
from strucprune_core.evaluation.tasks.opened import open_answers
from strucprune_core.evaluation.tasks.task_files import OwnTask, read_task_files
from strucprune_core.report.document import TaskScores
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import call, result_of

lm_eval = pytest.importorskip("lm_eval")
ROOT = Path(__file__).parents[4]
FILES = ROOT / "embedded/tasks"

CONTINUE = """
task: finish
dataset_path: json
dataset_kwargs: {data_files: {test: everyday.jsonl}}
output_type: OUTPUT
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{' ' + first}}"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own task, and one of every other kind."""
    root = tmp_path_factory.mktemp("tasks")
    for path in FILES.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        text = CONTINUE.replace("OUTPUT", kind).replace("finish", kind)
        if kind == "generate_until":
            text += "generation_kwargs: {until: [' '], max_gen_toks: 4}\n"
        (root / f"{kind}.yaml").write_text(text)
    return root


NAMES = ["everyday", "loglikelihood", "loglikelihood_rolling", "generate_until"]


@pytest.fixture(scope="module")
def answers(tiny_model: Path) -> Iterator[Answers]:
    with open_answers(str(tiny_model), device="cpu") as opened:
        yield opened


def own(files: Path, *names: str) -> list[OwnTask]:
    return list(read_task_files(LocalStore(files), names).values())


def scores(answers: Answers, files: Path, *names: str, **options: Any) -> list[TaskScores]:
    from strucprune_core.evaluation.tasks.run import run_tasks

    chosen = {"limit": 12, "num_fewshot": None, **options}
    return run_tasks(answers, [], own=own(files, *names), **chosen)


def test_metrics_are_those_of_the_harness_s_own_backend(
    answers: Answers, files: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    found = {each.task: each for each in scores(answers, files, *NAMES)}
    reference = HFLM(
        pretrained=str(tiny_model), device="cpu", dtype="float32", batch_size=4, max_length=2048
    )
    wanted = lm_eval.simple_evaluate(
        model=reference,
        tasks=[each.as_harness_task() for each in own(files, *NAMES)],
        task_manager=TaskManager(include_defaults=False),
        limit=12,
        bootstrap_iters=1000,
    )["results"]
    assert set(found) == set(wanted) == set(NAMES)
    for name, each in found.items():
        assert each.metrics, name
        for metric in each.metrics:
            key = metric.name if "," in metric.name else f"{metric.name},none"
            assert metric.value == pytest.approx(wanted[name][key], rel=1e-3), (name, key)
            error = wanted[name][key.replace(",", "_stderr,")]
            if metric.standard_error is None:
                assert error == "N/A"
            else:
                assert metric.standard_error == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert found["everyday"].chance == 0.5
    assert found["loglikelihood"].chance == 0.0
    assert found["everyday"].documents == 12
    assert found["everyday"].available_documents == 40


def test_examples_come_before_documents(answers: Answers, files: Path) -> None:
    plain, examples = (scores(answers, files, "everyday", num_fewshot=count)[0] for count in (0, 2))
    assert (plain.num_fewshot, examples.num_fewshot) == (0, 2)
    assert plain.requests_sha256 != examples.requests_sha256
    again = scores(answers, files, "everyday", num_fewshot=2)[0]
    assert again == examples


def test_an_unknown_task_is_named() -> None:
    from strucprune_core.plan.tasks import unknown_task

    error = unknown_task("pica", ["piqa", "arc_easy"])
    assert "Did you mean piqa?" in str(error)
    assert error.field == "evaluation.tasks"


def test_a_stop_is_no_failure_of_the_task(tiny_model: Path, files: Path) -> None:
    ticks = iter(range(10**6))

    def stop() -> None:
        if next(ticks) > 3:
            raise Stopped("now")

    with (
        pytest.raises(Stopped),
        open_answers(str(tiny_model), device="cpu", tick=stop) as opened,
    ):
        scores(opened, files, "everyday")


def test_requests_that_are_cut_are_told(
    tiny_model: Path, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_answers(str(tiny_model), device="cpu", context_tokens=16) as opened:
        scores(opened, files, "everyday")
    assert "lost their beginning" in caplog.text


def test_the_command(tiny_model: Path, text_file: Path) -> None:
    given = ("evaluate", tiny_model, "--tasks", "everyday", "--task-files", FILES, "--limit", "6")
    found = result_of(*given)
    (task,) = found["tasks"]
    assert TaskScores.model_validate(task).documents == 6
    assert "perplexity" not in found
    shown = call(*given, "--text", text_file, "--sequences", "2", "--sequence-length", "32").stdout
    for word in ("perplexity", "everyday", "acc_norm", "6 of 40"):
        assert word in shown


def test_the_command_needs_something_to_judge_by(tiny_model: Path) -> None:
    done = call("evaluate", tiny_model, "--json")
    assert done.exit_code == 2
    assert "--tasks" in json.loads(done.stdout)["error"]["remedy"]


def test_the_harness_s_command_finds_the_model(
    tiny_model: Path, files: Path, tmp_path: Path
) -> None:
    """By the module that registers it first; its own tasks are not read, which takes long."""
    code = (
        "from strucprune_core.evaluation.tasks import harness_model\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('strucprune') is harness_model.StreamedModel\n"
        "model = get_model('strucprune').create_from_arg_string("
        f"'pretrained={tiny_model},max_length=64', {{'batch_size': 1, 'device': 'cuda:0'}})\n"
        "print(len(model.loglikelihood([])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_without_the_harness_the_cure_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strucprune_core.evaluation.tasks import installed

    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(InvalidSpec, match="not installed") as caught:
        installed.check_installed()
    assert "strucprune[tasks]" in str(caught.value.remedy)
    assert isinstance(caught.value, StrucPruneError)
