r"""Task files: definitions of tasks in storage, for places without a hub. No torch.

`NAME.yaml` under a prefix defines the task NAME; its data are JSON lines beside it. The format is a
part of lm-evaluation-harness's own, so the harness reads these files as well:

    task: my_choices
    dataset_path: json
    dataset_kwargs: {data_files: {test: my_choices.jsonl}}
    output_type: multiple_choice
    test_split: test
    doc_to_text: "Question: {{goal}}\\nAnswer:"
    doc_to_target: label
    doc_to_choice: "{{[sol1, sol2]}}"

The files come from tenants. The harness would run functions that such a file names (`!function`),
code beside data sets, and its templates as programs. So this module alone reads them. It knows the
keys below and refuses all others. Templates are evaluated by `templates`. The harness is given the
texts, choices and answers that were made of the records, and never the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, InvalidText
from strucprune_core.evaluation.tasks.templates import BadTemplate, Template
from strucprune_core.storage.store import Readable

FIELD = "evaluation.task_files"
MAX_DEFINITION_BYTES = 64 << 10
MAX_DATA_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 20
_MAX_DEPTH = 16
_REMEDY = "Write it with the keys that docs/tasks.md lists, or name a task of the harness."
# The fields of the records that the harness is given.
_TEXT, _CHOICES, _ANSWER = "task_text", "task_choices", "task_answer"

OutputType = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Plain = Annotated[str, Field(max_length=10_000)]

_METRICS: dict[str, dict[str, tuple[str, bool]]] = {
    "multiple_choice": {"acc": ("mean", True), "acc_norm": ("mean", True)},
    "loglikelihood": {"acc": ("mean", True), "perplexity": ("perplexity", False)},
    "loglikelihood_rolling": {
        "word_perplexity": ("weighted_perplexity", False),
        "byte_perplexity": ("weighted_perplexity", False),
        "bits_per_byte": ("bits_per_byte", False),
    },
    "generate_until": {"exact_match": ("mean", True)},
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _DataFiles(_Strict):
    data_files: dict[Name, Name] = Field(min_length=1, max_length=8)


class _Metric(_Strict):
    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None


class _Generation(_Strict):
    until: list[Plain] = Field(default=["\n"], max_length=16)
    max_gen_toks: int = Field(default=256, ge=1, le=4096)
    do_sample: Literal[False] = False
    temperature: Annotated[float, Field(ge=0.0, le=0.0)] = 0.0


class _Metadata(_Strict):
    version: int | float | str = 1


class Definition(_Strict):
    """What a task file may say; see lm-evaluation-harness's guide to tasks for the meaning."""

    task: Name
    tag: str | list[str] | None = None
    dataset_path: Literal["json"]
    dataset_name: None = None
    dataset_kwargs: _DataFiles
    output_type: OutputType
    training_split: Name | None = None
    validation_split: Name | None = None
    test_split: Name | None = None
    fewshot_split: Name | None = None
    doc_to_text: Plain = ""
    doc_to_target: Plain | int
    doc_to_choice: Plain | list[Plain] | None = None
    description: Plain = ""
    target_delimiter: Plain = " "
    fewshot_delimiter: Plain = "\n\n"
    num_fewshot: int | None = Field(default=None, ge=0, le=64)
    metric_list: list[_Metric] | None = Field(default=None, min_length=1, max_length=8)
    generation_kwargs: _Generation | None = None
    should_decontaminate: bool = False
    doc_to_decontamination_query: Plain | None = None
    metadata: _Metadata = _Metadata()

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        if self.test_split is None and self.validation_split is None:
            raise ValueError("test_split or validation_split is needed")
        for split in filter(None, (self.test_split, self.validation_split, self.examples_split)):
            if split not in self.dataset_kwargs.data_files:
                raise ValueError(f"data_files has no file for the split {split!r}")
        if (self.doc_to_choice is not None) != (self.output_type == "multiple_choice"):
            raise ValueError("doc_to_choice belongs to multiple_choice, which needs it")
        if self.generation_kwargs is not None and self.output_type != "generate_until":
            raise ValueError("generation_kwargs belongs to generate_until")
        known = _METRICS[self.output_type]
        for each in self.metric_list or ():
            if each.metric not in known:
                raise ValueError(f"metric is one of {', '.join(known)}, not {each.metric[:40]!r}")
            if each.aggregation not in (None, known[each.metric][0]):
                raise ValueError(f"aggregation of {each.metric} is {known[each.metric][0]}")
        for text in (self.description, self.target_delimiter, self.fewshot_delimiter):
            if any(mark in text for mark in ("{{", "{%", "{#")):
                raise ValueError("description and delimiters are plain texts, not templates")
        return self

    @property
    def judged_split(self) -> str:
        """The split that is judged: the harness's rule."""
        return self.test_split or str(self.validation_split)

    @property
    def examples_split(self) -> str | None:
        """The split that examples come from; None: the one that is judged."""
        own = self.validation_split if self.test_split is not None else None
        return self.fewshot_split or self.training_split or own


@dataclass(frozen=True, slots=True)
class OwnTask:
    """A task of a task file.

    Attributes:
        definition: What the file says.
        documents: Texts, choices and answers by split.
    """

    definition: Definition
    documents: Mapping[str, Sequence[Mapping[str, Any]]]

    def as_harness_task(self) -> Any:
        """The task as an object of the harness, which is imported here."""
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask

        given, documents = self.definition, self.documents
        data = {split: Dataset.from_list(list(each)) for split, each in documents.items()}
        known = _METRICS[given.output_type]
        names = [each.metric for each in given.metric_list or ()] or list(known)
        config: dict[str, Any] = {
            "task": given.task,
            "custom_dataset": lambda **_: data,
            "output_type": given.output_type,
            "test_split": given.judged_split,
            "fewshot_split": given.examples_split or given.judged_split,
            "doc_to_text": _TEXT,
            "doc_to_target": _ANSWER,
            "description": given.description,
            "target_delimiter": given.target_delimiter,
            "fewshot_delimiter": given.fewshot_delimiter,
            "num_fewshot": given.num_fewshot,
            "metric_list": [
                {"metric": name, "aggregation": known[name][0], "higher_is_better": known[name][1]}
                for name in names
            ],
            "metadata": {"version": given.metadata.version},
        }
        if given.doc_to_choice is not None:
            config["doc_to_choice"] = _CHOICES
        if given.output_type == "generate_until":
            config["generation_kwargs"] = (given.generation_kwargs or _Generation()).model_dump()
        return ConfigurableTask(config=config)


def read_task_files(store: Readable, names: Sequence[str]) -> dict[str, OwnTask]:
    """The tasks among these names that have a file in a store, with their data.

    Raises:
        InvalidSpec: a file says something that is not allowed.
        InvalidText: a file of data is missing, too large or malformed, or does not fit a template.
        StorageError: the store refused or failed.
    """
    definitions = read_definitions(store, names)
    return {name: _with_documents(store, each) for name, each in definitions.items()}


def read_definitions(store: Readable, names: Sequence[str]) -> dict[str, Definition]:
    """The same without their data, of which only the presence is checked."""
    found: dict[str, Definition] = {}
    for name in names:
        info = store.stat(f"{name}.yaml") if _is_name(name) else None
        if info is None:
            continue
        if info.size_bytes > MAX_DEFINITION_BYTES:
            raise _refused(name, f"it has more than {MAX_DEFINITION_BYTES:,} bytes")
        found[name] = parse_definition(name, bytes(store.read(f"{name}.yaml")))
        for file in found[name].dataset_kwargs.data_files.values():
            _data_size(store, file)
    return found


def parse_definition(name: str, data: bytes) -> Definition:
    """Read a task file strictly.

    Args:
        name: The task's name, by that of the file.
        data: The file.

    Raises:
        InvalidSpec: it says something that is not allowed.
    """
    try:
        definition = Definition.model_validate(yaml.load(data, _Loader))  # noqa: S506 - a safe one
        for source in _templates(definition):
            Template(source)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = str(first["msg"]).removeprefix("Value error, ")
        raise _refused(name, f"{where}: {said}" if where else said) from error
    except (yaml.YAMLError, BadTemplate, RecursionError, ValueError) as error:
        raise _refused(name, " ".join(str(error).split())[:300]) from error
    if definition.task != name:
        raise _refused(name, f"task: it is the file of {definition.task!r}")
    return definition


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without tags that name code, and without aliases, which may unfold without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


def _refuse_tag(loader: Any, suffix: str, node: Any) -> Any:
    raise yaml.YAMLError(f"the tag !{suffix[:40]} names code or a file, which is not allowed")


_Loader.add_multi_constructor("!", _refuse_tag)


def _templates(definition: Definition) -> list[str]:
    choices = definition.doc_to_choice
    given = [definition.doc_to_text, definition.doc_to_target, choices]
    return [each for each in given if isinstance(each, str)]


def _with_documents(store: Readable, definition: Definition) -> OwnTask:
    splits = {definition.judged_split, definition.examples_split or definition.judged_split}
    files = definition.dataset_kwargs.data_files
    return OwnTask(
        definition,
        {split: _documents(store, definition, files[split]) for split in sorted(splits)},
    )


def _documents(store: Readable, definition: Definition, file: str) -> list[dict[str, Any]]:
    """What the templates make of the records of a file."""
    maker = _Maker(definition)
    documents: list[dict[str, Any]] = []
    _data_size(store, file)
    for number, line in enumerate(bytes(store.read(file)).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise BadTemplate(f"it is longer than {MAX_LINE_BYTES:,} bytes")
            documents.append(maker.document(parse_object(line, "it", max_depth=_MAX_DEPTH)))
        except (BadTemplate, InvalidCheckpoint) as error:
            raise InvalidText(
                f"line {number} of {file} does not fit task {definition.task}: "
                f"{getattr(error, 'message', None) or error}",
                field=FIELD,
                remedy="Write one JSON object per line, with the fields that the templates name.",
            ) from error
    if not documents:
        raise InvalidText(f"{file} holds no records", field=FIELD)
    return documents


def _data_size(store: Readable, file: str) -> int:
    info = store.stat(file)
    if info is None:
        raise InvalidText(
            f"there is no file {file} beside the task file",
            field=FIELD,
            remedy="data_files names JSON lines files under the prefix of the task files.",
        )
    if info.size_bytes > MAX_DATA_BYTES:
        raise InvalidText(
            f"{file} has more than {MAX_DATA_BYTES:,} bytes", field=FIELD, remedy="Shorten it."
        )
    return info.size_bytes


class _Maker:
    """Makes what the harness is given of records.

    A text that is the name of a field stands for that field, as in the harness.
    """

    def __init__(self, definition: Definition) -> None:
        self._kind = definition.output_type
        self._text, self._target = definition.doc_to_text, definition.doc_to_target
        self._choices = definition.doc_to_choice
        self._parsed = {source: Template(source) for source in _templates(definition)}

    def document(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One record's text, choices and answer.

        Raises:
            BadTemplate: the record does not fit.
        """
        text, answer = self._made(self._text, record), self._made(self._target, record)
        made = {_TEXT: _as_text(text)}
        if self._choices is None:
            return {**made, _ANSWER: _as_text(answer)}
        choices = self._made(self._choices, record)
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise BadTemplate("doc_to_choice is no list of texts")
        return {**made, _CHOICES: choices, _ANSWER: _place(answer, choices)}

    def _made(self, source: str | int | list[str], record: Mapping[str, Any]) -> Any:
        if not isinstance(source, str):
            return source
        return record[source] if source in record else self._parsed[source].value(record)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise BadTemplate("a text is needed")


def _place(answer: Any, choices: list[str]) -> int:
    """Which of the choices is right."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and answer.isdecimal():
        answer = int(answer[:9])
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise BadTemplate(f"doc_to_target gives {shown(str(answer), 40)}, which is no choice")
    return answer


def _refused(name: str, why: str) -> InvalidSpec:
    return InvalidSpec(f"task file {name}.yaml: {why}", field=FIELD, remedy=_REMEDY)


def _is_name(name: str) -> bool:
    return json.dumps(name) == f'"{name}"' and "/" not in name and ".." not in name
