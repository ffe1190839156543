"""The command for a machine with a GPU: its steps, its limits and its pages, without one."""

import json
import sys

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.pages import BEGIN, END, times_table, write_pages
from benchmarks.gpu.steps import STEPS, Machine, Step


def step(code, seconds=30, **options):
    return Step("a", "shows", seconds, lambda machine: [sys.executable, "-c", code], **options)


class TestRun:
    def test_a_step_passes_or_fails_with_its_log(self, tmp_path):
        machine = Machine("cpu", tmp_path)
        assert gpu.run(step("print('said')"), machine).status == "pass"
        assert (tmp_path / "a.log").read_text() == "said\n"
        failed = gpu.run(step("raise SystemExit(3)"), machine)
        assert failed.status == "fail" and "exit status 3" in failed.reason

    def test_a_step_ends_at_its_limit_with_what_it_started(self, tmp_path):
        child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
        result = gpu.run(step(child, seconds=1), Machine("cpu", tmp_path))
        assert result.status == "fail" and "limit" in result.reason and result.seconds < 20


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Three steps that write how often they ran."""

    def counting(name, code="", **options):
        path = tmp_path / name
        text = f"open({str(path)!r}, 'a').write('x'); {code}"
        return Step(name, "shows", 30, lambda machine: [sys.executable, "-c", text], **options)

    monkeypatch.setattr(
        gpu,
        "STEPS",
        (
            counting("good"),
            counting("bad", "raise SystemExit(1)"),
            counting("absent", obstacle=lambda machine: "needs CUDA"),
        ),
    )
    return tmp_path


def outcomes(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {name: result["status"] for name, result in summary.items()}


def test_summary_says_pass_fail_or_not_run_and_why(steps):
    out = steps / "out"
    assert gpu.main(["--out", str(out), "--device", "cpu"]) == 1
    assert outcomes(out) == {"good": "pass", "bad": "fail", "absent": "not run"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["absent"]["reason"] == "needs CUDA"


def test_resume_runs_what_has_not_passed(steps):
    out = steps / "out"
    for _ in range(2):
        gpu.main(["--out", str(out), "--device", "cpu", "--resume"])
    assert (steps / "good").read_text() == "x"
    assert (steps / "bad").read_text() == "xx"


def test_names_are_those_of_the_steps():
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    args = gpu._parser().parse_args(["--only", names[0], "--skip", *names[1:]])
    assert args.only == names[:1]
    with pytest.raises(SystemExit):
        gpu._parser().parse_args(["--only", "nothing"])


def test_every_step_has_a_command_or_says_what_it_needs(tmp_path):
    for device in ("cpu", "cuda"):
        machine = Machine(device, tmp_path)
        for each in STEPS:
            assert each.obstacle(machine) is None or "\n" not in each.obstacle(machine)
            assert all(isinstance(word, str) for word in each.command(machine))


CELL = {"size": "8x8x3136", "call": "token", "mode": "forward"}
CELLS = [
    CELL | {"graph_seconds": 1e-4, "eager_seconds": 3e-4, "host_seconds": 2e-4, "elements": 10**8},
    CELL | {"call": "sdpa flash", "graph_seconds": 4e-4},
    CELL | {"call": "softmax", "error": "out of memory"},
    CELL | {"call": "near field", "graph_seconds": 3e-4},
]


def test_pages_get_the_table_of_a_run(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "times.json").write_text(json.dumps(CELLS))
    environment = {"device_name": "A GPU", "dtype": "bfloat16", "torch": "3", "triton": "4"}
    machine = {"environment": environment, "ptxas": "V13", "copy_bytes_per_second": 4e12}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    write_pages(tmp_path, docs)
    text = page.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert times_table(CELLS, 4e12) in text
    # Two bytes an element: 2e8 bytes at 4e12 a second are half of 1e-4 seconds.
    assert "| 64 × 3,136 | forward |  | 100 µs |" in text and "| 50 % |" in text
    assert "| 400 µs |  | 4 |" in text
    assert "| 64 × 3,136 | forward | 100 µs | 300 µs |  |  | 3 |  |  |" in text
    assert json.loads((docs / "measurements" / "gpu_a_gpu.json").read_text()) == CELLS


def test_pages_without_times_or_marks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no times\.json"):
        write_pages(tmp_path, tmp_path)
