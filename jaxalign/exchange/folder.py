"""What a published model's folder says beside its weights, as a checkpoint keeps it and an export gives it back."""

import collections
import json

from jaxalign.errors import ConfigError
from jaxalign.exchange.parameters import Mapping
from jaxalign.models.families import find_family
from jaxalign.models.families.names import Tensor

HEADS = {"ForCausalLM": "policy", "LMHeadModel": "policy", "ForSequenceClassification": "reward"}


def read_json(path, required=False):
    """An object in JSON, {} where there is no file and none is required. Raises ConfigError."""
    if not path.is_file():
        if required:
            raise ConfigError(f"{path}: no such file; expected the folder of a published model, or a GGUF file")
        return {}
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
        raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from None


def head_of(config, where):
    """What a config.json's model gives: "policy" (a language model) or "reward" (one score)."""
    named = config.get("architectures") or [find_family(config, where).architecture]
    architecture = named[0] if isinstance(named, list) else named
    head = next((head for end, head in HEADS.items() if str(architecture).endswith(end)), None)
    if head is None:
        raise ConfigError(f"{where}: architectures={architecture!r}; expected a name that ends in {', '.join(HEADS)}")
    named = config.get("id2label")
    labels = config.get("num_labels") or len(named if isinstance(named, dict) and named else "12")
    if head == "reward" and labels != 1:
        raise ConfigError(f"{where}: a classifier with {labels} labels; a reward model has one (num_labels=1)")
    return head


def mapping_of(published, model_config, head, shapes):
    """The `Mapping` of a model with this config.json and this head. In a reward model nothing predicts tokens."""
    tensors = find_family(published).tensors(model_config)
    if head == "reward":
        tensors = [Tensor(t.name, tuple(f"backbone/{part}" for part in t.parts), t.layout) for t in tensors
                   if t.parts[0] not in ("unembed/kernel", "unembed/bias")]
        tensors.append(Tensor("score.weight", ("head/kernel",), "linear"))
    return Mapping(tensors, model_config, shapes)


def common_dtype(dtypes):
    """(the type most tensors have, the others by name), as strings."""
    most = collections.Counter(d.name for d in dtypes.values()).most_common(1)[0][0]
    return most, {name: d.name for name, d in dtypes.items() if d.name != most}


def stop_ids(*configs):
    """Ids at which the publisher stops: eos_token_id of the first config that names any."""
    for config in configs:
        found = config.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if found is not None and not all(isinstance(i, int) for i in ids):
            raise ConfigError(f"eos_token_id={found!r} of a config; expected a number, or a list of numbers")
        if found is not None:
            return ids
    return []
