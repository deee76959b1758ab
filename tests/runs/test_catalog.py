"""`dbnrun runs`: what is listed, found, compared and removed."""

import copy
import json
import shutil
import sys

import pytest

from dbnrun.runs import catalog, layout, load, lock, metrics

CELL = ["train.epochs=2", "train.limit_batches=2", "threads=1", "progress=false"]
NAMES = ("digits-fnn-bn-seed0", "digits-fnn-bn-seed1", "digits-fnn-dbn-alpha0.1-seed0", "digits-fnn-dbn-alpha0.1-seed1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with the four runs of NAMES, in their order."""
    from dbnrun.cli import main

    results = tmp_path_factory.mktemp("trained") / "results"
    assert main(["-m", *CELL, "norm=bn,dbn", "seed=0,1", f"results_dir={results}"]) == 0
    return results


@pytest.fixture
def results(trained, tmp_path):
    """A copy of those runs, in the folder where commands are given."""
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


def folder_of(results, name):
    (folder,) = (results / "runs").glob(f"{name}-????????")
    return folder


def edit(folder, **changed):
    layout.write_manifest(folder, {**layout.read_manifest(folder), **changed})


def listed(said):
    """The names without signatures, of a table's last column."""
    return tuple(line.split()[-1].rpartition("-")[0] for line in said.splitlines()[1:-1])


def test_runs_are_listed_by_filters_with_what_they_have_reached(command, results):
    edit(folder_of(results, NAMES[2]), status="failed", error="OSError: no space")
    code, said = command("runs", "ls")
    assert code == 0 and listed(said) == NAMES and said.endswith("3 done, 1 failed\n")
    assert listed(command("runs", "ls", "norm=dbn", "seed=1")[1]) == NAMES[3:]
    assert listed(command("runs", "ls", "status=failed")[1]) == NAMES[2:3]
    assert listed(command("runs", "ls", "status=failed,done", "norm=bn")[1]) == NAMES[:2]
    assert command("runs", "ls", "norm=ln")[1] == "norm=ln: none of 4 runs has it; they have norm=bn,dbn.\n"
    found = json.loads(command("runs", "ls", "--json", "schedule=alpha_0.1", "--results-dir", "results")[1])
    assert [(one["status"], one["epoch"], one["epochs"], one["options"]["seed"]) for one in found] == [
        ("failed", 2, 2, 0),
        ("done", 2, 2, 1),
    ]
    for one in found:
        assert one["test_error_pct"] == load.read_run(results / "runs" / one["name"]).rows[-1].test_error_pct


def test_a_list_says_in_which_setting_runs_of_one_name_differ(command, results):
    folder = folder_of(results, NAMES[0])
    twin = shutil.copytree(folder, folder.with_name("digits-fnn-bn-seed0-0123abcd"))
    content = copy.deepcopy(load.read_cell(twin))
    content["optimizer"]["groups"] = {
        name: {**group, "lr": 0.03} for name, group in content["optimizer"]["groups"].items()
    }
    layout.write_cell(twin, content)
    head, *lines, _ = command("runs", "ls")[1].splitlines()
    assert head.endswith("settings")
    settings = {line[head.index("settings") :] for line in lines if "-bn-" in line}
    assert settings == {"lr=0.01", "lr=0.03"} and all(
        line == line[: head.index("settings")].strip() for line in lines if "-dbn-" in line
    )


def test_a_list_fits_100_columns_and_keeps_the_end_of_a_long_name(command, results):
    folder = folder_of(results, NAMES[0])
    folder.rename(folder.with_name(f"{'long' * 30}-0123abcd"))
    lines = command("runs", "ls")[1].splitlines()
    assert max(map(len, lines)) == 100 and sum("…" in line and line.endswith("long-0123abcd") for line in lines) == 1


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_listed(command, results):
    (folder_of(results, NAMES[0]) / "config.yaml").write_text("dataset: [")
    (folder_of(results, NAMES[1]) / "metrics.csv").write_text("epoch\n1\n")
    code, said = command("runs", "ls")
    warning = next(line for line in said.splitlines() if "warning" in line)
    assert code == 0 and "left out" in warning and NAMES[0] in warning
    assert next(line for line in said.splitlines() if NAMES[1] in line).split()[:3] == ["done", "?/2", "unreadable"]


def test_a_run_is_found_by_path_name_signature_or_how_they_begin(results):
    folder = folder_of(results, NAMES[2])
    signature = folder.name[-8:]
    others = [path.name[-8:] for path in (results / "runs").iterdir() if path != folder]
    prefix = next(signature[:n] for n in range(1, 9) if not any(other.startswith(signature[:n]) for other in others))
    for word in (folder, str(folder), folder.name, signature, prefix, NAMES[2]):
        assert catalog.find(results, word) == folder
    with pytest.raises(catalog.UserError, match="digits-fnn-bn: 2 runs begin so, such as digits-fnn-bn-seed0-"):
        catalog.find(results, "digits-fnn-bn")
    with pytest.raises(catalog.UserError, match="nothing: no run of that name or signature in "):
        catalog.find(results, "nothing")


def test_a_run_is_shown_with_its_options_last_epoch_versions_and_files(command, results):
    folder = folder_of(results, NAMES[3])
    edit(folder, status="failed", error="OSError: no space")
    layout.set_aside(folder_of(results, NAMES[3]) / "run.log")
    code, said = command("runs", "show", folder.name[-8:])
    words = [line.split() for line in said.splitlines()]
    last = metrics.read_rows(folder / "metrics.csv")[-1]
    assert code == 0 and said.startswith(f"{folder.name}: failed (OSError: no space)\n2 of 2 epochs")
    for expected in (
        ["norm", "dbn"],
        ["schedule.alpha", "0.1"],
        ["seed", "1"],
        ["train_loss", f"{last.train_loss:.6g}"],
    ):
        assert expected in words
    assert any(line[:2] == ["run.set-aside-1.log", "0.8"] or line[:1] == ["run.set-aside-1.log"] for line in words)
    assert max(map(len, said.splitlines())) <= 100


def test_two_runs_are_compared_by_what_differs_and_their_last_common_epoch(command, results):
    a, b = folder_of(results, NAMES[0]), folder_of(results, NAMES[1])
    edit(b, git="another", versions={**layout.read_manifest(b)["versions"], "torch": "9.9"})
    one, other = (metrics.read_rows(folder / "metrics.csv")[-1] for folder in (a, b))
    code, said = command("runs", "diff", a.name[-8:], str(b))
    words = [line.split() for line in said.splitlines()]
    assert code == 0 and ["seed", "0", "1"] in words and not any(line[:1] == ["norm.eps"] for line in words)
    assert (
        next(line for line in words if line[:1] == ["torch"])[-1] == "9.9" and "first epoch that differs: 1 (" in said
    )
    assert ["test_loss", f"{one.test_loss:.6g}", f"{other.test_loss:.6g}",
            f"{other.test_loss - one.test_loss:+.3g}"] in words  # fmt: skip
    same = command("runs", "diff", a.name, a.name)[1]
    assert "configuration: the same" in same and "made by: the same" in same
    assert "the rows of 2 epochs are equal, except for the seconds" in same


def test_the_first_epoch_that_differs_is_found_nan_included_and_seconds_left_out(results):
    rows = metrics.read_rows(folder_of(results, NAMES[0]) / "metrics.csv")
    nan = [load.replace(row, train_loss=float("nan"), train_seconds=row.epoch) for row in rows]
    again = [load.replace(row, train_loss=float("nan"), train_seconds=0.0) for row in rows]
    assert catalog.first_difference(nan, again) is None
    again[1] = load.replace(again[1], lr=0.5, grad_norm=0.25)
    assert catalog.first_difference(nan, again) == (2, ["lr", "grad_norm"])
    assert catalog.first_difference(rows, rows[:1]) is None


@pytest.fixture
def answer(monkeypatch):
    """Let the command stand on a terminal where somebody answers so."""

    def answers(word):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda question: word)

    return answers


def names(results):
    return tuple(sorted(folder.name.rpartition("-")[0] for folder in (results / "runs").iterdir()))


def test_removing_asks_and_without_a_terminal_is_refused(command, results, answer, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdin, "isatty", lambda: False, raising=False)
        code, said = command("runs", "rm", "norm=bn")
    assert code == 2 and listed(said)[:2] == NAMES[:2]
    assert said.splitlines()[-1].startswith("dbnrun: runs rm: it asks before it removes 2 runs, which needs a terminal")
    answer("n")
    assert command("runs", "rm", "norm=bn")[1].endswith("nothing removed\n") and names(results) == NAMES
    answer("y")
    assert command("runs", "rm", "norm=bn")[1].endswith("2 runs removed\n") and names(results) == NAMES[2:]


def test_a_run_that_trains_stays_and_so_does_all_that_no_run_has_made(command, results):
    kept = results / "records" / "kept.csv"
    kept.parent.mkdir()
    kept.write_text("recorded")
    outside = results.parent / "outside-0123abcd"
    shutil.copytree(folder_of(results, NAMES[0]), outside)
    link = results / "runs" / "linked-0123abcd"
    link.symlink_to(outside)
    inside = results / "runs" / "mine"
    shutil.copytree(outside, inside)
    (folder_of(results, NAMES[1]) / "note").symlink_to(kept)
    with lock.leased(folder_of(results, NAMES[0])):
        code, said = command("runs", "rm", "--all", "--yes")
    assert code == 0 and said.endswith("3 runs removed\n") and said.count("kept: ") == 3
    assert f"kept: {folder_of(results, NAMES[0]).name} (process " in said
    assert {path.name for path in (results / "runs").iterdir()} == {
        folder_of(results, NAMES[0]).name, link.name, inside.name,
    }  # fmt: skip
    assert kept.read_text() == "recorded" and (outside / "metrics.csv").exists()
    assert command("runs", "rm", str(outside), "--yes")[1].endswith("0 runs removed\n") and outside.exists()


def test_a_process_that_takes_a_run_after_the_list_was_shown_keeps_it(results):
    folder = folder_of(results, NAMES[0])
    with lock.leased(folder):
        assert "trains it" in catalog.remove(folder, results)
    assert metrics.read_rows(folder / "metrics.csv")
    assert catalog.remove(folder, results) == "" and not folder.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs", "lss"], "runs lss: expected one of ls, show, diff, export, rm. Did you mean 'ls'?"),
        (["runs", "rm"], "runs rm: say which runs, by filters such as status=failed, by name, or --all."),
        (["runs", "rm", "seed=0", "--all"], "runs rm: say which runs"),
        (["runs", "ls", "nrom=bn"], "nrom=bn: there is no key 'nrom'. Did you mean 'norm'?"),
        (["runs", "ls", "status=dune"], "status=dune: expected one of running, failed, unfinished, "),
        (["runs", "show", "digits-fnn"], "digits-fnn: 4 runs begin so"),
    ],
)
def test_a_mistake_is_one_line(command, results, words, said):
    code, found = command(*words)
    assert code == 2 and found.startswith(f"dbnrun: {said}") and found.count("\n") == 1


def test_cells_that_share_their_parts_are_read_as_yaml_reads_each_alone(results, tmp_path):
    folders = list((results / "runs").iterdir())
    for folder in folders:
        assert load.read_cell(folder) == load.yaml.safe_load((folder / "config.yaml").read_text())
    for text in (
        "# a comment\nseed: 1\n",
        "seed: &one 1\nother: *one\n",
        "---\nseed: 1\n",
        "{seed: 1}",
        "a: 'b\n\nc: d'\n",
    ):
        (tmp_path / "config.yaml").write_text(text)
        assert load.read_cell(tmp_path) == load.yaml.safe_load(text), text
