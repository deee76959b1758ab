"""How a run ended, or stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbnrun.runs import layout, lock
from dbnrun.runs.metrics import EpochRow

# How a cell can stand, in the order in which `dbnrun plan` counts them.
STATUSES = {
    "done": "finished",
    "diverged": "ended because the training loss was not finite; retry=diverged trains it again",
    "forced": "finished; force=true trains it again and keeps the old records aside",
    "recorded": "in the committed records; skip_recorded=true leaves it out",
    "running": "a live process trains it",
    "unfinished": "continues from its last checkpoint",
    "failed": "ended with an error; the same command tries it again",
    "left": "skipped: retry= selects other runs",
    "stale": "recorded by an older version with other numbers; trained again, the old records kept aside",
    "new": "not trained yet",
}
ON_DISK = ("running", "failed", "unfinished", "stale", "diverged", "done", "new")  # those of a folder, worst first
TO_TRAIN = ("forced", "unfinished", "failed", "stale", "new")  # what a sweep would train; retry=diverged adds those


@dataclass(frozen=True)
class RunStatus:
    """How a cell's folder stands: one of STATUSES, and in words who holds it or what went wrong."""

    name: str
    detail: str = ""


def status_of(folder: Path, dataset: str, manifest: Mapping[str, Any] | None = None) -> RunStatus:
    """Read off the folder of a cell on a data set, and its manifest, how it stands, changing nothing."""
    holder = lock.live_holder(folder)
    return RunStatus("running", str(holder)) if holder else recorded_status(folder, dataset, manifest)


def recorded_status(folder: Path, dataset: str, manifest: Mapping[str, Any] | None = None) -> RunStatus:
    """The same, whether or not a process trains it now."""
    manifest = layout.read_manifest(folder) if manifest is None else manifest
    if layout.is_stale(manifest, dataset):
        return RunStatus("stale", f"of results version {manifest.get('results_version', 1)}")
    status = str(manifest.get("status", "new"))
    lost = status in layout.FINISHED and not (folder / "metrics.csv").is_file()
    if lost or status in ("running", "interrupted"):  # a holder that is dead could not say so itself
        return RunStatus("unfinished", "its metrics.csv is missing" if lost else "")
    details = {"failed": str(manifest.get("error", "")), "diverged": layout.divergence(manifest)}
    return RunStatus(status if status in STATUSES else "new", details.get(status, ""))


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: done, diverged, skipped (finished before), left (retry= asks for others), held (by another
    process), refused or failed."""

    name: str
    folder: Path
    status: str
    row: EpochRow | None = None  # its last
    message: str = ""
    where: str = ""  # it diverged, now or before: 'epoch 2, step 37', where that is recorded

    @property
    def diverged(self) -> bool:
        """Whether the cell has ended, now or before, with a training loss that is not finite."""
        return "diverged" in (self.status, self.message)
