"""TRL's own trainers, made as their users make them, around a model whose hidden states are given.

Nothing of a loss is written here: the trainers' `compute_loss` runs, over TRL's fused head or transformers' own, and
the gradients come back to the hidden states and the output embedding.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
import warnings

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

from ragged import SMALLEST_ID, VOCABULARY, WIDTH

PLACEHOLDERS = [{"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}] * 2


class Told(torch.nn.Module):
    """A backbone that answers with the hidden states it was told, whatever the tokens."""

    def __init__(self, embed_tokens):
        super().__init__()
        self.embed_tokens = embed_tokens  # unused, but without it transformers finds no output embedding either
        self.hidden_BSD = None

    def forward(self, *args, **kwargs):
        return BaseModelOutputWithPast(last_hidden_state=self.hidden_BSD)


def tell(model, hidden_BSD, unembed_DV):
    """Sets what the model's backbone and output embedding are; gradients flow to both."""
    if not isinstance(model.model, Told):
        model.model = Told(model.model.embed_tokens)
    model.model.hidden_BSD = hidden_BSD
    # Not a Parameter, which would be a leaf of its own and keep the gradient to itself.
    model.lm_head._parameters.pop("weight", None)
    model.lm_head.weight = unembed_DV.T
    return model


@functools.cache
def _folder():
    """A tiny checkpoint with its tokenizer, for trainers that load a reference by name."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    folder = tempfile.TemporaryDirectory(prefix="jaxalign-conformance-")
    special = ["<pad>", "<eos>", "<unk>"]
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(SMALLEST_ID, VOCABULARY)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder.name)
    transformers.LlamaForCausalLM(_config()).save_pretrained(folder.name)
    return folder  # deleted with the process


def _config(**options):
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **options,
    )


def language_model():
    return transformers.LlamaForCausalLM.from_pretrained(_folder().name, dtype=torch.float32)


def reward_model():
    return transformers.LlamaForSequenceClassification(_config(num_labels=1))


def make(trainer_class, config_class, model, *, rows=PLACEHOLDERS, more=None, **options):
    """A trainer of TRL's, for training on the CPU.

    Args:
      rows: its data set; the batches that are compared are passed to its loss, not drawn from here.
      more: arguments of the trainer besides the usual.
      options: of its config.
    """
    folder = pathlib.Path(_folder().name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_class(
            output_dir=str(folder / "run"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **options
        )
        trainer = trainer_class(
            model=model, args=config, train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder), **(more or {}),
        )
    trainer.model.train()
    # What `Trainer.train` sets at the start of every step.
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def tensor(x):
    """Ids and masks as int64, everything else float32."""
    x = np.asarray(x)
    return torch.tensor(x, dtype=torch.int64 if x.dtype.kind in "iu" else torch.float32)
