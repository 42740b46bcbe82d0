"""Faults of the traps t01 to t13, put in one at a time by tools/break_traps.py; those of t14 to t26: faults_from_t14.py."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of one file that a trap's tests must fail with."""

    trap: str
    what: str
    file: str
    old: str  # stands just once in the file
    new: str
    only: str = ""  # which of the tests, as pytest's -k
    tests: str = ""  # files, from the root, as a pattern; "": tests/traps/test_{trap}_*.py
    error: str = ""  # the class of an error that shows the fault too, beside a failed assertion


STEP, REDUCE, SHARDING = "jaxalign/train/step.py", "jaxalign/objectives/reduce.py", "jaxalign/sharding.py"
CHAT, ENCODE, CORPUS = "jaxalign/data/chat.py", "jaxalign/data/encode.py", "jaxalign/data/corpus.py"

FAULTS = [
    Fault("t01", "each microbatch divides by its own weights, and their means are averaged", STEP,
          "(loss, metrics), grads = gradient(state.trainable, frozen, *part, denominators)\n                return",
          "own = jax.tree.map(lambda x: x * microbatches, totals(state.trainable, frozen, *part))\n"
          "                (loss, metrics), grads = gradient(state.trainable, frozen, *part, own)\n                return"),
    Fault("t01", "the microbatches' own means are summed", STEP,
          "(loss, metrics), grads = gradient(state.trainable, frozen, *part, denominators)\n                return",
          "own = totals(state.trainable, frozen, *part)\n"
          "                (loss, metrics), grads = gradient(state.trainable, frozen, *part, own)\n                return"),
    Fault("t01", "the loss has the batch's denominators, the figures have the microbatch's", STEP,
          "reduce(loss.metrics, denominators[1])[1]", "reduce(loss.metrics)[1]"),
    Fault("t02", "each shard divides by its own weights", REDUCE,
          "        means[name] = total / denominator\n",
          "        mesh = jax.sharding.get_abstract_mesh()\n"
          "        shards = mesh.shape['data'] * mesh.shape['fsdp'] if mesh.axis_names else 1\n"
          "        parts = counted(jnp.asarray(term.value, jnp.float32), weight) * weight\n"
          "        own = parts.reshape(shards, -1).sum(1) / jnp.maximum(weight.reshape(shards, -1).sum(1), 1e-9)\n"
          "        means[name] = own.mean()\n", only="eight_devices"),
    Fault("t02", "each process's rows are taken for the whole batch, of which it gives its share", SHARDING,
          "jax.make_array_from_process_local_data(sharding, x)",
          "jax.make_array_from_process_local_data(sharding, x, x.shape)", only="two_processes"),
    Fault("t03", "the mask ends before the end-of-turn token", CHAT,
          "return ids, [0] + [trained] * (len(text) + 1)", "return ids, [0] + [trained] * len(text) + [0]"),
    Fault("t03", "the last target of a compared answer is cut off", CORPUS,
          "self.sequences.size[chosen] - 1, place,", "self.sequences.size[chosen] - 2, place,"),
    Fault("t03", "an id that stops elsewhere is no target", CORPUS,
          '    batch["positions"][place] = inside\n',
          '    batch["mask"][batch["targets"] == sequences.ids[-1]] = 0.0\n    batch["positions"][place] = inside\n'),
    Fault("t04", "targets that equal the padding are taken out of the mask", CORPUS,
          '    batch["positions"][place] = inside\n',
          '    batch["mask"][batch["targets"] == pad_id] = 0.0\n    batch["positions"][place] = inside\n'),
    Fault("t04", "conversations without a target are let in", CHAT, "if not any(mask):", "if not mask:"),
    Fault("t04", "conversations of targets only are let in", CHAT, "if all(mask):", "if not mask:"),
    Fault("t04", "what a conversation says is not to be trained is trained", CHAT,
          'trained = int(trained and message.get("train", True))', "trained = int(trained)"),
    Fault("t05", "the rendering's mask is all ones", CHAT, "mask += turn_mask", "mask += [1] * len(turn_ids)"),
    Fault("t05", "the batch's mask is all ones", CORPUS,
          'batch["mask"][place] = sequences.mask[source + 1]', 'batch["mask"][place] = 1.0'),
    Fault("t05", "the assistant's calls are the world's", CHAT,
          '"function_call": ("<|assistant|>", True)', '"function_call": ("<|assistant|>", False)'),
    Fault("t06", "the mask is that of the input, not of the target", CORPUS,
          'sequences.mask[source + 1]', 'sequences.mask[source]'),
    Fault("t06", "the header counts for two", CHAT,
          "return ids, [0] + [trained] * (len(text) + 1)", "return ids, [0, 0] + [trained] * len(text)"),
    Fault("t06", "ids are cut on the left, their mask on the right", ENCODE,
          "return [(ids[:1] + ids[1 + cut:], mask[:1] + mask[1 + cut:]) for ids, mask in whole]",
          "return [(ids[:1] + ids[1 + cut:], mask[:len(mask) - cut]) for ids, mask in whole]"),
    Fault("t07", "a conversation whose targets are all cut off is let in", ENCODE,
          "if targets and not any(mask):", "if targets and not mask:"),
    Fault("t07", "a conversation without a target is let in", CHAT, "if not any(mask):", "if not mask:"),
    Fault("t07", "an empty answer is let in", CHAT,
          'if not content.strip() and template', 'if content is None and template'),
    Fault("t07", "a sum of no weights divides by zero", REDUCE,
          "denominator = jnp.maximum(jax.lax.stop_gradient(denominators[name]), jnp.finfo(jnp.float32).tiny)",
          "denominator = jax.lax.stop_gradient(denominators[name])"),
    Fault("t07", "what does not count is multiplied by zero", REDUCE,
          "jnp.sum(counted(jnp.asarray(term.value, jnp.float32), weight) * weight)",
          "jnp.sum(jnp.asarray(term.value, jnp.float32) * weight)"),
    Fault("t08", "positions run on over a document's border", CORPUS,
          'batch["positions"][place] = inside', 'batch["positions"][place] = place % length'),
    Fault("t08", "a row's documents have one segment id", CORPUS,
          "segment = np.arange(len(items)) - first + 1", "segment = np.ones(len(items), np.int64)"),
    Fault("t08", "targets are the row's next tokens, over a document's border", CORPUS,
          '    batch["mask"][place] =',
          '    batch["targets"] = np.append(batch["tokens"][1:], pad_id)\n    batch["mask"][place] ='),
    Fault("t08", "attention is causal and no more", "jaxalign/models/attention.py",
          "return causal[None] & ((query == key) | (query % BRANCH == key))",
          "return jnp.broadcast_to(causal[None], (len(segment_ids_BT), T, T))"),
    Fault("t08", "learned positions count from the row's start", "jaxalign/models/transformer.py",
          "self._placed(self._embedded(tokens_BT), positions_BT),\n",
          "self._placed(self._embedded(tokens_BT), jnp.broadcast_to(jnp.arange(T)[None], (B, T))),\n"),
    Fault("t08", "rows packed for the forward pass alone have one segment id", "jaxalign/data/folding.py",
          'folded["segment_ids"][r, c:c + n] = start + np.arange(n), segment',
          'folded["segment_ids"][r, c:c + n] = start + np.arange(n), 1'),
    Fault("t08", "answers that share their prompt see each other", "jaxalign/models/attention.py",
          "(query % BRANCH == key)", "(query % BRANCH == key % BRANCH)", tests="tests/data/test_folding.py"),
    Fault("t09", "whatever is packed counts", CORPUS,
          '        return {f"{name}_BT": array for name, array in arrays.items()}',
          '        if column.any():\n'
          '            arrays["mask"] = (arrays["segment_ids"] > 0).astype(np.float32)\n'
          '        return {f"{name}_BT": array for name, array in arrays.items()}'),
    Fault("t09", "a shard has another shard's columns", "jaxalign/data/pipeline.py",
          "self._local, column[low:high])", "self._local, column[:high - low])"),
    Fault("t09", "a stage's forward pass does not get the segments", "jaxalign/stages/stage.py",
          'rows = rows_of(batch, "tokens", "positions", "segment_ids")', 'rows = rows_of(batch, "tokens", "positions")'),
    Fault("t10", "a text has two BOS", ENCODE, "ids = [*tokenizer.start_ids, *", "ids = [tokenizer.bos_id, *tokenizer.start_ids, *"),
    Fault("t10", "a text has two EOS", ENCODE,
          "tokenizer.encode(row.text), tokenizer.eos_id]", "tokenizer.encode(row.text), tokenizer.eos_id, tokenizer.eos_id]"),
    Fault("t10", "a conversation has two BOS", CHAT, "return [tokenizer.bos_id]", "return [tokenizer.bos_id] * 2"),
    Fault("t10", "the left is cut where the right was asked for", ENCODE,
          '        if side == "right":\n            ids', '        if side == "end":\n            ids'),
    Fault("t10", "a cut is made where an error was asked for", "jaxalign/data/pipeline.py",
          'side = truncate or ("left" if kind == "prompts" else "right")',
          'side = truncate if truncate in ("left", "right") else "left" if kind == "prompts" else "right"'),
    Fault("t10", "what is cut is not counted", ENCODE,
          "        report.cut_tokens += cut\n    return ids, mask", "    return ids, mask"),
    Fault("t10", "BOS is cut off on the left", ENCODE,
          "ids, mask = ids[:1] + ids[1 + cut:], mask[:1] + mask[1 + cut:]", "ids, mask = ids[cut:], mask[cut:]"),
    Fault("t11", "decoding is one position ahead", "jaxalign/rollout/decode.py",
          "model.decode(token_B, rows.length_B + c,", "model.decode(token_B, rows.length_B + c + 1,"),
    Fault("t11", "decoding does not see a prompt's first token", "jaxalign/models/cache.py",
          "seen_BW = age_W[None] <= length_B[:, None]", "seen_BW = age_W[None] < length_B[:, None]"),
    Fault("t11", "the sampler's log-probabilities stand one token late", "jaxalign/experience/rows.py",
          "first:first + drawn] = rollouts.sampler_logp[n, :drawn]", "first:first + drawn] = np.roll(rollouts.sampler_logp[n, :drawn], 1)"),
    Fault("t11", "what is logged of the disagreement is the trainer's with itself", "jaxalign/stages/rl.py",
          'difference = (logp_BT - batch["sampler_logp_BT"]) * batch["mask_BT"]',
          'difference = (logp_BT - batch.get("old_logp_BT", logp_BT)) * batch["mask_BT"]'),
    Fault("t12", "the trainer's policy has no temperature", "jaxalign/stages/rl.py",
          "return super().statistics(policy, batch, temperature=self.config.temperature)",
          "return super().statistics(policy, batch)", only="grpo"),
    Fault("t12", "PPO reads its policy off the hidden states without a temperature", "jaxalign/stages/ppo.py",
          "self.read_off(hidden(), trainable[\"policy\"], batch, self.config.temperature))",
          "self.read_off(hidden(), trainable[\"policy\"], batch))", only="ppo"),
    Fault("t12", "the sampler reports the model's own log-probability", "jaxalign/rollout/sampling.py",
          "return token_B, logp_B, jnp.where(greedy_B, 0.0, sampler_logp_B)", "return token_B, logp_B, logp_B", only="both"),
    Fault("t12", "what top-k and top-p cut stays in the normaliser", "jaxalign/rollout/sampling.py",
          "sampler_logp_B = _pick(drawn_BV, token_B) - highest_B1[:, 0] - jnp.log(total_B)",
          "sampler_logp_B = _pick(drawn_BV, token_B) - jax.nn.logsumexp(\n"
          "        logits_BV / jnp.maximum(temperature_B, 1e-6)[:, None], axis=-1)", only="both"),
    Fault("t12", "the model's log-probability is that of the cut distribution", "jaxalign/rollout/sampling.py",
          "lambda: _pick(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1))", "lambda: sampler_logp_B)", only="both"),
    Fault("t12", "training on greedy samples is not refused", "jaxalign/stages/rl.py",
          "if config.temperature <= 0:", "if config.temperature < 0:", only="refused", error="IndexError"),
    Fault("t13", "GSPO's ratio is the product over the response", "jaxalign/objectives/surrogates.py",
          "* mask_BT, axis=1, keepdims=True) / length_B1", "* mask_BT, axis=1, keepdims=True)"),
    Fault("t13", "the sampler's weight is length-normalised", "jaxalign/objectives/sampler_weights.py",
          "jnp.sum(log_weight_BT, axis=1, keepdims=True), mask_BT.shape)",
          "jnp.sum(log_weight_BT, axis=1, keepdims=True) / jnp.sum(mask_BT, axis=1, keepdims=True), mask_BT.shape)"),
    Fault("t13", "token and product have each other's names", "jaxalign/objectives/sampler_weights.py",
          '{"token": per_token, "product": product}', '{"token": product, "product": per_token}'),
    Fault("t13", "the sampler's weight is of the trained policy", "jaxalign/objectives/grpo.py",
          "sampler_weight_BT = correct(old_logp_BT, sampler_logp_BT,",
          "sampler_weight_BT = correct(logp_BT, sampler_logp_BT,"),
    Fault("t13", "the surrogate's ratio is to the sampler", "jaxalign/objectives/grpo.py",
          "        logp_BT, old_logp_BT, advantage_BT, mask_BT, clip_low=clip_low, clip_high=clip_high\n",
          "        logp_BT, old_logp_BT if sampler_logp_BT is None else counted(sampler_logp_BT, mask_BT), advantage_BT, mask_BT,\n"
          "        clip_low=clip_low, clip_high=clip_high\n"),
]
