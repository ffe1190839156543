"""The kernels compile for every target, within its registers and shared memory, without a GPU.

By default every entry of the table is compiled for every target, for the variant of the kernel
that takes the most. With HYPOTHESIS_PROFILE=wide all variants are, in all dtypes, with padding
and without.
"""

import os
from itertools import product

import pytest

from benchmarks.kernel_cases import DTYPES, VARIANTS, Case
from benchmarks.kernel_compilation import TARGETS, compiler_processes, launches, submit
from softattn.kernels import configurations

# The variants that a kernel's entries serve, the one that takes the most first.
VARIANTS_OF = {
    "tokens_to_landmarks": ("sums with ones", "sums, exact", "sums"),
    "landmarks_to_tokens": (
        "answer, quotient",
        "answer, exact normalized",
        "answer, exact",
        "answer",
    ),
    "landmarks_to_tokens_diagonal": ("answer, diagonal",),
    "quotient_gradient": ("quotient gradient",),
    "quotient_gradient_diagonal": ("quotient gradient, diagonal",),
    "token_gradient": (
        "gradient",
        "gradient of keys, quotient",
        "gradient of queries, quotient",
        "gradient of keys",
        "gradient of queries",
        "gradient, exact normalized",
        "gradient, exact",
    ),
    "token_gradient_diagonal": ("gradient, diagonal",),
    "gaussian_kernel": ("block",),
    "gaussian_kernel_gradient": ("block gradient",),
    "newton": ("newton",),
}
MANY_LANDMARKS = 1000
MOST_ROWS_TO_INVERT = 128
WIDE = os.environ.get("HYPOTHESIS_PROFILE") == "wide"


def cases_of(kernel, features, entry, *, last, dtypes):
    """What is launched with one entry of the table."""
    many = MOST_ROWS_TO_INVERT if kernel == "newton" else MANY_LANDMARKS
    landmarks = {entry[1]} | ({many} if last else set())
    if not WIDE:
        yield Case(VARIANTS_OF[kernel][0], features, max(landmarks), dtypes[0], padded=True)
        return
    for variant, m, dtype, padded in product(
        VARIANTS_OF[kernel], sorted(landmarks), dtypes, (False, True)
    ):
        yield Case(variant, features, m, dtype, padded)


def compilations():
    """Every entry of every table, and the targets that it is for."""
    tables = (
        (configurations.HALF, ("bfloat16", "float16"), TARGETS),
        (configurations.HALF_ON_WARP_GROUPS, ("bfloat16", "float16"), ("sm_90",)),
        (configurations.FLOAT32, ("float32",), TARGETS),
    )
    for table, dtypes, targets in tables:
        for kernel, widths in table.items():
            for features, entries in widths.items():
                for entry in entries:
                    for case in cases_of(
                        kernel, features, entry, last=entry == entries[-1], dtypes=dtypes
                    ):
                        yield from ((case, target) for target in targets)


COMPILATIONS = list(dict.fromkeys(compilations()))


def test_every_variant_is_of_a_kernel():
    assert sorted(VARIANTS) == sorted(v for variants in VARIANTS_OF.values() for v in variants)


@pytest.mark.parametrize("table", [configurations.HALF, configurations.FLOAT32])
def test_every_kernel_has_entries_for_all_widths(table):
    assert sorted(table) == sorted(VARIANTS_OF)
    for kernel, widths in table.items():
        assert max(widths) == 256, kernel


@pytest.fixture(scope="session")
def compiled(request):
    """The kernels of the tests that were asked for, compiled on all cores."""
    wanted = [
        tuple(item.callspec.params[name] for name in ("case", "target"))
        for item in request.session.items
        if item.name.startswith("test_compiles_for_target[")
    ]
    with compiler_processes() as executor:
        futures = {
            (case, target): submit(executor, case, TARGETS[target]) for case, target in wanted
        }
        yield lambda case, target: futures[case, target].result()


@pytest.mark.parametrize(
    ("case", "target"), COMPILATIONS, ids=[f"{target}-{case}" for case, target in COMPILATIONS]
)
def test_compiles_for_target(case, target, compiled):
    kernels = compiled(case, target)
    assert kernels
    for resources in kernels:
        assert resources.registers > 0
        assert (resources.matrix_instructions > 0) == (case.variant != "block"), resources
        assert resources.shared_memory <= TARGETS[target].shared_memory, resources
        if TARGETS[target].backend == "cuda" and case.features <= 128:
            assert resources.stack == 0, resources


def test_launches_are_recorded_for_the_target():
    (launch,) = launches(Case("sums", 64, 49), TARGETS["gfx942"])
    assert launch.constants["PRECISION"] == "ieee"
    assert launch.constants["D"] == 64
    assert launch.arguments[0].shape == (4, 2, 4096, 64)


def test_every_dtype_has_a_table():
    assert set(DTYPES) == {"bfloat16", "float16", "float32"}
