"""A bound on how long a call may take."""

import faulthandler
import signal
import sys
import threading

AGAIN = 1.0  # seconds to the next alarm: a call may catch one, or a garbage collector's callback swallow it
STUCK = 3.0  # times its timeout, after which a call that no alarm ends is shown on standard error


class TimedOut(BaseException):
    """Not an `Exception`: what a reward catches for reasons of its own must not be this."""


class Deadline:
    """Ends calls that take too long, by the alarm signal (SIGALRM).

    Why a signal and not a process of its own: no start, no pickling, closures and breakpoints work, and it ends loops,
    sleeps, regular expressions, long integers and waits for files or the network alike. What it does not end is a C
    function that never looks for signals; then the traceback is printed, again and again, so that the run at least
    says where it hangs. Signals reach the main thread only: elsewhere, and where a system has none, `works` is False
    and calls are not bounded. Whoever needs more starts a process, as `code` does.

    with Deadline() as deadline:
        value = deadline.call(10.0, function, response="4")  # or raises TimedOut
    """

    def __enter__(self):
        self.works = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        self.armed = False
        if self.works:
            self.before = signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *_):
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.before if self.before is not None else signal.SIG_DFL)

    def call(self, seconds, function, **arguments):
        """`function(**arguments)`; raises TimedOut after `seconds`."""
        if not self.works:
            return function(**arguments)
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            _watch(STUCK * seconds)
            return function(**arguments)
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            _watch(None)

    def _ring(self, *_):
        if self.armed:
            raise TimedOut


def _watch(seconds):
    try:
        faulthandler.cancel_dump_traceback_later()
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, repeat=True, file=sys.__stderr__)
    except (AttributeError, ValueError, OSError):  # no standard error to write to
        pass
