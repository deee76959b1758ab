"""Training as Hydra runs it: the one place that meets Hydra's entry point, for one cell or a sweep."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig

from dbnrun import interrupt
from dbnrun.config import extensions, overrides
from dbnrun.config.aliases import nearest, nearest_key
from dbnrun.config.registry import UserError, conf_dir
from dbnrun.config.schema import RunConfig, checked, known_keys, store_schema
from dbnrun.runner import sweeper, worker
from dbnrun.runner.plan import planned
from dbnrun.runs.run_dir import RunDir, finished_before
from dbnrun.runs.status import Outcome


def run(arguments: Sequence[str]) -> None:
    """Check what was typed, and let Hydra compose and run it.

    Raises UserError, or what Hydra makes of it, where the input is refused, and CellFailed where a cell failed or has
    diverged.
    """
    flags = _parsed_flags(arguments)
    sweep = flags.multirun or any(word.startswith("experiment=") for word in flags.overrides)
    sys.argv[1:] = arguments  # what a manifest holds as the run's command
    arguments, words = (overrides.prepared(given, sweep) for given in (arguments, flags.overrides))
    extensions.load(words)
    folders = extensions.folders(flags.config_dir, words)
    if not flags.shell_completion:  # what is being completed is not yet right
        overrides.check_overrides(words, folders)
    interrupt.check()
    store_schema(folders)
    _hydra(arguments)


def _parsed_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and, as `overrides`, the rest; UserError at a flag that Hydra does not know."""
    parser = get_args_parser()
    known = [flag for action in parser._actions for flag in action.option_strings]

    def refuse(message: str) -> NoReturn:
        unknown = message.rpartition(": ")[2].split(" ")[0]
        if "unrecognized" in message and not unknown.startswith("-"):
            raise UserError(f"{unknown}: flags, such as -m, must come before the keys.")
        key, _, value = unknown.lstrip("-").partition("=")
        key = key.replace("-", "_")
        hint = nearest(unknown, known) or nearest_key(key, known_keys())
        if key in known_keys():
            hint = f" Keys have no dashes: {key}={value or '…'}."
        said = f"{unknown}: there is no such flag" if "unrecognized" in message else message
        raise UserError(f"{said}.{hint} `dbnrun --help` lists the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    if flags.resolve and not (flags.cfg or flags.info):
        raise UserError("--resolve goes with --cfg, as in `dbnrun --cfg job --resolve`.")
    if flags.package and not flags.cfg:
        raise UserError("--package goes with --cfg, as in `dbnrun --cfg job --package optimizer`.")
    if flags.cfg and (flags.multirun or any(word.startswith("experiment=") for word in flags.overrides)):
        raise UserError("--cfg prints the configuration of one run; `dbnrun plan` shows what a sweep would train.")
    if flags.run or flags.experimental_rerun:
        raise UserError(
            "--run and --experimental-rerun are not supported: dbnrun key=value trains one run, dbnrun -m a sweep."
        )
    if flags.config_name or flags.config_path or flags.hydra_help:
        raise UserError(
            "--config-name, --config-path and --hydra-help are not supported: there is one configuration, which "
            "`dbnrun --cfg job` prints; --config-dir DIR adds your own choices."
        )
    return flags


def _hydra(arguments: Sequence[str]) -> None:
    """One cell here, or a sweep by runner.sweeper."""
    outcomes: list[Outcome] = []

    def cell(cfg: Any) -> Outcome:
        outcome = _cell(cfg)
        if not sweeper.cells_to_train:  # a sweep raises for itself
            outcomes.append(outcome)
        return outcome

    # Our launcher files share the plugins' names, so Hydra checks them by the plugins' schemas: intended.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.* is validated against ConfigStore schema")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us whole; we say them in one line
    version.setbase("1.3")
    parser = get_args_parser()
    _run_hydra(parser.parse_args(arguments), parser, cell, config_path=str(conf_dir()), config_name="config")
    if not outcomes:
        return
    if outcomes[0].status == "refused":
        raise UserError(outcomes[0].message)
    if outcomes[0].status == "failed":
        raise sweeper.CellFailed("the run failed. Its finished epochs are kept; the same command tries it again.")
    if outcomes[0].diverged:
        since = f" from {outcomes[0].where} on" if outcomes[0].where else ""
        raise sweeper.CellFailed(f"the run diverged: the training loss is not finite{since}; {sweeper.MENDED}.")


def trained(config: RunConfig) -> Outcome:
    """Train a cell, unless it is finished, or retry= asks for others; torch is imported where something trains."""
    if config.force:
        RunDir(config).begin_anew()
    outcome = sweeper.left_alone(config) or finished_before(config)
    if outcome is None:
        interrupt.check()  # before the seconds that importing torch takes
        from dbnrun.runner import execute  # noqa: PLC0415 - torch

        outcome = execute.run(config)
    return outcome


def _cell(cfg: Any) -> Outcome:
    """What Hydra runs for each cell: train it, say in one line how it ended, return the Outcome.

    A refused configuration is an Outcome too: for an exception, Hydra would print lines of its own.
    """
    try:
        config = checked(cfg)
        planned(config)  # a user's own data may not load, or files may be no data set
    except Exception as error:
        line = overrides.refusal(error)
        if line is None:
            raise
        return Outcome(" ".join(HydraConfig.get().overrides.task), Path(), "refused", message=str(line))
    if not sweeper.cells_to_train and not worker.in_worker():  # a sweep folds such cells, and says so
        for line in overrides.without_effect(HydraConfig.get().overrides.task, config):
            print(f"dbnrun: warning: {line}", file=sys.stderr)
    with worker.job(config.threads) if worker.in_worker() else interrupt.noting():
        outcome = trained(config)
    if sweeper.cells_to_train:
        sweeper.announce(outcome, HydraConfig.get().job.num + 1)
    elif outcome.status != "refused":  # which ends the command, with its line
        sweeper.announce(outcome, 0)
    return outcome
