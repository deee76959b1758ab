"""Methods against a baseline: which baseline is whose, what can be paired, and every statistic of a table's rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dbnrun.config import registry
from dbnrun.config.differences import differing, said
from dbnrun.config.identity import slug_of
from dbnrun.config.registry import UserError
from dbnrun.report import stats
from dbnrun.report.compare import Comparison, by_pairs, corrected
from dbnrun.report.methods import Method, Reading, name_all
from dbnrun.report.names import alpha_of, dataset_of, natural
from dbnrun.report.tables import describe

NOTHING = Comparison("", stats.Summary(0, *[float("nan")] * 4), float("nan"), float("nan"), 0)


@dataclass(frozen=True)
class Row:
    """A method, and how it compares with its table's baseline."""

    method: Method
    mean: stats.Summary
    is_baseline: bool = False
    contrast: Comparison = NOTHING
    p_improvement: float = float("nan")
    seeds_needed: float = float("nan")

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def is_compared(self) -> bool:
        return self.contrast is not NOTHING

    @property
    def note(self) -> str:
        """What else a reader must know: how it is not paired, and which runs are left out."""
        unpaired, pairs = self.contrast.unpaired, self.contrast.difference.n
        notes = [f"unpaired: {unpaired} (Welch)"] if unpaired else []
        if self.is_compared and not unpaired and pairs < self.mean.n:
            notes.append(f"paired over {pairs} seeds")
        notes += [f"{count} {status} left out" for status, count in sorted(self.method.left_out.items())]
        return "; ".join(notes)


@dataclass
class Table:
    """Rows that one Holm correction covers, the baseline first."""

    rows: list[Row]
    name: str  # unique among the tables: 'MNIST', 'MNIST, lr=0.03'
    title: str  # the name, and what the rows share

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline), None)

    @property
    def compared(self) -> list[Row]:
        return [row for row in self.rows if row.is_compared]


def tables(
    methods: Sequence[Method],
    is_baseline: Callable[[Mapping[str, Any]], bool] | None,
    reading: Reading,
    effect: float,
    by: Sequence[str] = (),
    always: Sequence[str] = (),
) -> tuple[list[Table], dict[str, str]]:
    """A table for each baseline and each value of the keys `by`; and why no single baseline fits a method, by label.

    Without a baseline there is a table for each data set and value. `always`: keys that every label states.
    """
    bases = [method for method in methods if is_baseline is not None and is_baseline(method.cell)]
    groups: dict[tuple[str, int], list[Method]] = defaultdict(list)
    data: dict[str, int] = {}
    alone = []
    keys = differing([base.options for base in bases])
    for method in methods:
        value = ", ".join(said(key, method.options) for key in by)
        if is_baseline is None:
            groups[value, data.setdefault(dataset_of(method.cell) + method.digest, len(data))].append(method)
        elif not any(method is base for base in bases):
            base = nearest(method, bases, keys)
            if base is None:
                alone.append(method)
            else:
                groups[value, bases.index(base)].append(method)
    if is_baseline is not None and not groups:
        if len(bases) > 1 and not alone:
            name_all(bases)
            names = "; ".join(base.label for base in bases[:4]) + ("; …" if len(bases) > 4 else "")
            raise UserError(
                f"--baseline: {len(bases)} methods match, and no other is there to compare ({names}); name one more "
                "setting in --baseline, or more methods in the filters."
            )
        groups = {("", place): [] for place in range(len(bases))}
    made = [
        _table(bases[place] if bases else None, group, reading, effect, (by, always))
        for (_, place), group in sorted(groups.items(), key=lambda item: item[0][::-1])
    ]
    _name(made, keys)
    name_all(alone, without=("dataset",))
    return made, {f"{dataset_of(one.cell)}: {one.label}": _why_alone(one, bases) for one in alone}


def nearest(method: Method, bases: Sequence[Method], keys: Sequence[str]) -> Method | None:
    """The baseline that a method is compared with: on the same data, with most settings in common.

    None where two fit equally well, or where none of several is on its data.
    """
    if len(bases) == 1:
        return bases[0]
    alike = [base for base in bases if _same_data(method, base)]
    common = [sum(method.options.get(key) == base.options.get(key) for key in keys) for base in alike]
    best = [base for base, count in zip(alike, common, strict=True) if count == max(common, default=0)]
    return best[0] if len(best) == 1 else None


def _why_alone(method: Method, bases: Sequence[Method]) -> str:
    if not any(_same_data(method, base) for base in bases):
        return "No baseline is on their data"
    such = " ".join(f"{key}={bases[0].options.get(key)}" for key in differing([base.options for base in bases])[:2])
    return f"Several baselines have as many settings in common with them; name one more in --baseline, such as {such}"


def _same_data(one: Method, other: Method) -> bool:
    known = one.digest and other.digest
    return one.digest == other.digest if known else one.cell["dataset"] == other.cell["dataset"]


def _table(
    base: Method | None,
    group: Sequence[Method],
    reading: Reading,
    effect: float,
    keys: tuple[Sequence[str], Sequence[str]],
) -> Table:
    by, always = keys
    ordered = sorted(group, key=_rank)
    # A baseline may stand in several tables, with a label of its own in each.
    members = ([replace(base)] if base else []) + [replace(method) for method in ordered]
    name_all(members, always, without=by)
    rows = _rows(members, reading, effect) if base else [Row(one, _summary(reading.of(one))) for one in members]
    shared = members[0].cell
    # The last is one of the group: a baseline may lack the keys that the tables are made by.
    name = ", ".join([dataset_of(shared), *(said(key, members[-1].options) for key in by if key != "dataset")])
    said_of_all = dict.fromkeys(describe(one.cell) for one in members)
    return Table(rows, name, next(iter(said_of_all)) if base or len(said_of_all) == 1 else "")


def _rows(members: Sequence[Method], reading: Reading, effect: float) -> list[Row]:
    """The baseline, which comes first, and the others against it."""
    base, others = members[0], members[1:]
    zero = reading.of(base)
    contrasts = corrected([_contrast(base, zero, method, reading) for method in others])
    rows = [Row(base, _summary(zero), is_baseline=True)]
    for method, one in zip(others, contrasts, strict=True):
        values = reading.of(method)
        improvement = stats.p_improvement(_array(values), _array(zero))
        rows.append(Row(method, _summary(values), False, one, improvement, _seeds_needed(one, effect)))
    return rows


def _contrast(base: Method, zero: Mapping[int, float], method: Method, reading: Reading) -> Comparison:
    """The method minus the baseline, paired where that can be; not yet corrected."""
    values, unpaired = reading.of(method), why_unpaired(method, base, reading)
    if not unpaired:
        return by_pairs(method.label, values, zero)
    difference, p = stats.welch(_array(values), _array(zero))
    return Comparison(method.label, difference, p, p, 0, unpaired)


def why_unpaired(method: Method, base: Method, reading: Reading) -> str:
    """Why runs of one seed are no pairs: they must share data, network (so that they start alike) and batches."""
    one, other = method.cell, base.cell

    def differ(*keys: str) -> bool:
        return any(one["train"].get(key) != other["train"].get(key) for key in keys)

    if not _same_data(method, base) or one["dataset"] != other["dataset"] or differ("limit_eval"):
        return "other data"
    if one["model"] != other["model"]:
        return "another network"
    if differ("batch_size", "limit_batches") or (reading.at is None and differ("epochs")):
        return "other batches"
    shared = set(method.seeds) & set(base.seeds)
    return "fewer than two seeds in common" if len(shared) < 2 <= min(method.n, base.n) else ""


def _seeds_needed(one: Comparison, effect: float) -> float:
    """Seeds in all to show the effect at the seen spread; never fewer than Holm's correction lets reject."""
    if not np.isfinite(effect) or not np.isfinite(one.p):
        return float("nan")
    least = 2 if one.unpaired else stats.least_seeds(one.made)
    return stats.seeds_needed(effect, one.difference.sd, paired=not one.unpaired, least=least)


def _summary(values: Mapping[int, float]) -> stats.Summary:
    return stats.summarize(_array(values))


def _array(values: Mapping[int, float]) -> np.ndarray:
    return np.array(list(values.values()), dtype=float)


def _rank(method: Method) -> tuple[Any, ...]:
    """Normalizers without a schedule, then a block for each other: constants from 1 down, diminishing ones, then 0."""
    norms, slug = list(registry.of("norm")), slug_of("norm", method.cell["norm"])
    name = method.cell["norm"]["name"]
    place = norms.index(name) if name in norms else len(norms)
    if "schedule" not in method.cell:
        return (False, place, slug, 0, 0.0, natural(str(method.options)))
    alpha = alpha_of(method.key)
    kind = 1 if alpha is None else 0 if alpha else 2
    return (True, place, slug, kind, -(alpha or 0.0), method.key, natural(str(method.options)))


def _name(made: Sequence[Table], keys: Iterable[str]) -> None:
    """Where tables have one name, add in what their baselines differ."""
    for name in {table.name for table in made}:
        alike = [table for table in made if table.name == name]
        own = differing([table.rows[0].method.options for table in alike]) if len(alike) > 1 else []
        for number, table in enumerate(alike, 1):
            words = [said(key, table.rows[0].method.options) for key in own if key in keys]
            table.name = ", ".join([name, *words]) if words or len(alike) == 1 else f"{name} {number}"
    for table in made:
        table.title = f"{table.name}: {table.title}" if table.title else table.name
