"""Says where the recorded numbers come from: machines, versions, revisions, hours and commands."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dbnrun.runs.load import RunRecord


def by_group(runs: Sequence[RunRecord], group_of: Callable[[RunRecord], str]) -> dict[str, dict[str, Any]]:
    """What the runs of each group say of themselves."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[group_of(run)].append(run)
    return {name: _origin(groups[name]) for name in sorted(groups)}


def commands(runs: Sequence[RunRecord]) -> list[tuple[str, int]]:
    """Each command as a shell takes it, with the number of its runs."""
    return sorted(Counter(shlex.join(run.manifest.get("command", [])) or "unknown" for run in runs).items())


def _origin(runs: Sequence[RunRecord]) -> dict[str, Any]:
    manifests = [run.manifest for run in runs]
    devices = (f"{m.get('device', '')} {m.get('device_name', '')} ({m.get('threads', '?')} threads)" for m in manifests)
    return {
        "runs": ", ".join(f"{count} {word}" for word, count in sorted(Counter(run.status for run in runs).items())),
        "seeds": _spans(sorted({run.cell["seed"] for run in runs})),
        "devices": _distinct(devices),
        "versions": _distinct(", ".join(f"{k} {v}" for k, v in m.get("versions", {}).items()) for m in manifests),
        "revisions": _distinct(_revision(m.get("git")) for m in manifests),
        # Cells trained together each state the wall time of all; their rows hold each one's share.
        "hours": sum(row.train_seconds + row.eval_seconds for run in runs for row in run.rows) / 3600,
        "started": min((str(m["started"])[:10] for m in manifests if "started" in m), default=""),
        "data": _distinct(run.data_digest[:8] for run in runs),
    }


def _revision(git: str | None) -> str:
    """'23708c5', with '-dirty' kept; 'unknown' outside a checkout."""
    if not git:
        return "unknown"
    name, dash, dirty = git.partition("-")
    return name[:8] + dash + dirty


def _spans(numbers: Sequence[int]) -> str:
    """'0–9' where they follow each other; else all of them."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
