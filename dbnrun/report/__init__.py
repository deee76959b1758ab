"""From recorded rows to tables and figures; trains nothing and knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["publish", "report"]


def report(paths: Sequence[Path], out: Path, *, strict: bool = False) -> list[Path]:
    """Print a table a setting, write figures and tables below `out`, and return the files written.

    `paths` are results folders, runs folders or folders of single runs. One that cannot be read is warned of and left
    out. Raises UserError where there is nothing to report, or with `strict` at a folder that cannot be read.
    """
    from dbnrun.report import figures, tables
    from dbnrun.report.series import gather

    settings = gather(paths, strict=strict)
    written = tables.write(settings, out / "tables")
    for setting in settings:
        print(tables.as_text(setting))
        drawn = figures.draw(setting, out / "figures")
        print("".join(f"  {path}\n" for path in drawn if path.suffix == ".png"))
        written += drawn
    print("Tables: " + ", ".join(str(path) for path in written if path.suffix in (".md", ".csv")))
    return written


def publish(
    results: Path, paths: Sequence[Path], out: Path, readmes: Sequence[Path] = (), *, strict: bool = False
) -> list[Path]:
    """Add the finished runs under `paths` to the records in `results`, and redraw everything from the records alone.

    Writes tables/, figures/ and report.html below `out`, and the results into the `readmes`;
    returns the files written. A run folder that cannot be read is warned of and left out. Raises UserError where
    nothing is recorded, records are damaged, or with `strict` at such a folder.
    """
    from dbnrun.paper import documents, page, table1, verdicts
    from dbnrun.paper.book import result_set
    from dbnrun.paper.protocols import experiment_of
    from dbnrun.report import figures, tables
    from dbnrun.report.series import nothing_to_report
    from dbnrun.runs import archive
    from dbnrun.runs.load import counted, read_runs

    runs = read_runs(paths, strict=strict)
    book = result_set(counted(archive.update(results / "records", runs, experiment_of)))
    if not book.mains:
        raise nothing_to_report(paths, runs)
    if nowhere := len(book.nowhere):
        print(f"{nowhere} of {len(book.runs)} recorded runs stand in no table: two knobs turned, or no run beside")
    judged = verdicts.judge(book.mains, book.protocols)
    written = tables.write(book.settings, out / "tables")
    written += table1.write(book, out / "tables") + verdicts.write(judged, out / "tables")
    for setting in book.settings:
        print(tables.as_text(setting) + "\n")
        written += figures.draw(setting, out / "figures")
    written += page.write(book, judged, out / "report.html")
    written += [path for path in readmes if documents.update(path, book, judged)]
    print("\n".join(f"  {path}" for path in written if path.suffix != ".svg"))
    return written
