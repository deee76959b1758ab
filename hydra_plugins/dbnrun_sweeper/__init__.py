"""Hands dbnrun's sweeper to Hydra, which knows a plugin by the module that defines it, and takes only these."""

from dbnrun.runner import sweeper


class CellSweeper(sweeper.CellSweeper):
    """dbnrun.runner.sweeper.CellSweeper, under a name that Hydra accepts."""
