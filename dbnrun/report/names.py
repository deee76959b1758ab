"""What tables and figures call things."""

from __future__ import annotations

from dbnrun.config import registry

DATASETS = {name: kind.label for name, kind in registry.of("dataset").items()}
TEST_RECORDS = {name: kind.test_records for name, kind in registry.of("dataset").items()}

PROTOCOLS = {
    "dbn_inference": "batch statistics in training, λ at test",
    "dbn": "λ in training and test (Algorithm 1)",
    "dbn, stats_grad=false": "λ in training and test, held constant in the gradient",
    "": "",
}

BASELINES = {name: kind.label for name, kind in registry.of("norm").items() if not kind.scheduled}


def name_of(key: str) -> str:
    """'α = 0.25', '1/m (steps)', 'BN (PyTorch)', … from a `schedule_key`."""
    if key in BASELINES:
        return BASELINES[key]
    if key[0].isdigit() and "/" not in key:
        return f"α = {key}"
    name, _, unit = key.partition(" ")
    return f"{name.replace('^2', '²')} ({unit})" if unit else name
