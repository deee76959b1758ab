"""Filters of recorded runs, such as `norm=dbn_inference dataset=mnist seed=0,1 train.epochs=10`. Imports no torch.

Every filter must hold; of several values after one `=`, any. A group's name means what choosing it composes: a plain
choice (`schedule=constant`) with whatever options, a preset of it (`schedule=alpha_1`, `norm=dbn_inference`) with the
values that its file states. Any other key is compared with the run's config.yaml; what that leaves out has its default.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, cast

import yaml

from dbnrun.config import registry
from dbnrun.config.aliases import meant
from dbnrun.config.differences import value_text
from dbnrun.config.identity import SETTINGS, slug_of
from dbnrun.config.registry import GROUPS, UserError, choosable, conf_dir, defaults_of, no_such_key, one_of, spelled
from dbnrun.config.schema import RunConfig, TrainConfig, known_keys

Cell = Mapping[str, Any]
Test = Callable[[Cell], bool]
_TRAIN = {each.name: each.default for each in fields(TrainConfig) if each.default is not MISSING}


def matcher(words: Sequence[str], **facts: Iterable[str]) -> Test:
    """What says whether a cell, as its config.yaml holds it, passes every filter.

    `facts`: keys that are no configuration, such as status, with their known values; a cell has them beside its own.
    Raises UserError for a word that is no filter, a key or a choice that there is none of, or a value of another type.
    """
    tests = [_test(word, {key: list(known) for key, known in facts.items()}) for word in words]
    return lambda cell: all(test(cell) for test in tests)


def is_filter(word: str) -> bool:
    """Whether a word is KEY=VALUE; else it is a path."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def why_none(cells: Sequence[Cell], words: Sequence[str], **facts: Iterable[str]) -> str:
    """Why no cell passes: the first filter that none of them passes, with what they have; else all filters."""
    for word in words:
        if not any(map(matcher([word], **facts), cells)):
            return f"{word}: none of {len(cells)} runs has it; they have {_choices(cells, word.partition('=')[0])}."
    return f"{' '.join(words)}: none of {len(cells)} runs passes all of the filters."


def _choices(cells: Sequence[Cell], key: str) -> str:
    """What the runs have of a key, as one would ask for it: 'seed=0,1', at most eight values."""
    if key in GROUPS:
        found = [name for name in choosable()[key] if any(map(matcher([f"{key}={name}"]), cells))]
    else:
        values = [found[key] for cell in cells if key in (found := options(cell))]
        numbers = sorted({value for value in values if isinstance(value, int | float)})
        texts = sorted({value_text(value) for value in values if not isinstance(value, int | float)})
        found = list(dict.fromkeys([*map(value_text, numbers), *texts]))
    if not found:
        return "no such key"
    return f"{key}={','.join(found[:8])}" + (",…" if len(found) > 8 else "")


def options(cell: Cell) -> dict[str, Any]:
    """What a cell is made of, by the keys of a command, defaults included. A group's own key has its name in folders.

    `optimizer.lr` is the learning rate that all groups of parameters share, if they do.
    """
    found: dict[str, Any] = {}
    for group in GROUPS:
        recorded = _recorded(cell, group)
        if recorded is not None:
            found[group] = slug_of(group, recorded)
            _flatten(group, {**_defaults(group, recorded["name"]), **recorded}, found)
            del found[f"{group}.name"]
        if group == "optimizer" and len(rates := {part["lr"] for part in cell[group]["groups"].values()}) == 1:
            found["optimizer.lr"] = rates.pop()
    _flatten("train", {**_TRAIN, **cell["train"]}, found)
    return found | {key: value for key, value in cell.items() if key not in (*GROUPS, "train")}


def _recorded(cell: Cell, group: str) -> Mapping[str, Any] | None:
    """What a cell holds of a group; None where it has no part in the cell."""
    return cell.get(group, {"name": "constant"} if group == "lr_schedule" else None)  # older cells lack that group


@functools.cache
def _defaults(group: str, name: str) -> dict[str, Any]:
    kind = registry.of(group).get(name)  # None: of a plugin that is not loaded
    return {key: value for key, value in defaults_of(kind).items() if value not in (None, "")} if kind else {}


def _flatten(key: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for name, below in value.items():
            _flatten(f"{key}.{name}", below, found)
    else:
        found[key] = value


def _test(word: str, facts: Mapping[str, list[str]]) -> Test:
    key, equals, text = word.partition("=")
    if not equals or not key or not text:
        raise UserError(
            f"{word}: expected a filter KEY=VALUE or KEY=VALUE,VALUE, such as norm=bn or seed=0,1.{meant_choice(word)}"
        )
    if key in facts:
        wanted = text.split(",")
        for value in wanted:
            one_of(key, value, facts[key])
        return lambda cell: cell[key] in wanted
    if key in GROUPS:
        choices = [_choice(key, name) for name in text.split(",")]
        return lambda cell: any(choice(cell) for choice in choices)
    _check_key(word, key, facts)
    values = [_typed(key, value) for value in _values(text)]
    if "*" in key:
        return lambda cell: any(_all_are(cell, key, value) for value in values)
    return lambda cell: any(_same(options(cell).get(key), value) for value in values)


def meant_choice(word: str) -> str:
    """' Did you mean …?' for the name of a choice that stands alone: 'bn' is 'norm=bn'."""
    return meant([f"{group}={word}" for group in GROUPS if word in choosable()[group]])


def _all_are(cell: Cell, pattern: str, value: Any) -> bool:
    """Whether a cell has keys that fit the pattern, such as optimizer.groups.*.lr, and all of them have this value."""
    found = [each for key, each in options(cell).items() if fnmatch.fnmatchcase(key, pattern)]
    return bool(found) and all(_same(each, value) for each in found)


def _check_key(word: str, key: str, facts: Iterable[str]) -> None:
    if key.partition(".")[0] in SETTINGS:
        raise UserError(f"{word}: {key} changes no result, and runs do not record it; leave it out.")
    if ".options." in key or key.startswith("optimizer.groups."):
        return  # the user's own names
    known = [each for each in (*facts, *known_keys()) if each.partition(".")[0] not in SETTINGS]
    if key not in known:
        raise no_such_key(word, key, known)


def _choice(group: str, name: str) -> Test:
    """Whether a cell has this choice of the group."""
    known = choosable()[group]
    one_of(group, name, known)
    plain, stated = _preset(group, name)
    others = set(known) - {name}

    def test(cell: Cell) -> bool:
        recorded = _recorded(cell, group)
        if recorded is None or recorded["name"] != plain:
            return False
        if stated:
            return all(_same(recorded.get(key), value) for key, value in stated.items())
        return slug_of(group, recorded) not in others  # norm=dbn is not dbn_inference, which is a choice of its own

    return test


def _preset(group: str, name: str) -> tuple[str, dict[str, Any]]:
    """The plain choice that a file of conf/ names, and the values that a preset of it states; {} for the plain one."""
    file = conf_dir() / group / f"{name}.yaml"
    content = cast(dict[str, Any], yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else {}
    if not content or content.get("name") == name:
        return name, {}
    defaults = content.pop("defaults", [])
    (below,) = [each for each in defaults if isinstance(each, str) and each != "_self_"]
    plain, stated = _preset(group, below)
    return plain, stated | content


def _values(text: str) -> list[Any]:
    """The values after a filter's `=`, as YAML types them: 0,1 are two, [300,300] is one."""
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.safe_load(f"[{text}]")
        if isinstance(found, list) and not any(isinstance(value, Mapping) for value in found):
            return found
    return text.split(",")


def _typed(key: str, value: Any) -> Any:
    """The value as its key has it. Raises UserError where it is of a type, or none of the words, that the key takes."""
    takes = kinds_of(key)
    if key.endswith(".target"):
        return str(value).rpartition(":")[2]  # cells hold the name alone
    if isinstance(value, str) and str not in takes:
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML takes 1e-3, without a point, for a text
    wrong = isinstance(value, str) and not takes & {str, Any}
    if wrong or (takes == {bool} and not isinstance(value, bool)):
        wanted = "true or false" if takes == {bool} else "numbers in brackets" if list in takes else "a number"
        raise UserError(f"{key}={value}: expected {wanted}.")
    if isinstance(value, str) and (words := words_of(key)):
        one_of(key, value, words)
    return value


def _holders(key: str) -> list[tuple[type, Field[Any]]]:
    """The dataclasses that have a key as a field, and the field."""
    group, _, name = key.rpartition(".")
    kinds = {"": [RunConfig], "train": [TrainConfig]} | {g: list(registry.of(g).values()) for g in GROUPS if g == group}
    return [(kind, each) for kind in kinds.get(group, []) for each in fields(kind) if each.name == name]


def kinds_of(key: str) -> set[Any]:
    """The types that a key takes; Any where nobody says."""
    found: set[Any] = set()
    for kind, each in _holders(key):
        hint = typing.get_type_hints(kind)[each.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        found |= {typing.get_origin(part) or part for part in parts}
    return found or {Any}


def words_of(key: str) -> list[str]:
    """The words that an option is one of; [] where it takes any."""
    if kinds_of(key) == {bool}:
        return ["true", "false"]
    found = [list(each.metadata.get("among", ())) for _, each in _holders(key)]
    return list(dict.fromkeys(spelled(word) for words in found for word in words)) if all(found) else []


def _same(recorded: Any, wanted: Any) -> bool:
    """Whether two values are equal; true is not 1."""
    return recorded == wanted and isinstance(recorded, bool) == isinstance(wanted, bool)
