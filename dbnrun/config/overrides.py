"""What a user typed, checked against the schema and the choices in conf/ before Hydra composes anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from dbnrun.config.aliases import nearest, sentence
from dbnrun.config.filters import kinds_of
from dbnrun.config.registry import Choice, UserError, choosable, first_line, no_such_key, owners
from dbnrun.config.schema import RunConfig, known_keys

OWN_OPTION = re.compile(r"\+{0,2}((?:dataset|model|norm|optimizer)\.options\.[A-Za-z_][\w.]*)=(.*)", re.DOTALL)
PLUGINS = re.compile(r"plugins=([\w.,/]+)")  # one, or several, without brackets
SWEEP = re.compile(r"(choice|range|interval|glob)\(")
TEXT = re.compile(r"((?:dataset|model|norm|optimizer)\.(?:target|path|test_path|label))=(.*)", re.DOTALL)
OPTION = re.compile(r"((?:dataset|model|norm|schedule|optimizer|lr_schedule)\.\w+)=(.+)", re.DOTALL)


def prepared(words: Sequence[str], sweep: bool) -> list[str]:
    """What was typed, as Hydra takes it: a class's own options are added, paths and names of columns are quoted.

    In a sweep, a single value of an option is one to sweep over, too: Hydra would give it to choices that do not have
    the option.
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
    elif sweep and (match := OPTION.fullmatch(word)) and match[1] in known_keys() and _is_one_value(word):
        key, value = match[1], match[2]
    else:
        return word
    return f"{key}=choice({value})" if sweep and not SWEEP.match(value) else f"{key}={value}"


def _is_one_value(word: str) -> bool:
    try:
        return not OverridesParser.create().parse_overrides([word])[0].is_sweep_override()
    except OverrideParseException:
        return False  # check_overrides says why


def quoted(key: str, text: str) -> str:
    """An override of a key by a text, whatever letters that has."""
    escaped = text.replace("'", "\\'")
    return f"{key}='{escaped}'"


def check_overrides(typed: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Raise UserError at the first override that names an unknown key, group or choice, or adds or deletes a key.

    `folders` are the user's own, beside conf/.
    """
    refuse_spaces(typed)
    try:
        parsed = OverridesParser.create().parse_overrides(list(typed))
    except OverrideParseException as error:
        if re.search("=,|,,|,$", str(error.override)):
            raise UserError(f"{error.override}: a value is missing beside a comma.") from None
        if re.search(r"\s[\w.]+=", str(error.override)):
            raise UserError(f"{error.override!r}: two settings in one word; quote each alone, or none.") from None
        raise UserError(
            f"{error.override!r}: expected key=value. A verb, such as report, must come first; "
            "a value with special characters needs quotes: 'key=\"value\"'."
        ) from None
    known = choosable(folders)
    for override in parsed:
        if override.is_delete():
            raise UserError(f"{override.input_line}: a key cannot be deleted; give it another value.")
        _check_override(override, known)


def refuse_spaces(typed: Sequence[str]) -> None:
    """Raise UserError where a shell seems to have split one word at a space: `norm=bn, dbn` or `dataset = mnist`."""
    for number, (word, following) in enumerate(pairwise(typed)):
        dangling = word.endswith(",") or (word.endswith("=") and "=" not in following)
        if dangling or following.startswith(("=", ",")):
            rest = takewhile(lambda each: "=" not in each[1:] and not each.startswith("-"), typed[number + 1 :])
            joined = "".join([word, *rest]).rstrip(",")
            raise UserError(f"'{word} {following}': a space ends a word; write {joined} without a space.")


def _check_override(override: Override, groups: dict[str, list[str]]) -> None:
    key = override.key_or_group
    if re.match(r"hydra[./]", key):
        return  # Hydra's own settings are Hydra's to check
    if key not in groups and not _is_known(key):
        raise no_such_key(str(override.input_line), key, dict.fromkeys([*groups, *known_keys()]))
    if (override.is_add() or override.is_force_add()) and not re.match(r"optimizer\.groups\.|\w+\.options\.", key):
        raise UserError(f"{override.input_line}: keys cannot be added; write {key}=… without the plus.")
    if key in groups:
        if not override.is_sweep_override() and isinstance(override.value(), list | dict):
            raise UserError(f"{override.input_line}: expected one name. To sweep: dbnrun -m {key}=a,b.")
        for choice in _chosen(override):
            if choice not in groups[key]:
                raise _no_such_choice(key, choice, groups[key])


def _no_such_choice(group: str, name: str, known: Sequence[str]) -> UserError:
    hint = sentence(f"{group}={name}") or nearest(name, known)
    supported = "" if hint else "not supported; "
    if not hint and "custom" in known:
        hint = f" A class of your own is {group}=custom {group}.target=FILE.py:NAME."
    return UserError(f"{group}={name}: {supported}expected one of {', '.join(known)}.{hint}")


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
    return [f"{line} is ignored: norm={config.norm.name} has no schedule." for line in idle]


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
        key, _, value = match[1].partition("=")
        if list in kinds_of(key):
            return f"{match[1]}: expected a list in brackets: {key}=[{value}]."
        return f"{match[1]}: expected one value. To sweep over several: dbnrun -m {match[1].replace(' ', '')}."
    if match := re.match(r"In '(.*)': ConfigKeyError .*\nKey '(.*)' not in", text):
        begun = "The file must begin with defaults: [base_<name>, _self_] and set options of that choice only"
        return f"{match[1]}.yaml: this choice has no option {match[2]}. {begun}."
    kind = getattr(cause, "object_type", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(kind, type) and issubclass(kind, Choice):
        typed = re.search(r"use \+(.*)$", text)
        return _not_an_option(typed[1] if typed else str(cause.full_key), kind)
    if isinstance(cause, MissingMandatoryValue) and (named := re.fullmatch(r"(\w+)\.name", str(cause.full_key))):
        return f"{named[1]}: its YAML file sets no choice; begin it with defaults: [base_<name>, _self_]."
    override = re.match(r"Error merging override (.*)", text)
    typed = f"{override[1].rstrip('.')}: " if override else ""
    key = f"{cause.full_key}: " if not typed and isinstance(cause, OmegaConfBaseException) and cause.full_key else ""
    return f"{typed or key}{_conversion(override[1].rstrip('.') if override else '', first_line(cause))}"


# What OmegaConf says of a value of another type, and what it expects.
EXPECTED = {
    "Value '.*' could not be converted to Integer": "a whole number",
    "Value '.*' could not be converted to Float": "a number",
    "Value '.*' is not a valid bool": "true or false",
    "field '.*' is not Optional": "a value other than null",
    "Invalid value assigned: .* is not a ListConfig": "a list in brackets, such as [300,300]",
    "Cannot convert '.*' to string": "one word",
    "Cannot assign|Cannot merge|Invalid type assigned": "another kind of value, as `dbnrun --cfg job` shows",
}


def _conversion(typed: str, said: str) -> str:
    """What OmegaConf says of a value of another type, in the words of a user."""
    expected = next((ours for theirs, ours in EXPECTED.items() if re.match(theirs, said)), None)
    if expected is None:
        return said
    plain = re.sub(r"[\[\] ]", "", typed)
    if span := re.fullmatch(r"([\w.]+)=(\d+)(?:\.\.+|:|-)(\d+)", typed):
        return f"expected {expected}. To sweep over several: dbnrun -m '{span[1]}=range({span[2]},{int(span[3]) + 1})'."
    sweep = f" To sweep over several: dbnrun -m {plain}." if "=[" in typed else ""
    return f"expected {expected}.{sweep}"


def _not_an_option(typed: str, kind: type[Choice]) -> str:
    """Why an option is refused that a choice does not have."""
    name = typed.partition("=")[0].rpartition(".")[2]
    known = owners(kind.group, name)
    belongs = f"it is an option of {', '.join(known)}" if known else f"no {kind.group} has it"
    if name == "target":
        todo = f"Write {kind.group}=custom {typed}."
    elif known:
        todo = f"Leave it out, or write {kind.group}={known[0]} {typed}."
    else:
        todo = "Leave it out."
    return f"{typed}: {kind.group}={kind.registered} has no option {name}; {belongs}. {todo}"
