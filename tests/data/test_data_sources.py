"""Every file format, and what a file that cannot be read says."""

import gzip
import json
import os
import sys

import pytest

from jaxalign.data import sources
from jaxalign.data.sources import files, keep, read
from jaxalign.errors import ConfigError, DataError

RECORDS = [{"text": f"row {i} é", "n": i} for i in range(5)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)


def values(path, **options):
    return [r.value for r in read(path, **options)]


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


def write_array_record(path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in RECORDS:
        writer.write(json.dumps(record).encode())
    writer.close()


def write_zst(path, parts=1):
    import zstandard

    lines = LINES.encode().splitlines(keepends=True)
    size = -(-len(lines) // parts)
    path.write_bytes(b"".join(zstandard.compress(b"".join(lines[i:i + size])) for i in range(0, len(lines), size)))


WRITERS = {
    "a.jsonl": lambda p: p.write_text(LINES, encoding="utf-8"),
    "windows.jsonl": lambda p: p.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode()),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.zst": write_zst,
    "frames.jsonl.zst": lambda p: write_zst(p, parts=3),
    "a.json": lambda p: p.write_text(json.dumps(RECORDS), encoding="utf-8"),
    "wrapped.json": lambda p: p.write_text(json.dumps({"version": 1, "examples": RECORDS}), encoding="utf-8"),
    "a.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(RECORDS).encode())),
    "a.parquet": write_parquet,
    "a.array_record": write_array_record,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(tmp_path, name):
    WRITERS[name](tmp_path / name)
    records = list(read(tmp_path / name))
    assert [r.value for r in records] == RECORDS
    assert records[0].line == 1 and records[0].path.endswith(name)


def test_directories_globs_and_lists_are_read_in_the_order_of_their_names(tmp_path):
    for i in (2, 1, 3):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / f"{i}.jsonl").write_text(json.dumps({"text": str(i)}), encoding="utf-8")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    expected = [{"text": "1"}, {"text": "2"}, {"text": "3"}]
    assert values(tmp_path) == values(str(tmp_path / "**" / "*.jsonl")) == expected
    assert values([tmp_path / "sub" / "1.jsonl", str(tmp_path / "sub" / "[23].jsonl")]) == expected
    with pytest.raises(DataError, match="nothing there"):
        files(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="ending in"):
        values(tmp_path / "ignored.bin")


def test_what_only_lies_beside_the_data_is_left_alone(tmp_path, monkeypatch):
    data = tmp_path / "set"
    (data / ".cache").mkdir(parents=True)
    for name in ("a.jsonl", ".hidden.jsonl", ".cache/b.jsonl"):
        (data / name).write_text(json.dumps({"text": name}), encoding="utf-8")
    for name in ("README.md", "LICENSE.txt"):
        (data / name).write_text("About the set.", encoding="utf-8")
    assert values(data) == [{"text": "a.jsonl"}]
    assert values(data / "README.md") == [{"text": "About the set."}]  # asked for by name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files("~/set") == [str(data / "a.jsonl")]
    for nothing in ("", None, 3):  # "" would be all that lies below the current folder
        with pytest.raises(ConfigError, match="expected a file, a directory, a glob"):
            files(nothing)


def test_plain_text_is_one_document_or_lines_or_paragraphs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    assert values(path) == [{"text": "one\ntwo\n\n\nthree\n"}]
    assert values(path, documents="line") == [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    paragraphs = list(read(path, documents="paragraph"))
    assert [(r.line, r.value["text"]) for r in paragraphs] == [(1, "one\ntwo"), (5, "three")]
    with pytest.raises(ConfigError, match="documents="):
        values(path, documents="word")


def test_csv_rows_are_dicts(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,type\n"Is it, ""safe""?",x\nshort\n', encoding="utf-8")
    good, bad = read(tmp_path / "a.csv")
    assert good.value == {"prompt": 'Is it, "safe"?', "type": "x"}
    assert "a.csv:3: expected 2 columns as in the first line, got 1" in str(bad.error)
    long = "many words, " * 20_000
    (tmp_path / "b.csv").write_text(f'text,n\n"{long}\nend",1\na,b,c\n', encoding="utf-8")
    good, bad = read(tmp_path / "b.csv")
    assert good.line == 2 and good.value["text"] == f"{long}\nend" and bad.line == 4 and "got 3" in str(bad.error)


def test_a_row_of_a_csv_file_that_is_no_text_is_bad_alone(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n\xff,4\n5,6\n")
    records = list(read(tmp_path / "a.csv"))
    assert [record.value for record in records if not record.error] == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]
    assert "a.csv:3: expected UTF-8 text" in str(records[1].error)


@pytest.mark.parametrize("name, content, line, expected", [
    ("a.jsonl", b'{"a": 1}\n{"a": 1\n{"a": 2}\n', 2, "JSON"),
    ("a.jsonl", b'{"a": 1}\n\n[1]\n{"a": 2}\n', 3, "JSON object, got list"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}\n', 2, "UTF-8 text, got byte 0xff"),
    ("a.json", b'[{"a": 1}, 5, {"a": 2}]', 2, "JSON object, got int"),
    ("a.json", b'[{"a": 1},\n{"a": "\xff"}, {"a": 2}]', 2, "the byte 0xff, which is no UTF-8"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\\ud83d!"}\n{"a": 2}\n', 2, "half a character"),
    ("a.json", b'[{"a": 1}, {"a": "\\udE00"}, {"a": 2}]', 2, "half a character"),
])
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path, name, content, line, expected):
    path = tmp_path / name
    path.write_bytes(content)
    records = list(read(path))
    errors = [r.error for r in records if r.error]
    assert [r.value for r in records if not r.error] == [{"a": 1}, {"a": 2}]
    assert len(errors) == 1 and errors[0].line == line and errors[0].path == str(path)
    assert expected in str(errors[0]) and str(errors[0]).startswith(f"{path}:{line}: expected")


@pytest.mark.parametrize("name, content, line", [
    ("a.json", b'[{"a": 1},\n {"a": ]', 2),
    ("a.json", b'"words"', None),
    ("a.csv", b'a,\xff\n1,2\n', 1),
    ("a.jsonl.gz", b"not gzip", None),
    ("a.jsonl.gz", gzip.compress(LINES.encode() * 50)[:-20], None),
    ("a.jsonl.zst", b"not zstandard", None),
    ("a.parquet", b"not parquet", None),
    ("a.array_record", b"not an array record", None),
])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        values(tmp_path / name)
    assert caught.value.line == line and caught.value.path.endswith(name)


def test_both_halves_of_a_character_are_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\\ud83d\\ude00"}\n')
    assert values(tmp_path / "a.jsonl") == [{"a": "😀"}]


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_compressed_file_that_breaks_off_is_no_shorter_file(tmp_path, kept):
    import zstandard

    whole = zstandard.compress(b"".join(json.dumps({"n": n, "x": os.urandom(40).hex()}).encode() + b"\n"
                                        for n in range(5000)))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:int(len(whole) * kept)])
    seen = 0
    with pytest.raises(DataError, match="breaks off in the middle"):
        for _ in read(tmp_path / "a.jsonl.zst"):
            seen += 1
    assert seen > 1000  # what could be read was; it is the silence that would be wrong


def test_splits_are_disjoint_whole_and_do_not_move(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"i": i}) + "\n" for i in range(2000)), encoding="utf-8")
    records = list(read(tmp_path / "a.jsonl"))
    dev = [r.value["i"] for r in records if keep(r, split="dev", holdout=0.1)]
    train = [r.value["i"] for r in records if keep(r, split="train", holdout=0.1)]
    assert sorted(dev + train) == list(range(2000)) and 150 < len(dev) < 250
    assert dev == [r.value["i"] for r in reversed(records) if keep(r, split="dev", holdout=0.1)][::-1]
    assert [r.value["i"] for r in records if keep(r, where={"i": 7})] == [7]
    with pytest.raises(ConfigError):
        keep(records[0], split="test")


def test_a_format_whose_package_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"the package zstandard .* pip install -e '.\[data\]'$"):
        values(tmp_path / "a.jsonl.zst")


def test_a_json_array_is_searched_once_and_not_once_a_record(tmp_path, monkeypatch):
    searched, search = [], sources._surrogates
    monkeypatch.setattr(sources, "_surrogates", lambda text: searched.append(len(text)) or search(text))
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": n} for n in range(40)]))
    assert len(list(sources.read(path))) == 40 and searched == [len(path.read_text())]
