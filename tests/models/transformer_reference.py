"""A transformer written again in plain numpy, float64, one token at a time: no masks, no caches, no scans."""

import numpy as np


def norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * scale


def rotated(x, position, theta):
    """Each pair (i, i + H/2) of a head turned by position · θ^(−2i/H), as complex numbers."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta ** (-2.0 * np.arange(half) / len(x)))
    return np.concatenate([turned.real, turned.imag])


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def logits(params, config, tokens):
    """(T, V) of one document. `params` is the pure dict of a `Transformer`."""
    params = {name: value for name, value in _flat(params)}
    embed, c = params["embed"], config
    h = [embed[t] * c.embed_scale for t in tokens]
    for n in range(c.num_layers):
        w = {name.removeprefix("layers/"): value[n] for name, value in params.items() if name.startswith("layers/")}
        normed = [norm(x, w["attention_norm/scale"], c.norm_eps) for x in h]
        q = [np.einsum("d,dnh->nh", x, w["attention/query/kernel"]) for x in normed]
        k = [np.einsum("d,dkh->kh", x, w["attention/key/kernel"]) for x in normed]
        v = [np.einsum("d,dkh->kh", x, w["attention/value/kernel"]) for x in normed]
        if c.qk_norm:
            q, k = ([np.array([norm(head, w[f"attention/{name}_norm/scale"], c.norm_eps) for head in x]) for x in heads]
                    for name, heads in (("query", q), ("key", k)))
        group = c.num_heads // c.num_kv_heads
        for t in range(len(tokens)):
            heads = []
            for head in range(c.num_heads):
                query = rotated(q[t][head], t, c.rope_theta)
                keys = [rotated(k[s][head // group], s, c.rope_theta) for s in range(t + 1)]
                weights = softmax(np.array([query @ key for key in keys]) / np.sqrt(c.head_dim))
                heads.append(sum(weight * v[s][head // group] for s, weight in enumerate(weights)))
            h[t] = h[t] + np.einsum("nh,nhd->d", np.array(heads), w["attention/out/kernel"])
        for t in range(len(tokens)):
            x = norm(h[t], w["mlp_norm/scale"], c.norm_eps)
            gate, up = x @ w["mlp/gate/kernel"], x @ w["mlp/up/kernel"]
            h[t] = h[t] + (gate / (1 + np.exp(-gate)) * up) @ w["mlp/down/kernel"]
    unembed = embed.T if c.tied_embeddings else params["unembed/kernel"]
    return np.array([norm(x, params["final_norm/scale"], c.norm_eps) @ unembed for x in h])


def _flat(tree, at=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{name}/")
        else:
            yield f"{at}{name}", np.asarray(value, np.float64)
