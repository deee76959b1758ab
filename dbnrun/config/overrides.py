"""What a user typed, checked against the schema and the choices in conf/ before Hydra composes anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from dbnrun.config.registry import Choice, UserError, choosable, nearest, owners
from dbnrun.config.schema import RunConfig, known_keys

OWN_OPTION = re.compile(r"\+{0,2}((?:dataset|model|norm|optimizer)\.options\.[A-Za-z_][\w.]*)=(.*)", re.DOTALL)
PLUGINS = re.compile(r"plugins=([\w.,/]+)")  # one, or several, without brackets
SWEEP = re.compile(r"(choice|range|interval|glob)\(")
TEXT = re.compile(r"((?:dataset|model|norm|optimizer)\.(?:target|path|test_path|label))=(.*)", re.DOTALL)


def prepared(words: Sequence[str], sweep: bool) -> list[str]:
    """What was typed, as Hydra takes it: a class's own options are added, paths and names of columns are quoted.

    In a sweep they are values to sweep over, even a single one: Hydra would give it to the default choices, too.
    """
    return [_prepared(word, sweep) for word in words]


def _prepared(word: str, sweep: bool) -> str:
    if match := OWN_OPTION.fullmatch(word):
        key, value = f"++{match[1]}", match[2]
    elif match := TEXT.fullmatch(word):
        key, value = match[1], match[2]
        if value and value[0] not in "'\"[{" and not SWEEP.match(value):
            value = ",".join(quoted(key, part).partition("=")[2] for part in value.split(","))
    elif match := PLUGINS.fullmatch(word):
        return f"plugins=[{match[1]}]"
    else:
        return word
    return f"{key}=choice({value})" if sweep and not SWEEP.match(value) else f"{key}={value}"


def quoted(key: str, text: str) -> str:
    """An override of a key by a text, whatever letters that has."""
    escaped = text.replace("'", "\\'")
    return f"{key}='{escaped}'"


def check_overrides(typed: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Raise UserError at the first override that names an unknown key, group or choice, or adds or deletes a key.

    `folders` are the user's own, beside conf/.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(typed))
    except OverrideParseException as error:
        raise UserError(
            f"{error.override!r}: expected key=value, of plain letters unless quoted. "
            "A verb, such as report, comes first; quote a value with special characters: 'key=\"value\"'."
        ) from None
    known = choosable(folders)
    for override in parsed:
        if override.is_delete():
            raise UserError(f"{override.input_line}: a key cannot be deleted; give it another value.")
        _check_override(override, known)


def _check_override(override: Override, groups: dict[str, list[str]]) -> None:
    key = override.key_or_group
    if re.match(r"hydra[./]", key):
        return  # Hydra's own settings are Hydra's to check
    if key not in groups and not _is_known(key):
        words = [*groups, *known_keys()]
        leaves = {word.rpartition(".")[2]: word for word in reversed(words)}
        hint = nearest(key, words) or nearest(leaves.get(key, key), words) or nearest(key, leaves)
        raise UserError(f"{override.input_line}: there is no key {key!r}.{hint} See `dbnrun --cfg job` for all keys.")
    if (override.is_add() or override.is_force_add()) and not re.match(r"optimizer\.groups\.|\w+\.options\.", key):
        raise UserError(f"{override.input_line}: keys cannot be added; write {key}=… without the plus.")
    if key in groups:
        if not override.is_sweep_override() and isinstance(override.value(), list | dict):
            raise UserError(f"{override.input_line}: expected one name; to sweep, dbnrun -m {key}=a,b.")
        for choice in _chosen(override):
            if choice not in groups[key]:
                known = groups[key]
                hint = nearest(choice, known)
                if key == "schedule" and (number := re.fullmatch(r"alpha_([\d.]+)", choice)):
                    hint = f" Any other constant is schedule=constant schedule.alpha={number[1]}."
                raise UserError(f"{key}={choice}: expected one of {', '.join(known)}.{hint}")


def _is_known(key: str) -> bool:
    group = r"optimizer\.groups\.\w+(\.(pattern|lr|weight_decay))?"
    return key in known_keys() or re.fullmatch(group, key) is not None or OWN_OPTION.fullmatch(f"{key}=") is not None


def _chosen(override: Override) -> list[str]:
    """The choices that an override of a group names; none for globs over what exists."""
    if override.is_discrete_sweep():
        return [] if "glob(" in str(override.input_line) else [str(name) for name in override.sweep_string_iterator()]
    value = override.value()
    if value is None:
        return ["null"]
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def without_effect(typed: Sequence[str], config: RunConfig) -> list[str]:
    """What a user typed for one cell that decides nothing there, in a line each."""
    keys = [line.partition("=")[0].lstrip("+") for line in typed]
    idle = [line for line, key in zip(typed, keys, strict=True) if key.partition(".")[0] == "schedule"]
    if config.norm.scheduled:
        return []
    return [f"{line}: has no part in this cell; norm={config.norm.name} has no schedule." for line in idle]


def refusal(error: BaseException) -> UserError | None:
    """The one line to show for an error that the user's input caused; None where it did not."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return UserError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if line := _not_installed(str(error)):
        return UserError(line)
    cause = error
    while isinstance(cause.__cause__, HydraException | OmegaConfBaseException | UserError):
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return cause
    return UserError(_said(error, cause))


def _not_installed(text: str) -> str:
    """That a launcher is not installed, where this is what Hydra says; else ''."""
    missing = (
        r"hydra_plugins\.hydra_(joblib|submitit|ray)_launcher|Could not find 'hydra/launcher/(joblib|submitit|ray)"
    )
    match = re.search(missing, text)
    if not match:
        return ""
    name = match[1] or match[2]
    extra = {"submitit": "slurm"}.get(name, name)
    return f"hydra/launcher: the {name} launcher is not installed; pip install 'dbnrun[{extra}]'."


def _said(error: BaseException, cause: BaseException) -> str:
    """What Hydra or OmegaConf found wrong, in one line that begins with what was typed."""
    text = str(error)
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]}: several values; expected one, or -m in front of them to sweep."
    if match := re.match(r"In '(.*)': ConfigKeyError .*\nKey '(.*)' not in", text):
        begun = "the file begins with defaults: [base_<name>, _self_] and states options of that choice"
        return f"{match[1]}.yaml: its choice takes no {match[2]}; {begun}."
    kind = getattr(cause, "object_type", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(kind, type) and issubclass(kind, Choice):
        typed = re.search(r"use \+(.*)$", text)
        return _not_an_option(typed[1] if typed else str(cause.full_key), kind)
    if isinstance(cause, MissingMandatoryValue) and (named := re.fullmatch(r"(\w+)\.name", str(cause.full_key))):
        return f"{named[1]}: its YAML file has no options of a choice; begin it with defaults: [base_<name>, _self_]."
    override = re.match(r"Error merging override (.*)", text)
    typed = f"{override[1].rstrip('.')}: " if override else ""
    key = f"{cause.full_key}: " if not typed and isinstance(cause, OmegaConfBaseException) and cause.full_key else ""
    return f"{typed or key}{first_line(cause)}"


def _not_an_option(typed: str, kind: type[Choice]) -> str:
    """Why an option is refused that a choice does not have."""
    name = typed.partition("=")[0].rpartition(".")[2]
    belongs = f"it belongs to {', '.join(known)}" if (known := owners(kind.group, name)) else "there is none"
    return f"{typed}: {kind.group} {kind.registered!r} takes no {name}; {belongs}. Leave it out."


def first_line(error: object) -> str:
    """The first line that an error says, or its kind."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
