from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from embedded.s3 import S3Server
from strucprune_core.calibration.jsonl import jsonl_records
from strucprune_core.calibration.parquet import check_parquet, parquet_records
from strucprune_core.calibration.records import Record
from strucprune_core.calibration.text import Text
from strucprune_core.errors import InvalidText, ObjectNotFound, StorageUnavailable
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from tests.core.calibration.stored import json_lines

TALKS = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good day."}],
    [{"role": "user", "content": "why?"}],
]


def written(directory: Path, columns: dict[str, Any], **options: Any) -> Text:
    pq.write_table(pa.table(columns), directory / "d.parquet", **options)
    return Text(LocalStore(directory), "d.parquet", "calibration.uri")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), "str")])
def test_rows_come_back(tmp_path: Path, compression: str, kind: pa.DataType) -> None:
    texts = [f"document {i} é 数" for i in range(300)] + [None, ""]
    columns = {"id": list(range(302)), "text": pa.array(texts).cast(kind)}
    text = written(tmp_path, columns, row_group_size=70, compression=compression)
    check_parquet(text, "text", conversations=False)
    assert list(parquet_records(text, "text")) == [
        Record(f"row {number}", value) for number, value in enumerate(texts, start=1)
    ]


def test_conversations(tmp_path: Path) -> None:
    text = written(tmp_path, {"messages": TALKS})
    check_parquet(text, "messages", conversations=True)
    assert [record.value for record in parquet_records(text, "messages")] == TALKS


class Counting(LocalStore):
    """Counts the bytes that are read."""

    read_bytes: list[int]

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        object.__setattr__(self, "read_bytes", [])

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        data = super().read(key, start, length)
        self.read_bytes.append(len(data))
        return data


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    draw = random.Random(0)
    noise = [draw.randbytes(2000).hex() for _ in range(4000)]  # 16 MB a column
    columns = {"text": noise, "other": noise}
    written(tmp_path, columns, row_group_size=500, compression="none", use_dictionary=False)
    size = (tmp_path / "d.parquet").stat().st_size
    store = Counting(tmp_path)
    text = Text(store, "d.parquet", "calibration.uri")
    check_parquet(text, "text", conversations=False)
    assert sum(store.read_bytes) < 200_000
    store.read_bytes.clear()
    rows = parquet_records(text, "text")
    assert [next(rows).value for _ in range(100)] == noise[:100]
    assert sum(store.read_bytes) < 4 << 20  # of one column of one row group
    assert len(list(rows)) == 3900
    assert sum(store.read_bytes) < 0.6 * size  # the other column was not read
    assert max(store.read_bytes) < 3 << 20


def test_memory_is_bounded_by_pages_not_by_row_groups(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(2000).hex() for _ in range(10_000)]
    options = {"row_group_size": 10_000, "compression": "zstd", "use_dictionary": False}
    text = written(tmp_path, {"text": texts}, **options)  # one row group of 40 MB
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in parquet_records(text, "text"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("field", "conversations", "reason"),
    [
        ("body", False, r"no column 'body' \(its columns: 'text', 'messages', 'n'\)"),
        ("n", False, "column 'n' of d.parquet holds 'int64', not text"),
        ("messages", False, "not text"),
        ("text", True, "not lists of messages"),
    ],
)
def test_a_wrong_column_is_named(
    tmp_path: Path, field: str, conversations: bool, reason: str
) -> None:
    text = written(tmp_path, {"text": ["a", "b"], "messages": TALKS, "n": [1, 2]})
    with pytest.raises(InvalidText, match=reason) as caught:
        check_parquet(text, field, conversations=conversations)
    assert caught.value.field == "calibration.field"
    assert caught.value.remedy


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "d.parquet")
    text = Text(LocalStore(tmp_path), "d.parquet", "calibration.uri")
    with pytest.raises(InvalidText, match="no column 'text'"):
        list(parquet_records(text, "text"))


def test_no_rows(tmp_path: Path) -> None:
    text = written(tmp_path, {"text": pa.array([], pa.string())})
    with pytest.raises(InvalidText, match="no rows"):
        check_parquet(text, "text", conversations=False)
    assert list(parquet_records(text, "text")) == []


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"just a text " * 99]
)
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.parquet").write_bytes(content)
    text = Text(LocalStore(tmp_path), "d.parquet", "calibration.uri")
    for read in (
        lambda: check_parquet(text, "text", conversations=False),
        lambda: list(parquet_records(text, "text")),
    ):
        with pytest.raises(InvalidText, match="cannot be read as parquet") as caught:
            read()
        assert caught.value.field == "calibration.uri"
        assert caught.value.remedy


def test_a_huge_footer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "d.parquet").open("wb") as file:
        file.write(b"PAR1")
        file.truncate(200 << 20)
        file.seek(0, 2)
        file.write((150 << 20).to_bytes(4, "little") + b"PAR1")
    store = Counting(tmp_path)
    with pytest.raises(InvalidText, match="footer is longer"):
        check_parquet(Text(store, "d.parquet", "x"), "text", conversations=False)
    assert sum(store.read_bytes) == 8


def test_damage_anywhere_is_an_error_or_changes_nothing_else(tmp_path: Path) -> None:
    text = written(tmp_path, {"text": [f"w{i}" for i in range(200)]}, compression="zstd")
    path = tmp_path / "d.parquet"
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        try:
            list(parquet_records(text, "text"))
        except InvalidText:
            refused += 1
        except MemoryError:  # a page that claims to be huge; the job reports OutOfMemory
            refused += 1
    assert refused > 50


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, raw.buffers())  # as other writers do
    text = written(tmp_path, {"text": broken})
    with pytest.raises(InvalidText, match=r"row 2 of d\.parquet is not UTF-8"):
        list(parquet_records(text, "text"))


def test_an_endless_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strucprune_core.calibration.parquet.MAX_RECORD_BYTES", 1000)
    text = written(tmp_path, {"text": ["short", "x" * 2000]})
    with pytest.raises(InvalidText, match=r"row 2 of d\.parquet is longer than 1,000 bytes"):
        list(parquet_records(text, "text"))


def test_storage_errors_stay_what_they_are(tmp_path: Path) -> None:
    written(tmp_path, {"text": ["a"]})

    class Failing(LocalStore):
        def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
            raise StorageUnavailable("the network went away")

    text = Text(Failing(tmp_path), "d.parquet", "calibration.uri")
    with pytest.raises(StorageUnavailable, match="went away"):
        list(parquet_records(text, "text"))
    with pytest.raises(ObjectNotFound):
        list(parquet_records(Text(LocalStore(tmp_path), "gone.parquet", "x"), "text"))


@pytest.mark.services
def test_from_s3(tmp_path: Path, s3_server: S3Server) -> None:
    settings = S3Settings(
        s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    bucket = f"parquet-{uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    store = open_store(f"s3://{bucket}/data", settings)
    texts = [f"document {i}" for i in range(500)]
    local = written(tmp_path, {"text": texts, "n": texts}, row_group_size=100)
    store.upload("d.parquet", tmp_path / "d.parquet")
    remote = Text(store, "d.parquet", "calibration.uri")
    check_parquet(remote, "text", conversations=False)
    assert list(parquet_records(remote, "text")) == list(parquet_records(local, "text"))
    (tmp_path / "d.jsonl").write_text(json_lines([{"text": text} for text in texts]))
    store.upload("d.jsonl", tmp_path / "d.jsonl")
    lines = jsonl_records(Text(store, "d.jsonl", "calibration.uri"), "text")
    assert [record.value for record in lines] == texts


def test_names_that_are_no_text(tmp_path: Path) -> None:
    written(tmp_path, {"text": ["a"], "zzzz": ["b"]}, store_schema=False)
    path = tmp_path / "d.parquet"
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"z\xff\xffz"))
    text = Text(LocalStore(tmp_path), "d.parquet", "calibration.uri")
    with pytest.raises(InvalidText, match=r"cannot be read as parquet: .*can't decode"):
        check_parquet(text, "text", conversations=False)
    with pytest.raises(InvalidText, match=r"cannot be read as parquet: .*can't decode"):
        list(parquet_records(text, "text"))


def test_values_that_python_has_not(tmp_path: Path) -> None:
    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    message = pa.StructArray.from_arrays([pa.array(["user"]), far], names=["role", "at"])
    talks = pa.ListArray.from_arrays(pa.array([0, 1]), message)
    text = written(tmp_path, {"messages": talks})
    with pytest.raises(InvalidText, match=r"row 1 of d\.parquet cannot be read") as caught:
        list(parquet_records(text, "messages"))
    assert "role and content" in str(caught.value)


def test_a_dictionary_of_one_long_document(tmp_path: Path) -> None:
    """A kilobyte that holds 15 GB, of which eight rows lie in memory at a time."""
    long = pa.array(["y" * (5 << 20)])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), long)
    text = written(tmp_path, {"text": rows}, compression="zstd")
    assert (tmp_path / "d.parquet").stat().st_size < 10_000
    before, peak = pa.total_allocated_bytes(), 0
    for _, record in zip(range(40), parquet_records(text, "text"), strict=False):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert len(str(record.value)) == 5 << 20
    assert peak < 100 << 20


def test_a_stop_is_seen_between_rows(tmp_path: Path) -> None:
    columns = {"text": pa.nulls(1000, pa.string())}
    ticks: list[None] = []
    whole = written(tmp_path, columns)
    text = Text(whole.store, whole.key, whole.field, lambda: ticks.append(None))
    assert len(list(parquet_records(text, "text"))) == 1000
    assert len(ticks) >= 100
