"""The command `dbnrun`: its verbs, its exit codes, and the one place that meets Hydra's entry point.

Exit codes: 0 done; 1 a cell failed; 2 the user's input was refused, with one line; 130 interrupted, resumable.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dbnrun import __version__

HELP = """\
dbnrun: train and compare (diminishing) batch normalization, reproducibly

  dbnrun [key=value …]        train one cell:  dbnrun dataset=cifar10 norm=dbn schedule=harmonic
  dbnrun -m [key=a,b …]       train a grid:    dbnrun -m norm=bn,dbn schedule=alpha_0.1,harmonic seed=0,1,2
  dbnrun experiment=NAME      train a grid that conf/experiment/NAME.yaml describes

  dbnrun report [PATH …]      draw figures and tables from what is recorded; trains nothing
  dbnrun data [NAME …]        fetch and verify data sets ahead of time
  dbnrun bench [NAME …]       measure what dbnrun costs: layer, cell, grid, cli, report
  dbnrun theory check|run|figures   the convergence theorem: conditions on (α, η), Algorithm 1 with full gradients

Choose one of each:
  dataset     digits, mnist, ni, cifar10
  model       fnn, cnn, two_layer                      (follows the data set unless given)
  norm        bn, dbn, dbn_inference, ln, gn, none
  schedule    constant, harmonic, inverse_square, power, alpha_1, alpha_0.75, … alpha_0
  optimizer   adagrad, sgd, adam, adamw
  experiment  demo, paper_mnist, paper_ni, paper_cifar10

Often changed: train.epochs=10 train.batch_size=100 train.limit_batches=50 seed=0 optimizer.lr=0.01
  schedule.alpha=0.1 schedule.unit=epoch precision=fp32|tf32|bf16 device=auto|cpu|cuda threads=2
  data_dir=DIR results_dir=DIR save_weights=true theory=true debug=true

  -m, --multirun         sweep over comma-separated values
  --cfg job              print the configuration and train nothing (--resolve fills in references)
  --version, -h, --help
  -sc install=bash       print shell completion; use it with: eval "$(dbnrun -sc install=bash)"

A finished cell is skipped, an unfinished one goes on where it stopped. Results: $DBNRUN_RESULTS, or results/;
data: $DBNRUN_DATA, or data/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        message = "dbnrun: interrupted; every finished epoch is kept. The same command goes on from there."
        print(message, file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`dbnrun … | head`): nothing left to say, to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if first == "--version":
        print(f"dbnrun {__version__}")
        return 0
    if not first or first.startswith(("-", "+", "~")) or "=" in first:
        return _train(arguments)
    if first not in VERBS:
        return _refuse(f"{first}: no such verb; expected one of {', '.join(VERBS)}, or key=value to train.")
    return VERBS[first](arguments[1:])


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(line: str) -> int:
    print(f"dbnrun: {line}", file=sys.stderr)
    return 2


def _train(arguments: list[str]) -> int:
    """Hand a cell or a sweep to Hydra, and turn what comes back into an exit code and at most one line."""
    from dbnrun import overrides
    from dbnrun.sweep import CellFailed

    try:
        flags = _parsed_flags(arguments)
        if not flags.shell_completion:  # what is being completed is not yet right
            overrides.check_overrides(flags.overrides)
        _hydra(arguments)
    except CellFailed as failed:
        print(f"dbnrun: {failed}", file=sys.stderr)
        return 1
    except Exception as error:
        line = overrides.refusal(error)
        if line is None or "debug=true" in arguments:
            raise
        return _refuse(str(line))
    return 0


def _parsed_flags(arguments: list[str]) -> argparse.Namespace:
    """Hydra's flags and, as `overrides`, the rest; UserError at a flag that Hydra does not know."""
    from hydra._internal.utils import get_args_parser

    from dbnrun.config import UserError, nearest

    parser = get_args_parser()
    known = [flag for action in parser._actions for flag in action.option_strings]

    def refuse(message: str) -> NoReturn:
        unknown = message.rpartition(": ")[2].split(" ")[0]
        raise UserError(f"{message}.{nearest(unknown, known)} See `dbnrun --help`.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def _hydra(arguments: list[str]) -> None:
    """Let Hydra compose and run: one cell here, or a sweep through dbnrun.sweep. Raises what ends with an exit code."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from dbnrun import sweep
    from dbnrun.config import RunConfig, UserError
    from dbnrun.overrides import conf_dir

    outcomes = []

    def cell(cfg: Any) -> Any:
        outcomes.append(_cell(cfg))
        return outcomes[-1]

    ConfigStore.instance().store(name="schema", node=RunConfig)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us whole; we say them in one line
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(cell)()
    if sweep.cells_to_train or not outcomes:
        return  # a sweep raises for itself
    if isinstance(outcomes[0], UserError):
        raise outcomes[0]
    if outcomes[0].status == "refused":
        raise UserError(outcomes[0].message)
    if outcomes[0].status == "failed":
        raise sweep.CellFailed("the cell failed; what was recorded is kept, and the same command tries again.")


def _cell(cfg: Any) -> Any:
    """What Hydra runs for each cell: train it, say in one line how it ended, return the Outcome.

    A configuration that is refused comes back as the UserError itself: raised here, Hydra would print its own lines.
    """
    from dbnrun.config import checked

    try:
        config = checked(cfg)
    except Exception as error:
        from dbnrun.overrides import refusal

        line = refusal(error)
        if line is None:
            raise
        return line
    from hydra.core.hydra_config import HydraConfig

    from dbnrun import experiment, sweep

    outcome = experiment.run(config)
    if sweep.cells_to_train:
        sweep.announce(outcome, HydraConfig.get().job.num + 1)
    elif outcome.status != "refused":  # which ends the command, with its line
        sweep.announce(outcome, 0)
    return outcome


def _verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dbnrun {verb}", description=description)

    def refuse(message: str) -> NoReturn:
        print(f"dbnrun {verb}: {message}. See `dbnrun {verb} --help`.", file=sys.stderr)
        raise SystemExit(2)

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _report(arguments: list[str]) -> int:
    parser = _verb_parser("report", "Draw figures and tables from recorded CSVs; trains nothing.")
    parser.add_argument(
        "paths", nargs="*", type=Path, help="results folders or run folders (default: the results folder)"
    )
    parser.add_argument("--out", type=Path, help="where figures/ and tables/ go (default: the results folder)")
    options = parser.parse_args(arguments)
    results = Path(os.environ.get("DBNRUN_RESULTS", "results"))

    from dbnrun.config import UserError
    from dbnrun.report import report

    try:
        report(options.paths or [results], options.out or (options.paths[0] if len(options.paths) == 1 else results))
    except UserError as error:
        return _refuse(str(error))
    return 0


def _data(arguments: list[str]) -> int:
    from dbnrun.config import DATASET_FIELDS, UserError, nearest

    names = [name for name in DATASET_FIELDS if name != "digits"]
    parser = _verb_parser("data", "Fetch and verify data sets ahead of time; what is there and sound is left alone.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(names)} (default: all)")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DBNRUN_DATA", "data")))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in DATASET_FIELDS]
    if unknown:
        return _refuse(
            f"{unknown[0]}: no such data set; expected any of {', '.join(names)}.{nearest(unknown[0], names)}"
        )

    from dbnrun.data import source

    code = 0
    for name in options.names or names:
        try:
            source.fetch(name, options.data_dir)
            print(f"{name}: complete and verified in {options.data_dir}")
        except UserError as error:
            code = _refuse(str(error))
    return code


def _bench(arguments: list[str]) -> int:
    from dbnrun.bench import BENCHES, run

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


VERBS = {"report": _report, "data": _data, "bench": _bench, "theory": _theory}


if __name__ == "__main__":
    sys.exit(main())
