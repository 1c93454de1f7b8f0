"""Templates of task files: a small part of Jinja, evaluated without Jinja. No torch.

lm-evaluation-harness renders templates as programs, in no sandbox. Task files come from tenants. So
Jinja only parses a template here, and the expressions below are evaluated by this module:

    field, field.part, field[0], field[1:-1]       of the record
    'text', 3, [a, b]                              constants and lists
    a + b, a ~ b                                   of texts, or of lists
    a|join(' '), a|trim, a|lower, a|upper, a|capitalize, a|first, a|last, a|length, a|int, a|string
    a.split(' '), a.strip(), a.lower(), a.upper(), a.capitalize(), list.index(a)

Nothing loops, and no result is longer than `MAX_CHARACTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, TemplateError, nodes

MAX_TEMPLATE_CHARACTERS = 4096
MAX_CHARACTERS = 1 << 20
_MAX_SEPARATOR = 16
_PLAIN = (str, int, float, bool)

_FILTERS: dict[str, Callable[[Any], Any]] = {
    "trim": lambda value: _text(value).strip(),
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "capitalize": lambda value: _text(value).capitalize(),
    "first": lambda value: _sequence(value)[0],
    "last": lambda value: _sequence(value)[-1],
    "length": lambda value: len(_sequence(value)),
    "int": lambda value: int(_text(value)[:20]) if isinstance(value, str) else int(value),
    "string": lambda value: _text(value),
}
_METHODS: dict[str, Callable[[str], Any]] = {
    "strip": str.strip,
    "lower": str.lower,
    "upper": str.upper,
    "capitalize": str.capitalize,
}


class BadTemplate(ValueError):
    """A template is not of the part that is allowed, or does not fit a record."""


class Template:
    """A parsed template.

    Args:
        source: What the task file says.

    Raises:
        BadTemplate: it is no template, or more than is allowed.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise BadTemplate(f"a template has more than {MAX_TEMPLATE_CHARACTERS} characters")
        try:
            tree = Environment(autoescape=False, keep_trailing_newline=True).parse(source)  # noqa: S701
            self._parts = _parts_of(tree)
            for part in self._parts:
                _check(part)
        except (TemplateError, RecursionError) as error:
            raise BadTemplate(f"{source[:80]!r} is not a template: {error}") from error

    def value(self, record: Mapping[str, Any]) -> Any:
        """What it makes of a record: the value of a lone expression, else a text.

        Raises:
            BadTemplate: the record has no such field, or a field of another type.
        """
        try:
            values = [_value(part, record) for part in self._parts]
            if len(values) == 1 and not isinstance(self._parts[0], nodes.TemplateData):
                return values[0]
            return _bounded("".join(map(_text, values)))
        except BadTemplate:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise BadTemplate(f"{type(error).__name__}: {str(error)[:120]}") from error

    def text(self, record: Mapping[str, Any]) -> str:
        """The same as a text."""
        return _text(self.value(record))


def _parts_of(tree: nodes.Template) -> list[nodes.Expr]:
    parts: list[nodes.Expr] = []
    for node in tree.body:
        if not isinstance(node, nodes.Output):
            raise BadTemplate("statements are not allowed, only expressions in {{ }}")
        parts += node.nodes
    return parts


def _check(node: nodes.Node) -> None:
    """Refuse what `_value` does not evaluate, before any record is seen."""
    match node:
        case nodes.TemplateData() | nodes.Name():
            return
        case nodes.Const(value=value) if isinstance(value, _PLAIN):
            return
        case nodes.Getattr(node=inner):
            _check(inner)
        case nodes.Getitem(node=inner, arg=nodes.Slice() as bounds):
            _bounds(bounds)
            _check(inner)
        case nodes.Getitem(node=inner, arg=at):
            _index(at)
            _check(inner)
        case nodes.List(items=items) | nodes.Concat(nodes=items):
            for item in items:
                _check(item)
        case nodes.Add(left=left, right=right):
            _check(left)
            _check(right)
        case nodes.Filter(node=inner, name=name, args=args) if inner is not None:
            plain = name in _FILTERS and not args
            if not plain and not (name == "join" and _separator(args) is not None):
                raise BadTemplate(f"the filter {name!r} is not allowed like this")
            _refuse_more(node)
            _check(inner)
        case nodes.Call(node=nodes.Getattr(node=inner, attr=name), args=args):
            plain = name in _METHODS and not args
            if name == "index" and len(args) == 1:
                _check(args[0])
            elif not plain and not (name == "split" and args and _separator(args)):
                raise BadTemplate(f"the method {name!r} is not allowed like this")
            _refuse_more(node)
            _check(inner)
        case _:
            raise BadTemplate(f"{type(node).__name__} is not allowed")


def _refuse_more(node: nodes.Filter | nodes.Call) -> None:
    if node.kwargs or node.dyn_args or node.dyn_kwargs:
        raise BadTemplate("arguments by name are not allowed")


def _separator(args: list[nodes.Expr]) -> str | None:
    """A constant text of few characters, empty if there is none."""
    match args:
        case []:
            return ""
        case [nodes.Const(value=str(value))] if len(value) <= _MAX_SEPARATOR:
            return value
    return None


def _index(node: nodes.Expr) -> int | str:
    match node:
        case nodes.Const(value=int() | str()):
            return node.value  # type: ignore[no-any-return]
        case nodes.Neg(node=nodes.Const(value=int(value))):
            return -value
    raise BadTemplate("an index is a constant")


def _bounds(node: nodes.Slice) -> slice:
    ends = [None if each is None else _index(each) for each in (node.start, node.stop)]
    if node.step is not None or any(isinstance(end, str) for end in ends):
        raise BadTemplate("a slice has whole numbers, and no step")
    return slice(*ends)


def _value(node: nodes.Node, record: Mapping[str, Any]) -> Any:
    match node:
        case nodes.TemplateData(data=text):
            return text
        case nodes.Const(value=value):
            return value
        case nodes.Name(name=name):
            return _field(record, name)
        case nodes.Getattr(node=inner, attr=name):
            return _field(_value(inner, record), name)
        case nodes.Getitem(node=inner, arg=nodes.Slice() as bounds):
            return _sequence(_value(inner, record))[_bounds(bounds)]
        case nodes.Getitem(node=inner, arg=at):
            of, key = _value(inner, record), _index(at)
            return _field(of, key) if isinstance(key, str) else _sequence(of)[key]
        case nodes.List(items=items):
            return [_value(item, record) for item in items]
        case nodes.Concat(nodes=items):
            return _bounded("".join(_text(_value(item, record)) for item in items))
        case nodes.Add(left=left, right=right):
            return _sum(_value(left, record), _value(right, record))
        case nodes.Filter(node=inner, name="join", args=args) if inner is not None:
            items = _sequence(_value(inner, record))
            return _bounded(str(_separator(args)).join(map(_text, items)))
        case nodes.Filter(node=inner, name=name) if inner is not None:
            return _FILTERS[name](_value(inner, record))
        case nodes.Call(node=nodes.Getattr(node=inner, attr=name), args=args):
            return _called(_value(inner, record), name, args, record)
    raise BadTemplate(f"{type(node).__name__} is not allowed")


def _called(of: Any, name: str, args: list[nodes.Expr], record: Mapping[str, Any]) -> Any:
    if name == "index":
        if not isinstance(of, list):
            raise BadTemplate("index is of a list")
        return of.index(_value(args[0], record))
    text = _text(of)
    return text.split(_separator(args)) if name == "split" else _METHODS[name](text)


def _sum(left: Any, right: Any) -> Any:
    if isinstance(left, list) and isinstance(right, list):
        if len(left) + len(right) > MAX_CHARACTERS:
            raise BadTemplate("a list is too long")
        return left + right
    if isinstance(left, str) and isinstance(right, str):
        return _bounded(left + right)
    raise BadTemplate("+ joins two texts or two lists")


def _field(of: Any, name: str) -> Any:
    if not isinstance(of, Mapping):
        raise BadTemplate(f"{name!r} is asked of something without fields")
    if name not in of:
        raise BadTemplate(f"there is no field {name!r}")
    return of[name]


def _sequence(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise BadTemplate("a list or a text is needed")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, _PLAIN):
        raise BadTemplate("a text or a number is needed")
    return _bounded(str(value))


def _bounded(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise BadTemplate(f"the result has more than {MAX_CHARACTERS} characters")
    return text
