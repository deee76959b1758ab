"""Writes results into documents, between two markers, from the records: they cannot drift apart.

`<!-- results: … -->` takes every row of Table 1 and the verdicts, `<!-- results of five rows: … -->` the README's five
rows, `<!-- results of mnist A B: … -->` a data set's columns under those protocols, and
`<!-- results of mnist sensitivity B: … -->` its sensitivity runs under one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from dbnrun.config.registry import UserError
from dbnrun.paper.protocols import PAPER_DATASETS
from dbnrun.paper.result_set import ResultSet
from dbnrun.paper.sensitivity import by_value
from dbnrun.paper.statistics import Row, difference, population, with_interval
from dbnrun.paper.verdicts import AMENDMENT, CLAIMS, NOT_RUN, PRIMARY, Verdict
from dbnrun.report.names import ALPHA_ONE, ALPHA_ZERO, BASELINES, DATASETS, DIMINISHING, MODERN_BN, SCHEDULES, name_of
from dbnrun.report.tables import describe, from_to, markdown, number
from dbnrun.runs.layout import write_atomic

BEGIN, END = "<!-- results: written by `dbnrun report --readme` -->", "<!-- end of results -->"
BLOCK = re.compile(r"<!-- results(?: of (?P<columns>[\w ]+))?: written by `dbnrun report --readme` -->\n(.*\n)*?" + END)
NOTHING = "No runs are recorded yet."
SHOWN = ("0.5", "0.1", "0.01", "0.001")  # what stands for a column in `sensitivity`, 1/m and 1/m² beside it
MARK = "¹"
FIVE = (ALPHA_ONE, "0.1", DIMINISHING["epochs"][0], ALPHA_ZERO, MODERN_BN)  # the README's rows
LIKELIEST = "A"  # the protocol whose numbers stand beside the paper's
SHORT = {name: text.partition(" (")[0] for name, text in DATASETS.items()}
Rows = dict[str, Row]  # by key
Column = tuple[Rows, Callable[[Row], str], str]  # rows, what is said of each, and of one that was not run


def update(path: Path, results: ResultSet) -> bool:
    """Write the results between a document's markers; whether that changed it. Raises UserError without markers."""
    old = path.read_text() if path.exists() else ""
    new = with_results(old, results, path)
    if new != old:
        write_atomic(path, new.encode())
    return new != old


def with_results(text: str, results: ResultSet, path: Path) -> str:
    """A document's text with what belongs between each pair of its markers."""
    if not BLOCK.search(text):
        raise UserError(f"{path}: expected the lines {BEGIN!r} and {END!r}; put them where the results should stand.")

    def block(found: re.Match[str]) -> str:
        begin = found[0].partition("\n")[0]
        content = _content(results, (found["columns"] or "").split()) if results.mains else NOTHING
        return f"{begin}\n{content}\n{END}"

    return BLOCK.sub(block, text)


def _content(results: ResultSet, words: Sequence[str]) -> str:
    """What the words of a marker ask for."""
    match words:
        case ["five", "rows"]:
            return table_1(results, FIVE)
        case [dataset, "sensitivity", *letters]:
            return sensitivity(results, dataset, *letters)
        case [dataset, *letters]:
            return by_schedule(results, dataset, *letters)
    return overview(results)


def by_schedule(results: ResultSet, dataset: str, *letters: str) -> str:
    """A data set's test errors and their differences to α = 1 at the last epoch, as Markdown, protocol by protocol."""
    if dataset not in results.mains:
        return NOTHING
    heads, columns = [DATASETS[dataset]], []
    for letter in letters:
        rows = _last(results, dataset, letter)
        heads += [f"{letter}{_count(rows)}: test error [%]", "difference from its α = 1 [pp]"]
        columns += [(rows, with_interval, NOT_RUN), (rows, difference, "")]
    lines = _lines(columns)
    if lines and letters == (LIKELIEST,):
        row = population(results.mains[dataset])
        lines.append(["the same weights, population statistics", with_interval(row), difference(row)])
    return markdown(pd.DataFrame(lines, columns=heads))


def sensitivity(results: ResultSet, dataset: str, letter: str = LIKELIEST) -> str:
    """The sensitivity of a data set's main setting under a protocol: a line a value; α = 1, gains on it, α = 0.

    m counts epochs under A, where that is what tells the paper's rows apart, and steps under the others.
    """
    table = results.sensitivity
    if len(table):
        table = table[(table["dataset"] == dataset) & (table["protocol"] == letter) & table["main"]]
    if not len(table):
        return NOTHING
    keys = [*SHOWN, *DIMINISHING["epochs" if letter == LIKELIEST else "steps"]]
    lines = []
    for name, value, n, rows in by_value(table):
        lines.append(
            {
                DATASETS[dataset]: f"{name} {value}",
                "n": n,
                "α = 1: test error [%]": _text(rows, ALPHA_ONE, with_interval),
                **{f"{name_of(key)} [pp]": _text(rows, key, difference) for key in keys},
                "α = 0: test error [%]": _text(rows, ALPHA_ZERO, with_interval),
            }
        )
    return markdown(pd.DataFrame(lines))


def overview(results: ResultSet) -> str:
    """Table 1 beside ours and the verdicts, as Markdown."""
    runs = "; ".join(f"{SHORT[name]}: {describe(setting.cell)}" for name, setting in results.mains.items())
    return f"""\
{table_1(results)}

{runs}.

The paper's claims by the rules of [claims.md](claims.md), under protocol A, compared with α = 1. Where the verdict
in comparison with PyTorch's BN differs, it follows in parentheses:

{markdown(pd.DataFrame(_verdicts(results.verdicts)))}{_footnote(results.verdicts)}"""


def table_1(results: ResultSet, keys: Sequence[str] = (*SCHEDULES, *BASELINES)) -> str:
    """These rows of the paper's Table 1 with the paper's numbers beside ours, as Markdown."""
    heads, columns = [""], []
    for name in PAPER_DATASETS:
        rows = _last(results, name, LIKELIEST, "baselines")
        heads.append(SHORT[name] + _count(rows))
        columns.append((rows, _with_paper, NOT_RUN))
    return f"""\
Test error [%] at the last epoch: mean over n seeds [95 % confidence interval]. The number in parentheses is the
paper's, from one run at the epoch with the lowest test error. Rows with α or 1/m are DBN with `norm=dbn_inference`,
called protocol A: training uses each batch's own statistics, and testing uses the moving average.

{markdown(pd.DataFrame(_lines(columns, keys), columns=heads))}"""


def _last(results: ResultSet, dataset: str, *letters: str) -> Rows:
    """The last-epoch rows of a data set's main setting under these protocols; none where they have not been run."""
    table = results.statistics
    asked = (table["dataset"] == dataset) & (table["selection"] == "last") & table["protocol"].isin(letters)
    return {row["curve"]: row for row in table[asked].to_dict("records")}


def _lines(columns: Sequence[Column], keys: Sequence[str] = (*SCHEDULES, *BASELINES)) -> list[list[str]]:
    """A line for each of these curves of the paper and baselines that any column has."""
    there = [key for key in keys if any(key in rows for rows, _, _ in columns)]
    return [[name_of(key), *(_text(rows, key, say, absent) for rows, say, absent in columns)] for key in there]


def _text(rows: Rows, key: str, say: Callable[[Row], str], absent: str = NOT_RUN) -> str:
    return say(rows[key]) if key in rows else absent


def _count(rows: Rows) -> str:
    return f", n = {from_to(row['n'] for row in rows.values())}" if rows else ""


def _with_paper(row: Row) -> str:
    paper = number(row["paper"])
    return with_interval(row) + (f" ({paper})" if paper else "")


def _verdicts(judged: Sequence[Verdict]) -> Iterator[dict[str, str]]:
    """The verdicts under protocol A by the last epoch, a line a claim."""
    found = {(one.claim, one.dataset, one.reference): _marked(one) for one in judged if _is_shown(one)}
    for claim, text in CLAIMS.items():
        line = {"": f"{claim.partition(' ')[0]}: {text}"}
        for name in PAPER_DATASETS:
            mine = found.get((claim, "all", "")) or found[claim, name, ALPHA_ONE]
            modern = found.get((claim, name, MODERN_BN), NOT_RUN)
            line[SHORT[name]] = mine if modern in (mine, NOT_RUN) else f"{mine} ({modern})"
        yield line


def _is_shown(one: Verdict) -> bool:
    return one.protocol == "dbn_inference" and one.selection in (PRIMARY, "")


def _marked(one: Verdict) -> str:
    return one.verdict + MARK * one.is_amended


def _footnote(judged: Sequence[Verdict]) -> str:
    """What the mark beside a verdict means, where one has it."""
    if not any(one.is_amended for one in judged if _is_shown(one)):
        return ""
    return f"\n\n{MARK} {AMENDMENT.capitalize()}; [claims.md](claims.md) says how, and what it said before."
