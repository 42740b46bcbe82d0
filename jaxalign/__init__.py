"""jaxalign: a language model the whole way, from random weights to an aligned, reasoning assistant, in JAX."""

__version__ = "0.1.0"
