"""Hands dbnrun's launcher to Hydra, which knows a plugin by the module that defines it, and takes only these."""

from dbnrun.fused import launcher


class FusedLauncher(launcher.FusedLauncher):
    """dbnrun.fused.launcher.FusedLauncher, under a name that Hydra accepts."""
