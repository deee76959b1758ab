"""What a shell offers after Tab: verbs, flags, keys and choices. Hydra installs the shell's side of it.

`dbnrun -sc query=bash` reads the line that is being typed from COMP_LINE, and prints the words that may come there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dbnrun.config import filters, registry
from dbnrun.config.schema import known_keys

# Of Hydra's flags, those that mean something here (runner.app refuses the others).
FLAGS = ("-m", "--multirun", "--cfg", "--resolve", "--package", "--config-dir", "--info", "--help", "--version", "-sc")
TAKE_KEYS = ("plan", "until", "compare", "runs")  # verbs whose words are keys and values


def query(words: Sequence[str], verbs: Mapping[str, Any]) -> bool:
    """Print what may come next in the line, for `query=SHELL`; False where something else is asked, Hydra's to do."""
    if len(words) != 1 or not words[0].startswith("query="):
        return False
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(point)] if (point := os.environ.get("COMP_POINT", "")).isdigit() else line
    typed = line.split()[1:]
    word = "" if not line or line[-1].isspace() else typed.pop() if typed else ""
    found = [each for each in _words(typed, word, verbs) if each.startswith(word)]
    print(("\n" if words[0] == "query=fish" else " ").join(dict.fromkeys(found)))
    return True


def _words(before: Sequence[str], word: str, verbs: Mapping[str, Any]) -> Iterable[str]:
    """The words that may stand where `word` is being typed, behind those `before`."""
    verb = before[0] if before and before[0] in verbs else ""
    if word.startswith("-"):
        return _help_of(verbs[verb].run, before[1:], r"(?<![\w-])--?[a-z][\w-]*") if verb else FLAGS
    if "=" in word:
        return _values(word)
    if not before:
        return [*verbs, *_keys(word)]
    below = {"runs": r"dbnrun runs (\w+)", "theory": r"([\w|]+) \.\.\."}
    if verb in below and len(before) == 1:
        return [name for found in _help_of(verbs[verb].run, [], below[verb]) for name in found.split("|")]
    if verb in ("data", "bench"):
        return [name for name, kind in registry.of("dataset").items() if kind.downloads] if verb == "data" else []
    return _keys(word) if not verb or verb in TAKE_KEYS else []


def _help_of(run: Callable[[list[str]], int], words: Sequence[str], pattern: str) -> list[str]:
    """What of a verb's help fits a pattern: each verb makes its parser itself."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        run([*[each for each in words[:1] if each.isalpha()], "--help"])
    return re.findall(pattern, said.getvalue())


def _keys(word: str) -> list[str]:
    """Groups and keys, those of a section once the word has its dot: `train.` and `seed=`, then `train.epochs=`."""
    groups, known = list(registry.files()), [key for key in known_keys() if not key.endswith(".name")]
    sections = dict.fromkeys(key.rpartition(".")[0] + "." for key in known if "." in key)
    plain = [key for key in known if ("." in key) == ("." in word) and f"{key}." not in sections]
    return [f"{key}=" for key in [*groups, *plain]] + list(sections)


def _values(word: str) -> list[str]:
    """The word with each value that its key may take; of several, with commas between them, the last is completed."""
    key, _, value = word.partition("=")
    given, comma, _ = value.rpartition(",")
    known = registry.choosable()
    choices = known[key] if key in known else filters.words_of(key)
    return [f"{key}={given}{comma}{choice}" for choice in choices]
