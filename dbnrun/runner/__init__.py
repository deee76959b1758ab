"""Trains, plans and sweeps runs."""
