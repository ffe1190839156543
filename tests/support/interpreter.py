"""Triton's interpreter, several times as fast."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from triton.runtime import interpreter

# Values that Python's stack must have room for: more than a launch takes.
_ROOM = 2**16


@contextmanager
def fast_interpreter() -> Iterator[None]:
    """A context in which launches spare the interpreter two things that take most of its time.

    It replaces the functions of ``triton.language`` by its own in every call of a function that a
    kernel calls. Here it does so once in a launch, for each module that the functions are from.

    Python keeps its frames in chunks of 16 KiB, and asks the system for the next one when a call
    passes the end of the last. Where the frames of a test end near there, most calls in a kernel
    do. A launch that has a large frame starts a chunk with room for all its calls.
    """
    patch_language, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_once(function):
        module = id(function.__globals__)
        if module in patched:
            return None
        patched.add(module)
        return patch_language(function)

    def launch_with_room(self, *args, **kwargs):
        patched.clear()
        return launch(self, *args, **kwargs)

    launch_with_room.__code__ = launch_with_room.__code__.replace(co_stacksize=_ROOM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        patch.setattr(interpreter.GridExecutor, "__call__", launch_with_room)
        yield
