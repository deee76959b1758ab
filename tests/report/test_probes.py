"""The figure of probes, from files written by hand."""

import contextlib

import numpy as np
import pytest
from test_report import cell, constant, record

from dbnrun.report import page, probes, report
from dbnrun.report.series import gather
from dbnrun.runs import layout
from dbnrun.runs.probe import MEASURED, ProbeRow, ProbeWriter, csv_lines


def put(folder, sigmas, layers=("hidden.0.norm", "hidden.1.norm"), **more):
    """A probe.csv whose sigma is the given one of an epoch, plus the number of the layer."""
    rows = [
        ProbeRow(epoch=epoch, layer=layer, **{**dict.fromkeys(MEASURED), "sigma": sigma + number, **more})
        for epoch, sigma in enumerate(sigmas, start=1)
        for number, layer in enumerate(layers)
    ]
    with contextlib.closing(ProbeWriter(folder, 1)) as writer:
        writer.write(csv_lines(rows))


@pytest.fixture
def results(tmp_path):
    for seed, sigmas in ((0, [1.0, 2.0, 3.0]), (1, [3.0, 4.0, 8.0])):
        put(record(tmp_path, cell("dbn", constant(0.1), seed), [3, 2, 1]), sigmas, mean_share=0.25)
    record(tmp_path, cell(), [3, 2, 1])  # without a probe
    return tmp_path


def test_a_panel_shows_the_mean_over_the_probed_seeds_of_a_layer_and_quantity(results):
    (setting,) = gather([results])
    figure = probes._figure(setting, probes.probed_of(setting))
    panels = np.array(figure.axes).reshape(2, 6)
    (line,) = panels[1][1].get_lines()
    assert panels[0][1].get_title(loc="left") == "σ_B" and panels[1][0].get_ylabel() == "hidden.1.norm"
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [3.0, 4.0, 6.5]
    assert [text.get_text() for text in panels[0][0].texts] == ["none"]  # its field is empty in every row
    assert "n = 2 seeds" in figure.texts[0].get_text() and len(figure.legends[0].get_lines()) == 1


def test_a_report_has_the_figure_where_a_run_has_a_probe_and_only_there(results, capsys):
    written = report([results], results / "out")
    assert {path.name for path in written} >= {"mnist-probes.png", "mnist-probes.svg"}
    assert "mnist-probes.png" in capsys.readouterr().out
    assert "data:image/svg+xml;base64," in (results / "out" / "report.html").read_text()
    for path in results.glob(f"runs/*/{layout.PROBE}"):
        path.unlink()
    assert not [path for path in report([results], results / "without") if "probes" in path.name]
    assert "data:image/svg+xml" not in (results / "without" / "report.html").read_text()


def test_a_damaged_probe_is_warned_of_and_left_out(results, capsys):
    first, _ = sorted(results.glob(f"runs/*/{layout.PROBE}"))
    first.write_text(first.read_text() + "oops\n")
    (setting,) = gather([results])
    ((_, count, _),) = probes.probed_of(setting)
    assert count == 1 and "warning: left out" in capsys.readouterr().err


def test_of_many_layers_eight_are_shown_the_first_and_the_last_among_them(tmp_path):
    put(record(tmp_path, cell(epochs=1), [3]), [1.0], layers=[f"bn{number}" for number in range(20)])
    (setting,) = gather([tmp_path])
    figure = probes._figure(setting, probes.probed_of(setting))
    names = [ax.get_ylabel() for ax in figure.axes[::6]]
    assert len(names) == 8 and names[0] == "bn0" and names[-1] == "bn19" and "8 of 20" in figure.texts[0].get_text()
    assert page.section(setting)["probes"].startswith("data:")
