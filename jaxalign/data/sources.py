"""Files → raw records: JSONL (plain, gz, zst), JSON arrays, CSV, Parquet, ArrayRecord and plain text, one by one."""

import csv
import dataclasses
import glob
import gzip
import io
import json
import pathlib
import re
import zlib

from jaxalign.errors import ConfigError, DataError, get_extra


@dataclasses.dataclass
class Record:
    """A raw record and where it stands, or, in `error`, why that line could not be read."""

    path: str
    line: int | None
    value: object = None
    error: DataError | None = None

    def bad(self, expected, got, cure=""):
        return DataError(self.path, self.line, expected, got, cure)


def read(path, *, documents="file"):
    """Yields the Records of a file, a directory (recursively), a glob, or a list of those, sorted by name.

    A line that cannot be parsed is yielded with `error` set, so the caller decides; a file that cannot be read at all
    raises. `documents` cuts plain text: one document a "file", "line" or "paragraph" (blank lines between).
    """
    for file in files(path):
        yield from FORMATS[_format(file)](file, documents)


def files(path):
    """The data files that `path` (file, directory, glob, or list of those) stands for. Raises DataError for none.

    Of a directory, the files with a known ending, but for hidden ones, those in hidden folders, and the README and
    LICENSE that published data sets carry; a glob or a name takes what it matches.
    """
    if isinstance(path, (list, tuple)):
        return [f for p in path for f in files(p)]
    if not isinstance(path, (str, pathlib.PurePath)) or not str(path):  # "" would be the current folder
        raise ConfigError(f"path={path!r} of a data source; expected a file, a directory, a glob, or a list of these")
    path = str(pathlib.Path(path).expanduser())
    if pathlib.Path(path).is_file():
        found = [path]
    elif pathlib.Path(path).is_dir():
        found = sorted(str(f) for f in pathlib.Path(path).rglob("*")
                       if f.is_file() and _format(f, strict=False) and not _aside(f.relative_to(path)))
    else:
        found = sorted(f for f in glob.glob(path, recursive=True) if pathlib.Path(f).is_file())
    if not found:
        raise DataError(path, None, "a file, a directory with data files, or a glob that matches some", "nothing there",
                        f"known endings: {', '.join(_ENDINGS)}")
    return found


def keep(record, *, split=None, holdout=0.05, where=None):
    """Whether a record belongs to a split ("train" or "dev", `holdout` of the records by hash) and matches `where`."""
    if where and any(record.value.get(k) != v for k, v in where.items()):
        return False
    if split is None:
        return True
    if split not in ("train", "dev"):
        raise ConfigError(f"split={split!r}; expected 'train', 'dev' or None")
    digest = zlib.crc32(json.dumps(record.value, sort_keys=True, default=str).encode())
    return (digest / 2**32 < holdout) == (split == "dev")


def _jsonl(path, documents):
    for line, raw in enumerate(lines(path), 1):
        if not raw.strip():
            continue
        try:
            value = json.loads(decode(path, line, raw.rstrip(b"\r\n")))
            yield from _checked(path, line, value, _surrogates(raw))
        except DataError as error:
            yield Record(path, line, error=error)
        except ValueError as error:
            yield Record(path, line, error=DataError(path, line, "a JSON object on one line", _broken(error),
                                                     "mend the line, or on_bad_row='skip'"))


def _json(path, documents):
    text = _lenient(_bytes(path))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(path, getattr(error, "lineno", None), "a JSON array of objects", _broken(error),
                        "one object a line belongs in a file ending in .jsonl") from error
    if isinstance(value, dict):  # {"examples": [...]} and the like: the one list in it
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(path, None, "a JSON array of objects", type(value).__name__)
    suspect = _surrogates(text) or bool(_NOT_UTF8.search(text))  # once: the text is as long as the records are many
    for line, item in enumerate(value, 1):
        yield from _checked(path, line, item, suspect)


def _surrogates(text):
    """Whether JSON, as text or bytes, holds an escape that must not stand alone."""
    return bool(re.search(_SURROGATE if isinstance(text, str) else _SURROGATE.encode(), text))


def _checked(path, line, value, suspect):
    """The record, or the reason why it is none; `suspect`: the JSON that it stands in has `_surrogates`."""
    got = None
    if not isinstance(value, dict):
        got = type(value).__name__
    elif suspect:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            got = f"half a character ({half!r} without its other half" + (
                f", or the byte 0x{ord(half) - 0xdc00:02x}, which is no UTF-8)" if _NOT_UTF8.match(half) else ")")
    yield Record(path, line, value) if got is None else Record(path, line, error=DataError(
        path, line, "a JSON object", got, "mend the row, or on_bad_row='skip'"))


def _csv(path, documents):
    csv.field_size_limit(2**31 - 1)  # whole documents may stand in a field
    rows = csv.DictReader(io.StringIO(_lenient(_bytes(path)), newline=""))
    line = 1
    try:
        names = rows.fieldnames or []
        if found := _NOT_UTF8.search("".join(names)):
            raise DataError(path, 1, "UTF-8 text", f"byte 0x{ord(found[0]) - 0xdc00:02x}", "convert the file")
        for row in rows:
            line, columns = line + 1, len(names) - sum(value is None for value in row.values()) + len(row.get(None, ()))
            if columns == len(names) and not _NOT_UTF8.search("".join(filter(None, row.values()))):
                yield Record(path, line, row)
            elif columns == len(names):
                yield Record(path, line, error=DataError(path, line, "UTF-8 text", "other bytes",
                                                         "convert the file, or on_bad_row='skip'"))
            else:
                error = DataError(path, line, f"{len(names)} columns as in the first line", columns,
                                  "quote what holds a comma, or on_bad_row='skip'")
                yield Record(path, line, error=error)
            line = rows.line_num  # a quoted field may hold line ends
    except csv.Error as error:
        raise DataError(path, rows.line_num, "comma-separated values", str(error)) from error


def _parquet(path, documents):
    parquet = _extra("pyarrow.parquet", path)
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has its own tree of errors
        raise DataError(path, None, "a Parquet file", f"something else ({error})") from error
    line = 0
    with file:
        for batch in file.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                line += 1
                yield Record(path, line, value)


def _array_record(path, documents):
    from grain.sources import ArrayRecordDataSource  # here, since it opens native code that only this format needs

    try:
        with ArrayRecordDataSource([path]) as source:
            for index in range(len(source)):
                yield from _text_or_json(path, index + 1, source[index])
    except (RuntimeError, IndexError) as error:  # what its native code raises
        raise DataError(path, None, "an ArrayRecord file", f"something else, or half of one ({error})") from error


def _text_or_json(path, line, raw):
    try:
        text = decode(path, line, raw)
        value = json.loads(text) if text.lstrip()[:1] == "{" else {"text": text}
        yield from _checked(path, line, value, _surrogates(raw))
    except DataError as error:
        yield Record(path, line, error=error)
    except ValueError as error:
        yield Record(path, line, error=DataError(path, line, "a JSON object or text", _broken(error)))


def _text(path, documents):
    if documents == "file":
        try:
            yield Record(path, 1, {"text": decode(path, None, _bytes(path))})
        except DataError as error:
            yield Record(path, None, error=error)
        return
    if documents not in ("line", "paragraph"):
        raise ConfigError(f"documents={documents!r}; expected 'file', 'line' or 'paragraph'")
    start, held = 1, []
    for line, raw in enumerate(lines(path), 1):
        try:
            text = decode(path, line, raw)
        except DataError as error:
            yield Record(path, line, error=error)
            continue
        if text.strip() and documents == "paragraph":
            start = start if held else line
            held.append(text)
        elif text.strip():
            yield Record(path, line, {"text": text.rstrip("\r\n")})
        elif held:
            yield Record(path, start, {"text": "".join(held).rstrip("\r\n")})
            held = []
    if held:
        yield Record(path, start, {"text": "".join(held).rstrip("\r\n")})


FORMATS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet, "array_record": _array_record,
           "text": _text}
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet",
            ".array_record": "array_record", ".arrayrecord": "array_record", ".txt": "text", ".md": "text"}
_COMPRESSED = (".gz", ".zst")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what `_lenient` makes of a byte that is none
_SURROGATE = r"\\u[dD][89a-fA-F]"


def _format(path, strict=True):
    name = str(path).lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    for ending, form in _ENDINGS.items():
        if name.endswith(ending):
            return form
    if strict:
        raise DataError(path, None, f"a file ending in {', '.join(_ENDINGS)} (.jsonl, .json, .csv and .txt also .gz or "
                                    ".zst)", pathlib.Path(path).suffix or "no ending", "rename the file")
    return None


def _aside(path):
    """Whether a file of a directory is hidden, or tells about the data instead of being some."""
    about = path.stem.lower() in ("readme", "license") and _format(path, strict=False) == "text"
    return about or any(part.startswith(".") for part in path.parts)


def _broken(error):
    """What json says, without its line number, which is 1 for a line of a file."""
    where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return f"broken JSON ({getattr(error, 'msg', error)}{where})"


def _open(path):
    name = str(path).lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstd(path), 1 << 20)
    return open(path, "rb")


class _Zstd(io.RawIOBase):
    """The bytes of a .zst file of any number of frames. zstandard's own reader takes a file that breaks off in the
    middle for one that ends there."""

    _file = None  # where the package is missing there is no more to close

    def __init__(self, path):
        self._decompressor, self._file = _extra("zstandard", path).ZstdDecompressor(), open(path, "rb")
        self._frame, self._ready = None, memoryview(b"")

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._ready:
            compressed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            compressed = compressed or self._file.read(1 << 16)
            if not compressed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file breaks off in the middle")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(compressed))
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self):
        if self._file is not None:
            self._file.close()
        super().close()


def lines(path):
    """Yields the raw lines of a file, decompressed as its ending says. Raises DataError where it cannot be read."""
    try:
        with _open(path) as file:
            yield from file
    except (OSError, EOFError, zlib.error, *_zstd_errors(path)) as error:
        raise DataError(path, None, "a readable file", f"{type(error).__name__}: {error}") from error


def _zstd_errors(path):
    return (_extra("zstandard", path).ZstdError,) if str(path).lower().endswith(".zst") else ()


def _bytes(path):
    return b"".join(lines(path))


def decode(path, line, raw):
    """Bytes as UTF-8 text; DataError with the line, counted here where it is None, for any others."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if line is None:
            line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(path, line, "UTF-8 text", f"byte 0x{raw[error.start]:02x} ({error.reason})",
                        "convert the file, or on_bad_row='skip'") from error


def _lenient(raw):
    """Bytes as text, those that are no UTF-8 as halves of characters: one such record is bad then, and not the file."""
    return raw.decode("utf-8-sig", "surrogateescape")


def _extra(module, path):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(path, None, f"the package {module.split('.')[0]} to read this format", "none installed",
                        get_extra("data")) from error
