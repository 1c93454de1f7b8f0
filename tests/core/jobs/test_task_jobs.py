"""Jobs that judge by tasks: figures of both models, the gate, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidSpec, QualityCollapsed
from strucprune_core.evaluation.tasks.opened import open_answers
from strucprune_core.pipeline import run_job
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import examine_job, inspect_job
from strucprune_core.report.document import Report
from strucprune_core.report.sizes import SizesReport
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import failed, prune_command
from tests.core.jobs.tiny_job import files_of, run, tiny_spec

FILES = Path(__file__).parents[3] / "embedded/tasks"


def open_local(uri: str) -> LocalStore:
    return LocalStore(Path(uri))


@pytest.fixture(scope="module")
def liked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose right answers are those that the dense model prefers."""
    root = tmp_path_factory.mktemp("tasks")
    (root / "everyday.yaml").write_bytes((FILES / "everyday.yaml").read_bytes())
    records = [json.loads(line) for line in (FILES / "everyday.jsonl").read_text().splitlines()]
    pairs = [
        (f"Question: {each['question']}\nAnswer:", f" {each[choice]}")
        for each in records
        for choice in ("first", "second")
    ]
    with open_answers(str(tiny_model), device="cpu") as answers:
        found = [likely for likely, _ in answers.log_likelihoods(pairs)]
    for number, each in enumerate(records):
        each["answer"] = int(found[2 * number + 1] > found[2 * number])
    (root / "everyday.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return root


def judged(model: Path, text: Path, output: Path, files: Path, **changes: Any) -> JobSpec:
    given = {"tasks": ["everyday"], "task_files": str(files), "max_perplexity_ratio": 1e6}
    evaluation = {**given, **changes.pop("evaluation", {})}
    return tiny_spec(model, text, output, evaluation=evaluation, **changes)


def test_the_report_has_both_models(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    pytest.importorskip("lm_eval")
    spec = judged(tiny_model, text_file, tmp_path / "out", liked, evaluation={"limit": 20})
    report = run(spec, tmp_path)
    assert report.tasks is not None
    (dense,), (pruned,) = report.tasks.dense, report.tasks.pruned
    assert (dense.task, dense.documents, dense.available_documents) == ("everyday", 20, 40)
    accuracies = [each.metric("acc") for each in (dense, pruned)]
    assert accuracies[0] is not None
    assert accuracies[1] is not None
    assert accuracies[0].value == 1.0
    assert report.tasks.retention == pytest.approx((accuracies[1].value - 0.5) / 0.5)
    assert report.tasks.cut_requests == 0
    page = (tmp_path / "out/report.html").read_text()
    for word in ("everyday", "acc_norm", "20 of 40", "Tasks"):
        assert word in page, word
    assert Report.model_validate_json((tmp_path / "out/report.json").read_text()) == report
    measured, planned = report.memory.device_peak_bytes, report.memory.device_peak_bytes.predicted
    assert measured.measured is None or measured.measured <= 1.1 * planned

    again = run(spec.model_copy(update={"labels": {"run": "2"}}), tmp_path)
    assert again == report


def test_what_is_finished_is_not_asked_again(
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    liked: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval")
    from strucprune_core.evaluation.tasks import run as harness

    calls: list[str] = []
    run_tasks = harness.run_tasks

    def counted(*given: Any, **options: Any) -> Any:
        calls.append("run")
        if len(calls) == 2:
            raise OSError("the second is interrupted")
        return run_tasks(*given, **options)

    monkeypatch.setattr(harness, "run_tasks", counted)
    spec = judged(tiny_model, text_file, tmp_path / "out", liked, evaluation={"limit": 5})
    with pytest.raises(OSError, match="interrupted"):
        run(spec, tmp_path)
    assert run(spec, tmp_path).tasks is not None
    assert len(calls) == 3, "dense, pruned, pruned again"


def test_a_model_that_lost_too_much_is_not_published(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    pytest.importorskip("lm_eval")
    spec = judged(
        tiny_model,
        text_file,
        tmp_path / "out",
        liked,
        pruning={"sparsity": 0.8},
        evaluation={"min_task_retention": 0.999},
    )
    with pytest.raises(QualityCollapsed, match="accuracy above chance") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "pruning.sparsity"
    assert files_of(tmp_path / "out") == {}


def test_of_several_sizes_only_the_bad_one_is_rejected(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    pytest.importorskip("lm_eval")
    body = judged(
        tiny_model,
        text_file,
        tmp_path / "out",
        liked,
        evaluation={"min_task_retention": 0.95},
    ).model_dump(mode="json")
    body["pruning"]["sizes"] = [0.02, 0.85]
    del body["pruning"]["sparsity"]
    report = run_job(
        JobSpec.model_validate(body),
        workspace=LocalStore(tmp_path / "workspace"),
        scratch=tmp_path / "scratch",
        open_store=open_local,
    )
    assert isinstance(report, SizesReport)
    good, bad = report.sizes
    assert good.task_retention is not None
    assert bad.task_retention is not None
    assert good.task_retention >= 0.95 > bad.task_retention
    assert (good.rejected, good.folder) == (None, "0.02")
    assert "above chance" in str(bad.rejected)
    assert bad.folder is None


def test_a_gate_that_chance_decides_is_refused_early(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    """With as many right answers as wrong ones."""
    pytest.importorskip("lm_eval")
    files = tmp_path / "files"
    files.mkdir()
    (files / "everyday.yaml").write_bytes((liked / "everyday.yaml").read_bytes())
    records = [json.loads(line) for line in (liked / "everyday.jsonl").read_text().splitlines()]
    for number, each in enumerate(records):
        each["answer"] ^= number % 2
    (files / "everyday.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    spec = judged(
        tiny_model, text_file, tmp_path / "out", files, evaluation={"min_task_retention": 0.5}
    )
    with pytest.raises(InvalidSpec, match="better than chance") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "evaluation.min_task_retention"
    assert not [path for path in (tmp_path / "workspace").rglob("*") if "capture" in path.name]


REFUSED: dict[str, tuple[dict[str, Any], str, bool]] = {
    "an unknown name": ({"tasks": ["everyday", "piqq"]}, "no task 'piqq'", True),
    "a hub": ({"tasks": ["piqa"]}, "come from a hub", False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_are_checked_before_any_work(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path, case: str
) -> None:
    changes, message, downloads = REFUSED[case]
    spec = judged(tiny_model, text_file, tmp_path / "out", liked, evaluation=changes)
    issues = examine_job(spec, open_local, task_downloads=downloads).issues
    assert [(each.field, message in each.message) for each in issues] == [
        ("evaluation.tasks", True)
    ]
    with pytest.raises(InvalidSpec, match=message):
        inspect_job(spec, open_local, task_downloads=downloads)


def test_known_names_and_task_files_pass(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    names = {"tasks": ["everyday", "piqa", "mmlu", "lambada_openai"]}
    spec = judged(tiny_model, text_file, tmp_path / "out", liked, evaluation=names)
    assert examine_job(spec, open_local).issues == []


def test_a_hostile_task_file_is_refused_at_submission(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    text = (liked / "everyday.yaml").read_text()
    (tmp_path / "everyday.yaml").write_text(text + "process_docs: !function os.system\n")
    spec = judged(tiny_model, text_file, tmp_path / "out", tmp_path)
    (issue,) = examine_job(spec, open_local).issues
    assert issue.field == "evaluation.task_files"
    assert "names code" in issue.message


def test_other_data_are_another_job(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    from strucprune_core.plan.inspection import text_versions

    files = tmp_path / "files"
    files.mkdir()
    for path in liked.iterdir():
        (files / path.name).write_bytes(path.read_bytes())
    spec = judged(tiny_model, text_file, tmp_path / "out", files)
    before = text_versions(spec, open_local)
    assert before == text_versions(spec, open_local)
    with (files / "everyday.jsonl").open("a") as file:
        file.write("\n")
    assert before != text_versions(spec, open_local)


def test_the_command_takes_several_tasks(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    """Both are checked: the second one is not known."""
    given = prune_command(tiny_model, text_file, tmp_path / "out", "--evaluation", text_file)
    tasks = ("--task", "everyday", "--task", "piqq", "--task-files", str(liked))
    error = failed(
        *given, *tasks, "--evaluation-sequences", "2", "--evaluation-sequence-length", "32"
    )
    assert error["field"] == "evaluation.tasks"
    assert "Did you mean" in error["remedy"]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"limit": 5}, "limit is about tasks"),
        ({"min_task_retention": 0.9}, "min_task_retention is about tasks"),
        ({"tasks": ["a", "a"]}, "a task twice"),
        ({"tasks": ["a/b"]}, "pattern"),
        ({"tasks": ["a"], "min_task_retention": 1.5}, "less than or equal to 1"),
    ],
    ids=str,
)
def test_what_does_not_belong_together(evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_spec(Path("m"), Path("t"), Path("o"), evaluation=evaluation)


def test_a_job_without_tasks_has_the_fingerprint_of_before() -> None:
    spec = tiny_spec(Path("m"), Path("t"), Path("o"))
    assert (
        spec.result_fingerprint()
        != tiny_spec(
            Path("m"), Path("t"), Path("o"), evaluation={"tasks": ["a"]}
        ).result_fingerprint()
    )


def test_the_estimate_counts_what_requests_take(
    tmp_path: Path, tiny_model: Path, text_file: Path, liked: Path
) -> None:
    spec = judged(tiny_model, text_file, tmp_path / "out", liked, evaluation={"limit": 100})
    assert spec.evaluation is not None
    without = spec.evaluation.model_copy(update={"tasks": (), "task_files": None, "limit": None})
    model = inspect_job(spec, open_local).model
    plain = estimate_job(spec.model_copy(update={"evaluation": without}), model)
    found = estimate_job(spec, model)
    assert found.workspace_bytes - plain.workspace_bytes == 2 * 100 * 200 * 4 * 64
    assert found.host_peak_bytes > plain.host_peak_bytes
    assert found.step_bytes["tasks"] > 0
    assert found.bytes_read > plain.bytes_read
