"""The loggers: what each shows of a run equals the run's metrics.csv, whatever happened; and none is fatal."""

import csv
import importlib
import json
import os
import signal
import struct
import sys
import threading
import types
from pathlib import Path

import pytest

from dbnrun.config import schema
from dbnrun.config.compose import composed
from dbnrun.runner import execute
from dbnrun.runs import live, metrics
from dbnrun.runs.run_dir import RunDir

QUICK = ["train.epochs=3", "train.limit_batches=4", "device=cpu", "threads=1", "progress=false"]
# Every second epoch has empty fields.
CNN = ["model=cnn", "model.widths=[4,4,8,8,16]"]  # has dropout
CELL = ["norm=dbn", "schedule=harmonic", "train.eval_every=2", "optimizer=sgd"]


@pytest.fixture
def cell(tmp_path, tmp_path_factory, monkeypatch):
    """A checked, small configuration; what loggers write goes to folders of the tests, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))  # read once a process
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(live.Live, "unusable", set())
    return lambda *overrides: composed([*QUICK, f'results_dir="{tmp_path / "results"}"', *CELL, *overrides])


@pytest.fixture(params=live.EXPORTS)
def logger(request):
    pytest.importorskip(
        request.param, reason=f"needs the package {request.param}: pip install 'dbnrun[{request.param}]'"
    )
    return request.param


def recorded(folder, logger=""):
    """Every value of metrics.csv by column and epoch, read without dbnrun's reader; as precise as a logger has it."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    kept = as_float32 if logger == "tensorboard" else float
    return sorted((name, int(row["epoch"]), kept(text)) for row in rows for name, text in row.items() if text)


def as_float32(text):
    return struct.unpack("f", struct.pack("f", float(text)))[0]


def shown(logger, folder):
    """Every value that a logger shows of the run in `folder`, by the logger's own reader; one entry a point."""
    return sorted(READERS[logger](folder))


def tensorboard_points(folder):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {SCALARS: 0}).Reload()
    for name in events.Tags()["scalars"]:
        yield from ((name, event.step, event.value) for event in events.Scalars(name))


def trackio_points(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [run for run in importlib.import_module("trackio").Api().runs("dbnrun") if run.name == folder.name]
    for row in SQLiteStorage.get_logs("dbnrun", run.name, run_id=run.id):
        epoch, row["step"] = row["step"], row.pop("updates")
        yield from ((name, epoch, value) for name, value in row.items() if name != "timestamp")


def mlflow_points(folder):
    client = importlib.import_module("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("dbnrun").experiment_id
    signature = folder.name.rpartition("-")[2]
    (run,) = client.search_runs([experiment], filter_string=f"tags.signature = '{signature}'")
    assert run.info.run_name == folder.name and run.data.params["seed"] in ("0", "1")
    for name in run.data.metrics:
        yield from ((name, point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


READERS = {"tensorboard": tensorboard_points, "trackio": trackio_points, "mlflow": mlflow_points}


def stop_at(monkeypatch, epoch, *, after_checkpoint):
    """End the process' training at an epoch whose row is written: before its checkpoint, or after it."""
    save = RunDir.checkpoint

    def stopping(self, state):
        if after_checkpoint or state["epoch"] != epoch:
            save(self, state)
        if state["epoch"] == epoch:
            monkeypatch.setattr(RunDir, "checkpoint", save)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "checkpoint", stopping)


def whole(cell, logger, monkeypatch):
    return execute.run(cell(logger))


def resumed(cell, logger, monkeypatch):
    stop_at(monkeypatch, 2, after_checkpoint=True)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(logger))
    return execute.run(cell(logger))


def an_epoch_twice(cell, logger, monkeypatch):
    """Its row was shown, and its checkpoint was lost: it is trained again, in other seconds."""
    stop_at(monkeypatch, 2, after_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell(logger))
    return execute.run(cell(logger))


def logger_from_the_second_epoch_on(cell, logger, monkeypatch):
    stop_at(monkeypatch, 1, after_checkpoint=True)
    with pytest.raises(KeyboardInterrupt):
        execute.run(cell())
    return execute.run(cell(logger))


def trained_anew(cell, logger, monkeypatch):
    execute.run(cell(logger))
    RunDir(cell(logger)).begin_anew()
    return execute.run(cell(logger))


STORIES = (whole, resumed, an_epoch_twice, logger_from_the_second_epoch_on, trained_anew)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_what_is_shown_equals_the_rows_exactly(cell, logger, story, monkeypatch):
    outcome = story(cell, f"logger={logger}", monkeypatch)
    assert outcome.status == "done"
    points = recorded(outcome.folder, logger)
    assert {epoch for _, epoch, _ in points} == {1, 2, 3} and len(points) > 30
    assert shown(logger, outcome.folder) == points


def test_what_is_shown_equals_the_rows_after_a_kill(dbnrun, tmp_path, logger, cell):
    kill = "import os; from dbnrun.runs import live; show = live.Live.write\n"
    kill += "live.Live.write = lambda self, row: (show(self, row), row.epoch == 2 and os.kill(os.getpid(), 9))"
    words = [*QUICK, *CELL, f"logger={logger}"]
    assert dbnrun(*words, before=kill).returncode == -signal.SIGKILL
    assert dbnrun(*words).returncode == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    assert shown(logger, folder) == recorded(folder, logger)


def test_runs_of_one_process_are_each_shown_on_their_own(cell, logger):
    shared = [cell(f"logger={logger}", "norm=dbn_inference", f"schedule={name}") for name in ("alpha_0.1", "harmonic")]
    stack = [shared, [cell(f"logger={logger}", "norm=dbn_inference", "seed=1")]]
    outcomes = [outcome for run in execute.run_all(stack) for outcome in run]
    assert len({outcome.folder for outcome in outcomes}) == 3
    for outcome in outcomes:
        assert shown(logger, outcome.folder) == recorded(outcome.folder, logger)


def test_a_logger_changes_no_number(cell, tmp_path, logger):
    rows = []
    for name in ("none", logger):
        outcome = execute.run(cell(f"logger={name}", f'results_dir="{tmp_path / name}"', *CNN))
        rows.append([row for row in recorded(outcome.folder) if row[0] not in metrics.TIME_COLUMNS])
    assert rows[0] == rows[1]


def test_an_export_shows_what_is_recorded(cell, logger, command, tmp_path):
    folders = [execute.run(cell(f"seed={seed}")).folder for seed in (0, 1)]
    for _ in range(2):  # again makes no point twice
        code, said = command("runs", "export", "--to", logger)
        assert code == 0 and f"2 runs exported to {logger}" in said
    for folder in folders:
        assert shown(logger, folder) == recorded(folder, logger)


def test_an_export_leaves_out_what_trains_and_what_its_filters_do(cell, monkeypatch, command):
    exported = []
    monkeypatch.setattr(live, "show", lambda to, folder, *_: exported.append(folder.name))
    folders = [execute.run(cell(f"seed={seed}")).folder for seed in (0, 1, 2)]
    with RunDir(cell("seed=1", "train.epochs=4")) as under_way:
        code, said = command("runs", "export", "--to", "tensorboard", "seed=0,1")
        assert code == 0 and f"left out: {under_way.folder.name}" in said
    assert exported == [folder.name for folder in folders[:2]]


@pytest.mark.parametrize(
    ("words", "line"),
    [(["--to", "wandb"], "invalid choice: 'wandb'"), ([], "required: --to"), (["--to", "mlflow"], "dbnrun[mlflow]")],
)
def test_an_export_that_cannot_be_is_refused_in_one_line(cell, command, monkeypatch, words, line, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    execute.run(cell())
    capsys.readouterr()
    try:
        code, said = command("runs", "export", *words)
    except SystemExit as refused:
        code, said = refused.code, capsys.readouterr().err
    assert code == 2 and line in said and said.count("\n") == 1


class Recorder:
    """A logger that keeps what it is told, and fails where it is told to."""

    fails: str = ""
    told: list

    def __init__(self, folder, signature, cell, rows):
        self.tell("open", folder.name, signature, [row.epoch for row in rows])

    def write(self, row):
        self.tell("write", row)

    def close(self, status):
        self.tell("close", status)

    def tell(self, what, *about):
        self.told.append((what, *about))
        if self.fails == what:
            raise OSError(f"no server to {what}\nand more lines")


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "told", [], raising=False)
    monkeypatch.setitem(live.LOGGERS, "tensorboard", Recorder)
    return Recorder


def test_a_logger_is_called_once_an_epoch_with_the_very_row(cell, recorder):
    outcome = execute.run(cell("logger=tensorboard"))
    (_, name, signature, before), *written, closed = recorder.told
    assert (name, before) == (outcome.folder.name, []) and name.endswith(f"-{signature}")
    assert [what for what, _ in written] == ["write"] * 3 and written[-1][1] is outcome.row
    assert closed == ("close", "done")


def test_a_logger_is_told_how_the_run_ended(cell, recorder, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, 1, after_checkpoint=True)
        execute.run(cell("logger=tensorboard"))
    assert recorder.told[-1] == ("close", "interrupted")
    assert execute.run(cell("logger=tensorboard", "optimizer.lr=1e30")).diverged
    assert recorder.told[-1] == ("close", "diverged")


@pytest.mark.parametrize("moment", ["open", "write", "close"])
def test_a_broken_logger_warns_once_a_run_and_stops_nothing(cell, recorder, monkeypatch, moment, capsys):
    monkeypatch.setattr(recorder, "fails", moment)
    outcomes = [execute.run(cell("logger=tensorboard", f"seed={seed}")) for seed in (0, 1)]
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    assert all(len(list(csv.DictReader((outcome.folder / "metrics.csv").open()))) == 3 for outcome in outcomes)
    warning = f"dbnrun: warning: logger=tensorboard: OSError: no server to {moment}."
    # One that does not open is not tried again in the process.
    assert capsys.readouterr().err.count(warning) == (1 if moment == "open" else 2)
    assert [what for what, *_ in recorder.told].count(moment) == (1 if moment == "open" else 2)


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(cell, name, monkeypatch, capsys):
    for module in (name, f"{name}.entities"):
        monkeypatch.setitem(sys.modules, module, None)
    assert execute.run(cell(f"logger={name}")).status == "done"
    assert f"pip install 'dbnrun[{name}]'. Training goes on without it." in capsys.readouterr().err


def test_every_logger_of_the_schema_is_there_and_has_its_extra():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert ("none", *live.LOGGERS) == schema.LOGGERS
    assert set(live.LOGGERS) <= set(project["optional-dependencies"])


class WandB(types.ModuleType):
    """A stand-in for the package: runs by id, with the rule that a step which is past is left out."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.histories, self.finished = [], {}, []

    def Settings(self, **given):
        return given

    def ended(self, exit_code):
        self.finished.append(exit_code)

    def init(self, **given):
        self.begun.append(given)
        if os.environ["WANDB_MODE"] == "offline":
            self.histories.pop(given["id"], None)  # a new folder
        history = self.histories.setdefault(given["id"], [])
        run = types.SimpleNamespace(step=history[-1][0] + 1 if history else 0)

        def log(values, step):
            assert step >= run.step, "wandb would leave this row out"
            history.append((step, values))
            run.step = step

        run.log, run.finish = log, self.ended
        return run


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("story", [whole, resumed], ids=lambda story: story.__name__)
def test_wandb_gets_each_row_once_under_the_signature(cell, monkeypatch, story, mode):
    wandb = WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_MODE", mode)
    outcome = story(cell, "logger=wandb", monkeypatch)
    for thread in threading.enumerate():
        if thread.name.startswith("wandb"):
            thread.join()
    ((signature, history),) = wandb.histories.items()
    assert outcome.folder.name.endswith(f"-{signature}")
    points = [(name, step, value) for step, row in history for name, value in row.items()]
    assert sorted(points) == recorded(outcome.folder)
    assert wandb.finished == ([0] if story is whole else [1, 0])
    assert all(given["resume"] == "allow" and given["reinit"] == "create_new" for given in wandb.begun)
    assert json.dumps(wandb.begun[0]["config"]) and wandb.begun[0]["config"]["norm"] == "dbn"
