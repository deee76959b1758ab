"""Draws tables and figures from recorded rows; trains nothing and imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["report"]


def report(paths: Sequence[Path], out: Path, *, strict: bool = False) -> list[Path]:
    """Print a table a setting, write figures and tables below `out`, and return the files written.

    `paths` are results folders, runs folders or folders of single runs. One that cannot be read is warned of and left
    out. Raises UserError where there is nothing to report, or with `strict` at a folder that cannot be read.
    """
    from dbnrun.report import figures, tables
    from dbnrun.report.series import gather

    settings = gather(paths, strict=strict)
    written = tables.write(settings, out / "tables") + tables.write_differences(settings, out / "tables")
    for setting in settings:
        print(tables.as_text(setting))
        print(tables.differences_as_text(setting), end="")
        drawn = figures.draw(setting, out / "figures")
        print("".join(f"  {path}\n" for path in drawn if path.suffix == ".png"))
        written += drawn
    print("Tables: " + ", ".join(str(path) for path in written if path.suffix in (".md", ".csv")))
    return written
