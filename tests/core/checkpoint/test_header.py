from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from strucprune_core.checkpoint.header import MAX_HEADER_BYTES, Header, parse_header
from strucprune_core.errors import InvalidCheckpoint

# Machines that run tests may be busy: time is no property of a parser here.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parse(data: bytes, size: int | None = None) -> Header:
    def read(start: int, length: int) -> bytes:
        assert 0 <= start <= start + length <= len(data), "read outside the file"
        return data[start : start + length]

    return parse_header(read, "x.safetensors", len(data) if size is None else size)


def file_of(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_a_file_of_the_reference_library() -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(3, dtype=np.int64),
        "c": np.zeros((0, 4), dtype=np.float16),
        "d": np.ones(5, dtype=np.bool_),
    }
    data = save(arrays, metadata={"format": "pt"})
    tensors = parse(data).tensors
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        info = tensors[name]
        assert info.shape == array.shape
        assert info.parameters == array.size
        assert info.size_bytes == array.nbytes
        assert data[info.start : info.end] == array.tobytes()


def test_no_tensors_at_all() -> None:
    assert parse(file_of({})).tensors == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00\x23\x01", "a GGUF file"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00", "strucprune convert"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"<html><body>403", "a web page"),
    ],
)
def test_other_files_under_the_name(data: bytes, words: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=words):
        parse(data)


def test_a_length_that_looks_like_a_mark() -> None:
    length = int.from_bytes(b"<!", "little")
    assert parse(file_of(b"{}".ljust(length))).tensors == {}


HOSTILE = {
    "empty file": b"",
    "short file": b"\0" * 7,
    "no header": b"\0" * 8,
    "huge header length": (2**63).to_bytes(8, "little") + b"{}",
    "header over the limit": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
    "header beyond the file": (100).to_bytes(8, "little") + b"{}",
    "not json": file_of(b"pickle"),
    "not utf-8": file_of(b'{"\xff":1}'),
    "lone surrogate name": file_of({"\ud800": entry()}, b"\0" * 8),
    "not an object": file_of([]),
    "deep": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep in an unterminated string": file_of(b'{"a' + b'\\"' * 100_000 + b"[" * 100_000),
    "duplicate tensor": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "duplicate inner key": file_of(
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"\0"
    ),
    "metadata no object": file_of({"__metadata__": 1}),
    "metadata no strings": file_of({"__metadata__": {"a": 1}}),
    "entry no object": file_of({"a": 1}),
    "entry lacks keys": file_of({"a": {"dtype": "F32", "shape": [2]}}),
    "entry has more keys": file_of({"a": entry(extra=1)}, b"\0" * 8),
    "unknown dtype": file_of({"a": entry(dtype="object")}, b"\0" * 8),
    "dtype no string": file_of({"a": entry(dtype=["F32"])}, b"\0" * 8),
    "negative size": file_of({"a": entry(shape=[-2])}, b"\0" * 8),
    "two negative sizes": file_of({"a": entry(shape=[-1, -2])}, b"\0" * 8),
    "float size": file_of({"a": entry(shape=[2.0])}, b"\0" * 8),
    "bool size": file_of({"a": entry(shape=[True, 2])}, b"\0" * 8),
    "nine dimensions": file_of({"a": entry(shape=[1] * 8 + [2])}, b"\0" * 8),
    "overflow to the right size": file_of({"a": entry(shape=[2**32, 2**32 + 2])}, b"\0" * 8),
    "huge size": file_of(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}"),
    "infinity": file_of(b'{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,1]}}'),
    "offsets reversed": file_of({"a": entry(offsets=[8, 0])}, b"\0" * 8),
    "offset negative": file_of({"a": entry(offsets=[-8, 0])}, b"\0" * 8),
    "three offsets": file_of({"a": entry(offsets=[0, 4, 8])}, b"\0" * 8),
    "wrong byte count": file_of({"a": entry(offsets=[0, 4])}, b"\0" * 4),
    "hole before": file_of({"a": entry(offsets=[4, 12])}, b"\0" * 12),
    "hole between": file_of({"a": entry(), "b": entry(offsets=[9, 17])}, b"\0" * 17),
    "overlap": file_of({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
    "same place": file_of({"a": entry(), "b": entry()}, b"\0" * 8),
    "empty name": file_of({"": entry()}, b"\0" * 8),
    "long name": file_of({"x" * 10_000: entry()}, b"\0" * 8),
    "control characters in a name": file_of({"a\x1b[31m": entry()}, b"\0" * 8),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(data: bytes) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        parse(data)
    assert len(str(caught.value)) < 700
    assert "\x1b" not in str(caught.value)


def test_truncated_and_padded_files_name_both_sizes() -> None:
    whole = file_of({"a": entry()}, b"\0" * 8)
    for wrong, word in ((whole[:-3], "truncated"), (whole + b"xyz", "too long")):
        with pytest.raises(InvalidCheckpoint, match=word) as caught:
            parse(wrong)
        assert str(len(whole)) in str(caught.value)
        assert str(len(wrong)) in str(caught.value)


@unhurried
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(InvalidCheckpoint):
        parse(data + b"\1")  # never a valid empty header


@unhurried
@given(st.binary(max_size=200))
def test_random_headers(raw: bytes) -> None:
    with suppress(InvalidCheckpoint):
        parse(file_of(raw))


VALID = save(
    {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), dtype=np.int8)},
    metadata={"format": "pt"},
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    st.integers(0, len(VALID)),
)
def test_mutated_valid_files(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    for variant in (bytes(data), bytes(data[:cut])):
        try:
            header = parse(variant)
        except InvalidCheckpoint:
            continue
        assert all(info.end <= len(variant) for info in header.tensors.values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@unhurried
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        json_values
        | st.fixed_dictionaries(
            {"dtype": json_values, "shape": json_values, "data_offsets": json_values}
        ),
    )
)
def test_headers_of_any_json(header: dict[str, Any]) -> None:
    with suppress(InvalidCheckpoint):
        parse(file_of(header, b"\0" * 8))
