"""The benchmark of scaling: inputs, attentions, limits of a cell, and what it reports."""

from dataclasses import replace

import pytest
import torch

from benchmarks.common.calls import MODES
from benchmarks.common.timing import Timing
from benchmarks.common.traffic import NORMALIZATIONS, traffic_elements
from benchmarks.scaling import rivals
from benchmarks.scaling.cells import Budget, Cell, Grid, error_of, measure_cells
from benchmarks.scaling.memory import peak_bytes_in_process
from benchmarks.scaling.rivals import OURS, RIVALS, why_missing
from benchmarks.scaling.summary import Summary
from benchmarks.scaling.workload import (
    AttentionInputs,
    Workload,
    fill_in_defaults,
    workload_of,
    workload_parser,
)
from softattn import reference

SMALL = Workload(
    tokens=24,
    batch=2,
    heads=3,
    head_dim=8,
    landmarks=5,
    normalization="token",
    impl="auto",
    dtype="float32",
    device="cpu",
    seed=0,
    input="photograph",
)


def test_a_run_reports_times_memory_errors_and_figures(run_benchmark):
    # The memory of each cell takes a process of its own: softattn alone is measured.
    sizes = "--tokens 64 --rounds 2 --seconds-per-cell 0.2"
    content, output, figures = run_benchmark(f"scaling {sizes} --rivals")
    panels = ("time", "error", "time_forward", "time_backward", "memory_forward", "memory_backward")
    assert set(figures) == {"scaling", *(f"scaling_{name}" for name in panels)}
    forward, backward = content["cells"]
    assert 0 < forward["error"] < 0.2 and backward["error"] is None
    assert all(isinstance(cell["peak_bytes"], int) for cell in content["cells"])
    assert "error against exact attention" in output


def test_every_attention_of_the_cpu_runs(run_benchmark):
    names = "formula nystrom_attention sdpa gaussian_streamed gaussian_dense"
    options = "--no-memory --normalization none --impl eager --input normal"
    content, _, _ = run_benchmark(
        f"scaling --tokens 64 --rounds 1 --seconds-per-cell 5 {options} --rivals {names}"
    )
    assert {cell["rival"] for cell in content["cells"]} == {OURS, *names.split()}
    assert not any(cell["failure"] for cell in content["cells"])


def test_the_traffic_limit_and_the_batch_follow_from_the_tokens(run_benchmark):
    # A cell must not be left out because the machine is busy.
    sizes = "--tokens 64 128 --total-tokens 512 --rounds 1 --seconds-per-cell 5"
    content, output, _ = run_benchmark(f"scaling {sizes} --no-memory --rivals flex_attention")
    assert "fraction of the traffic limit" in output
    assert "without FlexAttention: it runs on cuda only" in output
    times = {(cell["tokens"], cell["mode"]): cell for cell in content["cells"]}
    assert {key: cell["batch"] for key, cell in times.items()} == {
        (tokens, mode): 512 // (2 * tokens) for tokens in (64, 128) for mode in MODES
    }
    assert len(content["traffic_limit"]) == 4
    for limit in content["traffic_limit"]:
        assert limit["bytes"] == traffic_elements("token", limit["mode"]) * 512 * 32 * 4
        seconds = limit["bytes"] / content["copy_bandwidth_bytes_per_second"]
        measured = times[limit["tokens"], limit["mode"]]["median_seconds"]
        assert limit["fraction_of_traffic_limit"] == pytest.approx(seconds / measured)


@pytest.mark.parametrize("normalization", ["token", "none"])
def test_the_error_is_that_of_the_timed_operator(normalization):
    workload = replace(SMALL, normalization=normalization)
    call = RIVALS[OURS].prepare(workload)
    query, value, _ = (x.detach()[:1].double() for x in call.inputs)
    truth = reference.gaussian_attention(query, query, value, normalize=normalization == "token")
    output = call.run("forward")[:1].double()
    expected = torch.linalg.vector_norm(output - truth) / torch.linalg.vector_norm(truth)
    assert error_of(call, workload) == pytest.approx(float(expected), rel=1e-5)
    wrong = replace(call, forward=lambda: 3 * call.forward())
    assert error_of(wrong, workload) > 1


def test_landmark_normalisation_has_no_exact_counterpart():
    workload = replace(SMALL, normalization="landmark")
    assert error_of(RIVALS[OURS].prepare(workload), workload) is None


def test_batch_items_and_seeds():
    x = AttentionInputs.of(SMALL)
    assert torch.equal(x.query[0], x.query[1])
    assert x.landmarks.shape[:2] == x.query.shape[:2]
    assert not torch.equal(x.query, AttentionInputs.of(replace(SMALL, seed=1)).query)


def test_peak_memory_counts_the_dense_kernel():
    workload = replace(SMALL, batch=1, heads=1, tokens=1024)
    peak = peak_bytes_in_process("gaussian_dense", workload, "forward")
    assert 4 * 1024**2 <= peak <= 6 * 4 * 1024**2
    assert peak_bytes_in_process("formula_compiled", workload, "forward") is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_traffic_is_what_the_passes_read_and_write(dtype):
    workload = replace(SMALL, normalization="none", dtype=dtype)
    x = AttentionInputs.of(workload)
    query = value = output = x.query.nbytes
    sums = query + value
    outputs = query + output
    assert workload.traffic_bytes("forward") == sums + outputs
    gradient_of_factors = query + output
    gradients_of_tokens = query + value + output + query + value
    backward = gradient_of_factors + gradients_of_tokens
    assert workload.traffic_bytes("forward+backward") == sums + outputs + backward
    more_for_the_diagonal = replace(workload, normalization="token").traffic_bytes("forward")
    assert more_for_the_diagonal == workload.traffic_bytes("forward") + value


def options(*words):
    args = workload_parser("").parse_args(words)
    fill_in_defaults(args)
    return args


@pytest.mark.parametrize("tokens", [1, 256, 3136, 16384, 2**23])
def test_total_tokens_are_reached_by_the_least_batch(tokens):
    workload = workload_of(options("--device", "cuda"), tokens)
    assert (workload.dtype, workload.head_dim, workload.landmarks) == ("bfloat16", 64, 64)
    assert workload.batch * workload.heads * tokens >= 2**22
    assert (workload.batch - 1) * workload.heads * tokens < 2**22


def test_a_batch_size_holds_at_every_n():
    assert workload_of(options(), 100).batch == 1
    assert workload_of(options("--device", "cuda", "--batch", "3"), 100).batch == 3
    assert workload_of(options("--total-tokens", "1001"), 100).batch == 6
    with pytest.raises(SystemExit):
        options("--batch", "3", "--total-tokens", "4")


@pytest.mark.parametrize(
    ("name", "device", "dtype", "reason"),
    [
        ("flex_attention", "cpu", "float32", "on cuda only: on the CPU it has no backward pass"),
        ("sdpa_flash", "cpu", "bfloat16", "on cuda only: on the CPU sdpa is measured"),
        ("sdpa_flash", "cuda", "float32", "in bfloat16 and float16 only"),
        ("sdpa", "cuda", "bfloat16", "on cpu only: on CUDA its backends are measured by name"),
        ("nystrom_attention", "cuda", "bfloat16", "in float32 and float64 only"),
        ("nystrom_attention", "cpu", "float32", "the package nystrom-attention is not installed"),
        ("flash_linear_attention", "cuda", "float16", "flash-linear-attention is not installed"),
        ("flash_linear_attention", "cpu", "float16", "on cuda only: its kernels are Triton's"),
    ],
)
def test_missing_rivals_say_why(name, device, dtype, reason, monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert reason in why_missing(name, device, dtype)


def test_who_takes_part(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: object())
    on_cuda = {name for name in RIVALS if why_missing(name, "cuda", "bfloat16") is None}
    assert on_cuda == set(RIVALS) - {"sdpa", "nystrom_attention", "gaussian_dense"}
    on_cpu = {name for name in RIVALS if why_missing(name, "cpu", "float32") is None}
    assert on_cpu == {
        *(OURS, "formula", "formula_compiled", "nystrom_attention", "sdpa"),
        *("gaussian_streamed", "gaussian_dense"),
    }


@pytest.mark.parametrize("name", [n for n in RIVALS if not why_missing(n, "cpu", "float32")])
def test_attentions_run_and_differentiate(name):
    with torch.compiler.set_stance("force_eager"):
        call = RIVALS[name].prepare(SMALL)
        output = call.run("forward")
        gradients = call.run("forward+backward")
    assert output.shape == call.grad_output.shape
    assert [gradient.shape for gradient in gradients] == [x.shape for x in call.inputs]
    assert all(x.isfinite().all() for x in (output, *gradients))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_formula_is_the_operator(normalization):
    workload = replace(SMALL, normalization=normalization, dtype="float64")
    output, expected = (RIVALS[name].prepare(workload).run("forward") for name in ("formula", OURS))
    # The formula's inverse is that of the paper, which has not quite converged.
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


def test_the_compiled_formula_is_the_formula():
    with torch.compiler.set_stance("force_eager"):
        compiled = RIVALS["formula_compiled"].prepare(SMALL).run("forward")
    assert torch.equal(compiled, RIVALS["formula"].prepare(SMALL).run("forward"))


def measured(times):
    """A summary of hand-made times, by rival and by tokens and batch."""
    grid = Grid()
    for rival, by_size in times.items():
        for (tokens, batch), seconds in by_size.items():
            workload = replace(SMALL, tokens=tokens, batch=batch)
            grid.add(Cell(rival, workload, "forward", Timing((seconds,))))
    return Summary(grid, copy_bandwidth=1e9)


def test_crossover_is_where_softattn_stays_ahead():
    times = {
        OURS: {(64, 1): 2.0, (128, 1): 2.0, (256, 1): 2.0, (512, 1): 2.0},
        "sdpa": {(64, 1): 3.0, (128, 1): 1.9, (256, 1): 2.0, (512, 1): 9.0},
        "gaussian_dense": {(64, 1): 3.0, (128, 1): 3.0, (256, 1): 1.9},
    }
    summary = measured(times)
    assert summary.crossover("sdpa", "forward") == 256
    assert summary.crossover("gaussian_dense", "forward") is None
    assert summary.crossover("sdpa", "forward+backward") is None


def test_slope_does_not_depend_on_the_batch():
    sizes = [(4096, 8), (8192, 4), (16384, 3)]
    times = {
        OURS: {(n, batch): 1e-6 * n * batch for n, batch in sizes},
        "sdpa": {(n, batch): 1e-9 * n**2 * batch for n, batch in sizes},
    }
    assert measured(times).slope(OURS, "forward") == pytest.approx(1)
    assert measured(times).slope("sdpa", "forward") == pytest.approx(2)


def measure(names, grid, workload=SMALL):
    # So long that no cell is left out because the machine is busy.
    budget = Budget(seconds=60, memory_bytes=1e9)
    measure_cells(
        names, workload, "forward", grid=grid, budget=budget, rounds=1, memory=True, done=print
    )


def test_a_rival_that_fails_does_not_end_the_run(monkeypatch):
    def fail(workload):
        raise RuntimeError("no kernel")

    sdpa = RIVALS["sdpa"]
    monkeypatch.setitem(RIVALS, "sdpa", replace(sdpa, prepare=fail))
    grid = Grid()
    measure([OURS, "sdpa"], grid)
    cell = grid.get("sdpa", SMALL.tokens, "forward")
    assert (cell.timing, cell.skipped, cell.failure) == (None, "failed", "RuntimeError: no kernel")
    assert grid.get(OURS, SMALL.tokens, "forward").timing is not None
    with monkeypatch.context() as mended:
        mended.setitem(RIVALS, "sdpa", sdpa)
        measure([OURS, "sdpa"], grid, replace(SMALL, tokens=48))
    assert grid.get("sdpa", 48, "forward").timing is not None
    monkeypatch.setitem(RIVALS, OURS, replace(RIVALS[OURS], prepare=fail))
    with pytest.raises(RuntimeError, match="no kernel"):
        measure([OURS], Grid())


def test_a_smaller_batch_counts_in_what_a_cell_may_take(monkeypatch):
    # A time that is too long is measured again, which would call this.
    monkeypatch.setitem(RIVALS, "sdpa", replace(RIVALS["sdpa"], prepare=None))
    grid = Grid()
    workload = replace(SMALL, tokens=1024, batch=64)
    slow = Timing((10.0,))
    grid.add(Cell("sdpa", replace(workload, tokens=512, batch=128), "forward", slow))
    # Where batch × n stays the same, the time of softmax attention doubles with n: from the 10 s
    # of a call to 20, of which 61 s allow three.
    assert Budget(61.0, 1e9).refuses("sdpa", workload, "forward", grid) is None
    with pytest.raises(TypeError):
        Budget(59.0, 1e9).refuses("sdpa", workload, "forward", grid)
