"""GGUF files, as llama.cpp reads them: weights dequantised as they are read, config and tokenizer from the metadata.

To add an architecture: a line in `ARCHITECTURES`, a function in gguf_metadata.py.
"""

import mmap
import re
import struct
from typing import Callable, NamedTuple

import numpy as np

from jaxalign.errors import CheckpointError, ConfigError, get_extra
from jaxalign.exchange import gguf_metadata as metadata
from jaxalign.models.families import find_family, model_config

NO_WEIGHTS = (metadata.ROPE_TABLE, *metadata.LONG.values())  # of which the config tells
_LAYER = re.compile(r"blk\.(\d+)\.")
_ONE_EXPERT = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")  # as Mixtral's first files have them
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value by its type
_TEXT, _ARRAY = 8, 9


def _half_apart(name, x, config):
    """Rows of queries and keys that are rotated together: there row after row, with us half a head apart."""
    key = next((key for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads"))
                if f".self_attn.{part}." in name), None)
    return x if key is None else x.reshape(config[key], -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _less_one(name, x, config):
    """Scales of norms that are added to one: there with the one."""
    return x - np.float32(1.0) if name.endswith("norm.weight") else x


def _turned(name, x, config):
    """The layers' matrices of GPT-2, which has (inputs, outputs)."""
    return x.T if x.ndim == 2 and ".h." in name else x


def _by_head(name, x, config):
    """Queries, keys and values: there one after the other, in GPT-NeoX head after head."""
    heads = config["num_attention_heads"]
    return x.reshape(3, heads, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape) if ".query_key_value." in name else x


class Architecture(NamedTuple):
    """How a `general.architecture` is read.

    Attributes:
      config: (`metadata.Fields`, what all have in config.json) → config.json.
      change: (published name, tensor, config.json) → the tensor as published; None where it is stored as it is.
    """

    config: Callable
    change: Callable | None = None


ARCHITECTURES = {
    "llama": Architecture(metadata.llama, _half_apart),
    "smollm3": Architecture(metadata.plain("smollm3"), _half_apart),
    "qwen2": Architecture(metadata.plain("qwen2")),
    "qwen3": Architecture(metadata.plain("qwen3")),
    "qwen3moe": Architecture(metadata.qwen3_moe),
    "gemma": Architecture(metadata.gemma, _less_one),
    "gemma2": Architecture(metadata.gemma2, _less_one),
    "gemma3": Architecture(metadata.gemma3, _less_one),
    "phi3": Architecture(metadata.phi3),
    "olmo2": Architecture(metadata.olmo2),
    "gpt2": Architecture(metadata.gpt2, _turned),
    "gptneox": Architecture(metadata.gpt_neox, _by_head),
}  # fmt: skip


def read_gguf(path):
    """(config, generation config, tokenizer, tensors) of a file, as `importing.Published` holds them.

    Raises:
      CheckpointError: no GGUF file, one cut short, or a tensor of a type that cannot be read. ConfigError: an
        architecture or a tokenizer that is not known.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"GGUF files need the package gguf; {get_extra('hf')}") from None
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever the package meets in bytes that are something else
        raise CheckpointError(f"{path}: cannot be read as GGUF ({type(error).__name__}: {str(error)[:200]}); it is "
                              "damaged or no GGUF file: copy or download it again") from None
    architecture = fields.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ConfigError(f"{path}: general.architecture={architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    _check_types(path, reader.tensors)
    found = {tensor.name: tensor for tensor in reader.tensors}
    try:
        fields = metadata.Fields(fields, architecture, found, _dequantised)
        config = ARCHITECTURES[architecture].config(fields, metadata.common(fields))
        tokenizer = metadata.tokenizer(fields)
        tensors, ends = Tensors(found, architecture, config), metadata.generation(fields, tokenizer)
    except KeyError as error:
        raise ConfigError(f"{path}: its metadata lack {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"{path}: a value of its metadata cannot be used ({error})") from None
    return config, ends, tokenizer, tensors


def check_header(path):
    """Raises ValueError for a file whose numbers of things are more than it has bytes for: the package would make room for them."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        order = "<" if data[4:6] != b"\0\0" else ">"
        at = 24

        def number(place, form):
            return struct.unpack_from(order + form, data, place)[0]

        def past(place, count, size):
            if count * size > len(data) - place:
                raise ValueError(f"{count} values at byte {place} of {len(data)}")
            return place + count * size

        def text(place):
            return past(place + 8, number(place, "Q"), 1)

        def value(place, kind):
            if kind == _TEXT:
                return text(place)
            if kind != _ARRAY:
                return past(place, 1, _SIZES[kind])
            inside, count = number(place, "I"), number(place + 4, "Q")
            if inside in _SIZES:
                return past(place + 12, count, _SIZES[inside])
            place = past(place, 12, 1)
            past(place, count, 8)  # the least that texts and arrays take
            for _ in range(count):
                place = value(place, inside)
            return place

        tensors, values = number(8, "Q"), number(16, "Q")
        past(at, values, 13)
        for _ in range(values):
            at = text(at)
            at = value(at + 4, number(at, "I"))
        past(at, tensors, 24)
        for _ in range(tensors):
            at = text(at)
            dimensions = number(at, "I")
            if dimensions > 4:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            at = past(at, 4 + 8 * dimensions + 12, 1)


def _check_types(path, tensors):
    """Refuses a tensor that cannot be dequantised before any is."""
    from gguf import GGMLQuantizationType

    known = {kind for kind in {tensor.tensor_type for tensor in tensors} if _is_readable(kind)}
    for tensor in tensors:
        if tensor.tensor_type not in known:
            names = ", ".join(kind.name for kind in GGMLQuantizationType if _is_readable(kind))
            raise CheckpointError(f"{path}: {tensor.name} is of type {tensor.tensor_type.name}; expected one of {names}; "
                                  "quantise the model to one of these, or import its safetensors")


def _is_readable(kind):
    """Whether the package dequantises a type, which it says only once asked to."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def names_of(architecture, config):
    """{a tensor's name in GGUF: as published}, with {layer} and, of those that hold all experts, {expert}; by the package."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    theirs = get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), 1)
    names = {}
    for tensor in find_family(config).tensors(model_config(config)):
        stem, kind = tensor.name.rsplit(".", 1)
        name = theirs.get_name(stem.replace("{layer}", "0").replace(".{expert}", ""))
        names[f"{name.replace('blk.0.', 'blk.{layer}.')}.{kind}"] = tensor.name
    return names


class Tensors:
    """A file's tensors under their published names, float32."""

    def __init__(self, found, architecture, config):
        self._change, self._config = ARCHITECTURES[architecture].change, config
        self._tensors, names = {}, names_of(architecture, config)
        for name, tensor in found.items():
            if name not in NO_WEIGHTS:
                layer, one = _LAYER.match(name), _ONE_EXPERT.fullmatch(name)
                key = f"{one[1]}_exps.weight" if one else name
                published = names.get(_LAYER.sub("blk.{layer}.", key, count=1), name).replace("{layer}", layer[1] if layer else "")
                numbers = [one[2]] if one else range(_experts(name, tensor, config)) if "{expert}" in published else [None]
                self._tensors.update({published.replace("{expert}", str(n)): (tensor, None if one else n) for n in numbers})
        self.names = set(self._tensors)

    def shape(self, name):
        tensor, expert = self._tensors[name]
        shape = tuple(int(n) for n in reversed(tensor.shape))[expert is not None:]
        return _turned(name, np.broadcast_to(0, shape), self._config).shape if self._change is _turned else shape

    def dtype(self, name):
        return np.dtype(np.float32)

    def read(self, name):
        """One tensor, dequantised; of experts one's."""
        x = _dequantised(*self._tensors[name])
        return x if self._change is None else self._change(name, x, self._config)


def _experts(name, tensor, config):
    asked, found = config.get("num_local_experts") or config.get("num_experts"), int(tensor.shape[-1])
    if found != asked or tensor.n_elements < found:
        raise ConfigError(f"{name} holds {found} experts, the metadata tell of {asked}; one of the two is another model's")
    return found


def _dequantised(tensor, expert=None):
    from gguf.quants import dequantize

    shape = [int(n) for n in reversed(tensor.shape)]
    data = tensor.data.reshape(*shape[:-1], -1)
    if expert is not None:
        shape, data = shape[1:], data[expert]
    return np.asarray(dequantize(data, tensor.tensor_type), np.float32).reshape(shape)
