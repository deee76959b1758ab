"""The verb `dbnrun theory`: check, run, figures."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config.registry import UserError
from dbnrun.theory import rows, sequences
from dbnrun.theory.conditions import Report, check
from dbnrun.theory.rows import Curve
from dbnrun.theory.settings import ACTIVATION_NOTES, DATA, LOSSES

MOST_VALUES = 50_000_000  # of z1 for all pairs: 400 MB an array, of which a step holds about five
RECORDS = Path("records") / "theory"
EXAMPLES = """\
examples:
  dbnrun theory check --h 2.5 --k 0.75
  dbnrun theory check --alpha 'm**-1*log(m + 2)**-2' --eta '0.1/m' --json
  dbnrun theory run --h 1,2.5 --k 0.6,1 --iterations 100000 --out decay.csv
  dbnrun theory run --alpha 1,0 --k 0.75 --data regression --loss mse
  dbnrun theory figures
"""
Cell = tuple[int, sequences.Sequence, sequences.Sequence]  # seed, alpha, eta


def main(arguments: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the verb. Raises UserError where its input is refused."""
    options = _parsed(arguments, parser)
    try:
        return options.verb(options)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written
        print(f"dbnrun theory {options.what}: {error}", file=sys.stderr)
        return 2


def _parsed(arguments: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    refuse = parser.error
    verbs = parser.add_subparsers(dest="what", required=True, metavar="check|run|figures")
    check = verbs.add_parser(
        "check",
        help="show which of the theorem's conditions your alpha (the weight of the newest batch) and eta (the learning "
        "rate) meet",
    )
    check.add_argument("--json", action="store_true", help="print JSON in place of a table")
    run = verbs.add_parser("run", help="run Algorithm 1 with full gradients for every combination of alpha and eta")
    figures = verbs.add_parser("figures", help="draw the theory figures from the committed CSV files, without training")
    _add_sequences(check, "", eta0="1")
    _add_sequences(
        run,
        "; several, separated by commas",
        eta0="5 divided by --examples, because the loss is a sum over the examples",
    )
    _add_run(run)
    for part, verb in ((check, _check), (run, _run), (figures, _figures)):
        part.set_defaults(verb=verb)
        part.error = refuse  # type: ignore[method-assign] # one line, ours
    results = Path(os.environ.get("DBNRUN_RESULTS", "results"))
    figures.add_argument(
        "records",
        nargs="?",
        type=Path,
        default=results / RECORDS,
        help="the folder with the committed CSV files (default: %(default)s)",
    )
    figures.add_argument("--out", type=Path, default=results / "figures" / "theory", help="default: %(default)s")
    return parser.parse_args(arguments)


def _add_sequences(parser: argparse.ArgumentParser, many: str, eta0: str) -> None:
    add = parser.add_argument
    form = f"harmonic, inverse_square, or a formula such as 0.1/m or 0.5*m**-1*log(m + 2)**-2{many}"
    add("--alpha", metavar="TEXT", type=_split, default=[], help=f"the weight of the newest batch, in [0, 1]: {form}")
    add("--eta", metavar="TEXT", type=_split, default=[], help="the learning rate, in the same form")
    add("--h", metavar="H", type=_numbers, default=[], help=f"instead of --alpha: alpha(m) = alpha0 * m^-H{many}")
    add("--k", metavar="K", type=_numbers, default=[], help=f"instead of --eta: eta(m) = eta0 * m^-K{many}")
    add("--alpha0", metavar="A", type=_number, default="1", help="default: %(default)s")
    add("--eta0", metavar="E", type=_number, help=f"default: {eta0}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--zip",
        action="store_true",
        help="pair the first alpha with the first eta, and so on, instead of running every combination",
    )
    add("--data", choices=DATA, default="digits", help="default: %(default)s")
    add(
        "--examples",
        "--records",  # its name in the committed commands
        dest="records",
        metavar="N",
        type=_count,
        help="train on this many randomly chosen examples (default: digits 1197, mnist 1000, regression 256)",
    )
    add("--width", type=_count, default=8, help="hidden units (D in the paper; default: %(default)s)")
    add(
        "--activation",
        choices=tuple(ACTIVATION_NOTES),
        default="tanh",
        help="tanh, elu and identity meet Assumptions 1 and 6 of the paper; relu and leaky_relu do not meet 1, because "
        "their derivative jumps at 0; sigmoid and softplus do not meet 6, because they are not 0 at 0 (default: tanh)",
    )
    add("--loss", choices=LOSSES, default="cross_entropy", help="default: %(default)s")
    add("--iterations", type=_count, default=100_000, help="m runs from 1 to this number (default: %(default)s)")
    add(
        "--eps",
        type=_positive,
        default=1e-4,
        help="epsilon_B, added to the standard deviation sigma (default: %(default)s)",
    )
    add(
        "--init",
        choices=("data", "0,1"),
        metavar="data|0,1",
        default="data",
        help="the first mean and standard deviation: computed from the data with the initial weights, or 0 and 1 "
        "(default: %(default)s)",
    )
    add(
        "--box",
        type=_positive,
        metavar="B",
        help="after each update, project weights, means and standard deviations onto [-B, B] (default: off)",
    )
    add("--seed", type=_seeds, default="0", help="seed of the initial weights; several, separated by commas")
    add("--data-seed", type=_seed, default=0, help="seed of the subset, or of the synthetic regression data")
    add("--per-decade", type=_count, default=20, help="iterations to record per decade of m (default: %(default)s)")
    add("--threads", type=_count, help="CPU threads (default: torch's choice)")
    add("--data-dir", type=Path, default=Path(os.environ.get("DBNRUN_DATA", "data")), help="default: %(default)s")
    add(
        "--out",
        type=Path,
        help="write the recorded iterations to this CSV file, and the settings to a JSON file beside it",
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _number(text: str) -> str:
    """The text of a number, as records name their pairs by it."""
    if not re.fullmatch(f"-?{sequences.NUMBER}", text):
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a number, such as 0.75")
    return text


def _numbers(text: str) -> list[str]:
    return [_number(part) for part in _split(text)]


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a whole number from {least} to {most}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 1, 10**8)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**63 - 1)


def _seeds(text: str) -> list[int]:
    return [_seed(part) for part in _split(text)]


def _positive(text: str) -> float:
    if not 0 < float(_number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected a number above 0")
    return float(text)


def _power(scale: str, exponent: str) -> str:
    """'0.5*m**-0.75', the form in which records name their pairs."""
    factor = "" if float(scale) == 1 else f"{scale}*"
    return f"{factor}m**{exponent[1:]}" if exponent.startswith("-") else f"{factor}m**-{exponent}"


def _sequences(options: argparse.Namespace) -> tuple[list[sequences.Sequence], list[sequences.Sequence]]:
    alphas = [_power(options.alpha0, h) for h in options.h] + options.alpha
    etas = [_power(options.eta0, k) for k in options.k] + options.eta
    if not alphas:
        raise UserError("no alpha: expected --alpha TEXT or --h H.")
    if not etas:
        raise UserError("no eta: expected --eta TEXT or --k K.")
    return [sequences.alpha(text) for text in alphas], [sequences.eta(text) for text in etas]


def _check(options: argparse.Namespace) -> int:
    options.eta0 = options.eta0 or "1"
    alphas, etas = _sequences(options)
    if len(alphas) > 1 or len(etas) > 1:
        raise UserError(f"{len(alphas)} alphas and {len(etas)} etas: expected one of each; check pairs one at a time.")
    report = check(alphas[0], etas[0])
    print(json.dumps(asdict(report), indent=2, ensure_ascii=False) if options.json else as_table(report))
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
    options.records = len(problem.x)
    options.eta0 = options.eta0 or f"{5 / options.records:.6g}"
    started = time.perf_counter()
    curves = _trained(options, problem, _cells(options))
    seconds = time.perf_counter() - started
    if options.out:
        rows.write(options.out, curves, _settings(options, seconds, int(curves[0]["m"][-1])))
    return _said(options, curves, seconds)


def _cells(options: argparse.Namespace) -> list[Cell]:
    """What is trained: every alpha with every eta, or, zipped, the first with the first. Raises UserError."""
    alphas, etas = _sequences(options)
    if options.zip and len(alphas) != len(etas):
        raise UserError(f"--zip: {len(alphas)} alphas and {len(etas)} etas; expected as many of one as of the other.")
    pairs = list(zip(alphas, etas, strict=True) if options.zip else itertools.product(alphas, etas))
    cells = [(seed, *pair) for seed in options.seed for pair in pairs]
    if len(cells) * options.width * options.records > MOST_VALUES:
        raise UserError(
            f"{len(cells)} pairs of {options.width} hidden units on {options.records} records: expected at most "
            f"{MOST_VALUES:,} hidden values at once; ask for fewer pairs, or a smaller --width or --examples."
        )
    return cells


def _trained(options: argparse.Namespace, problem: Any, cells: Sequence[Cell]) -> list[Curve]:
    """Algorithm 1 on all cells at once."""
    from tqdm import tqdm

    from dbnrun.theory import algorithm

    seeds, alphas, etas = zip(*cells, strict=True)
    theta = algorithm.initial(seeds, problem.x.shape[1], options.width, len(problem.targets))
    with tqdm(total=options.iterations, unit="it", leave=False, disable=None, dynamic_ncols=True) as bar:
        columns = algorithm.run(
            problem,
            theta,
            alphas,
            etas,
            options.iterations,
            algorithm.log_spaced(options.iterations, options.per_decade),
            algorithm.Setup(options.eps, options.init == "data", options.box),
            lambda _m: bar.update(),
        )
    return [
        Curve(seed, alpha.text, eta.text, {name: column[i].numpy() for name, column in columns.items()})
        for i, (seed, alpha, eta) in enumerate(cells)
    ]


def _settings(options: argparse.Namespace, seconds: float, reached: int) -> dict[str, Any]:
    import torch

    from dbnrun import __version__

    keys = ("data", "width", "activation", "loss", "iterations", "eps", "init", "box", "data_seed", "zip", "eta0")
    return {
        "command": f"dbnrun theory run {shlex.join(sys.argv[3:] if sys.argv[2:3] == ['run'] else [])}".strip(),
        **{key: getattr(options, key) for key in keys},
        "seed": ",".join(map(str, options.seed)),
        "records": options.records,
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


def _said(options: argparse.Namespace, curves: Sequence[Curve], seconds: float) -> int:
    """Print per pair how far the squared gradient norm fell, then what went wrong; the exit code."""
    print(f"{'seed':>4}  {'alpha':24} {'eta':28} {'first decade':>12} {'last decade':>12} {'falls':>9}  Σ‖Δλ‖")
    for curve in curves:
        first, end = curve.first_decade("grad_sq"), curve.last_decade("grad_sq")
        falls = f"{first / end:8.3g}×" if end else "to 0"
        pair = f"{curve.seed:4}  {curve.alpha:24} {curve.eta:28}"
        print(f"{pair} {first:12.4g} {end:12.4g} {falls:>9}  {curve['lambda_path'][-1]:.4g}")
    last = int(curves[0]["m"][-1])
    print(f"{len(curves)} pairs, {last} iterations, {options.records} records, {seconds:.1f} s")
    if lost := sum(not math.isfinite(curve["f"][-1]) for curve in curves):
        print(
            f"dbnrun theory run: {lost} of {len(curves)} pairs overflowed; a smaller --eta0 may not.", file=sys.stderr
        )
    if last < options.iterations:
        print(f"dbnrun theory run: interrupted at m = {last} or later; what was logged is kept.", file=sys.stderr)
        return 130
    return 0


def _figures(options: argparse.Namespace) -> int:
    from dbnrun.theory import figures

    for path in figures.draw(options.records, options.out):
        print(path)
    return 0
