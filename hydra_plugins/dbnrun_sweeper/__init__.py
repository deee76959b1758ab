"""Hands dbnrun's sweeper to Hydra, which takes plugins from the namespace hydra_plugins alone."""

from dbnrun.sweep import CellSweeper

__all__ = ["CellSweeper"]
