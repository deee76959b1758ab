"""What one can choose: a dataclass of options for each choice, registered under its group and name.

A choice is the schema of its options, and it builds what it names. The dataclasses of a group stand in its options.py,
which imports no torch, so that a command can be refused, planned or answered without it; `build` imports what it needs.
The YAML file of a choice, conf/<group>/<name>.yaml, begins with `defaults: [base_<name>, _self_]` and states its name.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dbnrun.config.aliases import nearest, nearest_key, sentence

# A cell has one choice of each group; the module registers those of the project.
GROUPS = {
    "dataset": "dbnrun.data.options",
    "model": "dbnrun.models.options",
    "norm": "dbnrun.norm.options",
    "schedule": "dbnrun.norm.schedules",
    "optimizer": "dbnrun.optim.options",
    "lr_schedule": "dbnrun.optim.schedules",
}
UNSET: Any = "???"  # OmegaConf's sign for a value that the configuration must state


class UserError(ValueError):
    """The user's input is refused. One line: what came, what was expected, what to do. Exit code 2."""


def first_line(error: object) -> str:
    """The first line that an error says, or its kind."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """An error as one line: its kind, and the first line of what it says."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def conf_dir() -> Path:
    """conf/: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def files(folders: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The groups of conf/ and the names of the files in each, there and in `folders` of the user's."""
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")
    within = [conf_dir(), *folders]
    return {group: sorted(file.stem for path in within for file in (path / group).glob("*.yaml")) for group in groups}


def choosable(folders: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The groups and the names one can choose in each: of the files, and of choices that plugins have registered."""
    known = files(folders)
    plugins = {group: [name for name, kind in of(group).items() if kind.code_of()] for group in GROUPS}
    return {group: sorted({*names, *plugins.get(group, [])}) for group, names in known.items()}


def option(
    default: Any = UNSET,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = math.inf,
    among: Iterable[Any] = (),
    length: int | None = None,
) -> Any:
    """A field of a choice with its default and its bounds; of a list, the bounds of each of its `length` numbers."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "among": tuple(among), "length": length}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=bounds)
    return field(default=default, metadata=bounds)


@dataclass
class Choice:
    """The options of one choice. A value outside the bounds of its option is refused when the choice is made."""

    name: str = field(default=UNSET, repr=False)
    group: ClassVar[str]
    registered: ClassVar[str]  # the name that it is registered under
    label: ClassVar[str]  # what people call it, in tables and figures

    def __post_init__(self) -> None:
        if self.name == UNSET:
            self.name = self.registered
        if self.name != self.registered:
            key = f"{self.group}.name"
            raise UserError(f"{key}={self.name}: expected {self.registered}; choose with {self.group}={self.name}.")
        for each in fields(self):
            check_option(f"{self.group}.{each.name}", getattr(self, each.name), each.metadata)
        self.check()

    def check(self) -> None:
        """Raise UserError for what the bounds of single options cannot say."""

    @classmethod
    def code_of(cls) -> str:
        """What names the code of a plugin's choice, 'package.module:NAME'; '' for the project's own."""
        return "" if cls.__module__.partition(".")[0] == "dbnrun" else f"{cls.__module__}:{cls.__qualname__}"

    @property
    def code(self) -> str:
        """What names the user's code that this choice runs; '' where it runs none."""
        return self.code_of()

    @property
    def slug(self) -> str:
        """What folders call it. A public format."""
        return self.name

    def identity(self) -> dict[str, Any]:
        """The options that decide numbers, as plain data; left out is what these options make idle."""
        return asdict(self)


C = TypeVar("C", bound=type[Choice])
_REGISTERED: dict[str, dict[str, type[Choice]]] = {}


def choice(group: str, name: str, label: str = "") -> Callable[[C], C]:
    """Register a dataclass of options as the choice `group`=`name`; `label` is what people call it."""

    def register(options: C) -> C:
        asked = f'@choice("{group}", "{name}")'
        if group not in GROUPS:
            raise UserError(f"{asked}: expected a group among {', '.join(GROUPS)}.{nearest(group, GROUPS)}")
        if not issubclass(options, Choice):
            raise UserError(f"{asked}: expected a subclass of the group's class in {GROUPS[group]}.")
        if (taken := _REGISTERED.get(group, {}).get(name)) and taken.__module__ != options.__module__:
            raise UserError(f"{asked}: {taken.__module__} has registered this name; choose another.")
        options.group, options.registered, options.label = group, name, label or name
        _REGISTERED.setdefault(group, {})[name] = options
        return options

    return register


def of(group: str) -> dict[str, type[Any]]:
    """The choices of a group by name, in the order of their registration."""
    importlib.import_module(GROUPS[group])
    return dict(_REGISTERED[group])


def make(group: str, name: str, **options: Any) -> Any:
    """A choice with some of its options; the others keep their defaults."""
    return of(group)[name](**options)


def options_of(kind: type[Choice]) -> list[str]:
    """The names of a choice's options."""
    return [each.name for each in fields(kind) if each.name != "name"]


def defaults_of(kind: type[Choice]) -> dict[str, Any]:
    """A choice's options that have a default, by name."""
    made = {each.name: each.default_factory() for each in fields(kind) if each.default_factory is not MISSING}
    return {
        each.name: made.get(each.name, each.default)
        for each in fields(kind)
        if each.name != "name" and (each.name in made or each.default != UNSET)
    }


def owners(group: str, option: str) -> list[str]:
    """The choices of a group that have an option."""
    return [name for name, kind in of(group).items() if option in options_of(kind)]


def no_such_key(word: str, key: str, known: Iterable[str]) -> UserError:
    """Why a word is refused whose key is none of the known ones."""
    hint = (
        sentence(word) or nearest_key(key.lower(), known) or " It is not supported; `dbnrun --cfg job` shows all keys."
    )
    group, _, name = key.partition(".")
    if "not supported" in hint and name and group in GROUPS and "custom" in of(group):
        hint += f" An option of your own class is {group}.options.{name}=…."
    return UserError(f"{word}: there is no key {key!r}.{hint}")


def one_of(key: str, value: Any, known: Iterable[Any]) -> None:
    """Raise UserError unless the value is one of the known ones."""
    known = list(known)
    if value not in known:
        raise UserError(
            f"{key}={value}: expected one of {', '.join(map(spelled, known))}.{nearest(value, map(spelled, known))}"
        )


def spelled(value: Any) -> str:
    """A value as a command has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_range(key: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuse a value outside [low, high], or (low, high] where `above`; NaN and infinity always."""
    inside = math.isfinite(value) and (low < value if above else low <= value) and value <= high
    if not inside:
        left = f"a number above {low:g}" if above else f"a number of at least {low:g}"
        span = left if high == math.inf else f"{left}, at most {high if isinstance(high, int) else f'{high:g}'}"
        span = f"a number of at most {high:g}" if low == -math.inf else span
        raise UserError(f"{key}={value}: expected {span}.")


def check_option(key: str, value: Any, bounds: Any) -> None:
    """Refuse a value outside the bounds that `option` has noted; fields without any are free."""
    if not bounds:
        return
    if bounds["among"]:
        one_of(key, value, bounds["among"])
    if bounds["length"] is not None and len(value) != bounds["length"]:
        raise UserError(f"{key}={value}: expected {NUMBERS.get(bounds['length'], bounds['length'])} numbers.")
    low = bounds["at_least"] if bounds["above"] is None else bounds["above"]
    if low is None and bounds["at_most"] == math.inf:
        return
    for number in value if isinstance(value, list) else [value]:
        in_range(key, number, -math.inf if low is None else low, bounds["at_most"], above=bounds["above"] is not None)


NUMBERS = {2: "two", 3: "three"}


def number_text(value: float) -> str:
    """Short where that loses nothing, so that two values never share a text."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
