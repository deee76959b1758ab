"""probe.csv: what probe=true measures at each normalizer, a row a layer and epoch. Knows no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dbnrun.config.registry import UserError
from dbnrun.runs import metrics
from dbnrun.runs.layout import PROBE, Appended


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One line of probe.csv: a normalizer at an epoch's end, on one fixed training batch (train/probe.py).

    mu_B and sigma_B are the mean and the biased standard deviation of a unit or channel of the layer's input x over
    that batch. RMS is over units; for the two ratios, over those with sigma_B > 0. L is the batch's training loss, l2
    excluded. None is an empty field. The order of the fields is a public format, as that of metrics.csv.
    """

    epoch: int
    layer: str  # its name in the network
    mean_over_sigma: float | None  # RMS of |mu_B| / (sigma_B + 1e-5)
    sigma: float | None  # RMS of sigma_B
    gamma_norm: float | None  # L2 norm of gamma; None without gamma
    # Of dL/dx, as norms relative to that of the whole: what flows through mu_B and through sigma_B. None where the
    # layer is no function of each unit's x, mu_B and sigma_B, or where dL/dx is 0.
    mean_share: float | None
    scale_share: float | None
    lambda_lag: float | None  # RMS of |mu_lambda - mu_B| / (sigma_B + 1e-5); None without a mean to evaluate with


COLUMNS = tuple(field.name for field in fields(ProbeRow))
MEASURED = COLUMNS[2:]


def read_rows(path: Path) -> list[ProbeRow]:
    """The rows of a probe.csv; [] where the file is missing. A half-written last line is left out.

    Raises UserError where another line is malformed, or a column is missing.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    reader = csv.DictReader(lines)
    rows = []
    for line in reader:
        try:
            rows.append(_parsed(line))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: line {reader.line_num}: expected {','.join(COLUMNS)}. Move the file away to go on."
            ) from None
    return rows


def _parsed(line: dict[str, str]) -> ProbeRow:
    measured: Any = {name: float(line[name]) if line[name] else None for name in MEASURED}
    return ProbeRow(epoch=int(line["epoch"]), layer=line["layer"], **measured)


def csv_lines(rows: Iterable[ProbeRow]) -> str:
    """Rows as text, without the header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        values = (getattr(row, name) for name in MEASURED)
        writer.writerow([row.epoch, row.layer, *("" if value is None else repr(value) for value in values)])
    return text.getvalue()


class ProbeWriter(Appended):
    """Appends to a run's probe.csv; an epoch's rows are on the disk before its row in metrics.csv."""

    def __init__(self, folder: Path, epoch: int) -> None:
        """Keep the rows of the epochs before this one: it, and what may follow, is trained again."""
        path = folder / PROBE
        metrics.refuse_unknown_columns(path, COLUMNS)
        kept = [row for row in read_rows(path) if row.epoch < epoch]
        super().__init__(path, ",".join(COLUMNS) + "\n" + csv_lines(kept))
