"""The sides of `bench_generate.py`, each a process of its own that generates what its standard input asks for.

    python tools/bench_generators.py jaxalign|transformers|tunix SHAPE.json WEIGHTS.npz

A request is a line {"prompts", "limits", "greedy", "batch", "stops", "seed"}, its answer a line {"seconds", "device", "tokens"}. A
response has as many tokens as its limit says, or ends with the first of the ids in `stops`. Libraries are imported, and weights loaded, before the first answer, a
line {"ready", "device"}; what is compiled at the first request counts in its seconds.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np


class Jaxalign:
    """The engine; `batch` is its number of slots."""

    def __init__(self, shape, weights):
        import jax
        from flax import nnx

        from jaxalign.models.transformer import ModelConfig, Transformer

        self.jax, self.device, self.samplers = jax, jax.devices()[0].device_kind, {}
        config = ModelConfig(
            vocab_size=shape["vocab"], width=shape["width"], num_layers=shape["layers"], num_heads=shape["heads"],
            num_kv_heads=shape["heads"], head_dim=shape["width"] // shape["heads"], mlp_dim=shape["mlp"],
            rope_theta=shape["theta"], norm_eps=shape["eps"], dtype=shape["dtype"])
        self.graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
        names = {("embed",): "embed", ("final_norm", "scale"): "final_norm"}
        names |= {("layers", f"{part}_norm", "scale"): f"{part}_norm" for part in ("attention", "mlp")}
        names |= {("layers", "attention", part, "kernel"): part for part in ("query", "key", "value", "out")}
        names |= {("layers", "mlp", part, "kernel"): part for part in ("gate", "up", "down")}
        self.params = nnx.from_flat_state([(path, leaf.replace(jax.numpy.asarray(weights[names[path]])))
                                           for path, leaf in nnx.to_flat_state(abstract)])

    def __call__(self, prompts, limits, greedy, batch, stops, seed):
        from jaxalign.rollout.engine import Sampler
        from jaxalign.rollout.sampling import Settings

        kind = max(limits), batch, tuple(stops)
        if kind not in self.samplers:
            self.samplers[kind] = Sampler(self.graphdef, stop_ids=kind[2], max_new_tokens=kind[0], slots=batch, bucket=BUCKET)
        keys = self.jax.random.split(self.jax.random.key(seed), len(prompts))
        out = self.samplers[kind](self.params, prompts, keys, Settings(0.0 if greedy else 1.0), limits)
        return [row[mask > 0].tolist() for row, mask in zip(out.tokens, out.mask)]


class Transformers:
    """`LlamaForCausalLM.generate`; a batch goes on until its longest response is done."""

    def __init__(self, shape, weights):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        self.torch = torch
        place = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.cuda.get_device_name() if place == "cuda" else "cpu"
        config = LlamaConfig(
            vocab_size=shape["vocab"], hidden_size=shape["width"], num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"], intermediate_size=shape["mlp"], rms_norm_eps=shape["eps"],
            rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]}, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, max_position_embeddings=4096)
        D, named = shape["width"], {"model.embed_tokens.weight": weights["embed"],
                                    "model.norm.weight": weights["final_norm"]}
        for i in range(shape["layers"]):
            at = f"model.layers.{i}."
            for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
                named[f"{at}self_attn.{theirs}_proj.weight"] = weights[ours][i].reshape(D, -1).T
            named[f"{at}self_attn.o_proj.weight"] = weights["out"][i].reshape(-1, D).T
            for part in ("gate", "up", "down"):
                named[f"{at}mlp.{part}_proj.weight"] = weights[part][i].T
            named[f"{at}input_layernorm.weight"] = weights["attention_norm"][i]
            named[f"{at}post_attention_layernorm.weight"] = weights["mlp_norm"][i]
        model = LlamaForCausalLM(config)
        tensors = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in named.items()}
        missing, unknown = model.load_state_dict(tensors, strict=False)
        if unknown or set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"transformers' Llama has other parameters: {missing}, {unknown}")
        model.tie_weights()
        self.model = model.to(place, getattr(torch, shape["dtype"])).eval()

    def __call__(self, prompts, limits, greedy, batch, stops, seed):
        tokens = [None] * len(prompts)
        self.torch.manual_seed(seed)
        ends = dict(eos_token_id=stops, pad_token_id=0) if stops else {}
        for chosen in batches(limits, batch):
            ids = self.torch.tensor([prompts[n] for n in chosen], device=self.model.device)
            longest = max(limits[n] for n in chosen)
            kinds = dict(do_sample=False) if greedy else dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            with self.torch.inference_mode():
                seen = self.torch.ones_like(ids)
                out = self.model.generate(ids, attention_mask=seen, max_new_tokens=longest, **kinds, **ends)
            for n, row in zip(chosen, out[:, ids.shape[1]:].tolist()):
                tokens[n] = ended(row[:limits[n]], stops)
        return tokens


class Tunix:
    """Its `Sampler`, with a cache just as long as the batch needs; at temperature 1 it knows top-p alone, so p = 1."""

    def __init__(self, shape, weights):
        import jax
        from flax import nnx
        from tunix.generate.sampler import CacheConfig, Sampler
        from tunix.models.llama3 import model as llama

        self.Sampler, self.CacheConfig, self.shape, self.samplers = Sampler, CacheConfig, shape, {}
        self.device = jax.devices()[0].device_kind
        if shape["theta"] != 1_000_000:
            raise SystemExit("Tunix 0.1.5 turns positions by base 1,000,000 whatever its config says")
        config = llama.ModelConfig(
            num_layers=shape["layers"], vocab_size=shape["vocab"], embed_dim=shape["width"], hidden_dim=shape["mlp"],
            num_heads=shape["heads"], head_dim=shape["width"] // shape["heads"], num_kv_heads=shape["heads"],
            rope_theta=shape["theta"], norm_eps=shape["eps"], weight_tying=True)
        self.model = model = llama.Llama3(config, rngs=nnx.Rngs(0))

        def put(variable, value):
            if variable.shape != value.shape:
                raise SystemExit(f"Tunix' Llama has a parameter of shape {variable.shape}, not {value.shape}")
            variable.set_value(jax.numpy.asarray(value, shape["dtype"]))

        put(model.embedder.input_embedding, weights["embed"])
        put(model.final_norm.w, weights["final_norm"])
        for i, layer in enumerate(model.layers):
            for part, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "out")):
                put(getattr(layer.attn, part).w, weights[name][i])
            for part in ("gate", "up", "down"):
                put(getattr(layer.mlp, f"{part}_proj").kernel, weights[part][i])
            put(layer.input_layernorm.w, weights["attention_norm"][i])
            put(layer.post_attention_layernorm.w, weights["mlp_norm"][i])

    def __call__(self, prompts, limits, greedy, batch, stops, seed):
        tokens = [None] * len(prompts)
        for chosen in batches(limits, batch):
            width, longest = len(prompts[0]), max(limits[n] for n in chosen)
            if width + longest not in self.samplers:
                shape = self.shape
                self.samplers[width + longest] = self.Sampler(self.model, Ids(), self.CacheConfig(
                    cache_size=width + longest, num_layers=shape["layers"], num_kv_heads=shape["heads"],
                    head_dim=shape["width"] // shape["heads"]))
            kinds = {} if greedy else dict(temperature=1.0, top_p=1.0)
            out = self.samplers[width + longest](
                [" ".join(map(str, prompts[n])) for n in chosen], max_generation_steps=longest, max_prompt_length=width,
                eos_tokens=stops or [NOBODY], seed=seed, **kinds)
            for n, row in zip(chosen, out.tokens):
                tokens[n] = np.asarray(row)[:limits[n]].tolist()
                if len(tokens[n]) < limits[n]:
                    tokens[n] += stops[:1]  # it leaves out which one was drawn
        return tokens


BUCKET = 64  # ours: a cache wide enough for all from the start, one program
NOBODY = -1  # an id that is never drawn


class Ids:
    """A tokenizer whose text is the ids themselves; it keeps Tunix from spending time on text."""

    def encode(self, text):
        return [int(i) for i in text.split()]

    def decode(self, ids):
        return ""

    def bos_id(self):
        return 0  # falsy: nothing is put before a prompt

    def eos_id(self):
        return NOBODY

    def pad_id(self):
        return NOBODY


SIDES = {"jaxalign": Jaxalign, "transformers": Transformers, "tunix": Tunix}


def ended(row, stops):
    """A row up to its first stop token, that one included."""
    stops = frozenset(stops)
    return row[:next((n + 1 for n, token in enumerate(row) if token in stops), len(row))]


def batches(limits, size):
    """Requests in batches of `size`, those of like limits together."""
    order = sorted(range(len(limits)), key=lambda n: limits[n])
    return [order[first:first + size] for first in range(0, len(order), size)]


def main(name, shape, weights):
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        with open(shape) as file:
            side = SIDES[name](json.load(file), np.load(weights))
        print(json.dumps({"ready": name, "device": side.device}), file=answers)
        for line in sys.stdin:
            started = time.perf_counter()
            tokens = side(**json.loads(line))
            print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
