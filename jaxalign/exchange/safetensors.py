"""Files of safetensors, tensor by tensor: eight bytes, a header in JSON, then the numbers one after the other.

Nothing is held but the tensor asked for. Written here and not taken from the package, which gives bfloat16 to torch
only.
"""

import json
import math
import pathlib
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxalign.errors import CheckpointError

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
         "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}  # fmt: skip
NAME_OF = {np.dtype(dtype): name for name, dtype in TYPES.items()}
LARGEST_HEADER = 100_000_000
STEM = "model"


class Entry(NamedTuple):
    """Where one tensor stands."""

    path: pathlib.Path
    dtype: str
    shape: tuple
    first: int  # byte in the file
    size: int


class Safetensors:
    """The tensors of a folder's `model.safetensors` (another stem, if one is given), or of all shards that its index names.

    Attributes: `entries` (name → `Entry`).
    """

    def __init__(self, folder, stem=STEM):
        """Raises CheckpointError: no such files, a shard missing, cut short or damaged, a tensor that the index names
        and no shard holds."""
        folder = pathlib.Path(folder)
        single = folder / f"{stem}.safetensors"
        index = folder / f"{single.name}.index.json"
        self.entries = {}
        if index.is_file():
            where = _weight_map(index)
            for shard in sorted(set(where.values())):
                if not (folder / shard).is_file():
                    raise CheckpointError(f"{folder / shard}: the index {index.name} names this shard, there is no such "
                                          "file; copy it beside the others")
                self.entries |= _entries(folder / shard)
            if lost := sorted(n for n, shard in where.items() if n not in self.entries or self.entries[n].path.name != shard):
                raise CheckpointError(f"{folder}: {index.name} names {lost[0]} in {where[lost[0]]}, which does not hold it; "
                                      "the files are not of one model")
        elif single.is_file():
            self.entries = _entries(single)
        else:
            found = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
            cure = (f"; it holds {found[0]}, which only torch reads: save the model anew with "
                    "save_pretrained(safe_serialization=True)" if found else "")
            raise CheckpointError(f"{folder}: expected {single.name} or {index.name}, there is neither{cure}")
        self.names = set(self.entries)

    def shape(self, name):
        return self.entries[name].shape

    def dtype(self, name):
        """As numpy names it. Raises CheckpointError for one that has no place here."""
        entry = self.entries[name]
        if entry.dtype not in TYPES:
            raise CheckpointError(f"{entry.path}: {name} is of type {entry.dtype}; expected one of {', '.join(TYPES)}")
        return np.dtype(TYPES[entry.dtype])

    def read(self, name):
        """One tensor, as it is stored."""
        entry = self.entries[name]
        with open(entry.path, "rb") as file:
            file.seek(entry.first)
            data = bytearray(entry.size)
            if file.readinto(data) != entry.size:
                raise CheckpointError(f"{entry.path}: ends within {name}; the file changed while it was read")
        return np.frombuffer(data, self.dtype(name)).reshape(entry.shape)


def _weight_map(path):
    try:
        where = json.loads(path.read_bytes())["weight_map"]
        if all(isinstance(shard, str) and pathlib.PurePath(shard).name == shard for shard in where.values()):
            return where
        raise ValueError("a shard that is no file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected an object with a weight_map from tensors to files "
                              f"({type(error).__name__}: {error})") from None


def _entries(path):
    """The header of one file, checked against its size."""
    total = path.stat().st_size

    def bad(what):
        raise CheckpointError(f"{path}: {what}; the file is damaged or no safetensors file: copy or download it again")

    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            bad(f"{total} bytes, too few for a header")
        size = struct.unpack("<Q", prefix)[0]
        if size > min(LARGEST_HEADER, total - 8):
            bad(f"its header should have {size} bytes, the file has {total}")
        try:
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            entries = {}
            for name, e in header.items():
                first, last = map(int, e["data_offsets"])
                shape = tuple(map(int, e["shape"]))
                entries[name] = Entry(path, str(e["dtype"]), shape, 8 + size + first, last - first)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            bad(f"its header cannot be read ({type(error).__name__}: {error})")
    end = max((e.first + e.size for e in entries.values()), default=8 + size)
    if end != total:
        bad(f"it has {total} bytes, its header says {end}" + ("; it was cut short" if end > total else ""))
    at = 8 + size
    for name, e in sorted(entries.items(), key=lambda item: (item[1].first, item[1].size)):
        if e.first != at:
            bad(f"{name} begins at byte {e.first}, what stands before it ends at {at}")
        at += e.size
        if e.first < 8 + size or e.size < 0 or (e.dtype in TYPES and
                                                e.size != math.prod(e.shape) * np.dtype(TYPES[e.dtype]).itemsize):
            bad(f"{name} of type {e.dtype} and shape {list(e.shape)} cannot have {e.size} bytes")
    return entries


def write(folder, tensors, make, *, largest_shard=5_000_000_000, stem=STEM):
    """Writes tensors in shards of at most so many bytes, one tensor at a time.

    Args:
      folder: where to; it exists.
      tensors: name → (dtype, shape), in the order they are written.
      make: name → the array.
      stem: of the files' names.
    """
    shards, room = [{}], largest_shard
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = largest_shard
        shards[-1][name] = (np.dtype(dtype), shape, size)
        room -= size
    names = [f"{stem}.safetensors"] if len(shards) == 1 else [
        f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file_name, shard in zip(names, shards):
        _write_file(folder / file_name, shard, make)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(size for shard in shards for *_, size in shard.values())},
                 "weight_map": {name: file_name for file_name, shard in zip(names, shards) for name in shard}}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_file(path, shard, make):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in shard.items():
        header[name] = {"dtype": NAME_OF[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of eight
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape, _) in shard.items():
            array = make(name)
            assert array.dtype == dtype and array.shape == tuple(shape), (name, array.dtype, array.shape)
            file.write(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
