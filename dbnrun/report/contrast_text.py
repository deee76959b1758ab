"""Tables of methods against a baseline as text, CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from dbnrun.report import stats
from dbnrun.report.contrasts import Row, Table
from dbnrun.report.methods import Reading, Tuning
from dbnrun.report.tables import markdown, p_text

FIELDS = (
    "label", "n", "mean", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm",
    "p_improvement", "seeds_needed",
)  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """What a command asked for, and what came of it."""

    tables: list[Table]
    alone: Mapping[str, str]  # why no single baseline fits a method, by its label
    reading: Reading
    effect: float  # NaN where none is known for the metric
    tuning: Tuning | None = None
    remarks: Sequence[str] = ()  # what else was left out
    source: str = ""  # which runs were read, where they are not the user's own


def csv(found: Compared) -> str:
    """A row a method; of several tables each label begins with its table's name."""
    rows = [fields(row) for table in found.tables for row in table.rows]
    if len(found.tables) > 1:
        names = [table.name for table in found.tables for _ in table.rows]
        rows = [{**row, "label": f"{name}: {row['label']}"} for row, name in zip(rows, names, strict=True)]
    frame = pd.DataFrame(rows, columns=list(FIELDS))
    return frame.to_csv(index=False, float_format="%.9g")


def fields(row: Row) -> dict[str, Any]:
    """A row as numbers, by the names of the CSV's columns; None where there is none."""
    d = row.contrast.difference
    values = (
        row.mean.n, row.mean.mean, row.mean.low, row.mean.high, d.mean, d.low, d.high, row.contrast.p,
        row.contrast.p_holm, row.p_improvement, row.seeds_needed,
    )  # fmt: skip
    return {"label": row.label} | {
        name: value if math.isfinite(value) else None for name, value in zip(FIELDS[1:], values, strict=True)
    }


def as_json(found: Compared) -> dict[str, Any]:
    """A comparison as what json.dumps takes."""
    reading, tuning = found.reading, found.tuning
    return {
        "source": found.source,
        "metric": reading.metric,
        "unit": reading.unit,
        "select": f"epoch {reading.at}" if reading.at else reading.select,
        "optimistic": reading.is_optimistic,
        "effect": found.effect if math.isfinite(found.effect) else None,
        "tables": [
            {"name": table.name, "title": table.title, "rows": [_json_row(row) for row in table.rows]}
            for table in found.tables
        ],
        "not_compared": list(found.alone),
        "tuned": {"keys": tuning.keys, "seeds": tuning.seeds, "methods": tuning.lines} if tuning else None,
    }


def _json_row(row: Row) -> dict[str, Any]:
    more = {
        "baseline": row.is_baseline,
        "test": "" if not row.is_compared else "welch" if row.contrast.unpaired else "sign_flip",
        "pairs": row.contrast.difference.n if row.is_compared and not row.contrast.unpaired else None,
        "verdict": row.contrast.word if row.is_compared else "",
        "note": row.note,
        "trial": row.method.is_trial,
        "seeds": row.method.seeds,
        "options": row.method.options,
    }
    return fields(row) | more


# What a reader sees


def columns(table: Table, found: Compared) -> pd.DataFrame:
    """The cells of a table as texts; a column that is empty throughout is left out."""
    unit, rows = found.reading.difference_unit, table.rows
    means, differences = [row.mean for row in rows], [row.contrast.difference for row in rows]
    heads = {
        "": [row.label for row in rows],
        "n": [str(row.mean.n) for row in rows],
        "mean": with_intervals(means, "{:.{}f}"),
        f"difference [{unit}]" if unit else "difference": [
            "baseline" if row.is_baseline else text
            for row, text in zip(rows, with_intervals(differences, "{:+.{}f}"), strict=True)
        ],
        "p": [_p(row.contrast.p) for row in rows],
        "p (Holm)": [_p_holm(row) for row in rows],
        "P(better)": [f"{row.p_improvement:.2f}" if math.isfinite(row.p_improvement) else "" for row in rows],
        f"seeds for {found.effect:g} {unit}".rstrip(): [_seeds(row) for row in rows],
        "note": [row.note for row in rows],
    }
    frame = pd.DataFrame(heads)
    return frame.loc[:, [head == "" or bool(frame[head].ne("").any()) for head in frame.columns]]


def with_intervals(column: Sequence[stats.Summary], form: str) -> list[str]:
    """'1.63 [1.58, 1.68]'; the mean alone of one seed. As many decimals in all as the typical half width asks for."""
    halves = [one.high - one.mean for one in column if one.high > one.mean]
    digits = 2 if not halves else min(6, max(2, math.ceil(0.3 - math.log10(median(halves)))))

    def number(value: float) -> str:
        return form.format(value, digits).replace("-", "−")

    texts = []
    for one in column:
        interval = f" [{number(one.low)}, {number(one.high)}]" if math.isfinite(one.low) else ""
        texts.append(number(one.mean) + interval if math.isfinite(one.mean) else "–" if one.n else "")
    return texts


def _p(p: float) -> str:
    return "" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _p_holm(row: Row) -> str:
    """The corrected p-value, or in a few words why there is none."""
    return p_text(row.contrast.p_holm, row.contrast.word) if row.is_compared else ""


def _seeds(row: Row) -> str:
    """'14 (4 more)', or a word where there is no number."""
    n = row.contrast.difference.n
    if row.is_compared and n < 2:
        return "unknown: one seed"
    if math.isinf(row.seeds_needed):
        return f"> {stats.MOST_SEEDS:,}"
    if math.isnan(row.seeds_needed):
        return ""
    more = max(0, int(row.seeds_needed) - n)
    can = "" if row.contrast.can_reject else f"; {n} can never reject"
    return f"{row.seeds_needed:,.0f} ({f'{more:,} more' if more else 'enough'}{can})"


def caption(table: Table, found: Compared) -> list[str]:
    """What the numbers of a table are, in sentences."""
    reading, unit = found.reading, found.reading.difference_unit
    said = [
        f"{reading.quantity[0].upper()}{reading.quantity[1:]}, {reading.when}: mean [95 % t interval] over n seeds."
    ]
    if table.compared:
        said += _of_tests(table)
        said.append(
            "P(better): of all pairs of one run of the method and one of the baseline, of any seeds, the share in "
            "which the method's run is lower; ties count one half."
        )
    if table.compared and math.isfinite(found.effect):
        shown = f"{found.effect:g} {unit}".strip()
        said.append(f"Seeds for {shown}: in all, to show a difference of {shown} with 80 % power at the seen spread.")
    if any(row.method.is_trial for row in table.rows):
        said.append("Trial: trained or evaluated on a part of the data (train.limit_batches, train.limit_eval).")
    return said


def _of_tests(table: Table) -> list[str]:
    welch = [row for row in table.compared if row.contrast.unpaired]
    pairs = [row for row in table.compared if not row.contrast.unpaired]
    base, made = table.baseline, table.compared[0].contrast.made
    how = "paired by seed (same data, network and batches)" if pairs else "unpaired"
    said = [f"Difference: minus {base.label if base else ''}, {how}{', but where noted' if welch and pairs else ''}."]
    tests = (["exact sign-flip test"] if pairs else []) + (["Welch's t test where unpaired"] if welch else [])
    if any(row.contrast.difference.n > stats.EXACT_UP_TO for row in pairs):
        tests[0] = f"sign-flip test (exact up to {stats.EXACT_UP_TO} seeds, beyond 9,999 drawn flips)"
    if not made:
        return [*said, "No p: fewer than two seeds are shared."]
    few = [row for row in pairs if row.contrast.difference.n > 1 and not row.contrast.can_reject]
    needed = f" n too small: p < 0.05 then needs {stats.least_seeds(made)} seeds." if few else ""
    return [*said, f"p: {', '.join(tests)}; Holm's correction over {made} comparison{'s' * (made != 1)}.{needed}"]


def remarks(found: Compared) -> list[str]:
    """What is said beside the tables: how methods were tuned, and which are not compared."""
    said = list(found.remarks)
    if found.tuning:
        tuning = found.tuning
        seeds = ", ".join(map(str, tuning.seeds))
        said.append(
            f"Tuned: {', '.join(tuning.keys)} by validation error on the seeds {seeds}; compared on the others."
        )
        said += [f"  {line}" for line in tuning.lines]
    for why in dict.fromkeys(found.alone.values()):
        names = [label for label, reason in found.alone.items() if reason == why]
        more = f"; and {len(names) - 6} more" if len(names) > 6 else ""
        said.append(f"Not compared: {'; '.join(names[:6])}{more}. {why}.")
    return said


def text(found: Compared) -> str:
    """For a terminal."""
    blocks = ["\n".join([table.title, *_aligned(columns(table, found))]) for table in found.tables]
    captions = [caption(table, found) for table in found.tables]
    for place, lines in enumerate(captions):  # once, where the next table's is the same
        if lines != [*captions, []][place + 1]:
            blocks[place] += "".join(f"\n  {line}" for line in lines)
    return "\n\n".join(filter(None, [found.source, *blocks, "\n".join(remarks(found))]))


def _aligned(frame: pd.DataFrame) -> list[str]:
    lines = [list(frame.columns), *frame.to_numpy().tolist()]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def as_markdown(found: Compared) -> str:
    """A comparison as Markdown, one table after another."""
    parts = [found.source] if found.source else []
    for table in found.tables:
        shown = columns(table, found).map(_escaped_pipe)
        parts += [f"**{table.title}**", markdown(shown), " ".join(caption(table, found))]
    listed = [line.replace("  ", "- ", 1) if line.startswith("  ") else f"{line}\n" for line in remarks(found)]
    return "\n\n".join([*parts, *filter(None, ["\n".join(listed)])]).rstrip() + "\n"


def _escaped_pipe(text: str) -> str:
    return text.replace("|", "\\|")


# LaTeX

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "α": r"$\alpha$", "λ": r"$\lambda$", "−": "$-$",
    "–": "--", "²": "$^2$", "<": "$<$", ">": "$>$", "±": r"$\pm$", "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


def latex(found: Compared) -> str:
    """A booktabs table each, for `\\usepackage{booktabs}`."""
    head = "% \\usepackage{booktabs}; where it is too wide, \\usepackage{graphicx} and \\resizebox{\\textwidth}{!}{…}\n"
    parts = [_latex_table(table, found, number) for number, table in enumerate(found.tables, 1)]
    return head + "\n".join(parts) + "".join(f"% {line.strip()}\n" for line in remarks(found))


def _latex_table(table: Table, found: Compared, number: int) -> str:
    frame = columns(table, found)
    for head in [head for head in frame.columns if head.startswith("seeds for")]:
        frame[head] = frame[head].str.partition(" (")[0]  # a page is narrow
    align = "l" + "".join("r" if head in ("n", "p", "P(better)") else "l" for head in frame.columns[1:])
    lines = [_latex_line(list(frame.columns)), r"\midrule", *(map(_latex_line, frame.to_numpy()))]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{tex(table.title)}. {tex(' '.join(caption(table, found)))}}}",
            rf"\label{{tab:compare{number if len(found.tables) > 1 else ''}}}",
            rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(map(tex, texts)) + r" \\"


def tex(text: str) -> str:
    """Text for LaTeX, whatever letters it has; a letter that pdfLaTeX may not know becomes a question mark."""
    escaped = re.sub("|".join(map(re.escape, SPECIAL)), lambda match: SPECIAL[match[0]], text)
    return "".join(letter if ord(letter) < 0x180 else "?" for letter in escaped)
