"""The kernels compile for every target, within its registers and shared memory, without a GPU.

With HYPOTHESIS_PROFILE=wide every variant is compiled in all dtypes, with padding and without, and
every entry of the table for every target. By default each entry is, for the variant that takes the
most, but for what takes longest and differs least between the targets: more than 128 features, and
the gradient in float32, on sm_90 and sm_100, and near fields on sm_100.
"""

import functools
import os
from itertools import product

import pytest
import torch
import triton

from benchmarks.kernels.cases import DTYPES, VARIANTS, Case
from benchmarks.kernels.compilation import (
    TARGETS,
    compiler_processes,
    launches,
    submit,
    variants,
)
from softattn import kernels
from softattn.backends.selection import MOST_OF_NEAR_FIELDS
from softattn.kernels import configurations, launching

# The compiler of torch 2.6's Triton fails on some kernels.
pytestmark = pytest.mark.needs_newer_torch

# The variants that a kernel's entries serve, the one that takes the most first.
VARIANTS_OF = {
    "tokens_to_landmarks": ("sums with weights", "sums with ones", "sums, exact", "sums"),
    "landmarks_to_tokens": (
        "output, quotient",
        "output, exact normalized",
        "output, exact",
        "output",
    ),
    "landmarks_to_tokens_diagonal": ("output, diagonal and weights", "output, diagonal"),
    "quotient_gradient": ("quotient gradient",),
    "quotient_gradient_diagonal": (
        "quotient gradient, diagonal and weights",
        "quotient gradient, diagonal",
    ),
    "token_gradient": (
        "gradient",
        "gradient of keys with weights",
        "gradient of keys, quotient",
        "gradient of queries, quotient",
        "gradient of keys",
        "gradient of queries",
        "gradient, exact normalized",
        "gradient, exact",
    ),
    "token_gradient_diagonal": ("gradient, diagonal and weights", "gradient, diagonal"),
    "near_field_output": ("near field",),
    "near_field_gradient": ("near field gradient",),
    "nearest_landmarks": ("nearest with places", "nearest"),
    "cluster_sums": ("clusters",),
    "gaussian_kernel": ("block",),
    "gaussian_kernel_gradient": ("block gradient",),
    "newton": ("newton",),
    "middle_factor": ("middle factor, landmark", "middle factor"),
    "middle_factor_gradient": ("middle factor gradient, landmark", "middle factor gradient"),
    "landmark_weights": (
        "weights, token",
        "weights gradient, token",
        "weights",
        "weights gradient",
    ),
}
# Without entries in the table.
OTHER_VARIANTS = ("key weights", "small sums")
# Kernels whose entries are for so many landmarks, and which take no more.
BY_LANDMARKS = ("newton", "middle_factor", "middle_factor_gradient", "landmark_weights")
NEAR_FIELDS = ("near_field_output", "near_field_gradient")
# Variants that use no matrix units.
WITHOUT_PRODUCTS = (
    "block",
    "key weights",
    "small sums",
    "middle factor",
    "middle factor, landmark",
)
MANY_LANDMARKS = 1000
WIDE = os.environ.get("HYPOTHESIS_PROFILE") == "wide"
TABLES = (
    (configurations.HALF, ("bfloat16", "float16"), tuple(TARGETS)),
    (configurations.FLOAT32, ("float32",), tuple(TARGETS)),
    (configurations.HALF_ON_WARP_GROUPS, ("bfloat16", "float16"), ("sm_90",)),
    (configurations.FLOAT32_ON_WARP_GROUPS, ("float32",), ("sm_90",)),
    (configurations.HALF_ON_TENSOR_MEMORY, ("bfloat16", "float16"), ("sm_100",)),
)


def cases_of(kernel, features, entries, dtypes):
    """What is launched with the entries of a kernel for so many features."""
    many = MANY_LANDMARKS
    if kernel in NEAR_FIELDS:
        many = MOST_OF_NEAR_FIELDS[DTYPES[dtypes[0]]][features]
    if kernel in BY_LANDMARKS:
        landmarks = [min(features, 128)]
    elif kernel == "gaussian_kernel":
        landmarks = [64]
    else:
        landmarks = [entries[0][1]] + [many] * (len(entries) > 1)
    if WIDE:
        yield from (
            Case(variant, features, m, dtype, padded)
            for variant, m, dtype, padded in product(
                VARIANTS_OF[kernel], {*landmarks, many}, dtypes, (False, True)
            )
            if kernel not in BY_LANDMARKS or m <= 128
        )
    else:
        yield from (Case(VARIANTS_OF[kernel][0], features, m, dtypes[0], True) for m in landmarks)


def takes_long(case, target):
    """Whether a compilation is left to the wide profile."""
    late = target in ("sm_90", "sm_100")
    if case.variant.startswith("near field"):
        return target == "sm_100" or (late and (case.features > 64 or case.dtype == "float32"))
    return late and (
        case.features > 128 or (case.dtype == "float32" and case.variant.startswith("gradient"))
    )


def compilations():
    """Every entry of every table for each of its targets, and half the features of some."""
    for table, dtypes, targets in TABLES:
        for kernel, widths in table.items():
            for features, entries in widths.items():
                for case in cases_of(kernel, features, entries, dtypes):
                    yield from (
                        (case, target) for target in targets if WIDE or not takes_long(case, target)
                    )
    for variant in OTHER_VARIANTS:
        yield from ((Case(variant, 64, 64, "bfloat16", True), target) for target in TARGETS)
    for variant in ("sums", "output", "gradient"):
        yield from ((Case(variant, 32, 49, "float16"), target) for target in TARGETS)


COMPILATIONS = list(dict.fromkeys(compilations()))

# Another version of the compiler spills elsewhere.
LIMITS_SPILLS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
# Bytes of a thread that may spill, by kernel or variant, dtype and features; else none up to 128
# features.
MOST_STACK = {
    # Strides that are arguments, not constants, take the registers.
    ("sums with weights", "bfloat16", 64): 16,
    ("sums with weights", "bfloat16", 128): 48,
    ("sums with weights", "float16", 128): 48,
    ("quotient gradient", "bfloat16", 128): 8,
    ("quotient gradient, diagonal", "float16", 64): 48,
    ("quotient gradient, diagonal", "float16", 128): 16,
    ("quotient gradient, diagonal and weights", "bfloat16", 64): 16,
    ("quotient gradient, diagonal and weights", "float16", 64): 48,
    ("quotient gradient, diagonal and weights", "float16", 128): 16,
    ("output, quotient", "bfloat16", 128): 32,
    ("output, quotient", "float16", 64): 8,
    ("output, quotient", "float16", 128): 16,
    ("gradient of queries", "bfloat16", 64): 8,
    ("gradient", "float16", 64): 168,
    ("gradient of queries", "float16", 64): 8,
    ("gradient of queries, quotient", "float16", 64): 72,
    ("gradient of queries, quotient", "float16", 128): 8,
    ("gradient of keys", "float16", 64): 8,
    ("gradient of keys, quotient", "float16", 64): 16,
    ("gradient of keys, quotient", "float16", 128): 8,
    ("gradient of keys with weights", "bfloat16", 64): 40,
    ("gradient of keys with weights", "float16", 64): 72,
    # M and P M in registers too.
    ("output, diagonal", "bfloat16", 64): 24,
    ("output, diagonal", "float16", 64): 40,
    ("output, diagonal", "bfloat16", 128): 8,
    ("output, diagonal", "float16", 128): 8,
    ("output, diagonal and weights", "bfloat16", 64): 24,
    ("output, diagonal and weights", "float16", 64): 32,
    ("output, diagonal and weights", "bfloat16", 128): 16,
    ("output, diagonal and weights", "float16", 128): 16,
    ("gradient, diagonal", "bfloat16", 64): 328,
    ("gradient, diagonal", "float16", 64): 320,
    ("gradient, diagonal", "bfloat16", 128): 80,
    ("gradient, diagonal", "float16", 128): 120,
    ("gradient, diagonal and weights", "bfloat16", 64): 344,
    ("gradient, diagonal and weights", "float16", 64): 504,
    ("gradient, diagonal and weights", "bfloat16", 128): 160,
    ("gradient, diagonal and weights", "float16", 128): 224,
    ("landmark_weights_gradient", "bfloat16", 128): 72,
    ("landmark_weights_gradient", "float16", 128): 72,
    ("landmark_weights_gradient", "float32", 128): 48,
    ("weights", "float32", 64): 8,
    # Three parts of float32. Fewer and larger blocks of landmarks compute P less often.
    ("tokens_to_landmarks", "float32", 64): 64,
    ("output, quotient", "float32", 64): 16,
    ("output, exact normalized", "float32", 64): 16,
    ("output, diagonal", "float32", 64): 96,
    ("output, diagonal and weights", "float32", 64): 96,
    ("landmarks_to_tokens", "float32", 128): 384,
    ("quotient_gradient", "float32", 64): 232,
    ("token_gradient", "float32", 64): 384,
    ("gradient, diagonal", "float32", 64): 512,
    ("gradient, diagonal and weights", "float32", 64): 560,
    ("token_gradient", "float32", 128): 1280,
    # The whole matrix is in registers.
    ("middle_factor", "float32", 128): 208,
    # Two pieces of P, of P M and of dR at once; up to 64 landmarks at most 792.
    ("near_field_gradient", "bfloat16", 64): 1600,
    ("near_field_gradient", "float16", 64): 1600,
    ("near_field_gradient", "bfloat16", 128): 3600,
    ("near_field_gradient", "float16", 128): 1760,
    ("near_field_gradient", "float32", 64): 2300,
    ("near_field_output", "bfloat16", 64): 32,
    ("near_field_output", "float16", 64): 48,
    ("near_field_output", "float32", 64): 400,
}
# There tiles were chosen by their times. These are the fastest all the same.
MOST_STACK_ON_HOPPER = {
    ("tokens_to_landmarks", "bfloat16", 128): 24,
    ("tokens_to_landmarks", "float32", 64): 88,
    ("tokens_to_landmarks", "float32", 128): 680,
    ("landmarks_to_tokens", "bfloat16", 64): 160,
    ("landmarks_to_tokens", "bfloat16", 128): 816,
    ("landmarks_to_tokens", "float32", 64): 768,
    ("landmarks_to_tokens", "float32", 128): 2200,
    ("quotient_gradient", "bfloat16", 64): 136,
    ("quotient_gradient", "bfloat16", 128): 352,
    ("quotient_gradient", "float32", 64): 320,
    ("quotient_gradient", "float32", 128): 576,
    ("token_gradient", "bfloat16", 64): 1384,
    ("token_gradient", "bfloat16", 128): 2720,
    ("near_field_gradient", "bfloat16", 64): 1944,
    ("near_field_output", "bfloat16", 64): 272,
    ("landmark_weights", "bfloat16", 128): 16,
    ("nearest_landmarks", "float32", 128): 440,
    ("middle_factor", "float32", 64): 8,
}


def test_every_variant_is_of_a_kernel():
    of_kernels = [v for variants in VARIANTS_OF.values() for v in variants]
    assert sorted(VARIANTS) == sorted([*of_kernels, *OTHER_VARIANTS])


def test_every_kernel_has_entries_for_all_widths():
    assert set(configurations.FLOAT32) == set(VARIANTS_OF)
    only_float32 = {"newton", "middle_factor", "middle_factor_gradient"}
    assert set(configurations.HALF) == set(VARIANTS_OF) - only_float32
    for table in (configurations.HALF, configurations.FLOAT32):
        for kernel, widths in table.items():
            by_landmarks = kernel in ("newton", "middle_factor", "landmark_weights")
            most = 128 if by_landmarks else 256
            if kernel in NEAR_FIELDS:
                dtype = torch.float32 if table is configurations.FLOAT32 else torch.bfloat16
                most = max(MOST_OF_NEAR_FIELDS[dtype])
            assert max(widths) == most, kernel


@pytest.fixture(scope="session")
def compiled(request):
    """Compiles kernels in other processes: those of all tests that were asked for, on all cores.

    A worker of xdist knows all tests and runs some of them, beside others. It compiles in one
    process, when a test asks for it.
    """
    is_worker = hasattr(request.config, "workerinput")
    wanted = [
        tuple(item.callspec.params[name] for name in ("case", "target"))
        for item in request.session.items
        if item.name.startswith("test_compiles_for_target[")
    ]
    with compiler_processes(1 if is_worker else None) as executor:

        @functools.cache
        def submitted(case, target):
            return submit(executor, case, TARGETS[target])

        for case, target in [] if is_worker else wanted:
            submitted(case, target)
        yield lambda case, target: submitted(case, target).result()


def limits_spills(case, target):
    """Whether there is a limit; on sm_90 only for the variants that take the most."""
    if TARGETS[target].backend != "cuda" or case.features > 128:
        return False
    return not (WIDE and target == "sm_90")


@pytest.mark.parametrize(
    ("case", "target"), COMPILATIONS, ids=[f"{target}-{case}" for case, target in COMPILATIONS]
)
def test_compiles_for_target(case, target, compiled):
    kernels = compiled(case, target)
    assert kernels
    for resources in kernels:
        assert resources.registers > 0
        without = case.variant in WITHOUT_PRODUCTS
        assert (resources.matrix_instructions > 0) == (not without), resources
        assert resources.shared_memory <= TARGETS[target].shared_memory, resources
        if LIMITS_SPILLS and limits_spills(case, target):
            allowed = MOST_STACK | (MOST_STACK_ON_HOPPER if target == "sm_90" else {})
            sizes = (case.dtype, case.features)
            most = max(allowed.get((name, *sizes), 0) for name in (resources.kernel, case.variant))
            assert resources.stack <= most, resources


def test_lengths_compile_nothing_anew():
    of_attention = (
        *("sums with weights", "output, diagonal and weights"),
        *("quotient gradient, diagonal and weights", "gradient, diagonal and weights"),
        *("middle factor", "middle factor gradient", "weights, token", "weights gradient, token"),
        *("near field", "near field gradient", "key weights", "small sums"),
    )
    cases = [
        Case(variant, 64, 49, tokens=tokens)
        for variant in of_attention
        for tokens in (33, 1024, 3137, 70_001)
    ]
    with compiler_processes(1) as executor:
        compiled = executor.submit(variants, cases, TARGETS["sm_90"]).result()
    assert len(compiled) >= 15
    assert compiled.pop("near_field_gradient") == 2, "once for queries, once for keys"
    assert set(compiled.values()) == {1}, compiled


def test_alignment_compiles_anew():
    """The count above can count."""
    cases = [Case("sums", features, 49) for features in (64, 60)]
    with compiler_processes(1) as executor:
        compiled = executor.submit(variants, cases, TARGETS["sm_90"]).result()
    assert compiled == {"tokens_to_landmarks": 2}


@pytest.mark.parametrize(
    "case",
    [
        # Keys in the landmarks' place.
        Case("gradient, exact", 64, 5_000_000, tokens=5_000_000),
        Case("sums, exact", 64, 5_000_000, tokens=5_000_000),
    ],
    ids=str,
)
def test_grids_are_within_the_limits_of_cuda(case):
    assert_within_limits([launch.grid for launch in launches(case, TARGETS["sm_90"])])


def test_grids_of_the_block_are_within_the_limits_of_cuda(monkeypatch):
    grids = []
    monkeypatch.setattr(launching, "launch", lambda kernel, grid, *_, **__: grids.append(grid))
    query, key = (torch.empty(1, 1, n, 64, device="meta") for n in (2_500_000, 64))
    block = kernels.gaussian_kernel(query, key, rate=0.1)
    kernels.gaussian_kernel_gradient(query, key, block, block, scale=0.1)
    assert_within_limits(grids)


def assert_within_limits(grids):
    """Asserts that large grids are on the first axis, which alone may pass 65,535."""
    assert max(first for first, *_ in grids) > 65_535
    for first, *others in grids:
        assert first < 2**31 and all(axis <= 65_535 for axis in others)


def test_launches_are_recorded_for_the_target():
    (launch,) = launches(Case("sums", 64, 49), TARGETS["gfx942"])
    assert launch.arguments["PRECISION"] == "ieee"
    assert launch.arguments["D"] == 64
    assert launch.arguments["x_ptr"].shape == (4, 2, 4096, 64)


def test_every_dtype_has_a_table():
    assert set(DTYPES) == {"bfloat16", "float16", "float32"}
