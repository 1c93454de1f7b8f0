"""Templates of task files: those of the harness's own tasks, and no programs."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import Environment

from strucprune_core.evaluation.tasks import templates
from strucprune_core.evaluation.tasks.templates import BadTemplate, Template

RECORD: dict[str, Any] = {
    "goal": "Boil an egg",
    "sol1": "in water",
    "sol2": "in sand ",
    "text": "the quick brown fox",
    "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
    "answerKey": "C",
    "label": 1,
    "steps": ["a", "b"],
}
TEXTS = [
    "Question: {{goal}}\nAnswer:",
    "{{text.split(' ')[:-1]|join(' ')}}",
    "{{' '+text.split(' ')[-1]}}",
    "{{choices.text[1]}} {{choices['label'][-1]}}\n",
    "{{goal|trim|lower}}{{sol2.strip().upper()}}",
    "{{goal ~ label}}",
    "{{steps|length}}{{steps|first}}{{steps|last}}{{label|string}}",
    "{{text[1:3]}}",
    "plain text",
]


@pytest.mark.parametrize("source", TEXTS)
def test_texts_are_those_of_jinja(source: str) -> None:
    jinja = Environment(autoescape=True, keep_trailing_newline=True)
    assert Template(source).text(RECORD) == jinja.from_string(source).render(**RECORD)


def test_a_lone_expression_keeps_its_type() -> None:
    assert Template("{{[sol1, sol2]}}").value(RECORD) == ["in water", "in sand "]
    assert Template("{{choices.text}}").value(RECORD) == ["one", "two", "three"]
    assert Template("{{choices.label.index(answerKey)}}").value(RECORD) == 2
    assert Template("{{label}}").value(RECORD) == 1
    assert Template("{{steps + ['c']}}").value(RECORD) == ["a", "b", "c"]


PROGRAMS = [
    "{% for x in steps %}{{x}}{% endfor %}",
    "{% set x = 1 %}",
    "{% include 'x' %}",
    "{{ goal.__class__.__mro__ }}{{ goal.__class__() }}",
    "{{ goal * 1000000000 }}",
    "{{ range(1000000) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ goal|replace('', goal) }}",
    "{{ goal|attr('x') }}",
    "{{ steps|join(goal) }}",
    "{{ steps|join('" + "x" * 17 + "') }}",
    "{{ goal.format(1) }}",
    "{{ goal.split(sep=' ') }}",
    "{{ steps[label] }}",
    "{{ text[::2] }}",
    "{{ goal if label else sol1 }}",
    "{{ '%s' % goal }}",
    "{{ {'a': 1} }}",
    "{{ goal == sol1 }}",
    "{{ 2 ** 999999 }}",
    "{{ goal",
    "{{" + "[" * 2000 + "]" * 2000 + "}}",
    "x" * 5000,
]


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source[:40])
def test_programs_are_refused_before_any_record(source: str) -> None:
    with pytest.raises(BadTemplate):
        Template(source).value({})


WRONG = {
    "{{nothing}}": "no field 'nothing'",
    "{{goal.title}}": "without fields",
    "{{goal.__class__}}": "without fields",
    "{{choices}} ": "a text or a number",
    "{{label[0]}}": "a list or a text",
    "{{steps[7]}}": "IndexError",
    "{{steps.index(goal)}}": "ValueError",
    "{{goal + label}}": "two texts",
    "{{goal|int}}": "ValueError",
}


@pytest.mark.parametrize("source", WRONG)
def test_what_does_not_fit_a_record_is_named(source: str) -> None:
    with pytest.raises(BadTemplate, match=WRONG[source]):
        Template(source).value(RECORD)


def test_results_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_CHARACTERS", 100)
    record = {"a": "x" * 60, "many": ["y" * 30] * 5}
    for source in ("{{a + a}}", "{{a ~ a}}", "{{a}}{{a}}", "{{many|join(' ')}}"):
        with pytest.raises(BadTemplate, match="100 characters"):
            Template(source).value(record)
