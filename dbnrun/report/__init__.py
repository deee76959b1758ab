"""Draws tables, figures and a page from recorded rows; trains nothing and imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbnrun.report.series import Setting

__all__ = ["draw", "draw_all", "finish", "report"]


def report(
    paths: Sequence[Path], out: Path, filters: Sequence[str] = (), *, title: str = "", strict: bool = False
) -> list[Path]:
    """Report on the runs under `paths` that pass all `filters` (config/filters.py) into `out`; the files written.

    `paths` are results folders, runs folders, folders of single runs or of records. A run that cannot be read is warned
    of and left out. Raises UserError where there is nothing to report, or with `strict` at such a folder.
    """
    from dbnrun.report.series import gather

    return draw_all(gather(paths, filters, strict=strict), out, title)


def draw_all(settings: Sequence[Setting], out: Path, title: str = "") -> list[Path]:
    """The whole report of these settings."""
    from dbnrun.report import page
    from dbnrun.report.series import runs_of

    return draw(settings, settings, out) + finish(out, page.page(settings, runs_of(settings), title))


def draw(settings: Sequence[Setting], compared: Sequence[Setting], out: Path) -> list[Path]:
    """Print a table a setting, write figures and tables below `out`; the files written. `compared`: to a baseline."""
    from dbnrun.report import figures, probes, tables

    written = tables.write(settings, out / "tables") + tables.write_differences(compared, out / "tables")
    for setting in settings:
        print(tables.as_text(setting))
        print(tables.differences_as_text(setting) if setting in compared else "")
        drawn = figures.draw(setting, out / "figures") + probes.draw(setting, out / "figures")
        print("".join(f"  {path}\n" for path in drawn if path.suffix == ".png"), end="")
        written += drawn
    print("Tables: " + ", ".join(str(path) for path in written if path.suffix in (".md", ".csv")))
    return written


def finish(out: Path, page: str) -> list[Path]:
    """Write the page and say where it is; returns its path."""
    from dbnrun.report.tables import write_texts

    written = write_texts(out, {"report.html": page})
    print(f"Page: {written[0]}")
    return written
