"""Programs that lie outside any package, imported for a test."""

import importlib.util


def module_at(path):
    """The module that the file makes, run anew at each call."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
