"""What users add to the choices of the project: folders of YAML files, and modules that register choices.

Folders come with Hydra's `--config-dir DIR` or `hydra.searchpath=[DIR]`, modules with `plugins=[mylab.norms]` or, where
they are installed, through the entry points `dbnrun.plugins` of their distribution.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dbnrun.config import own, registry
from dbnrun.config.registry import UserError

ENTRY_POINTS = "dbnrun.plugins"


def load(words: Sequence[str]) -> None:
    """Import the installed modules and those of `plugins=` among the overrides. Raises UserError where one fails."""
    from importlib import metadata  # noqa: PLC0415 - takes its time, and other verbs do without

    for entry in metadata.entry_points(group=ENTRY_POINTS):
        own.module(f"{ENTRY_POINTS}: {entry.name} = {entry.value}", entry.module)
    named = _value("plugins", words)
    for name in named if isinstance(named, list) else [named] if isinstance(named, str) else []:
        if str(name).endswith(".py") or "/" in str(name):
            stem = Path(str(name)).stem
            raise UserError(f"plugins={name}: expected the name of a module, such as plugins=[{stem}].")
        own.module(f"plugins={name}", str(name))


def folders(config_dir: str | None, words: Sequence[str]) -> list[Path]:
    """The folders of YAML files that a user adds, as `--config-dir` and `hydra.searchpath=` say.

    Raises UserError where one is no folder, or holds a file that one of the project's would hide.
    """
    found = [] if config_dir is None else [("--config-dir", config_dir)]
    searched = _value("hydra.searchpath", words)
    found += [("hydra.searchpath", str(each)) for each in (searched if isinstance(searched, list) else [])]
    paths = [_folder(key, given) for key, given in found]
    for path in paths:
        for group, names in registry.files().items():
            if hidden := sorted({file.stem for file in (path / group).glob("*.yaml")} & set(names)):
                raise UserError(
                    f"{path / group / hidden[0]}.yaml: dbnrun has {group}={hidden[0]} already and would use that; "
                    "give the file another name."
                )
    return paths


def _folder(key: str, given: str) -> Path:
    path = _package(given) if given.startswith("pkg://") else Path(given.removeprefix("file://"))
    if path is None or not path.is_dir():
        raise UserError(
            f"{key} {given}: there is no such folder; expected one that holds norm/, experiment/ or the like."
        )
    return path


def _package(given: str) -> Path | None:
    """The folder of pkg://NAME; None where there is no such package."""
    try:
        spec = importlib.util.find_spec(given.removeprefix("pkg://").replace("/", "."))
    except ImportError:
        return None
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _value(key: str, words: Sequence[str]) -> Any:
    """The value of the last override of a key; None where there is none, or what is wrong is said elsewhere."""
    given = [word for word in words if word.startswith(f"{key}=")]
    try:
        return OverridesParser.create().parse_override(given[-1]).value() if given else None
    except HydraException:
        return None
