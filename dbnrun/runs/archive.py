"""The committed records: finished runs as tidy files, from which alone every table, figure and page is drawn.

    <results>/records/
        mnist_A.csv     a row a cell and epoch; signature, curve, seed, then the columns of metrics.csv
        mnist_A.json    the cells (their whole configuration, once a curve) and where each run's numbers come from

Errors keep nine significant digits (every count of a data set is told apart), losses six, seconds three decimals.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dbnrun.config.identity import schedule_key
from dbnrun.config.registry import UserError
from dbnrun.runs import layout, lock, metrics
from dbnrun.runs.load import RunRecord, distinct, say_unlike, spelled
from dbnrun.runs.metrics import COLUMNS, REQUIRED, EpochRow

HEAD = ("signature", "curve", "seed")
# Manifest keys stored for each run; those of ORIGIN are stored once for all runs that share them.
OWN = ("started", "wall_seconds", "git", "command")
ORIGIN = (
    "results_version", "versions", "device", "device_name", "host", "threads", "compile", "deterministic", "stacked",
    "together", "test_records",
)  # fmt: skip
TRIAL = {"limit_batches", "limit_eval"}  # a run with one of these among train's keys is a trial
RESTORE = "restore it with `git checkout`, or move it away and record its runs again"


def _own(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run's own manifest entries; of its command what could be typed anywhere, without its machine's folders."""
    own = {key: manifest[key] for key in OWN if key in manifest}
    if own.get("command"):
        program, *words = map(str, own["command"])
        folders = ("results_dir=", "data_dir=", "dataset.path=", "dataset.test_path=")
        own["command"] = [Path(program).name, *(word for word in words if not word.startswith(folders))]
    return own


def update(folder: Path, runs: Sequence[RunRecord], file_of: Callable[[Mapping[str, Any]], str]) -> list[RunRecord]:
    """Unite the records in `folder` with the finished ones of `runs`, write what is new, and return all of them.

    `file_of` names the file of a cell, such as 'mnist_A', from the cell alone: merging is a union by signature.
    Where a cell comes with other numbers than are recorded the record stands, of several new copies the first, and a
    line says so: nothing is averaged or written over. Trials, with train.limit_batches or train.limit_eval, are not
    recorded.
    """
    finished = [run for run in runs if run.status in layout.FINISHED]
    found = [run for run in finished if not TRIAL & run.cell["train"].keys()]
    if trials := {run.signature for run in finished} - {run.signature for run in found}:
        print(f"not recorded: {len(trials)} finished trials, with train.limit_batches or train.limit_eval")
    if not found:
        return read(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock.leased(folder):
            kept = read(folder)
            united, unlike = distinct([*kept, *found])
            known = {run.signature for run in kept}
            changed = {file_of(run.cell) for run in united if run.signature not in known}
            for experiment in sorted(changed):
                _write(folder, experiment, [run for run in united if file_of(run.cell) == experiment])
    except lock.Held as held:
        raise UserError(f"{folder}: {held} is writing to it; wait until it ends, then repeat the command.") from None
    say_unlike(unlike)
    return read(folder)


def signatures(folder: Path) -> set[str]:
    """The signatures of the recorded runs, from the sidecars alone. Raises UserError at a damaged one."""
    return {
        signature
        for path in sorted(folder.glob("*.json"))
        for signature, (cell, manifest) in _described(path).items()
        if not layout.is_stale(manifest, cell["dataset"]["name"])
    }


def is_archive(folder: Path) -> bool:
    """Whether a folder holds records: sidecars, each beside its CSV."""
    return any(path.with_suffix(".csv").is_file() for path in folder.glob("*.json"))


def read(folder: Path) -> list[RunRecord]:
    """Every recorded run, in the order of the files; [] where there are none. Raises UserError at a damaged file."""
    return [run for path in sorted(folder.glob("*.csv")) for run in _read(path)]


def _read(path: Path) -> list[RunRecord]:
    """The runs of one experiment. A run that the sidecar knows and the CSV does not was cut off while being added."""
    runs, described = [], _described(path.with_suffix(".json"))
    for signature, rows in _rows(path).items():
        if signature not in described:
            raise UserError(f"{path}: run {signature} is not in {path.stem}.json beside it; {RESTORE}.")
        cell, manifest = described[signature]
        if layout.is_stale(manifest, cell["dataset"]["name"]):
            raise UserError(
                f"{path}: run {signature} was recorded by a version with other numbers; move the file "
                "and its .json away and record its runs again."
            )
        _check_whole(path, signature, cell, manifest, rows)
        runs.append(
            RunRecord(path, signature, manifest["data_digest"], cell, manifest["status"], tuple(rows), manifest)
        )
    return runs


def _described(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each run's cell and manifest by signature, put together again from what a sidecar says once.

    Raises UserError where the sidecar is damaged.
    """
    described = {}
    try:
        sidecar = json.loads(path.read_text())
        for signature, entry in sidecar["runs"].items():
            shared = sidecar["cells"][entry["cell"]]
            own = {key: value for key, value in entry.items() if key not in ("cell", "origin", "seed")}
            manifest = {**sidecar["origins"][entry["origin"]], "data_digest": shared["data_digest"], **own}
            described[signature] = {**shared["config"], "seed": entry["seed"]}, manifest
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); {RESTORE}.") from None
    return described


def _rows(path: Path) -> dict[str, list[EpochRow]]:
    """The rows of a records CSV by signature."""
    rows: dict[str, list[EpochRow]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in (*HEAD, *REQUIRED) if name not in (reader.fieldnames or [])]:
            raise UserError(f"{path}: expected the column {missing[0]!r}; {RESTORE}.")
        for line in reader:
            try:
                rows[line["signature"]].append(metrics.parse_row(line))
            except ValueError as error:
                raise UserError(f"{path}: line {reader.line_num}: {error}; {RESTORE}.") from None
    return rows


def _check_whole(
    path: Path, signature: str, cell: Mapping[str, Any], manifest: Mapping[str, Any], rows: Sequence[EpochRow]
) -> None:
    """Raises UserError where a recorded run lacks epochs: only whole runs are ever recorded."""
    epochs = cell["train"]["epochs"] if manifest["status"] == "done" else len(rows)
    if [row.epoch for row in rows] != list(range(1, epochs + 1)):
        raise UserError(
            f"{path}: run {signature} has epochs {rows[0].epoch} to {rows[-1].epoch} in {len(rows)} rows, "
            f"expected 1 to {epochs}; {RESTORE}."
        )


def _write(folder: Path, experiment: str, runs: Sequence[RunRecord]) -> None:
    """The sidecar first: cut off in between, the CSV is the old one and its runs are all described.

    Raises UserError where a newer version has written columns that would be lost.
    """
    metrics.refuse_unknown_columns(folder / f"{experiment}.csv", (*HEAD, *COLUMNS))
    ordered = sorted(runs, key=lambda run: (schedule_key(run.cell), run.cell["seed"], run.signature))
    layout.write_atomic(folder / f"{experiment}.json", _sidecar(ordered).encode())
    layout.write_atomic(folder / f"{experiment}.csv", _csv(ordered).encode())


def _csv(runs: Sequence[RunRecord]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*HEAD, *COLUMNS))
    for run in runs:
        head = (run.signature, schedule_key(run.cell), run.cell["seed"])
        writer.writerows((*head, *fields) for fields in spelled(run, COLUMNS))
    return text.getvalue()


def _sidecar(runs: Sequence[RunRecord]) -> str:
    """What the runs share once, then a line a run."""
    cells: dict[str, int] = {}  # as JSON: the same content in another order of keys is another
    origins: dict[str, int] = {}
    entries = []
    for run in runs:
        config = {key: value for key, value in run.cell.items() if key != "seed"}
        origin = {key: run.manifest[key] for key in ORIGIN if key in run.manifest}
        entry = {
            "cell": cells.setdefault(json.dumps({"data_digest": run.data_digest, "config": config}), len(cells)),
            "origin": origins.setdefault(json.dumps(origin), len(origins)),
            "seed": run.cell["seed"],
            "status": run.status,
            **_own(run.manifest),
        }
        entries.append(f"  {json.dumps(run.signature)}: {json.dumps(entry)}")
    shared = {"cells": cells, "origins": origins}
    blocks = [f'"{name}": [\n' + ",\n".join(f"  {text}" for text in texts) + "\n]" for name, texts in shared.items()]
    return "{\n" + ",\n".join([*blocks, '"runs": {\n' + ",\n".join(entries) + "\n}"]) + "\n}\n"
