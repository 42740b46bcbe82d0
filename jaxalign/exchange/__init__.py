"""Models from elsewhere and back: published folders and GGUF files ↔ checkpoints."""

from jaxalign.exchange.exporting import export_model
from jaxalign.exchange.importing import import_model

__all__ = ["export_model", "import_model"]
