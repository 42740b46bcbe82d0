"""The command line: flags → one function.

Everything heavy is imported when a command runs, so `jaxalign --help` answers at once. What a user can cause ends in
one message and exit code 2; `--debug` shows the traceback instead.
"""

import sys
import traceback

from jaxalign.errors import JaxalignError, disk_is_full


def main(argv=None) -> int:
    """Runs one command (`sys.argv` by default); returns the exit code: 0, 2 for the user's mistakes, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Imported here, as `python -m jaxalign` with a broken install should still show its own error.
    from jaxalign.cli import commands, flags

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end a run
    debug = any(argument in ("--debug", "-debug") for argument in argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "-help", "help"):
            topic = commands.COMMANDS.get(argv[1]) if argv[1:] else None
            print(flags.help_of(topic) if topic else flags.overview(commands.COMMANDS))
            return 0 if argv else 2
        if argv[0] in ("--version", "-version", "version"):
            from jaxalign import __version__

            print(f"jaxalign {__version__}")
            return 0
        command = commands.find(argv[0])
        if any(argument in ("-h", "--help", "-help") for argument in argv):
            print(flags.help_of(command))
            return 0
        if not debug:
            # Orbax logs each error with its traceback from several threads, and then raises it.
            from absl import logging

            logging.set_verbosity(logging.FATAL)
        values, config, sources = flags.parse(command, argv[1:])
        return command.run(values, config, sources) or 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint (checkpoint_every=0 saves at a "
              "stage's end only)", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain again when it flushes at exit.
        sys.stdout = None
        return 0
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {message}", file=sys.stderr)
        return 2


def _message(error):
    """What to say of an error that the user can mend; None for a fault of ours, which shows its traceback."""
    if isinstance(error, JaxalignError):
        return str(error)
    if disk_is_full(error):
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return (f"{place}the disk is full; free some space and give the same command again, which goes on from the "
                "last checkpoint that was written whole")
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else None
