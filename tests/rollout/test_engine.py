"""The engine: every response is its own, whatever is served beside it; limits, ends and reasons are as asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, documents, split

from jaxalign.errors import ConfigError
from jaxalign.rollout import engine
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.prompts import ROWS, together
from jaxalign.rollout.reading import AHEAD
from jaxalign.rollout.sampling import Settings
from jaxalign.sharding import make_mesh

PROMPTS = documents((3, 7, 1, 5, 6), seed=5)
KEYS = jax.random.split(jax.random.key(8), len(PROMPTS))
STOP = 4


@functools.cache
def sampler(slots=4, bucket=8, chunk=4, **more):
    return Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=10, slots=slots, bucket=bucket, chunk=chunk, **more)


def same(got, expected, rows=slice(None)):
    assert np.array_equal(got.tokens, expected.tokens[rows]) and np.array_equal(got.mask, expected.mask[rows])
    assert np.array_equal(got.reason, expected.reason[rows])
    np.testing.assert_allclose(got.logp, expected.logp[rows], atol=1e-5)
    np.testing.assert_allclose(got.sampler_logp, expected.sampler_logp[rows], atol=1e-5)


def test_a_response_depends_on_its_prompt_and_key_alone():
    params, many = split()[1], PROMPTS * 8
    keys = jax.random.split(jax.random.key(2), len(many))
    expected = sampler()(params, many, keys)
    order = np.random.default_rng(0).permutation(len(many))
    same(sampler()(params, [many[i] for i in order], keys[order]), expected, order)
    for other in (sampler(slots=3), sampler(slots=32, bucket=32, chunk=16)):
        same(other(params, many, keys), expected)
    same(sampler()(params, [many[9]], keys[9:10]), expected, slice(9, 10))
    elsewhere = sampler()(params, many, jax.random.split(jax.random.key(9), len(many)))
    assert not np.array_equal(elsewhere.tokens, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("change", [dict(slots=32), dict(bucket=32), dict(chunk=1), dict(chunk=16)])
def test_no_setting_of_the_engine_changes_a_response(change):
    params, many = split()[1], PROMPTS * 8
    keys = jax.random.split(jax.random.key(2), len(many))
    same(sampler(**change)(params, many, keys), sampler()(params, many, keys))


def read_by(made, monkeypatch):
    """A list that grows by how many tokens of prompts are read, at each call of the program that reads them."""
    programs, read = engine._programs(made.graphdef, made.chunk, made.pad_id), []
    monkeypatch.setitem(programs, "read", lambda params, *packed, read_prompts=programs["read"]: (
        read.append(int((packed[2] > 0).sum())), read_prompts(params, *packed))[1])
    return read


def test_equal_prompts_are_read_once_and_answered_each_for_itself(monkeypatch):
    params = split()[1]
    group = [PROMPTS[1]] * 6
    keys = jax.random.split(jax.random.key(4), 6)
    together = sampler(slots=8)(params, group, keys)
    assert len({tuple(row) for row in together.tokens.tolist()}) > 3
    for n in range(6):
        same(sampler(slots=8)(params, [PROMPTS[1]], keys[n:n + 1]), together, slice(n, n + 1))
    made = sampler(slots=8)
    read = read_by(made, monkeypatch)
    made(params, group + [PROMPTS[3]] * 2, jax.random.split(jax.random.key(4), 8))
    assert sum(read) == len(PROMPTS[1]) - 1 + len(PROMPTS[3]) - 1  # all but the last token, which decoding reads


def test_a_group_that_waits_for_slots_is_not_read_again(monkeypatch):
    params, rng = split()[1], np.random.default_rng(3)
    group = [prompt for prompt in PROMPTS[:4] for _ in range(8)]
    limits, keys = rng.integers(1, 9, len(group)), jax.random.split(jax.random.key(4), len(group))
    expected = sampler(slots=32)(params, group, keys, max_new_tokens=limits)
    made = sampler(slots=8)
    read = read_by(made, monkeypatch)
    same(made(params, group, keys, max_new_tokens=limits), expected)
    assert sum(read) == sum(len(prompt) - 1 for prompt in PROMPTS[:4])


def test_prompts_that_wait_are_read_with_those_that_are_wanted_each_once(monkeypatch):
    params, rng = split()[1], np.random.default_rng(3)
    many = [rng.integers(5, 20, n).tolist() for n in rng.integers(2, 30, 64)]
    limits, keys = rng.integers(1, 9, len(many)), jax.random.split(jax.random.key(4), len(many))
    expected = sampler(slots=64)(params, many, keys, max_new_tokens=limits)
    made = sampler(slots=8)
    read = read_by(made, monkeypatch)
    same(made(params, many, keys, max_new_tokens=limits), expected)
    assert sum(read) == sum(len(text) for text in {tuple(prompt[:-1]) for prompt in many})
    assert len(read) <= 4 and max(read) <= AHEAD  # of 56 refills


def test_no_more_than_a_quarter_of_the_rows_that_are_read_is_empty():
    for rows in range(1, 100):
        left, read = rows, []
        while left > 0:
            read.append(together(left))
            left -= read[-1]
        assert set(read) <= set(ROWS) and sum(read) * 3 <= rows * 4 and len(read) <= rows / 16 + 4
    assert [together(n) for n in (1, 2, 3, 6, 12, 11, 40)] == [1, 2, 4, 4, 16, 4, 16]


def test_n_responses_a_prompt_stand_together_and_draw_from_keys_of_their_own():
    params, keys = split()[1], jax.random.split(jax.random.key(5), 2)
    settings = Settings(temperature=np.array([1.0, 0.7]))
    got = sampler()(params, PROMPTS[:2], keys, settings, [7, 5], n=3)
    each = [jax.random.fold_in(key, j) for key in keys for j in range(3)]
    expected = sampler()(params, [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, jnp.stack(each),
                         Settings(temperature=np.array([1.0, 0.7]).repeat(3)), [7] * 3 + [5] * 3)
    same(got, expected)
    assert len({tuple(row) for row in got.tokens[:3].tolist()}) > 1
    with pytest.raises(ConfigError, match="n=0 responses a prompt must be 1 or more"):
        sampler()(params, PROMPTS[:2], keys, n=0)


def test_it_tells_how_far_it_is():
    told = []
    out = sampler()(split()[1], PROMPTS, KEYS, tell=lambda *far: told.append(far))
    assert told == sorted(told) and len(told) > 1 and told[-1] == (len(PROMPTS), out.mask.sum())


def test_a_handful_of_programs_serves_whatever_is_asked():
    rng = np.random.default_rng(0)
    made = Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=50, slots=32, chunk=7)
    programs = engine._programs(made.graphdef, made.chunk, made.pad_id)
    before = {name: program._cache_size() for name, program in programs.items()}  # other tests' programs count too
    for n in (1, 9, 40, 64, 33):
        prompts = [rng.integers(5, 20, rng.integers(1, 40)).tolist() for _ in range(n)]
        made(split()[1], prompts, jax.random.split(jax.random.key(0), n), max_new_tokens=rng.integers(1, 51, n))
    counts = {name: program._cache_size() - before[name] for name, program in programs.items()}
    # Decoding, the dearest, once for each number of slots and width of the cache, however ragged the work.
    assert counts["decode"] <= 6 and counts["read"] <= 5 and sum(counts.values()) <= 30, counts


def test_log_probabilities_are_those_of_a_whole_forward_pass():
    graphdef, params = split()
    out = sampler()(params, PROMPTS, KEYS, Settings(temperature=0.7))
    drawn = out.mask.sum(1).astype(int)
    ids = np.zeros((5, 18), np.int32)
    for n, prompt in enumerate(PROMPTS):
        ids[n, :len(prompt) + drawn[n]] = [*prompt, *out.tokens[n, :drawn[n]]]
    model = nnx.merge(graphdef, params)
    logits = jax.jit(model)(ids[:, :-1]) @ model.unembedding_DV
    for temperature, got in ((1.0, out.logp), (0.7, out.sampler_logp)):
        logp = jax.nn.log_softmax(logits / temperature)
        expected = np.asarray(jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1)[..., 0])
        for n, prompt in enumerate(PROMPTS):
            first = len(prompt) - 1
            np.testing.assert_allclose(got[n, :drawn[n]], expected[n, first:first + drawn[n]], atol=1e-4)


def test_a_response_ends_with_its_stop_token():
    many = PROMPTS * 12
    out = sampler()(split()[1], many, jax.random.split(jax.random.key(1), len(many)))
    assert 3 < out.finished.sum() < len(many)
    for n in range(len(many)):
        drawn = int(out.mask[n].sum())
        assert np.array_equal(out.mask[n], np.arange(10) < drawn)
        tokens = out.tokens[n, :drawn].tolist()
        assert STOP not in tokens[:-1]
        assert (tokens[-1] == STOP) == out.finished[n] and (out.finished[n] or drawn == 10)
        assert out.reason[n] == ("stop" if out.finished[n] else "length")
        assert out.ids(n) == (tokens[:-1] if out.finished[n] else tokens)
        assert np.all(out.tokens[n, drawn:] == 0) and np.all(out.logp[n, drawn:] == 0)


def test_limits_and_settings_are_each_requests_own():
    params, whole = split()[1], sampler()(split()[1], PROMPTS, KEYS)
    limits = np.array([1, 10, 3, 4, 9])
    out = sampler()(params, PROMPTS, KEYS, max_new_tokens=limits)
    for n, limit in enumerate(limits):
        drawn = min(limit, int(whole.mask[n].sum()))
        assert int(out.mask[n].sum()) == drawn
        assert np.array_equal(out.tokens[n, :drawn], whole.tokens[n, :drawn])
    greedy = sampler()(params, PROMPTS, KEYS, Settings(temperature=0.0))
    mixed = sampler()(params, PROMPTS, KEYS, Settings(temperature=np.array([0.0, 1, 0, 1, 1])))
    for n in range(5):
        assert np.array_equal(mixed.tokens[n], (greedy if n in (0, 2) else whole).tokens[n])


def test_a_stop_string_ends_a_response_with_the_token_that_completes_it():
    params, whole = split()[1], sampler()(split()[1], PROMPTS, KEYS)
    def decode(ids):
        return "".join(f"<{i}>" for i in ids)

    n = int(whole.mask.sum(1).argmax())
    ids = whole.ids(n)
    text = decode(ids[4:6])[:-1]  # complete before the last character of its last token
    count = next(k for k in range(1, 7) if text in decode(ids[:k]))
    for chunk in (1, 4):
        out = sampler(chunk=chunk, stop_strings=(text,), decode=decode)(params, PROMPTS, KEYS)
        assert out.reason[n] == "stop_string" and out.mask[n].sum() == count and out.finished[n]
        assert out.ids(n) == ids[:count]
        for other in set(range(5)) - {n}:
            if text not in decode(whole.ids(other)):
                assert np.array_equal(out.tokens[other], whole.tokens[other])
    with pytest.raises(ConfigError, match="need decode"):
        Sampler(split()[0], stop_ids=(), max_new_tokens=4, stop_strings=("x",))


def test_forbidden_tokens_are_not_drawn():
    params, whole = split()[1], sampler()(split()[1], PROMPTS, KEYS)
    forbidden = tuple(np.unique(whole.tokens)[:5].tolist())
    out = sampler(forbidden=forbidden)(params, PROMPTS, KEYS)
    assert not np.isin(out.tokens[out.mask > 0], forbidden).any()


def test_each_device_keeps_its_rows_and_heads_of_the_cache(monkeypatch):
    """After every program, whatever it does: what is split over the devices stays so, and nothing is gathered."""
    params, rng = split()[1], np.random.default_rng(3)
    many = [rng.integers(5, 20, n).tolist() for n in [3] * 36 + [40] * 4]  # the cache widens for the last
    made, kept = sampler(slots=32, bucket=8, mesh=make_mesh(data=2, fsdp=2, tensor=2)), {}
    programs = engine._programs(made.graphdef, made.chunk, made.pad_id)
    for name in ("empty", "fill", "insert", "resize", "choose", "decode"):
        def seen(*args, program=programs[name], name=name):
            out = program(*args)
            kept.setdefault(name, set()).update(
                tuple(shard.data.shape[-4:-2]) + tuple(x.shape[-4:-2]) for x in jax.tree.leaves(
                    out[0] if name == "decode" else out) for shard in x.addressable_shards)
            return out

        monkeypatch.setitem(programs, name, seen)
    made(params, many, jax.random.split(jax.random.key(2), len(many)))
    assert kept.keys() >= {"fill", "insert", "resize", "choose", "decode"}
    for name, shapes in kept.items():
        assert all((rows * 4, heads * 2) == (all_rows, all_heads) for rows, heads, all_rows, all_heads in shapes), (name, shapes)


def test_slots_are_shared_by_devices():
    params, many = split()[1], PROMPTS * 4
    keys = jax.random.split(jax.random.key(2), len(many))
    expected = sampler(slots=8)(params, many, keys)
    same(sampler(slots=8, mesh=make_mesh(data=2, fsdp=2, tensor=2))(params, many, keys), expected)
    with pytest.raises(ConfigError, match="slots=6 must divide .* use 8"):
        sampler(slots=6, mesh=make_mesh(data=4))


def test_few_requests_take_few_slots():
    made = sampler(slots=128)
    assert [made._size(rows) for rows in (1, 8, 9, 32, 33, 128, 500)] == [8, 8, 32, 32, 128, 128, 128]
    assert sampler(slots=128, mesh=make_mesh(data=8))._size(1) == 8


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ConfigError, match="at least one token"):
        sampler()(split()[1], [[1], []], KEYS[:2])
    for limits in ([0, 1], [11, 1], [1]):
        with pytest.raises(ConfigError, match="2 numbers from 1 to 10"):
            sampler()(split()[1], PROMPTS[:2], KEYS[:2], max_new_tokens=limits)


def test_a_model_with_learned_positions_is_not_asked_for_more_of_them():
    config = dataclasses.replace(CONFIG, learned_positions=12, rope_fraction=0.0)
    graphdef, params = split(config)
    prompts = [[1 + n % 5] * (9 if n % 2 else 1) for n in range(24)]
    limits, keys = [3 if n % 2 else 8 for n in range(24)], jax.random.split(jax.random.key(0), 24)

    def draw(slots, limits):
        return Sampler(graphdef, stop_ids=(), max_new_tokens=8, slots=slots)(params, prompts, keys, max_new_tokens=limits)

    # A row that is done is read on beside longer ones, here beyond the last place; what takes its slots does not see it.
    got = draw(8, limits)
    assert np.isfinite(got.logp).all() and (got.mask.sum(1) == limits).all()
    same(got, draw(32, limits))
    with pytest.raises(ConfigError, match="takes 13 places, the model has learned 12"):
        draw(8, [*limits[:-1], 4])
