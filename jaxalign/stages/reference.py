"""The frozen reference's log-probabilities of a data set, computed once and kept on disk."""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile

import jax
import numpy as np


def fingerprint(policy, model_config, corpus):
    """What the log-probabilities depend on, as hashes: the reference's parameters, how it runs, the tokens."""
    parameters = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(policy):
        array = np.asarray(leaf)
        parameters.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype} ".encode() + array.tobytes())
    data = hashlib.sha256(repr((corpus.length, corpus.sequences.size.tolist())).encode())
    data.update(corpus.sequences.ids.tobytes())
    data.update(corpus.sequences.mask.tobytes())
    model = json.loads(json.dumps(dataclasses.asdict(model_config)))  # as it will be read: JSON has no tuples
    return {"reference": parameters.hexdigest(), "data": data.hexdigest(), "model": model}


def cached(path, expected, compute, say):
    """Log-probabilities from `path` if they were made under `expected`; else computed anew and written there, aloud.

    Args:
      path: an .npz file, whether it is there or not.
      expected: a `fingerprint`.
      compute: () → float32 array, one number a sequence of the corpus.
      say: takes a line for the log.
    """
    path, reason = pathlib.Path(path), "there is none yet"
    if path.is_file():
        try:
            with open(path, "rb") as file, np.load(file) as stored:
                found, values = json.loads(str(stored["fingerprint"])), stored["logp"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = f"the file cannot be read ({error})"
        else:
            other = [name for name in expected if found.get(name) != expected[name]]
            if not other:
                say(f"reference log-probabilities: {len(values)} from {path}")
                return values
            reason = f"those in the file were made with another {' and '.join(other)}"
    say(f"reference log-probabilities: computing {path.name}, as {reason}")
    values = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved, so that a broken-off file is never taken for a whole one.
    aside = path.with_suffix(".part.npz")
    np.savez(aside, logp=values, fingerprint=json.dumps(expected))
    os.replace(aside, path)
    return values
