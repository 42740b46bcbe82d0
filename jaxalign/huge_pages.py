"""Pages of 2 MiB instead of 4 KiB for what a process allocates in large pieces."""

import os
import pathlib
import sys

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages():
    """Begins the process anew with glibc told to ask the kernel for pages of 2 MiB instead of 4 KiB.

    On a CPU, XLA allocates a program's temporary arrays at each call. glibc maps what is larger than 32 MiB afresh and
    unmaps it when it is freed, so that each step touches new pages, which the kernel has to find and fill with zeros one
    by one: a fifth of the processor's time in the quickstart's pretraining (experiments/quickstart/README.md). glibc (2.35
    and later) reads the setting when a process begins and never again, hence anew, before anything heavy is imported.

    Returns, having done nothing, where the kernel has no huge pages for those who ask, or the environment sets
    `GLIBC_TUNABLES` itself, be it to nothing: that turns this off.
    """
    try:
        granted = "[madvise]" in HUGE_PAGES.read_text(encoding="ascii")
    except OSError:  # no Linux, or a kernel without them
        return
    if granted and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
        except OSError:  # a place where no program may be started: slower, and as right
            return
