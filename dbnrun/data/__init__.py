"""Data sets as resident tensors. Cheap to import: what is heavy is imported when a data set is loaded."""

from __future__ import annotations

from dbnrun.data.source import expected_digest

__all__ = ["expected_digest"]
