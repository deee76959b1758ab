"""The verb `dbnrun theory`: check, run, figures."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbnrun.config.registry import UserError
from dbnrun.theory.settings import ACTIVATION_NOTES, DATA, LOSSES

if TYPE_CHECKING:
    from dbnrun.theory.conditions import Report
    from dbnrun.theory.expression import Expression

MOST_VALUES = 50_000_000  # of z1 for all pairs: 400 MB an array, of which a step holds about five
RECORDS = Path("records") / "theory"
EXAMPLES = """\
examples:
  dbnrun theory check --h 2.5 --k 0.75
  dbnrun theory check --alpha '1/(m*log(m + 2)**2)' --eta '0.1/m' --json
  dbnrun theory run --h 1,2.5 --k 0.6,1 --iterations 100000 --out decay.csv
  dbnrun theory run --alpha 1,0 --k 0.75 --data regression --loss mse
  dbnrun theory figures
"""


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the verb. Raises UserError where its input is refused."""
    options = _parsed(arguments, parser)
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {"check": _check, "run": _run, "figures": _figures}
    try:
        return verbs[options.what](options)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written
        print(f"dbnrun theory {options.what}: {error}", file=sys.stderr)
        return 2


def _parsed(arguments: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    refuse = parser.error
    verbs = parser.add_subparsers(dest="what", required=True, metavar="check|run|figures")
    check = verbs.add_parser("check", help="decide the paper's conditions for a pair (alpha, eta)")
    check.add_argument("--json", action="store_true", help="print JSON in place of a table")
    run = verbs.add_parser("run", help="Algorithm 1 with full gradients, for every alpha with every eta")
    figures = verbs.add_parser("figures", help="draw the theory figures from recorded CSVs; trains nothing")
    for part in (check, run):
        _add_sequences(part, several=part is run)
    _add_run(run)
    results = Path(os.environ.get("DBNRUN_RESULTS", "results"))
    figures.add_argument("records", nargs="?", type=Path, default=results / RECORDS, help="default: %(default)s")
    figures.add_argument("--out", type=Path, default=results / "figures" / "theory", help="default: %(default)s")
    for part in (check, run, figures):
        part.error = refuse  # type: ignore[method-assign] # one line, ours
    return parser.parse_args(arguments)


def _add_sequences(parser: argparse.ArgumentParser, several: bool) -> None:
    many = "; several, separated by commas" if several else ""
    parser.add_argument(
        "--alpha", metavar="EXPR", help=f"alpha(m) in [0, 1]: harmonic, inverse_square, or text in m{many}"
    )
    parser.add_argument("--eta", metavar="EXPR", help=f"eta(m) of at least 0, likewise{many}")
    parser.add_argument("--h", metavar="H", help=f"alpha(m) = alpha0 m^-H{many}")
    parser.add_argument("--k", metavar="K", help=f"eta(m) = eta0 m^-K{many}")
    parser.add_argument("--alpha0", default="1", metavar="A", help="default: %(default)s")
    default = "5 / records: f is a sum over them" if several else "1"
    parser.add_argument("--eta0", metavar="E", help=f"default: {default}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    notes = "; ".join(f"{name}: {note}" for name, note in ACTIVATION_NOTES.items())
    parser.add_argument("--zip", action="store_true", help="the first alpha with the first eta, …: no grid")
    parser.add_argument("--data", choices=DATA, default="digits", help="default: %(default)s")
    parser.add_argument(
        "--records",
        type=_count,
        help="a seeded subset of so many (default: digits 1197, its training part; mnist 1000; regression 256)",
    )
    parser.add_argument("--width", type=_count, default=8, help="hidden units D (default: %(default)s)")
    parser.add_argument("--activation", choices=tuple(ACTIVATION_NOTES), default="tanh", help=f"{notes}. Default: tanh")
    parser.add_argument("--loss", choices=LOSSES, default="cross_entropy", help="default: %(default)s")
    parser.add_argument("--iterations", type=_count, default=100_000, help="the last m (default: %(default)s)")
    parser.add_argument("--eps", type=_positive, default=1e-4, help="epsilon_B, added to sigma (default: %(default)s)")
    parser.add_argument(
        "--init", choices=("data", "0,1"), default="data", help="lambda(1): statistics at theta(1), or (0, 1)"
    )
    parser.add_argument(
        "--box", type=_positive, help="project theta, mu and sigma onto [-B, B] after each update (default: off)"
    )
    parser.add_argument("--seed", default="0", help="of the initial weights; several, separated by commas")
    parser.add_argument("--data-seed", type=_seed, default=0, help="of the subset, or the made regression")
    parser.add_argument("--per-decade", type=_count, default=20, help="logged iterations a decade of m")
    parser.add_argument("--threads", type=_count, help="CPU threads (default: torch's choice)")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DBNRUN_DATA", "data")))
    parser.add_argument("--out", type=Path, help="write the rows to this CSV, and the settings to a JSON beside it")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:12]) <= 10**8:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a whole number from 1 to 10^8")
    return int(text)


def _seed(text: str) -> int:
    try:
        return _seeds(text)[0]
    except UserError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a whole number from 0 to 2^63 - 1") from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a number above 0")
    return value


def _split(text: str | None) -> list[str]:
    """'1,min(1, 2/m)' at its commas outside brackets."""
    parts, depth = [""], 0
    for character in text or "":
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if text else []


def _powers(scale: str, exponents: list[str], names: tuple[str, str]) -> list[str]:
    """'0.5*m**-0.75' for each exponent. Raises UserError where one is no number."""
    for name, text in [(names[0], scale), *((names[1], e) for e in exponents)]:
        try:
            sound = math.isfinite(float(text)) and abs(float(text)) <= 100
        except ValueError:
            sound = False
        if not sound:
            raise UserError(f"--{name} {text[:60]!r}: expected a number, at most 100 in size.")
    factor = "" if float(scale) == 1 else f"{scale}*"
    return [f"{factor}m**-{e}" if not e.startswith("-") else f"{factor}m**{e[1:]}" for e in exponents]


def _sequences(options: argparse.Namespace, eta0: str) -> tuple[list[Expression], list[Expression]]:
    from dbnrun.theory import expression

    # A copy of m**-h is checked as any text is: one way in, whatever the user wrote.
    alphas = _powers(options.alpha0, _split(options.h), ("alpha0", "h")) + _split(options.alpha)
    etas = _powers(eta0, _split(options.k), ("eta0", "k")) + _split(options.eta)
    if not alphas:
        raise UserError("no alpha: expected --alpha EXPR or --h H.")
    if not etas:
        raise UserError("no eta: expected --eta EXPR or --k K.")
    return [expression.alpha(text) for text in alphas], [expression.eta(text) for text in etas]


def _check(options: argparse.Namespace) -> int:
    from dbnrun.theory.conditions import check

    alphas, etas = _sequences(options, options.eta0 or "1")
    if len(alphas) > 1 or len(etas) > 1:
        raise UserError(f"{len(alphas)} alphas and {len(etas)} etas: expected one of each; check pairs one at a time.")
    report = check(alphas[0], etas[0])
    print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if options.json else as_table(report))
    return 0


def as_table(report: Report) -> str:
    """The report as lines for a terminal."""
    lines = [f"alpha(m) = {report.alpha}   {report.alpha_grows}", f"eta(m)   = {report.eta}   {report.eta_grows}", ""]
    wide = max(len(condition.says) for condition in report.conditions)
    for c in report.conditions:
        lines.append(f"{c.where:13} {c.says:{wide}}  {c.verdict:8} {c.reason}")
    lines.append("")
    for t in report.theorems:
        lines.append(f"{t.name:13} {t.verdict:8} {t.gives}  (needs {t.needs})")
    if report.regions:
        lines += ["", f"h = {report.h}, k = {report.k}:"]
        lines += [f"  {region.verdict:8} {region.stated}" for region in report.regions]
    lines.append(
        "H(m) = Σ_{n≤m} η(n). The theorems assume more than sums: Lipschitz gradients, bounded θ and λ, a(0) = 0."
    )
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    import torch

    from dbnrun.theory import problems
    from dbnrun.theory.rows import write

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.out:
        if options.out.suffix != ".csv":
            raise UserError(
                f"--out {options.out}: expected a name that ends in .csv; the settings go beside it as .json."
            )
        options.out.parent.mkdir(parents=True, exist_ok=True)  # an error here, not after the run
    problem = problems.build(
        options.data, options.records, options.activation, options.loss, options.data_seed, options.data_dir
    )
    cells = _cells(options, len(problem.x))
    points, seconds = _trained(options, problem, cells)
    rows = _rows(cells, points)
    if options.out:
        write(options.out, rows, _settings(options, len(problem.x), seconds, points[-1].m))
    return _said(options, cells, rows, points[-1].m, seconds, len(problem.x))


def _cells(options: argparse.Namespace, records: int) -> list[tuple[int, Expression, Expression]]:
    """What is trained: seed, alpha and eta. Raises UserError where that is too much at once."""
    alphas, etas = _sequences(options, options.eta0 or f"{5 / records:.6g}")
    cells = [(seed, *pair) for seed in _seeds(options.seed) for pair in _pairs(alphas, etas, options.zip)]
    if len(cells) * options.width * records > MOST_VALUES:
        raise UserError(
            f"{len(cells)} pairs of {options.width} hidden units on {records} records: expected at most "
            f"{MOST_VALUES:,} hidden values at once; ask for fewer pairs, --width or --records."
        )
    return cells


def _trained(options: argparse.Namespace, problem: Any, cells: Sequence[Any]) -> tuple[Any, float]:
    """Algorithm 1 on all cells at once: its points, and the seconds it took."""
    from dbnrun.theory import algorithm

    inputs, outputs = problem.x.shape[1], len(problem.targets)
    theta = algorithm.initial([seed for seed, *_ in cells], inputs, options.width, outputs)
    started = time.perf_counter()
    with _progress(options.iterations) as tick:
        points = algorithm.run(
            problem,
            theta,
            [alpha for _, alpha, _ in cells],
            [eta for *_, eta in cells],
            options.iterations,
            algorithm.log_spaced(options.iterations, options.per_decade),
            algorithm.Setup(options.eps, options.init == "data", options.box),
            tick,
        )
    return points, time.perf_counter() - started


def _rows(cells: Sequence[Any], points: Sequence[Any]) -> list[Any]:
    from dbnrun.theory.rows import Row

    return [
        Row(seed, alpha.text, eta.text, point.m, *(float(column[i]) for column in _columns(point)))
        for i, (seed, alpha, eta) in enumerate(cells)
        for point in points
    ]


def _said(
    options: argparse.Namespace, cells: Sequence[Any], rows: Sequence[Any], last: int, seconds: float, records: int
) -> int:
    """Print what came out; the exit code."""
    print(_summary(rows))
    print(f"{len(cells)} pairs, {last} iterations, {records} records, {seconds:.1f} s")
    if lost := sum(not math.isfinite(row.f) for row in rows if row.m == last):
        print(f"dbnrun theory run: {lost} of {len(cells)} pairs overflowed; a smaller --eta0 may not.", file=sys.stderr)
    if last < options.iterations:
        print(f"dbnrun theory run: interrupted at m = {last} or later; what was logged is kept.", file=sys.stderr)
        return 130
    return 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in _split(text)]
    except ValueError:
        seeds = []
    if not seeds or not all(0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"--seed {text[:60]!r}: expected whole numbers from 0 to 2^63 - 1, separated by commas.")
    return seeds


def _pairs(alphas: list[Expression], etas: list[Expression], zipped: bool) -> list[tuple[Expression, Expression]]:
    """Every alpha with every eta, or, zipped, the first with the first and so on."""
    if not zipped:
        return list(itertools.product(alphas, etas))
    if len(alphas) != len(etas):
        raise UserError(f"--zip: {len(alphas)} alphas and {len(etas)} etas; expected as many of one as of the other.")
    return list(zip(alphas, etas, strict=True))


def _columns(point: Any) -> list[Any]:
    names = ("f", "grad_sq", "grad_sq_final", "lambda_step", "lambda_path", "lambda_distance", "alpha", "eta")
    return [getattr(point, name) for name in names]


@contextlib.contextmanager
def _progress(iterations: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=iterations, unit="it", leave=False, disable=None, dynamic_ncols=True) as bar:
        yield lambda _m: bar.update()


def _settings(options: argparse.Namespace, records: int, seconds: float, reached: int) -> dict[str, Any]:
    import platform

    import numpy as np
    import torch

    from dbnrun import __version__

    keys = ("data", "width", "activation", "loss", "iterations", "eps", "init", "box", "seed", "data_seed", "zip")
    return {
        "command": f"dbnrun theory run {shlex.join(sys.argv[3:] if sys.argv[2:3] == ['run'] else [])}".strip(),
        **{key: getattr(options, key) for key in keys},
        "eta0": options.eta0 or f"{5 / records:.6g}",
        "records": records,
        "reached": reached,
        "activation_note": ACTIVATION_NOTES[options.activation],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "dbnrun": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _summary(rows: Sequence[Any]) -> str:
    """Per pair the median of the squared gradient norm over the first and over the last decade of m."""
    import numpy as np

    lines = [f"{'seed':>4}  {'alpha':24} {'eta':28} {'first decade':>12} {'last decade':>12} {'falls':>9}  Σ‖Δλ‖"]
    for (seed, alpha, eta), group in itertools.groupby(rows, key=lambda row: (row.seed, row.alpha, row.eta)):
        part = list(group)
        last = part[-1].m
        first = float(np.median([row.grad_sq for row in part if row.m <= 10]))
        end = float(np.median([row.grad_sq for row in part if row.m >= last / 10]))
        falls = f"{first / end:8.3g}×" if end else "to 0"
        lines.append(f"{seed:4}  {alpha:24} {eta:28} {first:12.4g} {end:12.4g} {falls:>9}  {part[-1].lambda_path:.4g}")
    return "\n".join(lines)


def _figures(options: argparse.Namespace) -> int:
    from dbnrun.theory import figures

    for path in figures.draw(options.records, options.out):
        print(path)
    return 0
