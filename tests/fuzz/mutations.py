"""Hostile variants of good files: what a stranger, a broken disk or a careless tool may send."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

_HUGE = [2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -1, -(2**63)]
_FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 3.0000000001]
_TEXTS = [
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "C:\\x.safetensors",
    "a/../b.safetensors",
    "%2e%2e/x.safetensors",
    "x.safetensors\0.bin",
    "model.safetensors",
    "m-1.safetensors",
    "line\nbreak.safetensors",
    "\u202egnp.safetensors",
    "\ud800",
    "x" * 5000,
    "F32",
    "BF16",
    "F4",
    "llama",
    "gpt2",
    "default",
    "null",
    "__class__",
    "__metadata__",
]
_PLAIN: list[Any] = [None, True, False, 0, 1, 2, 3, 7, [], {}, [[]], [None], {"": None}]


def strange_value(random_: random.Random) -> Any:
    """A value of a kind that is seldom expected."""
    kind = random_.randrange(7)
    if kind == 0:
        return random_.choice(_HUGE)
    if kind == 1:
        return random_.choice(_FLOATS)
    if kind == 2:
        return random_.choice(_TEXTS)
    if kind == 3:
        return _nested(random_.choice([2, 3, 5, 17, 200]), random_.random() < 0.5)
    if kind == 4:
        return [copy.deepcopy(random_.choice(_HUGE + _PLAIN)) for _ in range(random_.randrange(12))]
    if kind == 5:
        return random_.randrange(-300, 100_000)
    return copy.deepcopy(random_.choice(_PLAIN))


def _nested(depth: int, lists: bool) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        keys = item.keys() if isinstance(item, dict) else range(len(item))
        for key in list(keys):
            found.append((item, key))
            if isinstance(item[key], dict | list):
                todo.append(item[key])
    return found


def mutate_json(value: Any, random_: random.Random, times: int) -> Any:
    """A copy in which values are replaced, moved, doubled or missing."""
    value = copy.deepcopy(value)
    for _ in range(times):
        places = _places(value)
        if not places:
            break
        container, key = random_.choice(places)
        action = random_.randrange(5)
        if action <= 1:
            container[key] = strange_value(random_)
        elif action == 2:
            del container[key]
        elif action == 3:
            other, place = random_.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                container[key] = copy.deepcopy(other[place])
        elif isinstance(container[key], int) and not isinstance(container[key], bool):
            container[key] += random_.choice([-8, -2, -1, 1, 2, 8, 2**32])
        elif isinstance(container, dict):
            container[str(random_.choice(_TEXTS))] = container[key]
    return value


def mutate_bytes(data: bytes, random_: random.Random) -> bytes:
    """Flipped, cut, doubled or foreign bytes."""
    place = random_.randrange(len(data) + 1)
    action: Callable[[], bytes] = random_.choice(
        [
            lambda: data[:place],
            lambda: data[:place] + random_.randbytes(1) + data[place + 1 :],
            lambda: data[:place] + data[place // 2 : place] + data[place:],
            lambda: data[:place] + random_.randbytes(random_.randrange(1, 9)) + data[place:],
            lambda: data[:place] + random_.choice(_SNIPPETS) + data[place:],
            lambda: data + random_.randbytes(random_.randrange(1, 64)),
        ]
    )
    return action()


_SNIPPETS = [
    b"[" * 5000,
    b'{"a":' * 500,
    b'"' * 101,
    b"\\" * 1001,
    b"NaN",
    b"-Infinity",
    b"1" * 5000,
    b"1e999999999",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"/**/",
    b'"dtype":"F32","dtype":"F32",',
    b"}{",
]


def dumped(value: Any) -> bytes:
    """JSON, also of what is not Unicode."""
    return json.dumps(value).encode()
