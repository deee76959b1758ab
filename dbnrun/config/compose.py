"""Checked configurations from overrides, as Hydra composes them: one, or the cells of a sweep."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from dbnrun import interrupt
from dbnrun.config.registry import conf_dir, files
from dbnrun.config.schema import RunConfig, checked, store_schema

SEED = re.compile(r"seed=([0-9]{1,19})")  # an override by a plain number
MAY_REFER_TO_SEED = re.compile(r"\$\{[^}]*(\bseed\b|\$\{)")  # in an interpolation, or put together by a nested one


def composed(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration of one cell, as the command composes it."""
    store_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return checked(compose("config", list(overrides)))


def loader_over(folders: Iterable[str]) -> ConfigLoader:
    """The loader of an initialized Hydra, for the user's `folders`, too, as --config-dir adds them."""
    loader = GlobalHydra.instance().config_loader()
    path = loader.get_search_path()
    for folder in folders:
        path.prepend("command-line", Path(folder).absolute().as_uri(), SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(path)


class Composer:
    """Composes cells as Hydra does, each combination of group choices once; other values are merged into a copy.

    Cells that differ in their seed alone are merged and checked once, unless another value may refer to the seed.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self.parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._chosen: dict[tuple[str, ...], dict[str, Any]] = {}  # the choice of each group in a base
        self._twins: dict[tuple[str, ...], RunConfig] = {}  # by a job's overrides but for its seed

    def __call__(self, job: Sequence[str]) -> RunConfig:
        """The checked configuration of the cell that `job` describes by overrides of one value each."""
        interrupt.check()
        seeds = [match[1] for line in job if (match := SEED.fullmatch(line))]
        if len(seeds) != 1:
            return checked(self._merged(job))
        others = tuple(line for line in job if not SEED.fullmatch(line))
        if others in self._twins:
            return replace(self._twins[others], seed=int(seeds[0]))
        merged = self._merged(job)
        config = checked(merged)
        if not MAY_REFER_TO_SEED.search(str(OmegaConf.to_container(merged))):
            self._twins[others] = config
        return config

    def taken(self, job: Sequence[str]) -> list[str]:
        """The job without the options that its choices do not have.

        So a sweep over norm=bn,gn can set norm.num_groups, and one over norm=bn,custom the target of custom.
        """
        options = {}
        for line in job:
            group, _, option = self._parse(line).key_or_group.partition(".")
            if option and group in self.groups:
                options[line] = group, option.partition(".")[0]
        others = [self._parse(line) for line in job if line not in options]
        base = self._base(tuple(str(override.input_line) for override in others if self._needs_hydra(override)))
        known = {group: set(base[group].keys()) for group, _ in options.values()}  # `in` says no to a missing value
        return [line for line in job if line not in options or options[line][1] in known[options[line][0]]]

    def _merged(self, job: Sequence[str]) -> DictConfig:
        """The configuration of the cell that `job` describes, not yet checked."""
        overrides = [self._parse(line) for line in job]
        choices = tuple(str(override.input_line) for override in overrides if self._needs_hydra(override))
        config = copy.deepcopy(self._base(choices))
        ConfigLoaderImpl._apply_overrides_to_config([o for o in overrides if not self._needs_hydra(o)], config)
        return config

    def _needs_hydra(self, override: Override) -> bool:
        """Whether an override chooses files, or adds a key, and so is not a mere value."""
        return override.key_or_group in self.groups or override.is_add() or override.is_force_add()

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self.parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            self._composed[choices] = self._exchanged(choices) or self._by_hydra(choices)
        return self._composed[choices]

    def _by_hydra(self, choices: tuple[str, ...]) -> DictConfig:
        config = self.loader.load_sweep_config(self.master, list(choices))
        self._chosen[choices] = dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        return config

    def _exchanged(self, choices: tuple[str, ...]) -> DictConfig | None:
        """The base of the other choices with one choice's part put in: a tenth of what composing it costs.

        None where no file of a choice, and of the one that it replaces, sets its own group alone.
        """
        for choice in choices:
            group, _, name = choice.partition("=")
            others = tuple(other for other in choices if other != choice)
            added = any(other.lstrip("+").startswith(f"{group}.") for other in others)
            if added or group not in self.groups or (part := self._part(group, name)) is None:
                continue
            base = self._base(others)
            if self._part(group, str(self._chosen[others].get(group))) is not None:
                self._chosen[choices] = self._chosen[others] | {group: name}
                config = copy.deepcopy(base)
                with open_dict(config):
                    config[group] = part
                return config
        return None

    def _part(self, group: str, name: str) -> Any:
        """What a choice's file and its defaults say of their own group; None where they reach beyond it."""
        loaded = cast(ConfigLoaderImpl, self.loader).repository.load_config(f"{group}/{name}")
        defaults = loaded.defaults_list or [] if loaded else []
        if loaded is None or loaded.header.get("package") or not all(isinstance(d, ConfigDefault) for d in defaults):
            return None
        paths = [str(default.path) for default in defaults]  # type: ignore[union-attr]
        if "_self_" in paths[:-1]:
            return None  # the file's own values come last everywhere else
        below = [path for path in paths if path != "_self_"]
        parts = [*(self._part(group, path) for path in below), loaded.config]
        return None if any(part is None for part in parts) else OmegaConf.merge(*parts)

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        return frozenset(files())
