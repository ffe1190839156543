"""What an operator allocates and launches, recorded once and repeated for inputs of one form.

Tiles, grids, the strides of outputs and the compiled kernels follow from the form of an operator's
inputs. Working them out takes the host several times as long as launching.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

Form = tuple[Any, ...]
# More are forgotten: sequences of ever new lengths would fill the memory.
_MOST_FORMS = 1024
_ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_ON_AMD = torch.version.hip is not None

Allocation = Callable[[], Tensor]


def form_of(inputs: Sequence[Any]) -> Form:
    """What an operator's launches follow from: its inputs without the numbers in tensors."""
    return tuple(
        (x.shape, x.stride(), x.dtype, x.device, _pointer_of(x)) if isinstance(x, Tensor) else x
        for x in inputs
    )


def _pointer_of(tensor: Tensor) -> tuple[bool, bool]:
    """What Triton compiles a kernel for.

    Whether the pointer is a multiple of 16 bytes, and on AMD whether its memory has below 2 GiB.
    """
    small = _ON_AMD and tensor.untyped_storage().nbytes() < 2**31
    return tensor.data_ptr() % 16 == 0, small


class Recorded:
    """An operator's implementation, recorded when a form of its inputs comes again.

    What it allocates and launches must follow from the form. An implementation that does more than
    that is run every time.
    """

    def __init__(self, implementation: Callable[..., Any]) -> None:
        self._implementation = implementation
        self._runs: dict[Form, Callable[..., Any]] = {}
        _ALL.append(self)

    def __call__(self, *inputs: Any) -> Any:
        """Runs the implementation, or repeats it."""
        form = form_of(inputs)
        run = self._runs.get(form)
        if run is None:
            if len(self._runs) >= _MOST_FORMS:
                self._runs.clear()
            self._runs[form] = functools.partial(self._record, form)
            run = self._implementation
        return run(*inputs)

    def forget(self) -> None:
        """Drops all recordings."""
        self._runs.clear()

    def _record(self, form: Form, *inputs: Any) -> Any:
        from softattn.kernels import launching

        # Each input an object of its own, also where one tensor comes twice.
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
        recording = _Recording(inputs)
        with recording, launching.observed_by(recording.add_launch):
            outputs = self._implementation(*inputs)
        self._runs[form] = recording.replay(outputs) or self._implementation
        return outputs


_ALL: list[Recorded] = []


def forget_recordings() -> None:
    """Drops the recordings of all operators."""
    for recorded in _ALL:
        recorded.forget()


class _Place(int):
    """A tensor's number among the inputs, or after them among the allocations."""


class _Launch(NamedTuple):
    """``run(*arguments)`` launches; places stand for tensors among the arguments."""

    run: Callable[..., Any]
    arguments: list[Any]

    @property
    def places(self) -> set[int]:
        """Of its tensors."""
        return {x for x in self.arguments if isinstance(x, _Place)}


class _Recording(TorchDispatchMode):
    """Follows the tensors of one run of an implementation."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self._inputs = len(inputs)
        self._allocations: list[Allocation] = []
        self._launches: list[_Launch] = []
        self._only_launches = True
        # Weak, so that memory is freed as in other runs.
        self._places = WeakTensorKeyDictionary()
        for place, x in enumerate(inputs):
            if isinstance(x, Tensor):
                self._places[x] = _Place(place)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        source = args[0] if args else None
        if func.overloadpacket.__name__ in _ALLOCATIONS:
            self._places[result] = _Place(self._inputs + len(self._allocations))
            self._allocations.append(_allocation_like(result))
        elif self._has_place(source) and _is_view_of_all(func, result, source):
            self._places[result] = self._places[source]
        else:
            self._only_launches = False
        return result

    def _has_place(self, x: object) -> bool:
        return isinstance(x, Tensor) and x in self._places

    def add_launch(self, run: Callable[..., Any], arguments: list[Any]) -> None:
        """Adds ``run(*arguments)``."""
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        self._only_launches &= all(map(self._has_place, tensors))
        if self._only_launches:
            placed = [self._places[x] if isinstance(x, Tensor) else x for x in arguments]
            self._launches.append(_Launch(run, placed))

    def replay(self, outputs: Tensor | tuple[Tensor, ...]) -> "_Replay | None":
        """What does the same for other inputs; None where there was more to do than to launch.

        Args:
            outputs: what the implementation returned.
        """
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        returned = [self._places.get(x, -1) for x in several]
        if not self._only_launches or min(returned) < self._inputs:
            return None
        allocations = dict(enumerate(self._allocations, self._inputs))
        # An output is allocated as it is returned, not as the memory that it views.
        allocations |= zip(returned, map(_allocation_like, several), strict=True)
        return _Replay(allocations, self._launches, returned, several[0].device)


def _is_view_of_all(func: Any, result: Any, source: Any) -> bool:
    """Whether an operation only returned its first argument, or a view of all of it."""
    if result is source:
        return not func._schema.is_mutable
    if not func.is_view or not isinstance(result, Tensor):
        return False
    extent, whole = ((x.data_ptr(), x.numel(), x.dtype) for x in (result, source))
    return extent == whole


class _Step(NamedTuple):
    """A launch of a replay.

    needs: what allocates memory that no launch before it uses, by its place.
    run: takes a kernel's arguments.
    arguments: picks them from all tensors and constants.
    leaves: places of memory that no launch after it uses.
    """

    needs: list[tuple[int, Allocation]]
    run: Callable[..., Any]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    leaves: list[int]


class _Replay:
    """Repeats launches for other inputs.

    Args:
        allocations: of all memory, by their places.
        launches: what to repeat.
        returned: places of the outputs.
        device: where it runs.
    """

    def __init__(
        self,
        allocations: dict[int, Allocation],
        launches: list[_Launch],
        returned: list[int],
        device: torch.device,
    ) -> None:
        from softattn.kernels import launching

        self._on_device = functools.partial(launching.on_device, device)
        first = min(allocations)
        self._outputs = [(place, allocations.pop(place)) for place in returned]
        self._take_outputs = itemgetter(*returned)
        own = set(allocations)
        # What follows the inputs in the list of all tensors and constants.
        self._others: list[Any] = [None] * (len(own) + len(returned))
        self._steps: list[_Step] = []
        for number, launch in enumerate(launches):
            later = set().union(*(other.places for other in launches[number + 1 :]))
            of_step = launch.places & own
            constants = [x for x in launch.arguments if not isinstance(x, _Place)]
            after = itertools.count(first + len(self._others))
            positions = [x if isinstance(x, _Place) else next(after) for x in launch.arguments]
            self._others += constants
            self._steps.append(
                _Step(
                    needs=[(x, allocations.pop(x)) for x in of_step & allocations.keys()],
                    run=launch.run,
                    arguments=itemgetter(*positions),
                    leaves=list(of_step - later),
                )
            )

    def __call__(self, *inputs: Any) -> Any:
        everything = [*inputs, *self._others]
        with self._on_device():
            for place, allocate in self._outputs:
                everything[place] = allocate()
            for needs, run, arguments, leaves in self._steps:
                for place, allocate in needs:
                    everything[place] = allocate()
                run(*arguments(everything))
                for place in leaves:
                    everything[place] = None
        return self._take_outputs(everything)


def _allocation_like(tensor: Tensor) -> Allocation:
    """What allocates memory of the shape, strides, dtype and device of a tensor."""
    return functools.partial(
        torch.empty_strided,
        tuple(tensor.shape),
        tensor.stride(),
        dtype=tensor.dtype,
        device=tensor.device,
    )
