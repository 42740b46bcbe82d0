"""The scalar models: score and value of a document; starting at zero; sharing a language model's parameters."""

import jax
import numpy as np
from flax import nnx
from tiny_models import CONFIG, abstract, documents, rows

from jaxalign.models.heads import ScalarModel, score_at_end, unshifted
from jaxalign.models.transformer import Transformer


def test_before_training_every_score_is_zero():
    graphdef, _ = abstract(CONFIG, ScalarModel)
    make = jax.jit(lambda key: nnx.split(ScalarModel(CONFIG, rngs=nnx.Rngs(params=key)))[1])
    score = jax.jit(lambda p: nnx.merge(graphdef, p)(np.ones((2, 5), np.int32)))(make(jax.random.key(0)))
    assert score.shape == (2, 5) and score.dtype == np.float32 and np.all(np.asarray(score) == 0)


def test_the_backbone_is_a_language_model():
    _, language = abstract(CONFIG, Transformer)
    _, scalar = abstract(CONFIG, ScalarModel)
    assert jax.tree.structure(language) == jax.tree.structure(scalar["backbone"])


def test_whole_documents_come_back_from_shifted_rows_wherever_the_padding_is():
    written = documents([6, 3, 2])
    for starts in (None, [4, 7, 0], [2, 1, 8]):
        batch = rows(written, 9, starts=starts, pad=5)
        tokens, segments = unshifted(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"])
        assert tokens.shape == segments.shape == (3, 10)
        for row, document in enumerate(written):
            assert np.asarray(tokens)[row][np.asarray(segments)[row] > 0].tolist() == document


def test_the_score_is_that_of_the_last_real_token():
    score = np.arange(20, dtype=np.float32).reshape(4, 5) + 1
    segments = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    assert score_at_end(score, segments).tolist() == [3.0, 10.0, 13.0, 0.0]
