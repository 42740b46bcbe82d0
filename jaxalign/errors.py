"""The errors a user can cause, each naming the thing, what was expected, what came, and the cure."""


import errno

FULL = (errno.ENOSPC, errno.EDQUOT)


class JaxalignError(ValueError):
    """Base of every error caused by input: a config, a file, a checkpoint, a function given by name."""


class ConfigError(JaxalignError):
    """A config value that cannot be used."""


class DataError(JaxalignError):
    """A row or file that cannot be used: `path`, 1-based `line` (or None), what was expected, what came."""

    def __init__(self, path, line, expected, got, cure=""):
        self.path, self.line, self.expected, self.got, self.cure = str(path), line, expected, got, cure
        where = self.path if line is None else f"{self.path}:{line}"
        super().__init__(f"{where}: expected {expected}, got {got}" + (f"; {cure}" if cure else ""))


class CheckpointError(JaxalignError):
    """A checkpoint that cannot be read or handed to this stage."""


def get_extra(extra) -> str:
    """The cure for a package that is not there. jaxalign is on no package index: its extras come from its own folder."""
    return f"in the folder that holds jaxalign's pyproject.toml: pip install -e '.[{extra}]'"


def disk_is_full(error) -> bool:
    """Whether an exception, or one that led to it, says that a disk has no room: Orbax says so in words only."""
    while error is not None:
        said = any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))
        if said or getattr(error, "errno", None) in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
