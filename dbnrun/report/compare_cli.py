"""The verb `dbnrun compare`: what it is asked, and where its tables go."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dbnrun.config.differences import under
from dbnrun.config.filters import Cell, Test, is_filter, matcher, options, why_none
from dbnrun.config.registry import GROUPS, UserError, nearest
from dbnrun.report import contrast_text as texts
from dbnrun.report.contrast_text import Compared
from dbnrun.report.contrasts import tables
from dbnrun.report.methods import (
    SELECTIONS,
    Method,
    Reading,
    methods_of,
    name_all,
    runs_under,
    tuned,
)  # fmt: skip
from dbnrun.report.tables import write_texts
from dbnrun.runs.load import RunRecord

FORMATS = (".png", ".svg", ".pdf")
EFFECT = 0.1  # pp, of an error


def main(arguments: Sequence[str], parser: argparse.ArgumentParser, results: Path) -> int:
    """Print the comparison that was asked for, and write it to the files that were named."""
    asked = _parsed(arguments, parser)
    with contextlib.redirect_stdout(sys.stderr if asked.json else sys.stdout):
        found = compared(asked, results)
    # Files first: a reader of the output that ends early, as `| head` does, ends this process.
    for path, content in ((asked.csv, texts.csv), (asked.markdown, texts.as_markdown), (asked.latex, texts.latex)):
        if path is not None:
            _write(path, lambda path=path, content=content: write_texts(path.parent, {path.name: content(found)}))
    if asked.figure is not None:
        from dbnrun.report import forest  # noqa: PLC0415 - matplotlib takes a second to import

        _write(asked.figure, lambda: forest.draw(found, asked.figure))
    print(json.dumps(texts.as_json(found), indent=1, ensure_ascii=False) if asked.json else texts.text(found))
    for path in (asked.csv, asked.markdown, asked.latex, asked.figure):
        if path is not None:
            print(f"dbnrun: wrote {path}", file=sys.stderr)
    return 0


def _parsed(arguments: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument(
        "words", nargs="*", metavar="PATH or KEY=VALUE", help="results folders or run folders to read, and filters"
    )
    parser.add_argument(
        "--baseline",
        metavar="'KEY=VALUE …'",
        help="the method to compare with, such as norm=bn; a method is all "
        "runs that differ only in the seed (default: print means without a comparison)",
    )
    parser.add_argument(
        "--select",
        choices=list(SELECTIONS),
        default="last",
        help="which epoch of each run counts: the last, or the one with the lowest validation or test error "
        "(default: last)",
    )
    parser.add_argument("--at", type=int, metavar="EPOCH", help="use this epoch of every run instead")
    parser.add_argument(
        "--metric", default="test_error_pct", help="a column of each run's metrics.csv (default: test_error_pct)"
    )
    parser.add_argument(
        "--by",
        type=_keys,
        default=[],
        metavar="KEY,KEY",
        help="make a table for each combination of values of these keys",
    )
    parser.add_argument(
        "--effect",
        type=float,
        metavar="PP",
        help="the last column says how many seeds would detect a difference of PP (percentage points for errors) with "
        "80 %% power "
        f"(default: {EFFECT})",
    )
    parser.add_argument(
        "--tune",
        type=_keys,
        default=[],
        metavar="KEY,KEY",
        help="count runs that differ only in these keys and the seed as one method, and use the values with the lowest "
        "validation error for each (see --tune-seeds)",
    )
    parser.add_argument(
        "--tune-seeds",
        type=_seeds,
        metavar="0,1,2",
        help="choose the values for --tune by the validation error of these seeds, and compare on the other seeds "
        "(default: the first third)",
    )
    for name, what in (("csv", "CSV"), ("markdown", "Markdown"), ("latex", "LaTeX (booktabs)")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write the table as {what}")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="write a forest plot and curves as .png, .svg or .pdf"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    asked = parser.parse_intermixed_args(arguments)
    if asked.figure is not None and asked.figure.suffix not in FORMATS:
        raise UserError(f"--figure {asked.figure}: expected a name that ends in {', '.join(FORMATS)}.")
    if asked.at is not None and asked.select != "last":
        raise UserError(f"--at {asked.at}: leave out --select, or --at.")
    if asked.tune_seeds and not asked.tune:
        raise UserError("--tune-seeds: goes with --tune KEY, such as --tune optimizer.lr.")
    if asked.effect is not None and not 0 < asked.effect < float("inf"):
        raise UserError(f"--effect {asked.effect:g}: expected a number above 0.")
    return asked


def _keys(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected seeds such as 0,1,2")
    return sorted({int(seed) for seed in text.split(",")})


def compared(asked: argparse.Namespace, results: Path) -> Compared:
    """What the command asks for. Raises UserError where there is nothing to compare."""
    reading = Reading(asked.metric, asked.select, asked.at)
    filters = [word for word in asked.words if is_filter(word)]
    paths = [Path(word) for word in asked.words if not is_filter(word)]
    baseline = shlex.split(asked.baseline) if asked.baseline else []
    passes, is_baseline = matcher(filters), _baseline(filters, baseline)
    if seeds := [word for word in baseline if word.startswith("seed=")]:
        raise UserError(f"--baseline {seeds[0]}: a method has all of its seeds; to compare some, filter: {seeds[0]}.")
    runs = runs_under(paths or [results])
    source, left_out = "", []
    if not paths:
        asked_for = [is_baseline, lambda cell: passes(cell) and not is_baseline(cell)] if baseline else [passes]
        runs, source, left_out = _own_first(runs, asked_for, filters, results)
    cells = [run.cell for run in runs]
    if not any(map(passes, cells)):
        raise UserError(why_none(cells, filters))
    if baseline and not any(map(is_baseline, cells)):
        raise UserError(f"--baseline {why_none(cells, baseline)}")
    _check_keys(cells, {"--by": asked.by, "--tune": asked.tune})
    wanted = [run for run in runs if passes(run.cell) or (baseline and is_baseline(run.cell))]
    methods, unfinished = _finished(methods_of(wanted, reading.columns), reading)
    tuning = None
    if asked.tune:
        methods, tuning = tuned(methods, asked.tune, asked.tune_seeds, reading)
    if baseline and not any(is_baseline(method.cell) for method in methods):
        raise UserError(f"--baseline {' '.join(baseline)}: none of its runs can be compared with, as none is finished.")
    missing = _without_runs(cells, filters)
    effect = asked.effect or (EFFECT if reading.unit == "%" else float("nan"))
    if baseline and missing and all(is_baseline(method.cell) for method in methods):
        raise UserError(f"{' '.join(missing)} Only the baseline is left: there is nothing to compare.")
    made, alone = tables(methods, is_baseline if baseline else None, reading, effect, asked.by, asked.tune)
    if not any(math.isfinite(row.mean.mean) for table in made for row in table.rows):
        raise UserError(f"--metric {reading.metric}: no run has a number there, {reading.when}.")
    return Compared(made, alone, reading, effect, tuning, [*left_out, *missing, *unfinished], source)


def _without_runs(cells: Sequence[Cell], filters: Sequence[str]) -> list[str]:
    """What is said of choices that were asked for, and that no run has: norm=gn of norm=bn,ln,gn."""
    asked = [
        f"{key}={name}" for key, _, names in (word.partition("=") for word in filters) for name in names.split(",")
    ]
    missing = [word for word in asked if word.partition("=")[0] in GROUPS and not any(map(matcher([word]), cells))]
    return [f"No run has {' or '.join(missing)}."] if missing else []


def _own_first(
    runs: Sequence[RunRecord], asked: Sequence[Test], filters: Sequence[str], results: Path
) -> tuple[Sequence[RunRecord], str, list[str]]:
    """The user's own runs if they include what is asked for, else all runs; and what is said of the records."""
    own = [run for run in runs if not run.is_recorded]
    where = results / "runs"
    if not all(any(test(run.cell) for run in own) for test in asked):
        if not own or len(own) == len(runs):
            return runs, "", []
        lacking = " ".join(_without_runs([run.cell for run in own], filters)).rstrip(".").replace("No", "no", 1)
        why = f" ({lacking})" if lacking else ""
        source = f"Your runs in {where} do not include what is compared{why}: the committed records are read, too."
        return runs, source, []
    data = {run.cell["dataset"]["name"] for run in own}
    others = [run for run in runs if run.is_recorded and run.cell["dataset"]["name"] in data]
    count = sum(any(test(run.cell) for test in asked) for run in others)
    remark = f"Compared: the runs in {where}. {count} committed records match, too; "
    return own, "", [f"{remark}`dbnrun compare {results} …` includes them."] if count else []


def _baseline(filters: Sequence[str], words: Sequence[str]) -> Test:
    """Which cells are the baseline: its own words hold, and those filters that they say nothing of.

    A baseline that names a normalizer need not have the schedules that the filters ask for.
    """
    own = [word.partition("=")[0] for word in words]
    own += ["schedule"] if "norm" in own else []
    return matcher([*(word for word in filters if not under(word.partition("=")[0], own)), *words])


def _finished(methods: Sequence[Method], reading: Reading) -> tuple[list[Method], list[str]]:
    """The methods with finished runs that reach the epoch asked for, and what is said of the others."""
    remarks = []
    name_all(methods)
    done = [method for method in methods if method.n]
    if not done:
        raise UserError(f"none of {sum(sum(method.left_out.values()) for method in methods)} runs is finished.")
    if len(done) < len(methods):
        names = sorted(f"{one.label} ({_left_out(one)})" for one in methods if not one.n)
        remarks.append(f"Left out, as no run is finished: {'; '.join(names)}.")
    longest = max(method.epochs for method in done)
    if reading.at is not None and reading.at > longest:
        raise UserError(f"--at {reading.at}: the longest run has {longest} epochs.")
    if reading.at is not None and any(method.epochs < reading.at for method in done):
        names = sorted(method.label for method in done if method.epochs < reading.at)
        remarks.append(f"Left out, as they end before epoch {reading.at}: {'; '.join(names)}.")
        done = [method for method in done if method.epochs >= reading.at]
    return done, remarks


def _left_out(method: Method) -> str:
    """'2 diverged, 1 failed'."""
    return ", ".join(f"{count} {status}" for status, count in sorted(method.left_out.items()))


# Checks of what was typed


def _check_keys(cells: Sequence[Cell], asked: Mapping[str, Sequence[str]]) -> None:
    known = list(dict.fromkeys(key for cell in cells for key in options(cell) if key != "seed"))
    for option, keys in asked.items():
        for key in keys:
            if not any(under(each, [key]) for each in known):
                raise UserError(f"{option} {key}: no run has such a key.{nearest(key, known)}")


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None
