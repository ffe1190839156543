"""The benchmark of error over time."""

import json

from benchmarks.common.token_maps import INPUTS
from benchmarks.frontier import __main__ as frontier
from benchmarks.frontier.measurements import WAYS


def test_every_way_is_a_line_on_every_input(run_benchmark):
    command = "frontier --side 8 --landmarks 9 4 --rows 10 --rounds 1 --seconds-per-cell 0.01"
    content, output, figures = run_benchmark(command)
    points = content["points"]
    assert len(points) == len(INPUTS) * len(WAYS) * 2
    assert all(0 < p["error"] < 1 and 0 < p["seconds"] for p in points)
    assert set(figures) == {"frontier", *(f"frontier_{name}" for name in INPUTS)}
    assert "64 tokens" in output and "m = 9" in output


def test_ctrl_c_keeps_the_inputs_that_are_finished(tmp_path, monkeypatch, capsys):
    real = frontier.points_of

    def interrupted(name, *rest):
        if name == "normal":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(frontier, "points_of", interrupted)
    words = ["--side", "5", "--landmarks", "4", "--rounds", "1", "--seconds-per-cell", "0.01"]
    frontier.main([*words, "--out", str(tmp_path)])
    content = json.loads((tmp_path / "measurements" / "frontier_cpu_float32.json").read_text())
    assert content["interrupted"] and {p["input"] for p in content["points"]} == set(INPUTS[:-1])
    monkeypatch.setattr(frontier, "INPUTS", ["normal"])
    frontier.main([*words, "--out", str(tmp_path / "none")])
    assert "wrote nothing" in capsys.readouterr().out
