"""Data to try every other recipe on: a generated miniature world, in the shapes that real sets have.

    jaxalign train --config=configs/world.py --workdir=runs/data

Some seconds. Text, conversations, prompts with answers and held-out questions about invented lands, as JSONL files;
configs/candidates.py adds the rankings. With data of your own you need neither.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("world")
    config.seed = 0
    config.num_entities = 192  # lands: the text tells what each is known for, conversations ask for it
    return config
