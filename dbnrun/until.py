"""The verb `dbnrun until`: train seeds of all methods together until every comparison with the baseline is decided.

Looking after each seed costs nothing in validity: the decision is that of a confidence sequence, report/anytime.py.
What has been decided is read from the runs on disk, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbnrun.config.differences import differing
from dbnrun.config.filters import matcher
from dbnrun.config.registry import UserError
from dbnrun.report import anytime, contrasts
from dbnrun.report.compare import paired
from dbnrun.report.methods import SELECTIONS, Method, Reading, methods_of, name_all
from dbnrun.runner import app, plan
from dbnrun.runner.sweeper import CellFailed
from dbnrun.runs import layout, load

ALPHA = 0.05  # for all comparisons together
FEWEST = 2  # seeds; one difference has no spread


@dataclass(frozen=True)
class Comparison:
    """A method minus its baseline, at the seeds that both have."""

    method: Method
    base: Method
    reading: Reading
    margin: float
    alpha: float  # its share of the error

    @property
    def differences(self) -> np.ndarray:
        """By seed, in their order."""
        return paired(self.reading.of(self.method), self.reading.of(self.base))

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences)) if len(self.differences) else math.nan

    @property
    def now(self) -> anytime.Decision:
        return anytime.decide(self.differences, self.margin, self.alpha)

    @property
    def decided_at(self) -> int | None:
        """The number of seeds at the first look that decided; looks begin with two seeds."""
        looks = range(FEWEST, len(self.differences) + 1)
        return next((n for n in looks if self._at(n).word), None)

    @property
    def word(self) -> str:
        """What was decided, at whichever look; '' while nothing is."""
        return self._at(self.decided_at).word if self.decided_at else ""

    def _at(self, n: int) -> anytime.Decision:
        return anytime.decide(self.differences[:n], self.margin, self.alpha)


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Train and look, seed by seed, and print what was decided."""
    asked = _parsed(arguments, parser)
    _check(asked)
    found: list[Comparison] = []
    diverged = ""
    for n in range(FEWEST, asked.max_seeds + 1):
        seeds = _seeds(n)
        diverged = _train(asked, seeds)
        found = _compared(asked, seeds)
        left = [one.method.label for one in found if one.decided_at is None]
        decided = f"{len(found) - len(left)} of {plan.plural(len(found), 'comparison')} decided"
        decided += f"; not yet: {', '.join(left)}" if left else ""
        print(f"{n} seeds: {decided}", file=sys.stderr, flush=True)
        if not left:
            break
    print(json.dumps(_as_json(found, asked), indent=1, ensure_ascii=False) if asked.json else "\n".join(_lines(found)))
    if diverged:
        print(f"dbnrun until: their pairs are left out: {diverged}", file=sys.stderr)
    return int(bool(diverged))


def _train(asked: argparse.Namespace, seeds: str) -> str:
    """Train what is not finished. Returns what is said of diverged runs, or ''. Raises CellFailed if a run failed."""
    words = [*asked.overrides, seeds]
    try:
        app.run(["-m", *words, *(["--config-dir", asked.config_dir] if asked.config_dir else [])])
    except CellFailed as error:
        if any(cell.status().name not in layout.FINISHED for cell in plan.asked(words, asked.config_dir).cells):
            raise
        return str(error)
    return ""


def _seeds(n: int) -> str:
    return "seed=" + ",".join(map(str, range(n)))


def _parsed(arguments: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("overrides", nargs="*", metavar="key=a,b", help="as for dbnrun -m, but without seed=")
    parser.add_argument(
        "--baseline",
        required=True,
        metavar="'KEY=VALUE …'",
        help="the method to compare with, such as norm=bn; it must be among those that you train",
    )
    parser.add_argument(
        "--margin",
        type=float,
        required=True,
        metavar="PP",
        help="the largest difference that does not matter, in the metric's unit (percentage points for errors)",
    )
    parser.add_argument(
        "--max-seeds",
        type=int,
        default=40,
        metavar="N",
        help="train at most this many seeds of each method (default: 40)",
    )
    parser.add_argument(
        "--metric", default="test_error_pct", help="a column of each run's metrics.csv (default: test_error_pct)"
    )
    parser.add_argument(
        "--select",
        choices=list(SELECTIONS)[:2],
        default="last",
        help="which epoch of each run counts: the last, or the one with the lowest validation error (default: last)",
    )
    parser.add_argument("--json", action="store_true", help="print the decisions as JSON")
    asked = parser.parse_intermixed_args(arguments)
    if not 0 <= asked.margin < math.inf:
        raise UserError(f"--margin {asked.margin:g}: expected a number of at least 0, such as 0.3.")
    if asked.max_seeds < FEWEST:
        raise UserError(f"--max-seeds {asked.max_seeds}: expected a number of at least {FEWEST}.")
    if seeds := [word for word in asked.overrides if word.lstrip("+").startswith("seed=")]:
        raise UserError(f"{seeds[0]}: `until` chooses the seeds, 0, 1, …; leave it out.")
    return asked


def _check(asked: argparse.Namespace) -> None:
    """Raise UserError where the baseline is none of the methods, or one of them cannot be paired with it."""
    cells = plan.asked([*asked.overrides, "seed=0"], asked.config_dir).cells
    if cells[0].config.force:
        raise UserError("force=true: `until` comes back to the same runs at every look; leave it out.")
    bases, others = _split(asked, [Method(cell.cell, "") for cell in cells])
    if not bases or not others:
        raise UserError(
            f"--baseline {asked.baseline}: expected one of the methods that are trained, and another one to compare."
        )
    name_all([*bases, *others])
    for method in others:
        base = contrasts.nearest(method, bases, differing([each.options for each in bases]))
        why = contrasts.why_unpaired(method, base, Reading(asked.metric)) if base else "no single baseline fits it"
        if why:
            raise UserError(f"{method.label}: it cannot be paired with the baseline ({why}); compare it apart.")


def _split(asked: argparse.Namespace, methods: Sequence[Method]) -> tuple[list[Method], list[Method]]:
    """The baselines, and the methods that are compared with them."""
    is_baseline = matcher(shlex.split(asked.baseline))
    bases = [method for method in methods if is_baseline(method.cell)]
    return bases, [method for method in methods if not is_baseline(method.cell)]


def _compared(asked: argparse.Namespace, seeds: str) -> list[Comparison]:
    """Every method against its baseline, by the finished runs of these seeds."""
    reading = Reading(asked.metric, asked.select)
    cells = plan.asked([*asked.overrides, seeds], asked.config_dir).cells
    methods = methods_of((load.described(cell.folder) for cell in cells), reading.columns)
    bases, others = _split(asked, methods)
    name_all(others)
    found = []
    for method in others:
        base = contrasts.nearest(method, bases, differing([each.options for each in bases]))
        assert base is not None, "checked before the first seed"
        found.append(Comparison(method, base, reading, asked.margin, ALPHA / len(others)))
    return found


def _lines(found: Sequence[Comparison]) -> Iterator[str]:
    """A line a comparison, under what they share."""
    reading, width = found[0].reading, max(len(one.method.label) for one in found)
    unit, level = reading.difference_unit, 100 * (1 - found[0].alpha)
    yield (
        f"{reading.quantity}, {reading.when}, minus the baseline, paired by seed; within ± {found[0].margin:g} {unit} "
        "a difference does not matter"
    )
    for one in found:
        now = one.now
        said = f"{one.word}{_by(one.word, now)}, decided at {one.decided_at} seeds" if one.decided_at else _why_not(now)
        interval = f" [{now.low:+.3f}, {now.high:+.3f}]" if math.isfinite(now.low) else ""
        yield f"  {one.method.label:{width}}  {f'{one.mean:+.3f}{interval}'.replace('-', '−')}  {said}"
    yield (
        f"{level:.4g} % confidence sequences, valid at every look together (5 % of error over "
        f"{plan.plural(len(found), 'comparison')}); assumed: independent Gaussian differences (docs/compare.md)"
    )
    yield "Quote these intervals: the p-values of `compare` assume that the number of seeds was fixed beforehand."


def _by(word: str, now: anytime.Decision) -> str:
    """Whether a difference is larger than the margin, as the interval of all seeds tells."""
    if word not in ("lower", "higher") or not now.margin:
        return ""
    beyond = now.high < -now.margin or now.low > now.margin
    return " by more than the margin" if beyond else " (perhaps by less than the margin)"


def _why_not(now: anytime.Decision) -> str:
    if math.isnan(now.low):
        return "not decided: a run has no finite number"
    if math.isinf(now.low):
        return "not decided: too few seeds for an interval"
    return "not decided: the interval holds 0 and reaches beyond the margin; a larger --max-seeds goes on"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _as_json(found: Sequence[Comparison], asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "metric": asked.metric,
        "margin": asked.margin,
        "comparisons": [
            {
                "label": one.method.label,
                "n": len(one.differences),
                "difference": _finite(one.mean),
                "low": _finite(one.now.low),
                "high": _finite(one.now.high),
                "e_value": _finite(anytime.e_value(one.differences)),
                "decision": one.word or None,
                "decided_at": one.decided_at,
            }
            for one in found
        ],
    }
