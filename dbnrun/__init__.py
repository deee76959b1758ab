"""dbnrun: a reproducible experiment runner for Diminishing Batch Normalization (arXiv:1705.08011).

From Python: `train` and `load_run` a run, `read_runs` and `read_metrics` as pandas tables (docs/python.md). Each is
imported when it is asked for: `import dbnrun` loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbnrun.config.registry import UserError
    from dbnrun.runner.notebook import load_run, train
    from dbnrun.runs.frames import read_metrics, read_runs

__version__ = "0.1.0"
__all__ = ["UserError", "load_run", "read_metrics", "read_runs", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - as all that follows, not needed by who asks for the version

    if name == "train":
        return importlib.import_module(f"{__name__}.train")  # the room, which can be called
    homes = {"UserError": "config.registry", "load_run": "runner.notebook"}
    return getattr(importlib.import_module(f"{__name__}.{homes.get(name, 'runs.frames')}"), name)
