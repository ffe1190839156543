"""Worker processes."""

import signal
from multiprocessing import get_context
from multiprocessing.pool import Pool

import torch


def worker_processes(count: int, threads: int) -> Pool:
    """Fresh processes, each with its number of threads; leaving the ``with`` block ends them."""
    return get_context("spawn").Pool(count, initializer=_prepare, initargs=(threads,))


def _prepare(threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent is the one to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
