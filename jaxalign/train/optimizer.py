"""Optimizers and learning-rate schedules by name, from a config."""

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError


def _cosine(c, steps):
    return optax.cosine_decay_schedule(c.peak_lr, max(steps - c.warmup_steps, 1), alpha=c.end_fraction)


def _linear(c, steps):
    return optax.linear_schedule(c.peak_lr, c.peak_lr * c.end_fraction, max(steps - c.warmup_steps, 1))


SCHEDULES = {"constant": lambda c, steps: optax.constant_schedule(c.peak_lr), "cosine": _cosine, "linear": _linear}


def _adamw(c, schedule):
    return optax.adamw(schedule, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, mask=decays)


def _muon(c, schedule):
    """Muon (Jordan et al. 2024) for the matrices of the layers; AdamW at another rate for the rest.

    Preconditioned as in Turbo-Muon (Boissin et al. 2025, arXiv:2512.04632), which needs four iterations where five were.
    """
    return optax.contrib.muon(
        schedule, weight_decay=c.weight_decay, weight_decay_mask=decays, adam_b1=c.b1, adam_b2=c.b2,
        adam_learning_rate=lambda step: c.muon_adam_fraction * schedule(step), adam_weight_decay=c.weight_decay,
        muon_weight_dimension_numbers=_muon_dimensions, consistent_rms=0.2, preconditioning="aol", ns_steps=4,
    )


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def make_schedule(config, steps):
    """optimizer step → learning rate: linear warmup from 0, then the named schedule over the remaining steps.

    A function of the optimizer step only: microbatches and restarts do not move it.
    """
    if config.schedule not in SCHEDULES:
        raise ConfigError(f"optimizer.schedule={config.schedule!r} must be one of {sorted(SCHEDULES)}")
    after = SCHEDULES[config.schedule](config, steps)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config, steps):
    """(optimizer, schedule): gradients clipped by their global norm, then the named optimizer.

    With `lora_plus` = λ, the adapters' B, of x·A·B, learn λ times as fast (Hayou et al. 2024, arXiv:2402.12354, η_B = λ·η_A).
    """
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name={config.name!r} must be one of {sorted(OPTIMIZERS)}")
    schedule = make_schedule(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    parts = [clip, OPTIMIZERS[config.name](config, schedule)]
    if config.get("lora_plus", 1.0) != 1.0:
        parts.append(optax.masked(optax.scale(config.lora_plus), _second_factors))
    optimizer = optax.chain(*parts)
    # Moments would be of the parameters' type, and in bfloat16 the second one would soon stand still.
    return optimizer._replace(init=lambda params: optimizer.init(in_float32(params))), schedule


def in_float32(tree):
    """Parameters or gradients in float32, whatever they are held in."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def decays(params):
    """Weight decay is for matrices: True where no axis is named "norm"."""
    return _by_axes(params, lambda names: "norm" not in names)


def _muon_dimensions(params):
    """Which axes of a kernel are inputs and outputs; None (AdamW) for embeddings, heads and scales."""

    def of(names):
        if names[:1] != ("layers",) or "norm" in names or len(names) < 3:
            return None
        # (layers, [experts,] in…, out…): a projection out of the heads has two input axes, one into them two output axes.
        first = 2 if names[1] == "experts" else 1
        cut = first + (2 if names[first] in ("heads", "kv_heads") else 1)
        if cut >= len(names):  # a bias of heads, or a magnitude: no matrix
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, cut)), tuple(range(cut, len(names))))

    return _by_axes(params, of)


def _second_factors(params):
    """True for the B of an adapter, which begins with the axis that its A ends with."""
    return _by_axes(params, lambda names: "rank" in names[:-1])


def _by_axes(params, function):
    def of(variable):
        names = tuple(variable.get_metadata().get("out_sharding") or ())
        return variable.replace(function(names))

    return jax.tree.map(of, params, is_leaf=lambda leaf: hasattr(leaf, "get_metadata"))
