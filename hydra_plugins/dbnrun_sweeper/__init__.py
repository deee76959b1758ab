"""Hands dbnrun's sweeper to Hydra, which knows a plugin by the module that defines it, and takes only these."""

from dbnrun import sweep


class CellSweeper(sweep.CellSweeper):
    """dbnrun.sweep.CellSweeper, under a name that Hydra accepts."""
