"""Every recorded run is found again by its signature."""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dbnrun.config import registry
from dbnrun.config.compose import composed
from dbnrun.config.identity import cell_of, signature
from dbnrun.config.schema import GROUPS, RunConfig, checked

RECORDS = sorted((Path(__file__).parents[2] / "results" / "records").glob("*.json"))


def curves(path: Path) -> Iterator[tuple[dict[str, Any], str, list[tuple[str, int]]]]:
    """Each recorded configuration, the digest of its data, and the signature and seed of each of its runs."""
    recorded = json.loads(path.read_text())
    for number, cell in enumerate(recorded["cells"]):
        runs = [(sign, run["seed"]) for sign, run in recorded["runs"].items() if run["cell"] == number]
        yield cell["config"], cell["data_digest"], runs


@functools.cache
def chosen(*words: str) -> dict[str, Any]:
    """What the command composes from these choices."""
    return asdict(composed(words))


def typed(recorded: dict[str, Any]) -> RunConfig:
    """A recorded configuration as the command checks it; what it leaves out is as conf/ has it today."""
    names = {group: recorded[group]["name"] for group in GROUPS if group in recorded}
    base = chosen(*(f"{group}={name}" for group, name in names.items()))
    parts = {key: base[key] | value if isinstance(value, dict) else value for key, value in recorded.items()}
    schema = OmegaConf.structured(RunConfig)
    options = {group: OmegaConf.structured(registry.of(group)[base[group]["name"]]) for group in GROUPS}
    return checked(OmegaConf.merge(schema, options, base | parts))  # type: ignore[arg-type]


def test_the_records_hold_over_a_thousand_runs():
    assert sum(len(runs) for path in RECORDS for _, _, runs in curves(path)) > 1000


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_recorded_signature_comes_out_again(path):
    for recorded, digest, runs in curves(path):
        assert digest == registry.of("dataset")[recorded["dataset"]["name"]].digest
        config = typed(recorded)
        for expected, seed in runs:
            assert signature({**recorded, "seed": seed}, digest) == expected
            assert signature(cell_of(replace(config, seed=seed)), digest) == expected
