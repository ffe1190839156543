"""The benchmarks run from end to end on small sizes, and count, compare and report rightly."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.paths import ROOT

from benchmarks import cuda_events, expected, kernel_resources, kernel_search, rivals
from benchmarks.rivals import OURS, RIVALS, why_missing
from benchmarks.scaling_cells import Budget, Cell, Grid, measure_times
from benchmarks.scaling_summary import Summary
from benchmarks.softmax_calls import call_sdpa
from benchmarks.timing import Timing
from benchmarks.traffic import traffic_bytes, traffic_elements
from benchmarks.workload import (
    MODES,
    Workload,
    fill_in_defaults,
    workload_of,
    workload_parser,
)

SMALL = Workload(
    tokens=24,
    batch=2,
    heads=3,
    head_dim=8,
    landmarks=5,
    normalization="landmark",
    impl="auto",
    dtype="float32",
    device="cpu",
    seed=0,
)
QUICK = "--rounds 2 --seconds-per-cell 0.2"
# What torch.compile takes for the compiled rival is too long for a test, and each cell's memory is
# measured in a process of its own.
COMMANDS = [
    f"scaling --tokens 64 {QUICK} --rivals sdpa",
    f"scaling --tokens 64 {QUICK} --no-memory --normalization token --impl eager --rivals "
    "paper_formula nystrom_attention sdpa gaussian_streamed gaussian_dense",
    "pinv --spreads 1 0.1 --matrices 2 --max-steps 4 --seconds-per-cell 0.05",
    "accuracy --side 12 --landmarks 4 9 --sharpness 1",
]


def run_benchmark(command, folder):
    name, *options = command.split()
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, "--out", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (report,) = folder.glob("*.json")
    return json.loads(report.read_text()), run.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_benchmark(command, tmp_path):
    content, _ = run_benchmark(command, tmp_path)
    assert f"python -m benchmarks.{command}" in content["command"]
    assert "torch" in content["environment"]
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000


def test_choices_are_compared_with_the_first(tmp_path):
    command = "choices --side 8 --rounds 1 --seconds-per-cell 0.01"
    content, output = run_benchmark(command, tmp_path)
    first, *others = content["choices"]
    assert first["forward_ratio"] == first["forward_and_backward_ratio"] == 1
    for choice in others:
        assert choice["name"] in output
        ratio = choice["forward_seconds"] / first["forward_seconds"]
        assert choice["forward_ratio"] == pytest.approx(ratio)


def test_scaling_reports_the_fraction_of_the_traffic_limit(tmp_path):
    # A cell must not be left out because the machine is busy.
    sizes = "--tokens 64 128 --total-tokens 512 --rounds 1 --seconds-per-cell 5"
    command = f"scaling {sizes} --no-memory --rivals flex_attention"
    content, output = run_benchmark(command, tmp_path)
    assert "fraction of the traffic limit" in output
    assert "without FlexAttention: it runs on cuda only" in " ".join(output.split())
    times = {(cell["tokens"], cell["mode"]): cell for cell in content["cells"]}
    assert {key: cell["batch"] for key, cell in times.items()} == {
        (tokens, mode): 512 // (2 * tokens) for tokens in (64, 128) for mode in MODES
    }
    assert len(content["traffic_limit"]) == 4
    for limit in content["traffic_limit"]:
        elements = 4 if limit["mode"] == "forward" else 11
        assert limit["bytes"] == elements * 512 * 32 * 4
        seconds = limit["bytes"] / content["copy_bandwidth_bytes_per_second"]
        measured = times[limit["tokens"], limit["mode"]]["median_seconds"]
        assert limit["fraction_of_traffic_limit"] == pytest.approx(seconds / measured)


def test_ragged_times_every_way(tmp_path):
    sizes = "--sequences 3 --longest 400 --embed-dim 8 --heads 2 --rounds 1 --seconds-per-cell 0.01"
    content, output = run_benchmark(f"ragged {sizes}", tmp_path)
    cells = content["cells"]
    assert len(cells) == 8
    assert all(set(cell["timings"]) == {"packed", "padded", "one by one"} for cell in cells)
    waste = {cell["batch"]: cell["waste"] for cell in cells}
    assert waste["one long"] == pytest.approx(2)
    assert "one long" in output


@pytest.mark.parametrize(
    ("normalization", "forward", "both"), [("none", 4, 11), ("landmark", 4, 11), ("token", 5, 14)]
)
def test_traffic_is_what_the_passes_read_and_write(normalization, forward, both):
    assert [traffic_elements(normalization, mode) for mode in MODES] == [forward, both]
    workload = replace(SMALL, normalization=normalization, dtype="bfloat16")
    assert traffic_bytes(workload, "forward") == forward * 2 * 3 * 24 * 8 * 2
    assert traffic_bytes(replace(workload, dtype="float64"), MODES[1]) == both * 2 * 3 * 24 * 8 * 8


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
        *(OURS, "paper_formula", "paper_formula_compiled", "nystrom_attention", "sdpa"),
        *("gaussian_streamed", "gaussian_dense"),
    }


@pytest.mark.parametrize("name", [n for n in RIVALS if not why_missing(n, "cpu", "float32")])
def test_rivals_answer_and_differentiate(name):
    with torch.compiler.set_stance("force_eager"):
        call = RIVALS[name].prepare(SMALL)
        output = call.run("forward")
        gradients = call.run("forward+backward")
    assert output.shape == call.grad_output.shape
    assert [gradient.shape for gradient in gradients] == [x.shape for x in call.inputs]
    assert all(x.isfinite().all() for x in (output, *gradients))


def test_the_compiled_formula_is_the_papers():
    with torch.compiler.set_stance("force_eager"):
        compiled = RIVALS["paper_formula_compiled"].prepare(SMALL).run("forward")
    assert torch.equal(compiled, RIVALS["paper_formula"].prepare(SMALL).run("forward"))


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
    measure_times(
        names, workload, "forward", grid=grid, budget=budget, rounds=1, memory=True, done=print
    )


def test_a_rival_that_fails_does_not_end_the_run(monkeypatch):
    def fail(workload):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(RIVALS, "sdpa", replace(RIVALS["sdpa"], prepare=fail))
    grid = Grid()
    measure([OURS, "sdpa"], grid)
    cell = grid.get("sdpa", SMALL.tokens, "forward")
    assert (cell.timing, cell.skipped, cell.failure) == (None, "failed", "RuntimeError: no kernel")
    assert grid.get(OURS, SMALL.tokens, "forward").timing is not None
    with monkeypatch.context() as mended:
        mended.setitem(RIVALS, "sdpa", replace(RIVALS["sdpa"], prepare=call_sdpa))
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


class FakeCuda:
    """Stands for torch.cuda: notes what is asked of it, and times a call by its place in a list."""

    def __init__(self, milliseconds):
        self.log = []
        self.milliseconds = iter(milliseconds)

    def Event(self, enable_timing):
        event = type("Event", (), {})()
        event.record = lambda: self.log.append("event")
        event.elapsed_time = lambda end: next(self.milliseconds)
        return event

    def synchronize(self):
        self.log.append("wait")


def test_calls_on_cuda_are_timed_between_events_and_with_a_cold_cache(monkeypatch):
    cuda = FakeCuda([5.0, 1.0, 3.0])
    monkeypatch.setattr(cuda_events.torch, "cuda", cuda)
    monkeypatch.setattr(
        cuda_events,
        "_buffer",
        lambda: type("Buffer", (), {"zero_": lambda _: cuda.log.append("flush")})(),
    )
    seconds = cuda_events.event_seconds(
        lambda: cuda.log.append("call"), expected=1e-3, block_seconds=3.5e-3, least_calls=2
    )
    assert seconds == pytest.approx(3e-3)
    assert cuda.log == ["wait", *["flush", "event", "call", "event"] * 3, "wait"]


def test_expected_work_counts_bytes_products_and_exponentials():
    d, m = 8, 5
    forward = expected.Work.of("none", "forward", d, m)
    # Distances twice, Pᵀ V with two pieces of P, P W with two of each but the smallest product.
    assert forward.operations == 2 * m * d * (1 + 2 + 1 + 3)
    assert forward.bytes == 2 * d * 4
    assert forward.exponentials == 2 * m
    both = expected.Work.of("token", "forward+backward", d, m)
    assert both.bytes == 2 * d * (5 + 9)
    assert both.exponentials == 2 * forward.exponentials
    # P M, Pᵀ diag(dc) P and P (M + Mᵀ) are products with m × m arrays.
    assert both.operations == 2 * m * (d * 22 + m * 9)


def test_expected_prints_every_normalization(capsys):
    expected.main(["--total-tokens", "1000"])
    printed = capsys.readouterr().out
    assert "derived, not measured" in printed
    for normalization in ("none", "landmark", "token"):
        assert printed.count(f"│ {normalization} ") == 2


def test_kernel_search_ranks_tiles_without_a_gpu(capsys):
    kernel_search.main(
        "--variant sums --features 16 --landmarks 16 --tokens 16 32 --tile-landmarks 16 --warps 4 "
        "--stages 1".split()
    )
    printed = capsys.readouterr().out
    assert "sums-D16-m16-bfloat16 on sm_90" in printed
    assert len([line for line in printed.splitlines() if line.startswith("│")]) == 2


def test_kernel_resources_are_written_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{kernel_resources.BEGIN}\nold\n{kernel_resources.END}\nafter\n")
    small = tuple(kernel_resources.Case(variant, 16, 16) for variant in ("sums", "block gradient"))
    monkeypatch.setattr(kernel_resources, "CASES", small)
    kernel_resources.main(["--page", str(page), "--variants", "sums"])
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert "old" not in written
    (row,) = [line for line in written.splitlines() if line.startswith("| sums, D = 16")]
    assert row.count(" KiB / ") == 4
    assert "block gradient" not in written
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        kernel_resources.write(page, [])
