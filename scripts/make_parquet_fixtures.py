#!/usr/bin/env python3
"""Makes the Parquet files that the coordinator's tests read, each beside the same rows as JSONL.

    python3 -m venv /tmp/parquet-env && /tmp/parquet-env/bin/pip install pyarrow
    /tmp/parquet-env/bin/python scripts/make_parquet_fixtures.py [DIR]      DIR: coordinator/tests/fixtures/data/parquet

Small pages and row groups, so that a few rows have several of each. The rows are written here, and depend on nothing.
"""

import datetime
import decimal
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

TEXT = ["", "short", "Zürich, 東京 and \U0001f426", "two\nlines, a \"quote\" and a \\ backslash", "long " * 40]


def pairs(count):
    return [{"id": i, "question": f"{i}: {TEXT[i % 5]}?", "answer": ["yes", "no"][i % 2]} for i in range(count)]


def conversation(i):
    turns = [{"role": "system", "content": "Be brief.", "name": None}] if i % 3 == 0 else []
    for turn in range(1 + i % 3):
        turns.append({"role": "user", "content": f"{i}.{turn} {TEXT[(i + turn) % 5]}", "name": ["ann", None][turn % 2]})
        turns.append({"role": "assistant", "content": f"answer {i * turn}", "name": None})
    return {"messages": turns, "source": None if i % 4 else "made up"}


TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
MESSAGES = pa.schema([("messages", pa.list_(TURN)), ("source", pa.string())])
ALPACA = [{"instruction": f"Do {i}.", "input": [None, "", "with this"][i % 3], "output": f"Done {i}."} for i in range(9)]

# What no training row needs, but may stand beside it. The second of each pair is the JSON of the first.
OTHER_SCHEMA = pa.schema([
    pa.field("prompt", pa.large_string(), nullable=False), pa.field("completion", pa.binary()),
    ("flag", pa.bool_()), ("small", pa.int8()), ("big", pa.uint64()), ("half", pa.float16()), ("single", pa.float32()),
    ("double", pa.float64()), ("day", pa.date32()), ("time", pa.timestamp("ms")), ("price", pa.decimal128(7, 2)),
    ("bytes", pa.binary()), ("fixed", pa.binary(2)), ("strings", pa.list_(pa.string())),
    ("lists", pa.list_(pa.list_(pa.int32()))), ("map", pa.map_(pa.string(), pa.int32())),
    ("deep", pa.struct([("a", pa.struct([("b", pa.list_(pa.struct([("c", pa.int16())])))]))])),
])
OTHER = [
    ({"prompt": "p0", "completion": b"c0", "flag": True, "small": -7, "big": 2**64 - 1, "half": 0.5, "single": 0.25, "double": 1e300,
      "day": datetime.date(1970, 1, 3), "time": datetime.datetime(1970, 1, 1, 0, 0, 1), "price": decimal.Decimal("12.50"),
      "bytes": b"\xff\x00", "fixed": b"ab", "strings": ["x", None, ""], "lists": [[1, 2], [], None, [None, 3]],
      "map": [("k", 1), ("l", None)], "deep": {"a": {"b": [{"c": 1}, None, {"c": None}]}}},
     {"completion": "c0", "day": 2, "time": 1000, "price": "12.50", "bytes": None, "fixed": "ab", "map": {"k": 1, "l": None}}),
    ({"prompt": "p1", "completion": b"c1", "double": float("nan"), "single": float("-inf"), "strings": [], "lists": [],
      "map": [], "deep": {"a": None}},
     {"completion": "c1", "double": None, "single": None, "map": {}}),
    ({"prompt": "p2", "completion": b"c2", "deep": {"a": {"b": []}}}, {"completion": "c2"}),
    ({"prompt": "p3", "completion": b"c3", "strings": [None], "lists": [None], "deep": {"a": {"b": None}}}, {"completion": "c3"}),
]


def write(directory, name, schema, rows, as_json=None, **options):
    options = {"row_group_size": 4, "data_page_size": 64, "write_batch_size": 2} | options
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), directory / f"{name}.parquet", **options)
    rows = [{key: row.get(key) for key in schema.names} for row in (as_json or rows)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "coordinator/tests/fixtures/data/parquet"
    directory.mkdir(parents=True, exist_ok=True)
    question = pa.schema([("id", pa.int64()), ("question", pa.string()), ("answer", pa.string())])
    write(directory, "pairs-snappy", question, pairs(11), compression="snappy")
    write(directory, "pairs-zstd-v2", question, pairs(7), compression="zstd", use_dictionary=False, data_page_version="2.0")
    write(directory, "pairs-gzip", question, pairs(3), compression="gzip")
    write(directory, "pairs-plain", question, pairs(3), compression="none")
    write(directory, "messages-snappy", MESSAGES, [conversation(i) for i in range(10)], compression="snappy")
    write(directory, "messages-zstd", MESSAGES, [conversation(i) for i in range(6)], compression="zstd")
    write(directory, "alpaca-nulls", pa.Table.from_pylist(ALPACA).schema, ALPACA, compression="zstd")
    write(directory, "checksums", question, pairs(3), compression="none", write_page_checksum=True)
    write(directory, "empty", question, [], compression="snappy")
    write(directory, "other-columns", OTHER_SCHEMA, [row for row, _ in OTHER], [row | changed for row, changed in OTHER], compression="snappy")
    # Refused: what is not linked in, and encodings that are not read.
    for name, options in {"brotli": {"compression": "brotli"}, "delta": {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}}.items():
        answers = pa.table({"prompt": ["p", "p q"], "completion": ["c", "d"]})
        pq.write_table(answers, directory / f"refused-{name}.parquet", **options)


if __name__ == "__main__":
    main()
