"""llama2.c's binary model and tokenizer as a published Llama's folder, so that a real pretrained model can be read."""

import json
import struct

import numpy as np

from jaxalign.exchange.gguf_metadata import sentencepiece_model
from jaxalign.exchange.safetensors import write

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def publish(model, tokenizer, folder):
    """Writes `folder` from the paths of a model and its tokenizer."""
    data = model.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, places = struct.unpack("<7i", data[:28])
    numbers, at = np.frombuffer(data, np.float32, offset=28), 0
    size = width // heads

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)):at].reshape(shape)

    def halves(x, n):
        # Pairs that are rotated together stand side by side there, half a head apart in a published Llama.
        return x.reshape(layers, n, size // 2, 2, width).swapaxes(2, 3).reshape(x.shape)

    stacked = {"embed": take(vocabulary, width)}
    stacked["input_layernorm"] = take(layers, width)
    stacked["self_attn.q_proj"] = halves(take(layers, heads * size, width), heads)
    stacked["self_attn.k_proj"] = halves(take(layers, kv_heads * size, width), kv_heads)
    stacked["self_attn.v_proj"] = take(layers, kv_heads * size, width)
    stacked["self_attn.o_proj"] = take(layers, width, heads * size)
    stacked["post_attention_layernorm"] = take(layers, width)
    stacked["mlp.gate_proj"] = take(layers, hidden, width)
    stacked["mlp.down_proj"] = take(layers, width, hidden)
    stacked["mlp.up_proj"] = take(layers, hidden, width)
    tensors = {"model.embed_tokens.weight": stacked.pop("embed"), "model.norm.weight": take(width)}
    tensors |= {f"model.layers.{n}.{name}.weight": x[n] for name, x in stacked.items() for n in range(layers)}
    folder.mkdir(parents=True)
    write(folder, {name: (x.dtype, x.shape) for name, x in tensors.items()}, tensors.get)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "max_position_embeddings": places, "bos_token_id": 1, "eos_token_id": 2}))  # fmt: skip
    # A text there ends where the next one begins.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    _publish_tokenizer(tokenizer.read_bytes(), vocabulary, folder)


def _publish_tokenizer(data, vocabulary, folder):
    texts, scores, at = [], [], 4
    for _ in range(vocabulary):
        score, size = struct.unpack_from("<fi", data, at)
        texts.append(data[at + 8:at + 8 + size].decode().replace(" ", "\u2581"))
        scores.append(score)
        at += 8 + size
    texts[:3] = ["<unk>", "<s>", "</s>"]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (vocabulary - 259)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(texts, scores, kinds))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
