"""Task files: the harness's own definitions are read; whatever names code is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidSpec, InvalidText, StrucPruneError
from strucprune_core.evaluation.tasks import task_files
from strucprune_core.evaluation.tasks.task_files import read_definitions, read_task_files
from strucprune_core.storage.local import LocalStore

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl, train: more.jsonl}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "Question: {{goal}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{[sol1, sol2]}}"
should_decontaminate: true
doc_to_decontamination_query: goal
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
metadata:
  version: 1.0
"""
RECORDS = [
    {"goal": "Boil an egg", "sol1": "in water", "sol2": "in sand", "label": 0},
    {"goal": "Dry a towel", "sol1": "in the sea", "sol2": "in the sun", "label": 1},
]


def write(root: Path, definition: str = CHOICES, records: list[Any] | None = None) -> LocalStore:
    (root / "choices.yaml").write_text(definition)
    lines = "".join(json.dumps(each) + "\n" for each in (RECORDS if records is None else records))
    (root / "choices.jsonl").write_text(lines)
    (root / "more.jsonl").write_text(lines)
    return LocalStore(root)


def test_records_become_texts_choices_and_answers(tmp_path: Path) -> None:
    (task,) = read_task_files(write(tmp_path), ["choices", "piqa"]).values()
    assert task.definition.judged_split == "test"
    assert task.definition.examples_split == "train"
    assert list(task.documents["test"]) == [
        {
            "task_text": "Question: Boil an egg\nAnswer:",
            "task_choices": ["in water", "in sand"],
            "task_answer": 0,
        },
        {
            "task_text": "Question: Dry a towel\nAnswer:",
            "task_choices": ["in the sea", "in the sun"],
            "task_answer": 1,
        },
    ]
    assert set(task.documents) == {"test", "train"}


def test_the_harness_makes_the_same_requests_of_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (task,) = read_task_files(write(tmp_path), ["choices"]).values()
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs, ours = manager.load(["choices"])["tasks"]["choices"], task.as_harness_task()
    made = []
    for each in (theirs, ours):
        each.set_config(key="num_fewshot", value=1)
        each.set_fewshot_seed(seed=5)
        each.build_all_requests(limit=None, rank=0, world_size=1)
        made.append([(one.request_type, one.args) for one in each.instances])
    assert made[0] == made[1]
    assert len(made[0]) == 4


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_other_kinds(tmp_path: Path, kind: str) -> None:
    definition = f"""
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: choices.jsonl}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{goal}}}}"
doc_to_target: "{{{{' ' + sol1}}}}"
"""
    (task,) = read_task_files(write(tmp_path, definition), ["choices"]).values()
    assert task.documents["test"][0] == {"task_text": "Boil an egg", "task_answer": " in water"}


REFUSED = {
    "a function": (("doc_to_text: ", "doc_to_text: !function utils.text #"), "names code"),
    "a python object": (
        ("doc_to_target: label", "doc_to_target: !!python/object/apply:os.system [id]"),
        "could not determine a constructor|python/object",
    ),
    "an include": (("task: choices", "include: other.yaml\ntask: choices"), "include"),
    "a class": (("task: choices", "class: x\ntask: choices"), "class"),
    "a data set of the hub": (("dataset_path: json", "dataset_path: org/name"), "dataset_path"),
    "code of a data set": (
        ("{data_files:", "{trust_remote_code: true, data_files:"),
        "trust_remote_code",
    ),
    "a file elsewhere": (("test: choices.jsonl", "test: ../secret.jsonl"), "data_files"),
    "a url": (("test: choices.jsonl", "test: http://x/y.jsonl"), "data_files"),
    "a function for documents": (
        ("task: choices", "process_docs: x\ntask: choices"),
        "process_docs",
    ),
    "unsafe code": (("task: choices", "unsafe_code: true\ntask: choices"), "unsafe_code"),
    "a program": (("{{goal}}", "{% for x in goal %}{% endfor %}"), "statements"),
    "a program in a description": (
        ("task: choices", "description: '{{cycler.__init__}}'\ntask: choices"),
        "plain texts",
    ),
    "a metric of the hub": (("metric: acc_norm", "metric: org/metric"), "metric is one of"),
    "an alias": (("task: choices", "tag: [&a x, *a]\ntask: choices"), "aliases"),
    "another task": (("task: choices", "task: other"), "file of 'other'"),
    "a split without data": (("test_split: test", "test_split: dev"), "no file for the split"),
    "no splits": (("test_split: test", ""), "test_split or validation_split"),
    "drawn answers": (
        ("task: choices", "generation_kwargs: {do_sample: true}\ntask: choices"),
        "do_sample",
    ),
    "no yaml": ((CHOICES, "a: [b"), "expected"),
    "a list": ((CHOICES, "[1]"), "dictionary"),
    "too deep": ((CHOICES, "[" * 3000), "recursion|expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_allowed_is_refused_by_name(tmp_path: Path, case: str) -> None:
    (old, new), message = REFUSED[case]
    assert old in CHOICES
    store = write(tmp_path, CHOICES.replace(old, new))
    with pytest.raises(InvalidSpec, match=message) as caught:
        read_definitions(store, ["choices"])
    assert caught.value.field == "evaluation.task_files"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"goal": "x"}], "no field 'sol1'|no field 'label'"),
        ([{**RECORDS[0], "label": 2}], "no choice"),
        ([{**RECORDS[0], "sol1": ["x"]}], "list of texts"),
        ([{**RECORDS[0], "goal": {"a": 1}}], "a text"),
        ([[1]], "not a JSON object"),
        ([], "no records"),
    ],
    ids=str,
)
def test_data_that_do_not_fit_are_named(tmp_path: Path, records: list[Any], message: str) -> None:
    store = write(tmp_path, records=records)
    with pytest.raises(InvalidText, match=message):
        read_task_files(store, ["choices"])


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path)
    for name in ("MAX_DEFINITION_BYTES", "MAX_DATA_BYTES", "MAX_LINE_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(task_files, name, 10)
            with pytest.raises(StrucPruneError, match=r"more than 10 bytes|longer than 10"):
                read_task_files(store, ["choices"])
    (tmp_path / "more.jsonl").unlink()
    with pytest.raises(InvalidText, match=r"no file more\.jsonl"):
        read_definitions(store, ["choices"])


def test_names_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    write(tmp_path)
    inside = LocalStore(tmp_path / "inside")
    assert read_definitions(inside, ["../choices", "", "..", "a\nb"]) == {}
