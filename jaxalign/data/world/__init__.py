"""A miniature world, made from a seed: text, conversations and prompts whose every answer can be judged."""

from jaxalign.data.world.files import write_world
from jaxalign.data.world.geography import Land, Shares, Sizes, World

__all__ = ["Land", "Shares", "Sizes", "World", "write_world"]
