"""The folders and records of runs: how they are written, read and listed."""
