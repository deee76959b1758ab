"""Optimizers over named groups of parameters. What one can choose stands in options.py, which imports no torch."""
