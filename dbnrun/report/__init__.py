"""From recorded rows to tables and figures; trains nothing and knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["report"]


def report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Print a table a setting, write figures and tables below `out`, and return the files written.

    `paths` are results folders, runs folders or folders of single runs. Raises UserError where there is nothing to
    report.
    """
    from dbnrun.report import figures, tables
    from dbnrun.report.gather import gather

    settings = gather(paths)
    written = tables.write(settings, out / "tables")
    for setting in settings:
        print(tables.as_text(setting))
        drawn = figures.draw(setting, out / "figures")
        print("".join(f"  {path}\n" for path in drawn if path.suffix == ".png"))
        written += drawn
    print("Tables: " + ", ".join(str(path) for path in written if path.suffix in (".md", ".csv")))
    return written
