"""The one loop. A stage says what is trained, on which batches, towards which loss; this runs it."""

import contextlib
import dataclasses
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.errors import CheckpointError
from jaxalign.sharding import put_batch
from jaxalign.train.checkpoint import Checkpointer
from jaxalign.train.metrics import MetricsWriter, NoMetrics
from jaxalign.train.optimizer import make_optimizer
from jaxalign.train.state import create_state
from jaxalign.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished stage leaves besides its checkpoint: `before` and `after` are its dev figures, of a stage that
    draws its samples those of its first and its last rollout; `seconds` are of all calls that had something to do."""

    steps: int
    tokens: int
    seconds: float
    before: dict
    after: dict


def fit(stage, workdir, config, mesh, started=None) -> Result:
    """Trains a stage from its newest checkpoint, or from its start, to `config.steps` optimizer steps.

    Args:
      stage: has
        `init(key)` → trainable tree of `nnx.State`s, pure;
        `start(trainable)` → the same with what an earlier stage handed over, called once, on a new run;
        `frozen`, a tree that never changes (after `start`);
        `next_batches(state)` → (list of batches, one optimizer step each; figures to log); the state's step is a number
        that is there already;
        `draws`, whether those are drawn from the policy, and `waits`, whether they then wait for the step before;
        `enough(metrics)`, asked after every step, whether the batches that are left of those are passed over;
        `loss_fn(trainable, frozen, batch, key)` → `Loss`;
        `evaluate(state)` → dict of dev figures;
        `beside`, None or a tree like the trainable one, for the checkpoint; the loop sets it when it resumes a stage
        that does not wait;
        `data_state()` and `set_data_state(s)`, the position in the data and what else the stage keeps from batch to
        batch, as JSON;
        `meta()`, what a checkpoint says of its model, tokenizer and lineage.
      workdir: where checkpoints and figures go.
      config: steps, log_every, eval_every, checkpoint_every, keep, microbatches, seed, optimizer.
      mesh: where it runs.
      started: `time.monotonic()` when the work on this stage began; None: now.
    """
    started = time.monotonic() if started is None else started
    workdir = pathlib.Path(workdir)
    optimizer, schedule = make_optimizer(config.optimizer, config.steps)
    state = create_state(stage.init, optimizer, jax.random.key(config.seed), mesh)
    checkpointer = Checkpointer(workdir, keep=config.keep)
    history = {"before": {}, "drawn": {}, "seconds": 0.0, "tokens": 0}
    # Frozen parts come from earlier stages whatever this one has done so far.
    fresh = stage.start(state.trainable)
    resumed = checkpointer.latest_step() is not None
    if resumed:
        state, meta = checkpointer.restore(state)
        history |= meta["history"]
        stage.set_data_state(meta["data"])
        if not stage.waits:
            stage.beside = checkpointer.restore_beside(fresh)
        if meta["step"] > config.steps:
            raise CheckpointError(f"{workdir} has already trained {meta['step']} steps, config.steps={config.steps}; "
                                  "choose another workdir or more steps")
    else:
        state = dataclasses.replace(state, trainable=fresh)
    del fresh
    step_fn = jax.jit(make_train_step(stage.loss_fn, optimizer, schedule, microbatches=config.microbatches),
                      donate_argnums=0)
    step = int(state.step)
    idle = resumed and step == config.steps
    # Every process has the same figures: the first one writes them.
    first = jax.process_index() == 0
    open_metrics = MetricsWriter if first else NoMetrics
    # Whatever ends the run, what was given to be saved is saved.
    with contextlib.closing(checkpointer), open_metrics(
            workdir, name=stage.name, total_steps=config.steps, resume_step=step) as writer:
        stage.warn = writer.warn
        if resumed:
            left = "nothing is left to do" if idle else f"goes on from step {step}"
            writer.say(f"{step}/{config.steps}  found a checkpoint: {left}")

        def evaluate():
            figures = stage.evaluate(state)
            if figures:
                writer.write(step, {f"dev/{name}": value for name, value in figures.items()})
            return figures

        def save():
            nonlocal uncounted
            history["tokens"], uncounted = history["tokens"] + _everywhere(uncounted), 0
            seconds = history["seconds"] + time.monotonic() - started
            meta = dict(stage.meta(), data=stage.data_state(), history=dict(history, seconds=seconds))
            checkpointer.save(state, meta, stage.beside)

        if not resumed:
            history["before"] = evaluate()
        pending, unlogged, uncounted, after, saved = None, 0, 0, {}, step if resumed else -1
        while step < config.steps:
            # Where the step is over before a batch is there, its time ends here.
            if pending is not None and stage.draws and stage.waits:
                writer.write(*pending)
                pending = None
            batches, figures = stage.next_batches(dataclasses.replace(state, step=step))
            if stage.draws:
                history["drawn"] = {name: float(value) for name, value in figures.items()}
                history["before"] = history["before"] or history["drawn"]
            batches, before = batches[:config.steps - step], step  # a rollout may hold more steps than are left
            for batch in batches:
                with jax.set_mesh(mesh):
                    state, metrics = step_fn(state, stage.frozen, put_batch(batch, mesh))
                step += 1
                count = int(np.count_nonzero(batch["segment_ids_BT"])) if "segment_ids_BT" in batch else sum(
                    int(np.count_nonzero(x)) for name, x in batch.items() if name.startswith("segment_ids"))
                uncounted += count
                unlogged += count
                # The figures of one step are fetched after the next one is on its way.
                if pending is not None:
                    writer.write(*pending)
                    pending = None
                if step % config.log_every == 0 or step == config.steps:
                    pending, unlogged = (step, metrics | figures, _everywhere(unlogged)), 0
                if stage.enough(metrics):
                    break
            last, taken = step >= config.steps, step - before
            if pending is not None and (last or _due(step, taken, config.eval_every)):
                writer.write(*pending)
                pending = None
            if last or _due(step, taken, config.eval_every):
                after = evaluate()
            if last or _due(step, taken, config.checkpoint_every):
                save()
                saved = step
        if saved != step:
            save()
        if not after:
            after = stage.evaluate(state) or history["drawn"]
    seconds = history["seconds"] + (0.0 if idle else time.monotonic() - started)
    return Result(step, history["tokens"], seconds, history["before"], after)


def _everywhere(count):
    """The sum of every process's count."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.int32(count))))


def _due(step, taken, every):
    """Whether one of the last `taken` steps was a multiple of `every`; 0 is never."""
    return every > 0 and step // every > (step - taken) // every
