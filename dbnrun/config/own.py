"""Classes of a user's own, such as `mynorm.py:BatchRenorm`: found, imported, identified and called.

A target is `FILE.py:NAME`, resolved against the working directory, or `package.module:NAME`. What identifies it are its
name and the SHA-256 of its source: of the file, and of the modules that it imports from the file's own folder. For an
installed package it is the distribution and its version. Neither path nor working directory is part of it. A comment
that changes makes another cell: no program can tell a comment from code that reads it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from dbnrun.config.registry import UserError, nearest, of

EXPECTED = "expected FILE.py:NAME or package.module:NAME, such as mynorm.py:BatchRenorm"


@dataclass
class Own:
    """What a choice `custom` has beside its group's options. `options`: what the class is called with."""

    target: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """The class by name and source; a recorded `target` is the name alone."""
        known = super().identity()  # pyright: ignore[reportAttributeAccessIssue] # of the Choice beside it
        known |= {"target": self.class_name, "source": source(self.key, self.target)}
        return {key: value for key, value in known.items() if value != {} or key != "options"}

    @property
    def key(self) -> str:
        return f"{self.group}.target"  # pyright: ignore[reportAttributeAccessIssue] # of the Choice beside it

    @property
    def class_name(self) -> str:
        return self.target.rpartition(":")[2]

    @property
    def slug(self) -> str:
        return shown(self.group, self.class_name)  # pyright: ignore[reportAttributeAccessIssue] # of the Choice

    @property
    def is_live(self) -> bool:
        """Whether the target can be loaded: a recorded one is a name alone."""
        return not self.target.isidentifier()

    def check(self) -> None:
        super().check()  # pyright: ignore[reportAttributeAccessIssue]
        if not self.target:
            raise UserError(f"{self.key} is missing: {EXPECTED}.")
        if self.is_live:
            load(self.key, self.target)

    def made(self, *positional: Any, **offered: Any) -> Any:
        """The class called with `positional`, those of `offered` that its signature asks for, and the options."""
        return call(self.key, self.target, positional, offered, self.options)

    def asks_for(self, name: str) -> bool:
        """Whether the class has a parameter of this name."""
        return name in parameters(load(self.key, self.target))


def shown(group: str, class_name: str) -> str:
    """What folders and reports call a class: its name, marked where a choice of the group has the same."""
    return f"own-{class_name}" if class_name in of(group) else class_name


def source(key: str, target: str) -> str:
    """What identifies the code behind a target: 'sha256:…', or an installed distribution and its version."""
    where, name = _split(key, target)
    if (package := where.partition(".")[0]) and not where.endswith(".py") and _is_installed(key, target, where):
        from importlib import metadata  # noqa: PLC0415 - takes its time, and few cells ask

        (distribution, *_) = metadata.packages_distributions().get(package, [package])
        return f"{distribution} {metadata.version(distribution).partition('+')[0]}"  # not which device it is built for
    digest = hashlib.sha256(name.encode())
    for file_name, path in files(key, target).items():
        digest.update(f"\n{file_name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def files(key: str, target: str) -> dict[str, Path]:
    """The source files of a target by name relative to its folder; {} for an installed package."""
    where, _ = _split(key, target)
    if not where.endswith(".py") and _is_installed(key, target, where):
        return {}
    first = _file(key, target, where)
    found = {first.name: first}
    waiting = [first]
    while waiting:
        for path in _local_imports(waiting.pop(), first.parent):
            name = path.relative_to(first.parent).as_posix()
            if name not in found:
                found[name] = path
                waiting.append(path)
    return dict(sorted(found.items()))


def load(key: str, target: str) -> Any:
    """What a target names. Raises UserError, with the line of the user's code that raised, where it cannot be had."""
    where, name = _split(key, target)
    path = _file(key, target, where) if where.endswith(".py") else None
    module = _imported(key, target, where, path, path.stat().st_mtime_ns if path else 0)
    if not hasattr(module, name):
        defined = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"{key}={target}: {where} has no {name}.{nearest(name, defined)}")
    made = getattr(module, name)
    if not callable(made):
        raise UserError(f"{key}={target}: {name} is {type(made).__name__}, expected a class or a function.")
    return made


@functools.lru_cache(maxsize=64)
def _imported(key: str, target: str, where: str, path: Path | None, _changed: int) -> ModuleType:
    try:
        if path is None:
            _spec(key, target, where)
            return importlib.import_module(where)
        _on_path(path.parent)
        name = f"dbnrun_own_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look their module up there
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:
        raise refusal(f"{key}={target}", error) from None


def call(
    key: str, target: str, positional: Iterable[Any], offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a target. Raises UserError where its signature lacks an option, or where the call raises."""
    made = load(key, target)
    positional = tuple(positional)
    takes = parameters(made)
    prefix = key.rpartition(".")[0]
    if not any(kind is inspect.Parameter.VAR_KEYWORD for kind in takes.values()):
        # The first parameters are given by position and are not the user's to choose.
        choosable = [name for name in list(takes)[len(positional) :] if name not in offered]
        for name in options:
            if name not in choosable:
                hint = nearest(name, choosable) or f" It takes {', '.join(choosable) or 'no options'}."
                raise UserError(f"{prefix}.options.{name}: {made.__name__} takes no {name}.{hint}")
    asked = {name: value for name, value in offered.items() if name in takes}
    try:
        return made(*positional, **asked, **options)
    except UserError:
        raise
    except Exception as error:
        raise refusal(f"{key}={target}", error) from None


def parameters(made: Callable[..., Any]) -> dict[str, Any]:
    """The names and kinds of the parameters that a class or function is called with."""
    try:
        return {name: parameter.kind for name, parameter in inspect.signature(made).parameters.items()}
    except (TypeError, ValueError):  # a builtin without a signature takes what it takes
        return {"options": inspect.Parameter.VAR_KEYWORD}


def refusal(what: str, error: BaseException) -> UserError:
    """One line for an error in a user's own code, with the last line of that code that it passed through."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError) and error.filename:
        return UserError(f"{what}: {Path(error.filename).name}, line {error.lineno}: {said}.")
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not _is_library(Path(f.filename)) and ours not in Path(f.filename).parents]
    at = f"{Path(theirs[-1].filename).name}, line {theirs[-1].lineno}: " if theirs else ""
    return UserError(f"{what}: {at}{said}.")


def _split(key: str, target: str) -> tuple[str, str]:
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UserError(f"{key}={target}: {EXPECTED}.")
    return where, name


def _file(key: str, target: str, where: str) -> Path:
    """The file that holds a target's code."""
    if where.endswith(".py"):
        path = Path(where).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"{key}={target}: there is no file {where}; {EXPECTED}.")
        return path
    return Path(str(_spec(key, target, where).origin))


def _spec(key: str, target: str, where: str) -> Any:
    _on_path(Path.cwd())
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{key}={target}: there is no module {where}; {EXPECTED}.")
    return spec


def _is_installed(key: str, target: str, where: str) -> bool:
    return _is_library(Path(str(_spec(key, target, where).origin)))


def _is_library(path: Path) -> bool:
    standard = Path(os.__file__).parent
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or standard in path.parents


def _on_path(folder: Path) -> None:
    """Let the user's code import its neighbours, here and in the processes that are started from here."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def _local_imports(path: Path, folder: Path) -> list[Path]:
    """The files in `folder` that a source file imports, by what its text says; [] where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []  # importing it says what is wrong
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names += [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
    candidates = [folder.joinpath(*name.split(".")) for name in names if name]
    files = [each for base in candidates for each in (base.with_suffix(".py"), base / "__init__.py")]
    return [file for file in files if file.is_file()]
