"""Data sets as resident tensors. Cheap to import: what is heavy is imported when a data set is loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from dbnrun.config import DatasetConfig
from dbnrun.data.source import expected_digest

if TYPE_CHECKING:
    from dbnrun.data.parts import Data

__all__ = ["expected_digest", "load"]


def load(config: DatasetConfig, data_dir: Path) -> Data:
    """The data set that conf/dataset names, on the CPU; fetched into `data_dir` first where it is missing.

    Raises UserError where a file is missing and cannot be fetched, or is not the official one.
    """
    return importlib.import_module(f"dbnrun.data.{config.name}").load(config, data_dir)
