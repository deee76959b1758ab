"""The command `dbnrun`: its verbs, its exit codes, and the one place that meets Hydra's entry point.

Exit codes: 0 done; 1 a cell failed or has diverged; 2 the user's input was refused, with one line; 130 interrupted,
resumable.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from dbnrun import __version__, interrupt
from dbnrun.config.registry import GROUPS, UserError

HELP = """\
dbnrun reproducibly trains and compares normalization layers, such as batch normalization (BN) and DBN (Diminishing
Batch Normalization, arXiv 1705.08011).

  dbnrun [key=value …]        train one run:   dbnrun dataset=cifar10 norm=dbn schedule=harmonic
  dbnrun -m [key=a,b …]       train a sweep:   dbnrun -m norm=bn,dbn schedule=alpha_0.1,harmonic seed=0,1,2
  dbnrun experiment=NAME      train a named sweep, such as those of the DBN paper (names below)

  dbnrun plan [key=a,b …]     show what a sweep would train, what is done or has failed, and how long the rest may take
  dbnrun status [PATH …]      show unfinished and recent runs: progress, errors, time left; --watch refreshes
  dbnrun runs ls [key=a,b …]  list runs; also: show RUN, diff RUN RUN, rm [key=a,b …], export --to tensorboard
  dbnrun report [PATH …]      write a page, figures and tables of finished runs to results/report, without training
  dbnrun compare [key=a,b …] --baseline norm=bn   compare methods with a baseline, paired by seed
  dbnrun until [key=a,b …] --baseline norm=bn --margin 0.3   add seeds until each method is shown to have a
                              lower or higher error than the baseline, or a difference within 0.3 percentage points
  dbnrun data [NAME …]        download and verify data sets ahead of time
  dbnrun doctor               check this computer: versions, device, data, disk, determinism
  dbnrun theory check|run|figures   check the conditions of the DBN paper's theorem, run Algorithm 1, draw figures
  dbnrun bench [NAME …]       measure how much time dbnrun adds to plain PyTorch, and time some commands

  dbnrun VERB --help shows the options of a verb.

Choices in each group (all are optional; if you leave out model=, dbnrun picks a network that suits the data set):
{choices}

  Defaults: dataset=digits norm=bn schedule=constant (α = 0.1) optimizer=adagrad optimizer.lr=0.01 train.epochs=10.
  dataset: ni is network intrusion data (KDD Cup 1999); folder and table are your own images and tables. custom, in
  each group, is your own class (docs/your-own.md).
  norm: bn is PyTorch's batch normalization. dbn normalizes with moving averages in training and at test time;
  dbn_inference does so only at test time. dyt is Dynamic Tanh, frn filter response normalization, gn and ln group and
  layer normalization, gn_ws gn with weight standardization, mabn moving average BN, and rms RMSNorm.
  schedule: α(m), the weight of the newest batch in the averages of dbn and dbn_inference; others ignore it. m counts
  steps, or epochs with schedule.unit=epoch. harmonic is 1/m, inverse_square 1/m², power 1/m^schedule.exponent, and
  alpha_0.1 is constant with schedule.alpha=0.1. With dbn, a small constant α can give a high error, even the default
  0.1.
  experiment: in the names of the paper's experiments, _a means dbn_inference, _b means dbn, and _c means dbn with
  norm.stats_grad=false (the gradient treats the averages as constants); _baselines means bn, ln, gn and none.
  sensitivity_ changes one setting of the paper's experiments. normalizers_ trains more normalizers than these. _after
  places each normalizer after the activation; _batch16 and _batch4 train some with batches of 16 and 4; _gradient
  instead trains dbn with a gradient through the mean or the variance alone.

Often changed (the values are examples): train.epochs=10 train.batch_size=100 seed=0 optimizer.lr=0.01
  schedule.alpha=0.1 schedule.unit=epoch lr_schedule=cosine lr_schedule.warmup=5 train.label_smoothing=0.1
  precision=fp32|tf32|bf16 device=auto|cpu|cuda threads=2 data_dir=DIR results_dir=DIR
  train.limit_batches=50 trains on that many batches per epoch; train.limit_eval=1000 evaluates on that many examples
  train.eval_every=5 evaluates after every fifth epoch; save_weights=true keeps the trained weights
  checkpoint.minutes=10 also saves a checkpoint every 10 minutes within an epoch; debug=true shows tracebacks
  compile=true compiles parts of the training step with torch.compile, which saves time in long runs
  theory=true prints which conditions of the convergence theorem the run meets
  probe=true writes statistics of the activations and gradients at each normalizer to probe.csv
  logger=tensorboard|trackio|wandb|mlflow also sends the metrics of each epoch to that tool
  retry=failed trains only runs that failed before; retry=diverged only those that diverged (training loss not finite),
  which otherwise count as finished
  force=true trains finished runs again; with -m, fail_fast=true stops at the first failure

  -m, --multirun         train every combination of comma-separated values; identical runs only once
  --cfg job              print every setting and train nothing (--resolve replaces ${…} with values)
  --version, -h, --help
  -sc install=bash       print a shell completion script; load it with: eval "$(dbnrun -sc install=bash)"

If you repeat a command, it skips finished runs and continues all others, failed ones too. Results go to
$DBNRUN_RESULTS or results/; data is read from $DBNRUN_DATA or data/.
"""

DOCUMENTS = ("README.md", "docs/results.md", "docs/findings.md")  # what --readme writes results into


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        with interrupt.noting():
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        forced = "force=true" in (sys.argv[1:] if argv is None else argv)
        same = "The same command without force=true" if forced else "The same command"
        message = f"dbnrun: interrupted; every finished epoch is kept. {same} goes on from there."
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
    trains = first.startswith(("-", "+", "~")) or "=" in first
    if not [word for word in arguments if word not in ("-m", "--multirun")]:
        print(_help(), end="")
        return 2
    if first == "help" or (trains and {"-h", "--help"} & set(arguments)):
        print(_help(), end="")
        return 0
    if first == "--version":
        print(f"dbnrun {__version__}")
        return 0
    if first in COMPLETION:
        from dbnrun import completion

        if completion.query(arguments[1:], VERBS):
            return 0
    verb = Verb(_train, trains=True) if trains else VERBS.get(first)
    try:
        if verb is None:
            raise _no_verb(arguments)
        if trains:
            _refuse_verbs_as_flags(arguments)
        return _run(verb, arguments if trains else arguments[1:])
    except Exception as error:
        if trains and "debug=true" in [word.lower() for word in arguments]:
            raise
        return _refused(error)


def _run(verb: Verb, arguments: list[str]) -> int:
    """The exit code of a verb. What trains takes note of signals, and looks at them where stopping is safe."""
    if not verb.trains:
        with interrupt.raising():
            return verb.run(arguments)
    from dbnrun.runner.sweeper import CellFailed

    try:
        return verb.run(arguments)
    except CellFailed as failed:
        print(f"dbnrun: {failed}", file=sys.stderr)
        return 1


def _refuse_verbs_as_flags(arguments: Sequence[str]) -> None:
    """Refuse --plan, and --dry-run, which is plan elsewhere."""
    from dbnrun.config.aliases import ALIASES

    for word in arguments:
        flag = word.removeprefix("--").replace("-", "_")
        verb = ALIASES.get(flag, flag)
        if word.startswith("--") and verb in VERBS:
            raise UserError(f"{word}: {verb} is a verb; write dbnrun {verb} in front of the rest.")


def _no_verb(arguments: list[str]) -> UserError:
    """Why a command is refused whose first word is neither a verb nor key=value."""
    from dbnrun.config import aliases
    from dbnrun.config.overrides import refuse_spaces

    refuse_spaces(arguments)
    first = arguments[0]
    hint = aliases.sentence(first) or aliases.nearest(first, VERBS)
    hint = f" A key needs a value: {first}=…." if first in GROUPS else hint
    key, colon, value = first.partition(":")
    hint = f" Write {key}={value}." if colon and key in GROUPS else hint

    return UserError(f"{first}: no such verb; expected one of {', '.join(VERBS)}, or key=value to train.{hint}")


def _help() -> str:
    """The help, with what one can choose as the files of conf/ have it."""
    import textwrap

    from dbnrun.config import registry

    wide = {"width": 112, "break_on_hyphens": False, "subsequent_indent": " " * 15}
    groups = registry.files()
    order = [*(group for group in registry.GROUPS if group in groups), *(g for g in groups if g not in registry.GROUPS)]
    lines = [textwrap.fill(f"  {group:11}  {', '.join(groups[group])}", **wide) for group in order]
    return HELP.replace("{choices}", "\n".join(lines))


def _results() -> Path:
    from dbnrun.runs import layout

    return layout.results_dir()


def _data_dir() -> Path:
    return Path(os.environ.get("DBNRUN_DATA", "data"))


def _refuse(line: str) -> int:
    print("dbnrun: " + " ".join(line.split("\n")), file=sys.stderr)
    return 2


def _train(arguments: list[str]) -> int:
    """Train a run or a sweep."""
    from dbnrun.runner import app

    app.run(arguments)
    return 0


def _until(arguments: list[str]) -> int:
    from dbnrun import until

    parser = _verb_parser(
        "until",
        "Train more and more seeds, until it is decided for each method whether its metric is lower or higher than the "
        "baseline's, or whether the difference is within the margin, or until --max-seeds is reached. docs/compare.md "
        "explains the test.",
    )
    _takes_sweep_flags(parser)
    return until.main(arguments, parser)


def _refused(error: Exception) -> int:
    """Say in one line why the user's input is refused; an error of another kind is raised again."""
    if isinstance(error, UserError):
        return _refuse(str(error))
    from dbnrun.config.overrides import refusal

    line = refusal(error)
    if line is None:
        raise error
    return _refuse(str(line))


def _verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"dbnrun {verb}", description=description)

    def refuse(message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): expected one argument$", r"\1: expected a value after it", message)
        if unknown := re.match("unrecognized arguments: (--[^ =]+)", message):
            from dbnrun.config.registry import nearest

            message += nearest(unknown[1], parser._option_string_actions)
        print(f"dbnrun {verb}: {message}. See `dbnrun {verb} --help`.", file=sys.stderr)
        raise SystemExit(2)

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _takes_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="implied; accepted so that you can reuse the arguments of dbnrun -m",
    )
    parser.add_argument(
        "-cd",
        "--config-dir",
        metavar="DIR",
        help="a folder with your own configs (YAML), in addition to the built-in ones",
    )


def _takes_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=Path, default=_data_dir(), metavar="DIR", help="folder with the data (default: %(default)s)"
    )


def _takes_results_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=_results(),
        metavar="DIR",
        help="folder with the runs (default: %(default)s)",
    )


def _plan(arguments: list[str]) -> int:
    parser = _verb_parser(
        "plan",
        "Show what dbnrun -m would train with the same arguments, what is done or has failed, and how long the rest "
        "may take. Nothing is trained.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=a,b", help="as for dbnrun -m")
    _takes_sweep_flags(parser)
    parser.add_argument("--all", action="store_true", help="list every run (default: how many are in each state)")
    parser.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    options = parser.parse_intermixed_args(arguments)

    from dbnrun.runner import plan

    found = plan.asked(options.overrides, options.config_dir)
    statuses = plan.statuses(found.cells)
    if options.json:
        print(json.dumps(plan.as_json(found, statuses), indent=1))
    else:
        print("\n".join(plan.lines(found, statuses, options.all)))
    return 0


def _status(arguments: list[str]) -> int:
    parser = _verb_parser(
        "status",
        "Show unfinished runs and the last ten finished runs: progress, last error, time per epoch, time left, and the "
        "process that trains each.",
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, help="results folders or run folders (default: the results folder)"
    )
    parser.add_argument("--all", action="store_true", help="show all finished runs")
    parser.add_argument("--json", action="store_true", help="print all runs as JSON")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="refresh every SECONDS seconds (default: 2)",
    )
    options = parser.parse_intermixed_args(_placed(arguments))
    if options.watch is not None and not 0.1 <= options.watch <= 86400:
        raise UserError(f"--watch {options.watch:g}: expected seconds between 0.1 and 86400.")

    from dbnrun.runner import status_table
    from dbnrun.runs.load import folders

    _there(options.paths)
    paths = options.paths or [_results()]
    if options.json and options.watch is not None:
        raise UserError("--json goes without --watch; read the JSON again when you need it.")
    if not options.paths and not folders(paths):  # a new clone: nothing is wrong
        paths = []
    if options.json:
        print(json.dumps(status_table.as_json(paths), indent=1))
    elif not paths:
        print(f"{_results()}: no runs yet; `dbnrun norm=dbn` trains one.")
    elif options.watch is not None:
        status_table.watch(paths, options.all, options.watch)
    else:
        print("\n".join(status_table.table(paths, options.all)))
    return 0


RUNS = {
    "ls": (
        "List all runs, or only those that match every filter, such as norm=bn,dbn seed=0 status=done. "
        "A status is running, done, diverged, failed, unfinished, stale or new (docs/training.md).",
        "filters (KEY=VALUE), or names of runs",
    ),
    "show": (
        "Show the settings, status and metrics of a run.",
        "a name, a signature (the code at the end of a name), the beginning of either, or a path",
    ),
    "diff": (
        "Show two runs side by side: settings, versions, metrics, and the first epoch at which their metrics differ.",
        "for each run a name, a signature (the code at the end of a name), the beginning of one, or a path",
    ),
    "export": (
        "Send the metrics of existing runs to TensorBoard, trackio or MLflow. (For Weights & Biases, use logger=wandb "
        "in training.)",
        "filters (KEY=VALUE), or names of runs",
    ),
    "rm": (
        "Ask, then remove run folders. Runs in progress and the records (finished runs kept in git) are never removed.",
        "filters (KEY=VALUE), or names of runs",
    ),
}


def _runs(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("\n".join(f"dbnrun runs {name:8}{does}" for name, (does, _) in RUNS.items()))
        return 0
    if verb not in RUNS:
        from dbnrun.config.registry import nearest

        raise UserError(f"runs {verb}: expected one of {', '.join(RUNS)}.{nearest(verb, RUNS)}")
    does, what = RUNS[verb]
    parser = _verb_parser(f"runs {verb}", does)
    count = {"show": 1, "diff": 2}.get(verb, "*")
    parser.add_argument("words", nargs=count, metavar="RUN" if count != "*" else "WORD", help=what)
    _takes_results_dir(parser)
    if verb == "ls":
        parser.add_argument("--json", action="store_true", help="print a JSON list")
    if verb == "export":
        from dbnrun.runs.live import EXPORTS

        parser.add_argument("--to", choices=EXPORTS, required=True, help="the tool to send the metrics to")
    if verb == "rm":
        parser.add_argument(
            "--all", action="store_true", help="remove all runs that can be removed; required if you give no filter"
        )
        parser.add_argument("--yes", action="store_true", help="do not ask")
    return _runs_verb(verb, parser.parse_intermixed_args(_placed(arguments[1:], "--results-dir=")))


def _runs_verb(verb: str, options: argparse.Namespace) -> int:
    from dbnrun.runner import runs_table
    from dbnrun.runs import catalog

    where: Path = options.results_dir
    if verb in ("show", "diff"):
        folders = [catalog.find(where, word) for word in options.words]
        print("\n".join(runs_table.shown(*folders) if verb == "show" else runs_table.differences(*folders)))
        return 0
    if verb == "rm" and bool(options.words) == options.all:
        raise UserError("runs rm: say which runs, by filters such as status=failed, by name, or --all.")
    runs, unreadable = catalog.select(where, options.words)
    for error in unreadable:
        print(f"dbnrun: warning: left out: {error}", file=sys.stderr)
    if verb in ("rm", "export"):
        does = runs_table.remove(where, runs, options.yes) if verb == "rm" else runs_table.exported(runs, options.to)
        for line in does:
            print(line, flush=True)
    elif options.json:
        print(json.dumps([runs_table.as_json(run) for run in runs], indent=1))
    else:
        print("\n".join(runs_table.table(runs)) if runs else runs_table.why_empty(where, options.words))
    return 0


def _placed(arguments: Sequence[str], flag: str = "") -> list[str]:
    """A verb's words, with results_dir=DIR, as training has it, as the path DIR, or as what `flag` makes of it."""
    key = "results_dir="
    return [flag + word.removeprefix(key) if word.startswith(key) else word for word in arguments]


def _there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            filters = " Filters go with `compare`, `report` and `runs ls`." if "=" in path.name else ""
            raise UserError(f"{path}: it does not exist; expected a results folder or a run folder.{filters}")


def _doctor(arguments: list[str]) -> int:
    parser = _verb_parser(
        "doctor", "Check that dbnrun works correctly on this computer. The exit code is 1 if a check fails."
    )
    _takes_data_dir(parser)
    _takes_results_dir(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)

    from dbnrun.runner import doctor

    return 0 if doctor.report(options.data_dir, options.results_dir, options.json) else 1


def _report_parser() -> argparse.ArgumentParser:
    parser = _verb_parser("report", "Write a page, figures and tables of finished runs. Nothing is trained.")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PATH or KEY=VALUE",
        help="results folders, run folders, and filters such as norm=bn,dbn. Without a folder: your own runs in the "
        "results folder or, if there are none, the records (finished runs kept in git). If you give a folder of "
        "records and no filter, the page also shows the paper's claims and tables",
    )
    parser.add_argument("--title", default="", help="the title at the top of the page")
    parser.add_argument(
        "--out",
        type=Path,
        help="where report.html, figures/ and tables/ go (default: report/ in the results folder; git ignores report/)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="first add the finished runs to the records, then write the page, figures and tables next to the records, "
        "unless --out names another folder",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="also write the results of the records into these documents (--readme alone: "
        f"{', '.join(DOCUMENTS)}); without --readme, none is changed",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop with an error if a run folder cannot be read (default: warn and leave it out)",
    )
    return parser


def _report(arguments: list[str]) -> int:
    from dbnrun.config.filters import is_filter

    options = _report_parser().parse_intermixed_args(_placed(arguments))
    options.filters = [word for word in options.words if is_filter(word)]
    options.paths = [Path(word) for word in options.words if not is_filter(word)]
    _there(options.paths)
    if options.filters and (options.record or options.readme is not None):
        flag = "--record" if options.record else "--readme"
        raise UserError(f"report {flag}: takes all runs; leave out the filter {options.filters[0]}.")
    said = io.StringIO()  # printed when all is written: a reader that ends early, as `| head` does, ends this process
    try:
        with contextlib.redirect_stdout(said):
            _draw(options, _results())
    except OSError as error:
        raise UserError(f"{error.filename or options.out}: cannot be written or read ({error.strerror}).") from None
    print(said.getvalue(), end="")
    return 0


def _compare(arguments: list[str]) -> int:
    from dbnrun.report import compare_cli

    parser = _verb_parser(
        "compare", "Compare finished runs with a baseline, paired by seed. Nothing is trained or changed."
    )
    return compare_cli.main(_placed(arguments), parser, _results())


def _draw(options: argparse.Namespace, results: Path) -> None:
    """The report of the runs that the options name."""
    from dbnrun.paper import publish, record
    from dbnrun.report import report
    from dbnrun.runs.archive import is_archive
    from dbnrun.runs.load import folders

    how = {"title": options.title, "strict": options.strict}
    out = options.out or _own_folder(options.paths) / "report"
    committed = results / "records"
    paths = options.paths or [results if folders([results]) or not is_archive(committed) else committed]
    records = [path for path in paths if is_archive(path)][:1]
    if options.record:
        record(committed, options.paths or [results], strict=options.strict)
        publish(committed, [], options.out or results, _documents(options.readme), **how)
    elif records and not options.filters:
        others = [path for path in paths if path not in records]
        publish(records[0], others, out, _documents(options.readme), **how)
    elif options.readme is not None:
        raise UserError("report: --readme writes what the records hold; add --record, or name the folder of records.")
    else:
        report(paths, out, options.filters, **how)


def _documents(named: Sequence[Path] | None) -> Sequence[Path]:
    """What --readme asks for; the project's documents where it names none."""
    if named != []:
        return named or []
    documents = [path for path in map(Path, DOCUMENTS) if path.exists()]
    return documents or [Path("README.md")]


def _own_folder(paths: Sequence[Path]) -> Path:
    """The results folder whose runs are reported, where that is one; else the results folder of this command."""
    return paths[0] if len(paths) == 1 and (paths[0] / "runs").is_dir() else _results()


def _data(arguments: list[str]) -> int:
    from dbnrun.config import registry

    known = registry.of("dataset")
    names = [name for name, kind in known.items() if kind.downloads]
    parser = _verb_parser(
        "data", "Download and verify data sets ahead of time. Complete data sets are not downloaded again."
    )
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(names)} (default: all)")
    _takes_data_dir(parser)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in (*names, "digits")]:
        hint = registry.nearest(unknown[0], names)
        what = "your own files, nothing to fetch" if unknown[0] in known else "no such data set"
        raise UserError(f"{unknown[0]}: {what}; expected any of {', '.join(names)}.{hint}")

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
        raise UserError("bench: it needs scripts/bench of a checkout, and this is an installed package.")
    sys.path.append(str(scripts))
    import bench

    return bench.main(
        arguments,
        _verb_parser(
            "bench", "Measure the time that dbnrun takes relative to plain PyTorch, and how long some commands take."
        ),
    )


def _theory(arguments: list[str]) -> int:
    from dbnrun.theory import cli

    return cli.main(
        arguments,
        _verb_parser(
            "theory",
            "Check the conditions of the DBN paper's theorem, run the paper's Algorithm 1, or draw the figures.",
        ),
    )


class Verb(NamedTuple):
    """A verb of the command: what runs it, and whether it trains."""

    run: Callable[[list[str]], int]
    trains: bool = False


VERBS = {
    "plan": Verb(_plan),
    "status": Verb(_status),
    "runs": Verb(_runs),
    "report": Verb(_report),
    "compare": Verb(_compare),
    "until": Verb(_until, trains=True),
    "data": Verb(_data),
    "theory": Verb(_theory),
    "doctor": Verb(_doctor),
    "bench": Verb(_bench),
}
COMPLETION = ("-sc", "--shell-completion")
