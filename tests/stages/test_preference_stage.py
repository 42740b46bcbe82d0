"""The stage of DPO's family: who needs a reference, KTO's reference point, log-probabilities kept on disk."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages

from jaxalign import batches as bindings
from jaxalign import config as configs
from jaxalign.cli.commands import COMMANDS
from jaxalign.cli.flags import parse
from jaxalign.errors import ConfigError
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.reduce import reduce, weight_sums
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, default_config, train_stage
from jaxalign.stages.dpo import LONE, PAIR
from jaxalign.stages.reference import cached, fingerprint

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = {"dpo": dict(beta=0.1), "ipo": dict(beta=0.1), "kto": dict(beta=0.1), "orpo": dict(odds_coefficient=0.2),
           "simpo": dict(beta=2.0, target_margin=0.5)}


def config(name, **changes):
    made = tiny_stages.config("dpo", **changes).unlock()
    made.objective = dict(name=name, **OPTIONS[name])
    return made.lock()


def started(name, tmp_path, **changes):
    stage = STAGES["dpo"](config(name, **changes), tmp_path, make_mesh(devices=jax.devices()[:1]))
    return stage, stage.start(jax.jit(stage.init)(jax.random.key(0)))


@dataclasses.dataclass
class State:
    trainable: dict


def moved(trainable, by=0.05):
    """Parameters a little way off."""
    return jax.tree.map(lambda x: x + by * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), trainable)


@pytest.mark.parametrize("name, passes", [("dpo", 2), ("ipo", 2), ("kto", 2), ("orpo", 1), ("simpo", 1)])
def test_an_objective_that_asks_for_no_reference_has_none(name, passes, tmp_path, monkeypatch):
    stage, trainable = started(name, tmp_path)
    assert set(stage.frozen) == ({"reference"} if passes == 2 else set())
    batch = stage.next_batches(State(trainable))[0][0]
    seen = []
    real = stage.statistics
    monkeypatch.setattr(stage, "statistics", lambda policy, rows: seen.append(1) or real(policy, rows))
    jax.eval_shape(lambda *x: stage.loss_fn(*x, jax.random.key(0)), trainable, stage.frozen, batch)
    assert len(seen) == passes


def loss_of(stage):
    """(trainable, frozen, batch) → the loss."""
    return jax.jit(lambda *x: reduce(stage.loss_fn(*x, jax.random.key(0)).terms)[0])


def logp_of(stage, policy, tokens, targets, mask):
    """Summed log-probability of one sequence alone, by a plain forward pass of its own."""
    inside = np.flatnonzero(mask).max() + 1
    rows = {"tokens_BT": tokens[None, :inside], "targets_BT": targets[None, :inside],
            "positions_BT": np.arange(inside)[None], "segment_ids_BT": np.ones((1, inside), np.int32)}
    return float((jax.jit(stage.statistics)(policy, rows).logp_BT[0] * mask[:inside]).sum())


@pytest.mark.parametrize("fold", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ktos_reference_point_is_the_mean_over_mismatched_answers(fold, tmp_path):
    stage, trainable = started("kto", tmp_path, fold=fold)
    assert stage.kind == "unpaired"
    position = stage.data_state()
    raw = next(stage.train_data)
    for away in ("policy", "reference"):  # what moves away at random makes its answers less likely
        policy, stage.frozen = {"policy": trainable["policy"]}, {"reference": trainable["policy"]}
        (policy if away == "policy" else stage.frozen)[away] = moved(trainable["policy"])
        ratio = [logp_of(stage, policy["policy"], *sequence) - logp_of(stage, stage.frozen["reference"], *sequence)
                 for sequence in zip(*(raw[f"{name}_BRT"][:, 1] for name in ("tokens", "targets", "mask")))]
        stage.set_data_state(position)
        batch = stage.next_batches(State(policy))[0][0]
        expected = max(0.0, np.mean(ratio))
        np.testing.assert_allclose(batch["reference_point_B"], np.full(4, expected), rtol=1e-3, atol=1e-4)
        # The dev data, which no step prepares, by the other way to the same number.
        metrics = jax.jit(lambda *x: reduce(stage.loss_fn(*x, jax.random.key(0)).metrics)[1])
        point = metrics(policy, stage.frozen, stage.prepared(raw, "dev"))["reference_point"]
        np.testing.assert_allclose(point, expected, rtol=1e-3, atol=1e-4)
        assert batch["tokens_BRT"].shape[1] == 1
        assert (np.mean(ratio) > 1e-2) == (away == "reference")


def test_an_untrained_policy_has_no_reward_and_its_reference_point_is_zero(tmp_path):
    stage, trainable = started("kto", tmp_path)
    batch = stage.next_batches(State(trainable))[0][0]
    np.testing.assert_allclose(loss_of(stage)(trainable, stage.frozen, batch), 0.5, rtol=1e-5)  # λ · σ(0)
    np.testing.assert_array_equal(batch["reference_point_B"], np.zeros(4))


def test_kto_in_microbatches_is_kto_of_the_whole(tmp_path):
    """z₀ is the batch's: halves of the batch do not each have their own."""
    stage, trainable = started("kto", tmp_path, fold=False)
    policy, stage.frozen = trainable, {"reference": moved(trainable["policy"])}
    batch = stage.next_batches(State(policy))[0][0]
    assert batch["reference_point_B"][0] > 1e-2

    def terms_of(policy, part):
        return stage.loss_fn(policy, stage.frozen, part, jax.random.key(0)).terms

    sums = jax.jit(lambda *x: weight_sums(terms_of(*x)))(policy, batch)
    gradient = jax.jit(jax.value_and_grad(lambda *x, sums=sums: reduce(terms_of(*x), sums)[0]))
    whole = gradient(policy, batch)
    halves = [gradient(policy, {name: x[rows] for name, x in batch.items()})
              for rows in (slice(0, 2), slice(2, 4))]
    together = jax.tree.map(jnp.add, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole, together)


def test_kto_learns_from_single_answers(tmp_path):
    rows = [{"prompt": f"{a}+{b}?", "completion": answer, "label": liked} for a in range(4) for b in range(3)
            for answer, liked in ((str(a + b), True), ("I do not know.", False))]
    source = dict(path=str(tiny_stages.jsonl(tmp_path / "thumbs.jsonl", rows)), shape="unpaired")
    made = config("kto", steps=12, data=dict(train=[source], dev=[source]), batch_size=8)
    train_stage(made, tmp_path / "run")
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert done["before"]["preference"] == pytest.approx(0.5, abs=1e-4)
    after = done["after"]
    assert after["preference"] < 0.45 and after["desirable_reward"] > after["undesirable_reward"] + 0.2


# -- kept on disk ---------------------------------------------------------------------------------------------------


def test_cached_log_probabilities_train_as_live_ones_do(tmp_path):
    figures = {}
    for reference in ("live", "cached"):
        train_stage(config("dpo", steps=3, reference=reference), tmp_path / reference)
        figures[reference] = [row for row in tiny_stages.metrics(tmp_path / reference) if "loss" in row]
    assert sorted(p.name for p in (tmp_path / "cached").glob("*.npz")) == ["reference.dev.npz", "reference.train.npz"]
    assert not list((tmp_path / "live").glob("*.npz"))
    done = [json.loads((tmp_path / reference / "done.json").read_text())["after"] for reference in figures]
    for a, b in [*zip(*figures.values(), strict=True), done]:
        for key in ("loss", "grad_norm", "chosen_reward", "preference"):
            if key in a:
                np.testing.assert_allclose(a[key], b[key], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_every_answer_gets_its_own_cached_log_probability_and_the_reference_leaves(name, tmp_path):
    stage, trainable = started(name, tmp_path, reference="cached")
    assert stage.frozen == {}
    live, _ = started(name, tmp_path / "live")
    raw = next(stage.train_data)
    expected = live._logps(trainable["policy"], {k: v for k, v in raw.items() if k.endswith("_BRT")})
    there = raw["segment_ids_BRT"].any(2)
    got = stage.prepared(raw, "train")["ref_logp_BR"]
    np.testing.assert_allclose(got[there], np.asarray(expected)[there], rtol=1e-4, atol=1e-4)
    assert np.isfinite(loss_of(stage)(trainable, stage.frozen, stage.next_batches(State(trainable))[0][0]))


def test_a_cache_of_other_parameters_or_other_data_is_made_anew_and_said_aloud(tmp_path, capsys):
    stage, trainable = started("dpo", tmp_path, reference="cached")
    assert "computing reference.train.npz, as there is none yet" in capsys.readouterr().out
    again, _ = started("dpo", tmp_path, reference="cached")
    said = capsys.readouterr().out
    assert "computing" not in said and said.count("reference log-probabilities:") == 2
    np.testing.assert_array_equal(again.ref_logp["train"], stage.ref_logp["train"])
    again.start({"policy": trainable["policy"]})
    capsys.readouterr()
    again._cache(moved(trainable["policy"]))
    said = capsys.readouterr().out
    assert "computing reference.train.npz, as those in the file were made with another reference\n" in said
    assert np.abs(again.ref_logp["train"] - stage.ref_logp["train"]).max() > 1e-3
    started("dpo", tmp_path, reference="cached", length=40)
    assert "made with another reference and data\n" in capsys.readouterr().out


def test_a_broken_cache_is_made_anew(tmp_path):
    said, values = [], np.arange(3, dtype=np.float32)
    path = tmp_path / "reference.train.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    np.testing.assert_array_equal(cached(path, {"reference": "a"}, lambda: values, said.append), values)
    assert "cannot be read" in said[0]
    again = cached(path, {"reference": "a"}, lambda: pytest.fail("computed"), said.append)
    np.testing.assert_array_equal(again, values)
    assert [p.name for p in tmp_path.iterdir()] == ["reference.train.npz"]


def test_a_hash_sees_every_parameter_and_every_token(tmp_path):
    stage, trainable = started("dpo", tmp_path)
    corpus = stage.train_data.corpus
    base = fingerprint(trainable["policy"], stage.model_config, corpus)
    assert base == fingerprint(jax.tree.map(jnp.copy, trainable["policy"]), stage.model_config, corpus)
    leaves, tree = jax.tree.flatten(trainable["policy"])
    for n in (0, len(leaves) - 1):
        other = [leaf.at[(0,) * leaf.ndim].add(1e-6) if i == n else leaf for i, leaf in enumerate(leaves)]
        moved_by_one = fingerprint(jax.tree.unflatten(tree, other), stage.model_config, corpus)
        assert moved_by_one["reference"] != base["reference"]
    corpus.sequences.mask[3] ^= 1
    assert fingerprint(trainable["policy"], stage.model_config, corpus)["data"] != base["data"]


def test_wrong_choices_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='config.reference=\'disk\' must be "live" or "cached"'):
        started("dpo", tmp_path, reference="disk")
    with pytest.raises(ConfigError, match="kto has no option 'smoothing'"):
        made = config("kto").unlock()
        made.objective.smoothing = 0.1
        STAGES["dpo"](made.lock(), tmp_path, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_objective_of_the_family_launches_by_flags(name):
    flags = [f"--config.objective.{option}={value}" for option, value in OPTIONS[name].items()]
    _, made, _ = parse(COMMANDS["train"], [f"--config={ROOT / 'configs' / 'dpo.py'}", "--workdir=runs/x", *flags,
                                           f"--config.objective.name={name}", "--config.reference=cached"])
    configs.check(made, default_config("dpo"))
    given = {option: value for option, value in made.objective.items() if option != "name"}
    assert OPTIONS[name].items() <= given.items() and made.reference == "cached"
    bindings.check(OBJECTIVES[name], {*PAIR, *LONE, "weight_B"}, given)
