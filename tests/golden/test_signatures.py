"""Every recorded run is found again by its signature."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dbnrun.config import SETTINGS, RunConfig, cell_of, checked, signature
from dbnrun.data import expected_digest
from dbnrun.overrides import composed

RECORDS = sorted((Path(__file__).parents[2] / "results" / "records").glob("*.json"))


def curves(path: Path) -> Iterator[tuple[dict[str, Any], str, list[tuple[str, int]]]]:
    """Each recorded configuration, the digest of its data, and the signature and seed of each of its runs."""
    recorded = json.loads(path.read_text())
    for number, cell in enumerate(recorded["cells"]):
        runs = [(sign, run["seed"]) for sign, run in recorded["runs"].items() if run["cell"] == number]
        yield cell["config"], cell["data_digest"], runs


def typed(recorded: dict[str, Any], settings: dict[str, Any]) -> RunConfig:
    """A recorded configuration as the command would have checked it, with any value for what a cell leaves out."""
    ignored = {
        "dataset": {"fnn_widths": [1]},
        "norm": {"eps_at": "std"} if recorded["norm"].get("average") == "inv_std" else {},
        "schedule": {"name": "constant", "alpha": 0.5, "unit": "epoch"}
        if "schedule" not in recorded
        else {"unit": "step"},
        "optimizer": {"lr": 0.5},
    }
    schema = OmegaConf.structured(RunConfig)
    return checked(OmegaConf.merge(schema, settings, ignored, recorded, {"seed": 0}))  # type: ignore[arg-type]


def test_the_records_hold_over_a_thousand_runs():
    assert sum(len(runs) for path in RECORDS for _, _, runs in curves(path)) > 1000


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_recorded_signature_comes_out_again(path):
    settings = {key: value for key, value in asdict(composed([])).items() if key in SETTINGS}
    for recorded, digest, runs in curves(path):
        assert digest == expected_digest(recorded["dataset"]["name"])
        config = typed(recorded, settings)
        for expected, seed in runs:
            assert signature({**recorded, "seed": seed}, digest) == expected
            assert signature(cell_of(replace(config, seed=seed)), digest) == expected
