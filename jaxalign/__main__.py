"""`jaxalign` and `python -m jaxalign`: the process as training wants it, then the command line."""

import sys

from jaxalign.cli import main
from jaxalign.huge_pages import ask_for_huge_pages


def run():
    """What the `jaxalign` command is."""
    ask_for_huge_pages()
    sys.exit(main())


if __name__ == "__main__":
    run()
