"""Hands dbnrun's launcher to Hydra, which knows a plugin by the module that defines it, and takes only these."""

from dbnrun.runner import launcher


class FusedLauncher(launcher.FusedLauncher):
    """dbnrun.runner.launcher.FusedLauncher, under a name that Hydra accepts."""
