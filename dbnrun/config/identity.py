"""What identifies a run: its cell, the cell's signature, and names for people and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dbnrun.config import own, registry
from dbnrun.config.registry import GROUPS
from dbnrun.config.schema import RunConfig

# Settings that change no number of a run, and so do not enter its signature.
SETTINGS = (
    "results_dir", "data_dir", "device", "threads", "compile", "cuda_graphs", "debug", "progress", "save_weights",
    "checkpoint", "retry", "force", "fail_fast", "skip_recorded", "theory", "probe", "logger", "plugins",
)  # fmt: skip


def cell_of(config: RunConfig) -> dict[str, Any]:
    """What decides the numbers of a run, as plain data: settings and the keys its choices ignore left out."""
    cell = {key: value for key, value in vars(config).items() if key not in (*SETTINGS, *GROUPS, "train")}
    cell |= {group: getattr(config, group).identity() for group in GROUPS}
    for group, choice in config.own.items():
        cell[group]["source"] = own.source(f"{group}.target", choice.code)
    if not config.norm.scheduled:
        del cell["schedule"]
    if not config.lr_schedule.varies:
        del cell["lr_schedule"]  # older than the group
    train = cell["train"] = asdict(config.train)
    # Values beyond `epochs` are equal to it. 1 is left out: older signatures lack the key.
    train["eval_every"] = min(config.train.eval_every, config.train.epochs)
    if train["eval_every"] == 1:
        del train["eval_every"]
    if train["label_smoothing"] == 0:
        del train["label_smoothing"]
    return _without_none(cell)


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def signature(cell: Mapping[str, Any], data_digest: str) -> str:
    """Eight hexadecimal digits of SHA-256 over the cell and the data it stands on."""
    # Group order decides which pattern wins, and sorted keys would hide it.
    groups = list(cell["optimizer"]["groups"])
    text = json.dumps([cell, groups, data_digest], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Recorded:
    """A choice that is not registered here, a plugin's or a later version's, as far as its record describes it."""

    group: str
    recorded: Mapping[str, Any]

    @property
    def slug(self) -> str:
        return name_of_choice(self.group, self.recorded)

    @property
    def protocol(self) -> str:
        """Of a normalizer."""
        return self.slug

    @property
    def key(self) -> str:
        """Of a schedule: its name, and its options as they are recorded."""
        options = (f"{key}={value}" for key, value in self.recorded.items() if key != "name")
        return " ".join([self.slug, ", ".join(options)]).strip()

    @property
    def title(self) -> str:
        """Of a network."""
        return self.slug


def name_of_choice(group: str, recorded: Mapping[str, Any]) -> str:
    """The name of a recorded choice; of a class of the user's own, what that is called."""
    return own.shown(group, recorded["target"]) if "target" in recorded else recorded["name"]


def choice_of(group: str, recorded: Mapping[str, Any]) -> Any:
    """The choice that a recorded cell describes; options that this version does not know are passed over."""
    kind = registry.of(group).get(recorded["name"])
    if kind is None:
        return Recorded(group, recorded)
    known = ("name", *registry.options_of(kind))
    return registry.make(group, **{key: recorded[key] for key in known if key in recorded})


def norm_label(cell: Mapping[str, Any]) -> str:
    """What folders call the normalizer: its name, or dbn_inference where lambda serves inference alone."""
    return choice_of("norm", cell["norm"]).slug


def protocol_of(cell: Mapping[str, Any]) -> str:
    """How training uses lambda, such as 'dbn' or 'dbn_inference'; '' for a normalizer without a schedule."""
    return choice_of("norm", cell["norm"]).protocol if "schedule" in cell else ""


def schedule_key(cell: Mapping[str, Any]) -> str:
    """'0.25', '1/m steps', '1/m^2 epochs', …; the normalizer's name where there is no schedule."""
    return choice_of("schedule", cell["schedule"]).key if "schedule" in cell else norm_label(cell)


def readable_name(cell: Mapping[str, Any]) -> str:
    """A name for people, such as 'mnist-fnn-dbn-alpha0.25-seed0'; the signature makes it unique."""
    slugs = (slug_of(group, cell[group]) for group in ("dataset", "model", "norm", "schedule") if group in cell)
    return "-".join([*slugs, f"seed{cell['seed']}"])


def slug_of(group: str, recorded: Mapping[str, Any]) -> str:
    """What folders call a recorded choice, such as 'resnet18' or 'alpha0.25'; of the user's own classes, their name."""
    if group in ("dataset", "optimizer"):  # their cells leave out options that they cannot be made without
        return name_of_choice(group, recorded)
    return choice_of(group, recorded).slug
