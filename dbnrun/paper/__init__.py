"""Draws what arXiv 1705.08011 claims beside what the committed records show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["publish"]


def publish(
    results: Path, paths: Sequence[Path], out: Path, readmes: Sequence[Path] = (), *, strict: bool = False
) -> list[Path]:
    """Add the finished runs under `paths` to the records in `results`, and redraw everything from the records alone.

    Writes tables/, figures/ and report.html below `out`, and the results into the `readmes`;
    returns the files written. A run folder that cannot be read is warned of and left out. Raises UserError where
    nothing is recorded, records are damaged, or with `strict` at such a folder.
    """
    from dbnrun.paper import documents, page, table1
    from dbnrun.paper.protocols import experiment_of
    from dbnrun.paper.result_set import result_set
    from dbnrun.report import figures, tables
    from dbnrun.report.series import nothing_to_report
    from dbnrun.runs import archive
    from dbnrun.runs.load import deduplicated, read_runs

    runs = read_runs(paths, strict=strict)
    recorded = result_set(deduplicated(archive.update(results / "records", runs, experiment_of)))
    if not recorded.mains:
        raise nothing_to_report(paths, runs)
    written = tables.write(recorded.settings, out / "tables") + table1.write(recorded, out / "tables")
    for setting in recorded.settings:
        print(tables.as_text(setting) + "\n")
        written += figures.draw(setting, out / "figures")
    written.append(page.write(recorded, out / "report.html"))
    written += [path for path in readmes if documents.update(path, recorded)]
    print("\n".join(f"  {path}" for path in written if path.suffix != ".svg"))
    return written
