"""That the bench measures and reports; how fast is for the bench to say, not for a test."""

import json
import time

import pytest
import torch

from bench import Finding, cli, convolution, grid, layer
from bench.subjects import synthetic
from bench.timing import by_turns, duration, ratio
from dbnrun.cli import main


def test_subjects_take_turns_and_a_ratio_is_within_rounds():
    order = []
    times = by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, least=1e-9)
    assert len(times["a"]) == len(times["b"]) == 3
    assert order[-6:] == ["a", "b"] * 3
    finding = ratio("grid", "a over b", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], "≤ 2")
    assert finding == Finding("grid", "a over b", 2.0, "×", 1.0, 3.0, "≤ 2")


def test_a_subject_is_called_until_its_turn_is_full_and_told_in_seconds_a_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def nap():
        clock[0] += 0.25

    times = by_turns({"nap": nap}, rounds=3, least=1.0)
    assert times == {"nap": [0.25] * 3} and clock[0] == (2 + 3 * 4) * 0.25  # two calls to find how many fill a turn
    assert duration("cli", "nap", times["nap"]) == Finding("cli", "nap", 0.25, "s", 0.25, 0.25, "")


def test_a_stack_and_a_column_run_on_random_records():
    data = synthetic("ni", 300, "cpu")
    assert data.train.x.shape == (300, 118) and data.train.y.max() < 5
    grid._stacked(data, "cpu", 2, "dataset=ni", "norm=dbn")()
    rows = grid._epoch(synthetic("mnist", 300, "cpu"), "cpu", grid.TABLE_1[:2])()
    ((members,),) = rows
    assert len(members) == 2


def test_every_way_to_do_several_convolutions_gives_the_same():
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for how in convolution.VARIANTS.values():
        y = how(x, weight, 2)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    one = torch.nn.functional.conv2d(x[:, 4:], weight[4:], padding=1)
    torch.testing.assert_close(results[0][0][:, 4:], one)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_the_layer_bench_covers_every_axis(monkeypatch):
    monkeypatch.setattr(layer, "SHAPES", {(8, 3): "", (4, 3, 2, 2): ""})
    axes = [f"{stats}{grad}" for stats in ("lambda", "batch") for grad in ("", ", no stats_grad")]
    expected = [f"{shape} float32, {axis}, over nn.BatchNorm" for shape in layer.SHAPES for axis in axes]
    assert [finding.what for finding in layer.measure("cpu")] == expected


def test_the_cli_bench_divides_what_each_command_takes_by_what_torch_takes(monkeypatch):
    took = {cli.TORCH: 1.5, cli.OPTIMIZER: 3.0, cli.EPOCH: 2.1, cli.FINISHED: 0.45, cli.PLAN: 1.2}
    took |= {cli.HELP: 0.03, cli.CONFIGURATION: 0.4}
    monkeypatch.setattr(
        cli, "by_turns", lambda subjects, rounds, **_: {name: [took[name]] * rounds for name in subjects}
    )
    expected = [0.7, 1.4, 0.3, 0.8, 0.02, 0.03, 0.4]
    assert [finding.value for finding in cli.measure("cpu")] == pytest.approx(expected)


def test_the_cli_bench_trains_a_new_cell_each_time_beside_one_that_is_finished(dbnrun):
    commands = []
    subjects = cli._subjects(lambda *words: commands.append(words))
    for _ in range(2):
        for subject in subjects.values():
            subject()
    ours = [words[2:] for words in commands if words[:2] == ("-m", "dbnrun")]
    said = [dbnrun(*words, "train.limit_batches=1") for words in ours if words[0].startswith("dataset=")]
    assert [done.stderr.split(",")[0] for done in said] == ["done", "done", "done", "skipped (done before)"]


def test_findings_are_printed_and_written_as_json(monkeypatch, capsys, tmp_path):
    found = [Finding("cli", "dbnrun --help", 0.25, "s", 0.125, 0.5, "≤ 0.4 s")]
    monkeypatch.setattr(cli, "measure", lambda _device: found)
    assert main(["bench", "cli", "--json", str(tmp_path / "figures.json")]) == 0
    assert "dbnrun --help" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"processor", "torch", "threads"} <= figures["machine"].keys()
    assert [Finding(**finding) for finding in figures["findings"]] == found


@pytest.mark.parametrize("words", [["bench", "speed"], ["bench", "--device", "tpu"]])
def test_an_unknown_bench_or_device_is_refused_in_one_line(dbnrun, words):
    done = dbnrun(*words)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
