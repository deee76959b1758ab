"""The command `dbnrun`: its verbs, its exit codes, and the one place that meets Hydra's entry point.

Exit codes: 0 done; 1 a cell failed or has diverged; 2 the user's input was refused, with one line; 130 interrupted,
resumable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dbnrun import __version__, interrupt

HELP = """\
dbnrun: train and compare (diminishing) batch normalization, reproducibly

  dbnrun [key=value …]        train one cell:  dbnrun dataset=cifar10 norm=dbn schedule=harmonic
  dbnrun -m [key=a,b …]       train a grid:    dbnrun -m norm=bn,dbn schedule=alpha_0.1,harmonic seed=0,1,2
  dbnrun experiment=NAME      train a grid that conf/experiment/NAME.yaml describes

  dbnrun plan [key=a,b …]     say what a grid would train, what is done or failed, and how long it may take
  dbnrun status [PATH …]      how the runs stand: progress, errors, who trains them (--watch)
  dbnrun report [PATH …]      draw figures, tables and report.html from what is recorded; trains nothing
  dbnrun data [NAME …]        fetch and verify data sets ahead of time
  dbnrun doctor               what this machine has: versions, device, data, disk, determinism
  dbnrun theory check|run|figures   the convergence theorem: conditions on (α, η), Algorithm 1 with full gradients
  dbnrun bench [NAME …]       measure what dbnrun costs: layer, cell, grid, cli, plan, report

Choose one of each (the model follows the data set unless given):
{choices}

Often changed: train.epochs=10 train.batch_size=100 train.limit_batches=50 seed=0 optimizer.lr=0.01
  train.limit_eval=1000 train.eval_every=5 schedule.alpha=0.1 schedule.unit=epoch precision=fp32|tf32|bf16
  device=auto|cpu|cuda threads=2 compile=true data_dir=DIR results_dir=DIR save_weights=true theory=true
  debug=true checkpoint.minutes=10
  retry=failed|diverged trains those alone that failed, or diverged, before
  with -m: fail_fast=true stops at the first failure

  -m, --multirun         sweep over comma-separated values
  --cfg job              print the configuration and train nothing (--resolve fills in references)
  --version, -h, --help
  -sc install=bash       print shell completion; use it with: eval "$(dbnrun -sc install=bash)"

A finished cell is skipped, an unfinished one goes on where it stopped. Results: $DBNRUN_RESULTS, or results/;
data: $DBNRUN_DATA, or data/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        with interrupt.noting():
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        message = "dbnrun: interrupted; every finished epoch is kept. The same command goes on from there."
        print(message, file=sys.stderr)
        # A verb's interrupt falls anywhere. Where it passed through exec or eval of a string, as importing dataclasses
        # does, CPython remembers it and ends `python -m dbnrun` by SIGINT whatever is returned here; evaluating
        # another clears that.
        eval("None")
        return interrupt.EXIT_CODE
    except BrokenPipeError:
        # The reader of our output has gone (`dbnrun … | head`): nothing left to say, to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    trains = not first or first.startswith(("-", "+", "~")) or "=" in first
    if first == "help" or (trains and {"-h", "--help"} & set(arguments)):
        print(_help(), end="")
        return 0
    if first == "--version":
        print(f"dbnrun {__version__}")
        return 0
    if trains:
        return _train(arguments)
    if first not in VERBS:
        return _refuse(f"{first}: no such verb; expected one of {', '.join(VERBS)}, or key=value to train.")
    with interrupt.raising():
        return VERBS[first](arguments[1:])


def _help() -> str:
    """The help, with what one can choose as the files of conf/ have it."""
    import textwrap

    from dbnrun.config import registry

    wide = {"width": 112, "break_on_hyphens": False, "subsequent_indent": " " * 14}
    groups = registry.files()
    order = [*(group for group in registry.GROUPS if group in groups), *(g for g in groups if g not in registry.GROUPS)]
    lines = [textwrap.fill(f"  {group:10}  {', '.join(groups[group])}", **wide) for group in order]
    return HELP.replace("{choices}", "\n".join(lines))


def _refuse(line: str) -> int:
    print("dbnrun: " + " ".join(line.split("\n")), file=sys.stderr)
    return 2


def _train(arguments: list[str]) -> int:
    """Hand a cell or a sweep to Hydra, and turn what comes back into an exit code and at most one line."""
    from dbnrun.config import overrides
    from dbnrun.runner.sweeper import CellFailed

    try:
        flags = _parsed_flags(arguments)
        if not flags.shell_completion:  # what is being completed is not yet right
            overrides.check_overrides(flags.overrides)
        interrupt.check()
        _hydra(arguments)
    except CellFailed as failed:
        print(f"dbnrun: {failed}", file=sys.stderr)
        return 1
    except Exception as error:
        line = overrides.refusal(error)
        if line is None or "debug=true" in [word.lower() for word in arguments]:
            raise
        return _refuse(str(line))
    return 0


def _parsed_flags(arguments: list[str]) -> argparse.Namespace:
    """Hydra's flags and, as `overrides`, the rest; UserError at a flag that Hydra does not know."""
    from hydra._internal.utils import get_args_parser

    from dbnrun.config.registry import UserError, nearest
    from dbnrun.config.schema import known_keys

    parser = get_args_parser()
    known = [flag for action in parser._actions for flag in action.option_strings]

    def refuse(message: str) -> NoReturn:
        unknown = message.rpartition(": ")[2].split(" ")[0]
        if "unrecognized" in message and not unknown.startswith("-"):
            raise UserError(f"{unknown}: comes after a flag that follows a key; write flags, such as -m, first.")
        key = unknown.lstrip("-").replace("-", "_")
        hint = f" Keys have no dashes: {key}=…." if key in known_keys() else nearest(unknown, known)
        raise UserError(f"{message}.{hint} See `dbnrun --help`.")

    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    if flags.resolve and not (flags.cfg or flags.info):
        raise UserError("--resolve goes with --cfg, as in `dbnrun --cfg job --resolve`.")
    if flags.package and not flags.cfg:
        raise UserError("--package goes with --cfg, as in `dbnrun --cfg job --package optimizer`.")
    if flags.run or flags.experimental_rerun:
        raise UserError(
            "--run and --experimental-rerun mean nothing here: one cell trains without a flag, a grid with -m."
        )
    return flags


def _hydra(arguments: list[str]) -> None:
    """Let Hydra compose and run: one cell here, or a sweep by runner.sweeper. Raises what ends with an exit code."""
    import hydra

    from dbnrun.config.registry import UserError, conf_dir
    from dbnrun.config.schema import store_schema
    from dbnrun.runner import sweeper

    outcomes = []

    def cell(cfg: Any) -> Any:
        outcomes.append(_cell(cfg))
        return outcomes[-1]

    store_schema()
    # Our files for other people's launchers bear their names, and are checked against their schema: as meant.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.* is validated against ConfigStore schema")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us whole; we say them in one line
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(cell)()
    if sweeper.cells_to_train or not outcomes:
        return  # a sweep raises for itself
    if isinstance(outcomes[0], UserError):
        raise outcomes[0]
    if outcomes[0].status == "refused":
        raise UserError(outcomes[0].message)
    if outcomes[0].status == "failed":
        raise sweeper.CellFailed("the cell failed; what was recorded is kept, and the same command tries again.")
    if outcomes[0].diverged:
        since = f" from {outcomes[0].where} on" if outcomes[0].where else ""
        raise sweeper.CellFailed(f"the training loss was not finite{since}; {sweeper.MENDED}.")


def _cell(cfg: Any) -> Any:
    """What Hydra runs for each cell: train it, say in one line how it ended, return the Outcome.

    A configuration that is refused comes back as the UserError itself: raised here, Hydra would print its own lines.
    """
    from dbnrun.config.schema import checked

    try:
        config = checked(cfg)
    except Exception as error:
        from dbnrun.config.overrides import refusal

        line = refusal(error)
        if line is None:
            raise
        return line
    from hydra.core.hydra_config import HydraConfig

    from dbnrun.config import overrides
    from dbnrun.runner import sweeper, worker
    from dbnrun.runs.run_dir import finished_before

    if not sweeper.cells_to_train and not worker.in_worker():  # a sweep folds such cells, and says so
        for line in overrides.without_effect(HydraConfig.get().overrides.task, config):
            print(f"dbnrun: warning: {line}", file=sys.stderr)
    with worker.job(config.threads) if worker.in_worker() else interrupt.noting():
        outcome = sweeper.left_alone(config) or finished_before(config)
        if outcome is None:
            interrupt.check()  # before the seconds that importing torch takes
            from dbnrun.runner import execute

            outcome = execute.run(config)
    if sweeper.cells_to_train:
        sweeper.announce(outcome, HydraConfig.get().job.num + 1)
    elif outcome.status != "refused":  # which ends the command, with its line
        sweeper.announce(outcome, 0)
    return outcome


def _verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dbnrun {verb}", description=description)

    def refuse(message: str) -> NoReturn:
        print(f"dbnrun {verb}: {message}. See `dbnrun {verb} --help`.", file=sys.stderr)
        raise SystemExit(2)

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _plan(arguments: list[str]) -> int:
    parser = _verb_parser("plan", "Say what a command would train, by the same overrides as the sweep; trains nothing.")
    parser.add_argument("overrides", nargs="*", metavar="key=a,b", help="as for dbnrun -m")
    parser.add_argument("-m", "--multirun", action="store_true", help="accepted, and implied")
    parser.add_argument("--all", action="store_true", help="list every cell")
    parser.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    options = parser.parse_intermixed_args(arguments)

    from dbnrun.config import overrides
    from dbnrun.runner import plan

    try:
        found = plan.asked(options.overrides)
        statuses = plan.statuses(found.cells)
    except Exception as error:
        line = overrides.refusal(error)
        if line is None:
            raise
        return _refuse(str(line))
    if options.json:
        print(json.dumps(plan.as_json(found, statuses), indent=1))
    else:
        print("\n".join(plan.lines(found, statuses, options.all)))
    return 0


def _status(arguments: list[str]) -> int:
    parser = _verb_parser("status", "How runs stand: progress, last error, time an epoch, time left, holder.")
    parser.add_argument("paths", nargs="*", type=Path, help="results folders or run folders")
    parser.add_argument("--all", action="store_true", help="list finished runs, too")
    parser.add_argument("--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="again every 2 seconds")
    options = parser.parse_intermixed_args(arguments)
    if options.watch is not None and not 0.1 <= options.watch <= 86400:
        return _refuse(f"--watch {options.watch:g}: expected seconds between 0.1 and 86400.")

    from dbnrun.config.registry import UserError
    from dbnrun.runner import status_table

    paths = options.paths or [Path(os.environ.get("DBNRUN_RESULTS", "results"))]
    try:
        if options.watch is not None:
            status_table.watch(paths, options.all, options.watch)
        else:
            print("\n".join(status_table.table(paths, options.all)))
    except UserError as error:
        return _refuse(str(error))
    return 0


def _doctor(arguments: list[str]) -> int:
    parser = _verb_parser("doctor", "What this machine has, and whether dbnrun can rely on it. Exit code 1 if not.")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DBNRUN_DATA", "data")))
    parser.add_argument("--results-dir", type=Path, default=Path(os.environ.get("DBNRUN_RESULTS", "results")))
    options = parser.parse_args(arguments)

    from dbnrun.runner import doctor

    return 0 if doctor.report(options.data_dir, options.results_dir) else 1


def _report_parser() -> argparse.ArgumentParser:
    parser = _verb_parser("report", "Draw figures and tables from recorded CSVs; trains nothing.")
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        help="results folders or run folders, on their own (default: the records, and the results folder's runs)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where figures/ and tables/ go (default: the results folder; with PATH: that, if it has no records)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        help="without PATH: run folders to add to the records (default: the results folder)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="write the results into these documents too (default: README.md, docs/findings.md)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse where a run folder cannot be read (default: warn, leave it out)"
    )
    return parser


def _report(arguments: list[str]) -> int:
    options = _report_parser().parse_args(arguments)
    readmes = options.readme
    if readmes == []:  # named without files
        documents = [path for path in map(Path, ("README.md", "docs/findings.md")) if path.exists()]
        readmes = documents or [Path("README.md")]
    results = Path(os.environ.get("DBNRUN_RESULTS", "results"))
    if options.paths and (options.runs or readmes):
        return _refuse("report: --runs and --readme go with the committed records; leave PATH out.")
    out = options.out or (_own_folder(options.paths) if options.paths else results)
    if out is None:
        return _refuse("report: say where tables and figures of these runs go, such as --out report.")

    from dbnrun.config.registry import UserError
    from dbnrun.paper import publish
    from dbnrun.report import report

    try:
        if options.paths:
            report(options.paths, out, strict=options.strict)
        else:
            publish(results, options.runs or [results], out, readmes or [], strict=options.strict)
    except OSError as error:
        return _refuse(f"{error.filename or options.out}: cannot be written or read ({error.strerror}).")
    except UserError as error:
        return _refuse(str(error))
    return 0


def _own_folder(paths: Sequence[Path]) -> Path | None:
    """The results folder that a report of its runs alone is drawn in: not where the records' report stands."""
    if len(paths) != 1 or (paths[0] / "records").is_dir():
        return None
    return paths[0] if (paths[0] / "runs").is_dir() or not paths[0].exists() else None


def _data(arguments: list[str]) -> int:
    from dbnrun.config import registry
    from dbnrun.config.registry import UserError, nearest

    known = registry.of("dataset")
    names = [name for name in known if name != "digits"]
    parser = _verb_parser("data", "Fetch and verify data sets ahead of time; what is there and sound is left alone.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(names)} (default: all)")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DBNRUN_DATA", "data")))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        return _refuse(
            f"{unknown[0]}: no such data set; expected any of {', '.join(names)}.{nearest(unknown[0], names)}"
        )

    from dbnrun.data import download

    code = 0
    for name in options.names or names:
        try:
            download.ensure(known[name], options.data_dir)
            own = "inside scikit-learn, verified when it is loaded"
            print(f"{name}: {own if name == 'digits' else f'complete and verified in {options.data_dir}'}")
        except UserError as error:
            code = _refuse(str(error))
    return code


def _bench(arguments: list[str]) -> int:
    scripts = Path(__file__).parent.parent / "scripts"
    if not (scripts / "bench").is_dir():
        return _refuse(
            "bench: what it measures stands in scripts/bench of a checkout, and this is an installed package."
        )
    sys.path.append(str(scripts))
    from bench import BENCHES, run

    parser = _verb_parser("bench", "Measure what dbnrun costs, as ratios within one run.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHES]:
        return _refuse(f"{unknown[0]}: no such bench; expected any of {', '.join(BENCHES)}.")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return _refuse("--device cuda: torch sees no CUDA device here; use --device cpu.")
    run(options.names or BENCHES, options.device, options.json)
    return 0


def _theory(arguments: list[str]) -> int:
    from dbnrun.theory import cli

    return cli.main(arguments, _verb_parser("theory", "The paper's convergence theorem: check it, watch it."))


VERBS = {
    "plan": _plan, "status": _status, "report": _report, "data": _data, "theory": _theory, "doctor": _doctor,
    "bench": _bench,
}  # fmt: skip
