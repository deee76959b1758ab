"""What a report calls things: the user's own classes, choices that are not registered here, options that differ."""

import json
from typing import Any

import pytest
import yaml
from synthetic import cell, constant, run, write_run

from dbnrun.cli import main
from dbnrun.config.identity import readable_name
from dbnrun.paper.protocols import experiment_of
from dbnrun.paper.result_set import result_set
from dbnrun.report import figures, names, report, tables
from dbnrun.report.series import gather, settings_of
from dbnrun.runs.load import read_runs

SHA = "sha256:" + "12345678" * 8
OWN = {"name": "custom", "target": "BatchRenorm", "source": SHA}


def with_norm(norm: Any, seed: int = 0, schedule: Any = None, **other: Any) -> Any:
    content = cell(schedule or constant(0.5), seed)
    if schedule is None:
        del content["schedule"]
    return content | {"norm": norm} | other


def labels(*norms: Any, schedule: Any = None) -> list[str]:
    ((setting),) = settings_of([run(with_norm(norm, schedule=schedule), [3.0, 2.0]) for norm in norms])
    return sorted(series.label for series in setting.series)


def test_two_classes_of_one_name_are_told_apart_by_options_and_else_by_source():
    assert labels(OWN) == ["BatchRenorm"]
    assert labels(OWN, OWN | {"options": {"r_max": 1}}) == ["BatchRenorm", "BatchRenorm, r_max=1"]
    edited = OWN | {"source": "sha256:" + "abcdef01" * 8}
    assert labels(OWN, edited) == ["BatchRenorm, source=12345678", "BatchRenorm, source=abcdef01"]


def test_two_normalizers_of_a_kind_are_told_apart_by_the_option_that_differs():
    bn = {"name": "bn", "eps": 1e-5, "affine": True}
    assert labels(bn | {"momentum": 0.1}, bn | {"momentum": 0.01}) == [
        "BN (PyTorch), momentum=0.01",
        "BN (PyTorch), momentum=0.1",
    ]
    dbn = cell(constant(0.5), protocol="B")["norm"]
    assert labels(dbn, dbn | {"average": "var"}, schedule=constant(0.5)) == [
        "α = 0.5, average=std",
        "α = 0.5, average=var",
    ]


def test_a_class_that_bears_the_name_of_a_built_in_choice_is_not_taken_for_it():
    own = {"name": "custom", "target": "bn", "source": SHA}
    assert labels({"name": "bn", "eps": 1e-5}, own) == ["BN (PyTorch)", "own-bn"]
    content = with_norm(own, dataset={"name": "custom", "target": "mnist", "source": SHA, "val_size": 0.1})
    assert readable_name(content) == "own-mnist-fnn-own-bn-seed0"
    assert not result_set([run(content, [3.0, 2.0])]).mains


def unknown_runs(results):
    """Cells with a choice of each group that no registry here knows, as a plugin or a later version records them."""
    shape = {"optimizer": {"name": "lion", "beta": 0.9, "groups": {"all": {"pattern": "*", "lr": 1e-3}}}}
    folders = [
        write_run(results, with_norm({"name": "newest", "tau": 1}), [3.0, 2.5]),
        write_run(results, with_norm({"name": "newest", "tau": 2}), [3.0, 2.4]),
        write_run(results, with_norm({"name": "later", "eps": 1}, schedule={"name": "exp", "rate": 0.9}), [3.0, 2.0]),
        write_run(results, cell({"name": "exp", "rate": 0.9, "unit": "step"}), [3.0, 2.1]),
        write_run(results, cell(norm="bn") | {"model": {"name": "vit", "depth": 3}}, [3.0, 2.0]),
        write_run(results, cell(norm="bn") | {"lr_schedule": {"name": "wsd", "decay": 0.2}}, [3.0, 2.0]),
        write_run(results, cell(norm="bn") | shape, [3.0, 2.0]),
    ]
    folders.append(other := write_run(results, cell(norm="bn", seed=7), [3.0, 2.0]))
    content = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(content | {"dataset": {"name": "svhn", "val_size": 0.1}}))
    return folders


def test_names_that_are_not_registered_here_have_a_label_a_row_and_a_figure(tmp_path, capsys):
    folders = unknown_runs(tmp_path)
    settings = {setting.slug: setting for setting in gather([tmp_path], strict=True)}
    assert sum(setting.n for setting in settings.values()) == len(folders)
    assert settings.keys() == {
        "mnist-fnn-adagrad",
        "mnist-vit-adagrad",
        "mnist-fnn-adagrad-wsd",
        "mnist-fnn-lion",
        "svhn",
    }
    assert [series.label for series in settings["mnist-fnn-adagrad"].series] == [
        "newest, tau=1",
        "newest, tau=2",
        "exp rate=0.9, unit=step",
        "exp rate=0.9",
    ]
    assert tables.describe(settings["mnist-vit-adagrad"].cell).startswith("vit, adagrad 0.01")
    assert "wsd learning rate" in tables.describe(settings["mnist-fnn-adagrad-wsd"].cell)
    assert tables.describe(settings["mnist-fnn-lion"].cell).startswith("fnn 300-300, lion 0.001")
    drawn = {path.name for path in report([tmp_path], tmp_path / "out")}
    assert {f"{slug}-test-error.png" for slug in settings} <= drawn
    assert "left out" not in capsys.readouterr().err


def test_what_is_not_registered_here_is_recorded_and_sorted_as_well(tmp_path):
    unknown_runs(tmp_path)
    runs = read_runs([tmp_path], strict=True)
    results = result_set(runs)
    assert sum(setting.n for setting in results.settings) == len(runs)
    assert {experiment_of(one.cell) for one in runs} == {"mnist_baselines", "mnist_A", "mnist_other", "svhn_baselines"}


def test_runs_of_ones_own_class_stand_in_the_papers_report_beside_its_bn():
    runs = [run(cell(norm="bn", seed=seed), [3.0, 2.0]) for seed in range(2)]
    runs += [run(with_norm(OWN | more, seed), [3.0, 1.5]) for seed in range(2) for more in ({}, {"options": {"r": 1}})]
    results = result_set(runs)
    (setting,) = results.settings
    assert tables.rows(setting)["curve"].tolist() == ["BN (PyTorch)", "BatchRenorm", "BatchRenorm, r=1"]
    assert results.statistics["curve"].unique().tolist() == ["bn"]  # Table 1 has the paper's alone
    assert {experiment_of(one.cell) for one in runs} == {"mnist_baselines"}


@pytest.mark.parametrize("name", [None, 3, ["bn"]])
@pytest.mark.parametrize("group", ["dataset", "model", "norm", "optimizer"])
def test_a_choice_without_a_name_makes_no_cell(tmp_path, capsys, group, name):
    folder = write_run(tmp_path, cell(norm="bn"), [3.0, 2.0])
    content = json.loads(json.dumps(cell(norm="bn")))
    content[group]["name"] = name
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["report", str(tmp_path), "--strict", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml: not a run of dbnrun" in line


def test_learning_rate_schedules_networks_and_ones_own_data_make_short_file_names(tmp_path):
    plain = cell(norm="bn")
    cosine = {"name": "cosine", "warmup": 0.0, "final": 0.0}
    resnet = {"name": "torchvision", "arch": "resnet18", "stem": "auto"}
    own_data = {"name": "custom", "target": "load", "source": SHA, "val_size": 0.1}
    contents = [
        plain,
        plain | {"lr_schedule": cosine},
        plain | {"lr_schedule": cosine | {"final": 0.1}},
        plain | {"model": resnet},
        plain | {"dataset": own_data},
        plain | {"dataset": {"name": "folder", "label": "Leaves", "val_size": 0.1, "test_size": 0.2}},
    ]
    settings = settings_of([run(content, [3.0, 2.0]) for content in contents])
    assert {setting.slug for setting in settings} == {
        "mnist-fnn", "mnist-fnn-cosine-final0", "mnist-fnn-cosine-final0.1", "mnist-resnet18", "load", "Leaves",
    }  # fmt: skip


def test_normalizers_without_a_colour_of_their_own_never_look_alike():
    norms = [OWN | {"target": f"Norm{i}"} for i in range(12)] + [{"name": "bn", "momentum": m} for m in (0.1, 0.01)]
    (setting,) = settings_of([run(with_norm(norm), [3.0, 2.0]) for norm in norms])
    markers = figures._markers(setting.series)
    looks = {(str(figures.line_style(series)), markers[id(series)]) for series in setting.series}
    assert len(looks) == len(norms)
    colors = [figures.line_style(series)["color"] for series in setting.series]
    assert len(set(colors[2:10])) == 8  # eight are told apart by colour alone


def test_labels_are_sorted_by_the_numbers_in_them():
    labels = ["GN, num_groups=16", "GN, num_groups=4", "GN, lr=0.5", "GN, lr=0.25", "GN, lr=1e-05"]
    assert sorted(labels, key=names.natural) == [labels[4], labels[3], labels[2], labels[1], labels[0]]
