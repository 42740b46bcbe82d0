"""Models from elsewhere and back: published folders and GGUF files ↔ checkpoints."""

from jaxalign.exchange.exporting import export_adapters, export_model
from jaxalign.exchange.importing import import_adapters, import_model

__all__ = ["export_adapters", "export_model", "import_adapters", "import_model"]
