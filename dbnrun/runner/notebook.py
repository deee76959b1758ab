"""Training and loading a run from Python: what `dbnrun.train` and `dbnrun.load_run` are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbnrun import interrupt
from dbnrun.config import extensions, overrides, own, registry
from dbnrun.config.compose import composed
from dbnrun.config.identity import SETTINGS, cell_of, signature
from dbnrun.config.registry import GROUPS, UserError
from dbnrun.config.schema import RunConfig, TrainConfig
from dbnrun.data import image_files
from dbnrun.runs import catalog, frames, layout
from dbnrun.runs.load import read_cell

if TYPE_CHECKING:
    import pandas as pd

    from dbnrun.data.dataset import Data
    from dbnrun.models.layers import Network


@dataclass(frozen=True)
class TrainedRun:
    """A run that `train` has ended, or found: its folder, and done, diverged, held (by another process) or left."""

    folder: Path
    status: str

    @property
    def metrics(self) -> pd.DataFrame:
        """A row an epoch."""
        return frames.read_metrics(self.folder)


def train(settings: Mapping[str, Any]) -> TrainedRun:
    """Train one run as the command would with these keys and values, such as {"norm": "dbn", "train.epochs": 3}.

    A finished run is returned as it is, and an unfinished one continues. Ctrl-C writes a checkpoint and raises
    KeyboardInterrupt; the same call continues from there. Raises UserError, with one line, if an input is refused, and
    RuntimeError if the training fails ({"debug": True} raises the error itself).
    """
    from dbnrun.runner import app  # noqa: PLC0415 - Hydra's entry point, not needed to load a run

    config = _composed(settings)
    with interrupt.within_a_call():
        outcome = app.trained(config)
    if outcome.status == "refused":
        raise UserError(outcome.message)
    if outcome.status == "failed":
        raise RuntimeError(f"{outcome.message} (traceback in {outcome.folder / 'run.log'})")
    return TrainedRun(outcome.folder, outcome.message if outcome.status == "skipped" else outcome.status)


def load_run(run: str | Path, settings: Mapping[str, Any] | None = None) -> tuple[Network, Data, RunConfig]:
    """Return a run's network with the trained weights, in eval mode on the CPU, its data, and its config.

    `run` is its folder, its name or its signature; the beginning of a name or signature is enough. `settings` say what
    no run records, such as {"data_dir": "data"}, or where its data or classes are now, such as
    {"dataset.path": "photos"}. Your own classes are loaded from the sources in the run's folder.
    Raises UserError if no weights were saved, or if data or classes differ from those that the run was trained on.
    """
    import torch  # noqa: PLC0415

    from dbnrun.runner.build import build_cell, load_data  # noqa: PLC0415

    folder = catalog.find(layout.results_dir(), run)
    if not (folder / layout.WEIGHTS).exists():
        raise UserError(
            f"{folder}: has no weights; train it with save_weights=true, and force=true where it is finished."
        )
    config = _recorded(folder, dict(settings or {}))
    cpu = torch.device("cpu")
    data = load_data(config, cpu)
    model = build_cell(config, data, cpu).model
    model.load_state_dict(torch.load(folder / layout.WEIGHTS, map_location=cpu, weights_only=True))
    return model.eval(), data, config


def _composed(settings: Mapping[str, Any]) -> RunConfig:
    """The checked configuration that the command composes from these keys and values."""
    if not isinstance(settings, Mapping):
        raise UserError(f'{settings!r}: expected one dict of keys and values, such as {{"norm": "bn", "seed": 0}}.')
    if refused := [key for key in settings if key == "experiment" or key.startswith("hydra")]:
        raise UserError(f"{refused[0]}: belongs to sweeps; expected the keys of one run.")
    image_files.found_at.cache_clear()  # the images may have changed since the last call
    words = overrides.prepared([f"{key}={_spelled(value)}" for key, value in settings.items()], sweep=False)
    extensions.load(words)
    overrides.check_overrides(words)
    try:
        return composed(words)
    except Exception as error:
        if line := overrides.refusal(error):
            raise line from None
        raise


def _spelled(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str | Path):
        text = str(value)
        return text if re.fullmatch(r"[\w./:+-]+", text) else overrides.quoted("", text)[1:]
    if hasattr(value, "item"):  # a number of numpy's
        value = value.item()
    return json.dumps(value)


def _recorded(folder: Path, settings: dict[str, Any]) -> RunConfig:
    """The configuration of a recorded run. Raises UserError where what it stands on is not there, or has changed."""
    cell, manifest = read_cell(folder), layout.read_manifest(folder)
    recorded = manifest.get("outside_cell", {})
    extensions.load([f"plugins=[{','.join(settings.get('plugins', recorded.get('plugins', [])))}]"])
    config = _composed({key: value for key, value in settings.items() if key.partition(".")[0] in SETTINGS})
    for key in settings:
        group, _, name = key.partition(".")
        if group not in SETTINGS and (group not in GROUPS or name not in ("path", "test_path", "target")):
            raise UserError(f"{key}: it belongs to the run; only data_dir, and where data and classes lie, may change.")
    paths = {**recorded, **_kept(folder, cell), **settings}
    choices = {group: _choice(group, cell[group], paths) for group in GROUPS if group in cell}
    others = {key: cell[key] for key in ("seed", "precision", "deterministic")}
    config = replace(config, **choices, **others, train=TrainConfig(**cell["train"]))
    found = signature(cell_of(config), config.dataset.digest_in(Path(config.data_dir)))
    if found != manifest.get("signature", found):
        raise UserError(f"{folder}: its data or classes differ from those that it was trained on.")
    return config


def _choice(group: str, recorded: Mapping[str, Any], paths: Mapping[str, Any]) -> Any:
    """The choice that a run has recorded, with the options that its cell leaves out."""
    known = registry.options_of(registry.of(group)[recorded["name"]])
    found = {key: recorded[key] for key in ("name", *known) if key in recorded}
    found |= {name: paths[key] for name in known if (key := f"{group}.{name}") in paths}
    if group == "optimizer":  # only the default of each group's rate
        found["lr"] = next(iter(recorded["groups"].values()))["lr"]
    if "target" in found and f"{group}.target" not in paths:
        raise UserError(
            f"{group}: the run's folder has no copy of {found['target']}; say where the class lies with "
            f"{group}.target=FILE.py:NAME or package.module:NAME."
        )
    return registry.make(group, **found)


def _kept(folder: Path, cell: Mapping[str, Any]) -> dict[str, str]:
    """The targets of the user's own classes among the sources in the run's folder that are still what it recorded."""
    found = {}
    for group in GROUPS:
        for path in sorted((folder / "source" / group).glob("*.py")):
            key, target = f"{group}.target", f"{path}:{cell[group].get('target')}"
            if "target" in cell[group] and own.source(key, target) == cell[group]["source"]:
                found[key] = target
    return found
