"""Draws what arXiv 1705.08011 claims beside what the committed records show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["publish", "record"]


def record(records: Path, paths: Sequence[Path], *, strict: bool = False) -> None:
    """Add the finished runs under `paths` to the folder of records.

    A run folder that cannot be read is warned of and left out. Raises UserError where records are damaged, or with
    `strict` at such a folder.
    """
    from dbnrun.paper.protocols import experiment_of
    from dbnrun.runs import archive
    from dbnrun.runs.load import read_runs

    archive.update(records, read_runs(paths, strict=strict), experiment_of)


def publish(
    records: Path,
    paths: Sequence[Path],
    out: Path,
    readmes: Sequence[Path] = (),
    *,
    title: str = "",
    strict: bool = False,
) -> list[Path]:
    """Report on the records and the runs under `paths` into `out`: as any report, with the paper's rules on top.

    The results go into the `readmes` too; returns the files written. Raises UserError where there is nothing to report,
    records are damaged, or with `strict` at a run folder that cannot be read.
    """
    from dbnrun.paper import documents, normalizers, page, table1
    from dbnrun.paper.result_set import result_set
    from dbnrun.report import draw, draw_all, finish
    from dbnrun.report.series import nothing_to_report, settings_of
    from dbnrun.runs import archive
    from dbnrun.runs.load import deduplicated, read_runs

    runs = [*archive.read(records), *read_runs(paths, strict=strict)]
    results = result_set(deduplicated(runs))
    if not any(setting.n for setting in results.settings):
        raise nothing_to_report([records, *paths], runs)
    if results.has_papers:
        others = [setting for setting in results.settings if setting.slug not in results.mains]
        written = draw(results.settings, others, out) + table1.write(results, out / "tables")
        written += normalizers.write(results.normalizers, out)
        written += finish(out, page.page(results, title))
    else:
        written = draw_all(settings_of(results.runs), out, title)
    return written + [path for path in readmes if documents.update(path, results)]
