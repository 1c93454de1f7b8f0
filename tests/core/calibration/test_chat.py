from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from strucprune_core.calibration.chat import ChatRenderer
from strucprune_core.calibration.documents import document_tokens
from strucprune_core.calibration.records import Record
from strucprune_core.calibration.text import Text
from strucprune_core.calibration.tokenizer import load_tokenizer
from strucprune_core.calibration.tokenizer_config import read_tokenizer_config
from strucprune_core.errors import InvalidText
from strucprune_core.storage.local import LocalStore

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "Good day.", "tool_calls": None},
]
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' and 'tool_calls' in message %}"
    "{{ raise_exception('no tools') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'more' }}{% endif %}"
)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template, as transformers would save it."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def renderer(model: Path, template: str) -> ChatRenderer:
    (model / "chat_template.jinja").write_text(template)
    names = [path.name for path in model.iterdir()]
    settings = read_tokenizer_config(LocalStore(model), names)
    assert settings.chat_template is not None
    return ChatRenderer(settings.chat_template, settings.special_tokens)


def text(model: Path) -> Text:
    return Text(LocalStore(model), "d.jsonl", "calibration.uri")


def test_as_transformers_does_it(model: Path) -> None:
    from transformers import AutoTokenizer

    chat = renderer(model, CHATML)
    reference = AutoTokenizer.from_pretrained(model)
    tokenizer = load_tokenizer((model / "tokenizer.json").read_bytes(), 512)
    blocks = document_tokens(
        text(model), iter([Record("line 1", TALK)] * 2), tokenizer, end=3, chat=chat
    )
    expected = reference.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert [token for ids in blocks for token in ids] == expected * 2
    assert reference.decode(expected).startswith("<|endoftext|><|im_start|>system\nBe kind.")


def test_a_template_that_writes_the_date_writes_a_fixed_one(model: Path) -> None:
    llama3 = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}Today: {{ date_string }}"
    )
    assert renderer(model, llama3).render(text(model), Record("", TALK)) == "Today: 26 Jul 2024"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['jinja2'].x() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.getcwd() }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ undefined.attribute }}",
        "{% for",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_hostile_templates_get_nowhere(model: Path, template: str) -> None:
    chat = renderer(model, template)
    with pytest.raises(InvalidText, match=r"line 7 of d\.jsonl is refused by the model") as e:
        chat.render(text(model), Record("line 7", TALK))
    assert e.value.field == "calibration.uri"
    assert e.value.remedy
    assert len(str(e.value)) < 700


def test_a_template_that_writes_without_end(model: Path) -> None:
    chat = renderer(model, "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}")
    with pytest.raises(InvalidText, match="becomes more than"):
        chat.render(text(model), Record("line 1", TALK))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "holds no messages"),
        (["hello"], "the message 'hello' without a role"),
        ([{"from": "human", "value": "x"}], "without a role"),
        ([{"role": 3, "content": "x"}], "without a role"),
        ("hello", "holds text, not a conversation"),
        ({"role": "user"}, "holds an object, not a conversation"),
    ],
)
def test_what_is_no_conversation(model: Path, value: object, reason: str) -> None:
    chat = renderer(model, CHATML)
    tokenizer = load_tokenizer((model / "tokenizer.json").read_bytes(), 512)
    with pytest.raises(InvalidText, match=rf"line 2 of d\.jsonl .*{reason}") as caught:
        list(document_tokens(text(model), iter([Record("line 2", value)]), tokenizer, chat=chat))
    assert '"role"' in str(caught.value)
