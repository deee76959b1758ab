"""dbnrun: a reproducible experiment runner for Diminishing Batch Normalization (arXiv:1705.08011)."""

__version__ = "0.1.0"
