"""dbnrun from Python: the page docs/python.md, what training there leaves alone, and runs that are loaded again."""

import re
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_own import FILES

import dbnrun
from dbnrun import interrupt
from dbnrun.runner import execute
from dbnrun.runs import load, metrics

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
TINY = {"train.epochs": 2, "train.limit_batches": 2, "threads": 1, "save_weights": True}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DBNRUN_RESULTS", raising=False)
    return tmp_path


def test_every_block_of_the_page_works_and_gives_what_it_says(here, capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    status, refused, error = capsys.readouterr().out.splitlines()
    assert status.startswith("done results/runs/digits-fnn-dbn-harmonic-seed0-")
    assert refused.startswith("norm=dnb: expected one of batch_renorm, bn, ") and "Did you mean 'dbn'?" in refused
    assert float(error) == names["run"].metrics["test_error_pct"].iloc[-1]
    assert list(names["curves"].columns) == ["bn", "dbn"] and len(names["curves"]) == 3
    assert sorted(zip(names["runs"]["norm"], names["runs"]["seed"], strict=True)) == [("bn", 0), ("bn", 1), ("dbn", 0)]


def test_tables_hold_what_the_files_hold(here):
    folders = [dbnrun.train({**TINY, "seed": seed, "norm": norm}).folder for seed in (0, 1) for norm in ("bn", "dbn")]
    table = dbnrun.read_metrics("results")
    for folder in folders:
        own = table[table.folder == str(folder)].drop(columns=["folder", "signature"]).reset_index(drop=True)
        file = pd.read_csv(folder / "metrics.csv")
        pd.testing.assert_frame_equal(own, file.astype(own.dtypes))
        one = dbnrun.read_metrics(folder.name[-8:])  # by its signature
        assert list(one.folder.unique()) == [str(folder)] and len(one) == 2
    runs = dbnrun.read_runs().set_index("folder")
    assert set(runs.index) == set(map(str, folders)) and set(runs["status"]) == {"done"}
    for folder in folders:
        last = metrics.read_rows(folder / "metrics.csv")[-1]
        assert runs.loc[str(folder), "test_error_pct"] == last.test_error_pct
        assert runs.loc[str(folder), "seed"] == load.read_run(folder).cell["seed"]
    assert runs.groupby("model.widths").size().to_dict() == {(64, 64): 4}
    assert runs.loc[runs.norm == "bn", "norm.average"].isna().all() and set(runs["train.label_smoothing"]) == {0.0}


def test_a_loaded_network_of_a_users_own_comes_from_the_runs_sources_and_gives_its_test_error(here):
    (here / "helper.py").write_text(FILES["mynorm.py"])
    (here / "mynorm.py").write_text("from helper import BatchRenorm\n")
    (here / "mydata.py").write_text(FILES["mydata.py"])
    own = {"norm": "custom", "norm.target": "mynorm.py:BatchRenorm", "norm.options.r_max": 2.0, "optimizer": "custom"}
    own |= {"optimizer.target": "torch.optim:RMSprop", "dataset": "custom", "dataset.target": "mydata.py:load"}
    run = dbnrun.train({**TINY, **own, "train.batch_size": 20})
    for name in ("helper.py", "mynorm.py", "mydata.py"):
        (here / name).unlink()
    model, data, config = dbnrun.load_run(run.folder.name)
    assert config.norm.options == {"r_max": 2.0} and config.optimizer.target == "torch.optim:RMSprop"
    assert "results" in config.norm.target and not model.training
    assert error_of(model, data) == run.metrics["test_error_pct"].iloc[-1]
    kept = run.folder / "source" / "norm" / "helper.py"
    kept.write_text(kept.read_text() + "# changed\n")
    with pytest.raises(dbnrun.UserError, match="norm: the run's folder has no copy of BatchRenorm"):
        dbnrun.load_run(run.folder)


def test_a_run_with_a_plugins_choice_and_a_class_of_a_package_is_loaded_while_they_can_be_imported(here):
    (here / "mylab").mkdir()
    (here / "mylab" / "norms.py").write_text(FILES["mylab/norms.py"])
    (here / "mylab" / "net.py").write_text(FILES["mynet.py"])
    own = {"model": "custom", "model.target": "mylab.net:Plain", "model.options.width": 4, "norm": "gn"}
    run = dbnrun.train({**TINY, **own})
    model, data, config = dbnrun.load_run(run.folder)
    assert config.model.target == "mylab.net:Plain" and config.model.options == {"width": 4}
    assert error_of(model, data) == run.metrics["test_error_pct"].iloc[-1]
    scaled = dbnrun.train({**TINY, "plugins": ["mylab.norms"], "norm": "rms_scaled", "norm.scale": 0.5})
    model, data, config = dbnrun.load_run(scaled.folder.name)
    assert config.norm.scale == 0.5 and error_of(model, data) == scaled.metrics["test_error_pct"].iloc[-1]


def error_of(model, data):
    with torch.no_grad():
        wrong = model(data.test.inputs(slice(0, len(data.test)))).argmax(1) != data.test.y
    return 100 * wrong.double().mean().item()


def test_a_run_on_the_users_files_is_loaded_from_where_they_lie_and_other_data_are_refused(here):
    lines = [f"{n % 7},{n % 5},{'yes' if n % 7 > 3 else 'no'}" for n in range(200)]
    (here / "x.csv").write_text("\n".join(["a,b,class", *lines]) + "\n")
    table = {"dataset": "table", "dataset.path": "x.csv", "dataset.label": "class", "train.batch_size": 20}
    run = dbnrun.train({**TINY, **table})
    error = run.metrics["test_error_pct"].iloc[-1]
    assert error_of(*dbnrun.load_run(run.folder)[:2]) == error
    (here / "x.csv").rename(here / "moved.csv")
    with pytest.raises(dbnrun.UserError, match="there is no such file"):
        dbnrun.load_run(run.folder)
    assert error_of(*dbnrun.load_run(run.folder, {"dataset.path": "moved.csv"})[:2]) == error
    (here / "moved.csv").write_text("\n".join(["a,b,class", *lines[:-1]]) + "\n")
    with pytest.raises(dbnrun.UserError, match="its data or classes differ from those that it was trained on"):
        dbnrun.load_run(run.folder, {"dataset.path": "moved.csv"})


def test_data_that_change_between_two_calls_are_read_again(here):
    lines = [f"{n % 7},{n % 5},{'yes' if n % 7 > 3 else 'no'}" for n in range(200)]
    table = {"dataset": "table", "dataset.path": "x.csv", "dataset.label": "class", "train.batch_size": 20}
    (here / "x.csv").write_text("\n".join(["a,b,class", *lines]) + "\n")
    first = dbnrun.train({**TINY, **table})
    (here / "x.csv").write_text("\n".join(["a,b,class", *lines, *["3,3,perhaps"] * 20]) + "\n")
    second = dbnrun.train({**TINY, **table})
    assert second.folder != first.folder
    assert [dbnrun.load_run(run.folder, {})[1].num_classes for run in (second,)] == [3]
    classes = [torch.load(run.folder / "weights.pt")["out.weight"].shape[0] for run in (first, second)]
    assert classes == [2, 3]

    own = {"dataset": "custom", "dataset.target": "data.py:load", "train.batch_size": 20}
    (here / "data.py").write_text(OWN_DATA)
    first = dbnrun.train({**TINY, **own})
    (here / "data.py").write_text(OWN_DATA.replace("% 2", "% 4"))
    second = dbnrun.train({**TINY, **own})
    classes = [torch.load(run.folder / "weights.pt")["out.weight"].shape[0] for run in (first, second)]
    assert classes == [2, 4]


OWN_DATA = """
import torch
from torch.utils.data import TensorDataset


def load(data_dir):
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.arange(200) % 2), TensorDataset(x[:40], torch.arange(40) % 2)
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dbnrun.train({"norm": ["bn", "dbn"]}), r"norm=\[bn,dbn\]: expected one name"),
        (lambda: dbnrun.train({"train.epochs": "3,4"}), "train.epochs"),
        (lambda: dbnrun.train({"nrom": "bn"}), "there is no key 'nrom'. Did you mean 'norm'?"),
        (lambda: dbnrun.train({"experiment": "demo"}), "experiment: belongs to sweeps"),
        (lambda: dbnrun.train(["norm=bn"]), "expected one dict of keys and values"),
        (lambda: dbnrun.train({"seed": np.int64(3), "norm": "bnn"}), "norm=bnn: expected one of"),
        (lambda: dbnrun.train({"optimizer.lr": np.float32(-0.5)}), "lr=-0.5: expected a number"),
        (lambda: dbnrun.load_run("0123abcd"), "0123abcd: no run of that name or signature in results"),
        (dbnrun.read_runs, "results: it holds no runs; expected a results folder"),
        (lambda: dbnrun.read_runs("nowhere"), "nowhere: no run of that name or signature in results"),
    ],
)
def test_what_is_refused_is_one_line(here, call, said):
    with pytest.raises(dbnrun.UserError, match=said.replace("?", r"\?")) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_run_without_weights_and_settings_that_are_the_runs_own_are_refused(here):
    run = dbnrun.train({**TINY, "save_weights": False})
    with pytest.raises(dbnrun.UserError, match="has no weights; train it with save_weights=true"):
        dbnrun.load_run(run.folder)
    again = dbnrun.train({**TINY, "force": True})
    assert again == run
    with pytest.raises(dbnrun.UserError, match=r"train\.epochs: it belongs to the run"):
        dbnrun.load_run(run.folder, {"train.epochs": 3})


def test_ctrl_c_in_a_notebook_keeps_a_checkpoint_raises_and_is_forgotten(here, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        record = execute._Run.record
        patched.setattr(execute._Run, "record", lambda *a: (record(*a), signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            dbnrun.train(TINY)
    assert not interrupt.noted() and signal.getsignal(signal.SIGINT) is handler
    recorded = []
    monkeypatch.setattr(execute._Run, "record", lambda self, rows: (record(self, rows), recorded.append(rows[0].epoch)))
    assert dbnrun.train(TINY).status == "done" and recorded == [2]


def test_the_second_ctrl_c_raises_where_it_falls_and_ends_no_process():
    with pytest.raises(KeyboardInterrupt), interrupt.within_a_call():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.noted()
        signal.raise_signal(signal.SIGINT)
    assert not interrupt.noted()


def test_training_works_in_a_thread_where_python_handles_no_signals(here):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(dbnrun.train(TINY).status))
    thread.start()
    thread.join()
    assert ended == ["done"]


def test_a_training_that_fails_raises_and_says_where_its_traceback_is(here, monkeypatch):
    def record(self, rows):
        raise OSError("the disk is gone")

    monkeypatch.setattr(execute._Run, "record", record)
    with pytest.raises(RuntimeError, match=r"OSError: the disk is gone \(traceback in .*run.log\)"):
        dbnrun.train(TINY)
    with pytest.raises(OSError, match="the disk is gone"):
        dbnrun.train({**TINY, "debug": True})
