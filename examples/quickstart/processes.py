"""Worker processes."""

import signal
from multiprocessing import get_context
from multiprocessing.pool import Pool

import torch


def worker_processes(count: int, threads: int) -> Pool:
    """New processes with ``threads`` threads each; leaving the ``with`` block ends them."""
    return get_context("spawn").Pool(count, initializer=_prepare, initargs=(threads,))


def _prepare(threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
