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
from typing import Any, TypeVar

from dbnrun.config.registry import UserError, nearest, of

T = TypeVar("T")
EXPECTED = "expected FILE.py:NAME or package.module:NAME, such as mynorm.py:BatchRenorm"


@dataclass
class Own:
    """What a choice `custom` has beside its group's options. `options`: what the class is called with."""

    target: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """The class by its name; a cell holds its source beside it."""
        known = super().identity()  # pyright: ignore[reportAttributeAccessIssue] # of the Choice beside it
        known |= {"target": self.class_name}
        return {key: value for key, value in known.items() if value != {} or key != "options"}

    @property
    def key(self) -> str:
        return f"{self.group}.target"  # pyright: ignore[reportAttributeAccessIssue] # of the Choice beside it

    @property
    def code(self) -> str:
        return self.target

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

    def made_module(self, *positional: Any, **offered: Any) -> Any:
        """The same, where a torch.nn.Module is expected."""
        module = self.made(*positional, **offered)
        if not hasattr(module, "named_modules"):
            raise UserError(f"{self.key}={self.target}: made {type(module).__name__}, expected a torch.nn.Module.")
        return module

    def asks_for(self, name: str) -> bool:
        """Whether the class has a parameter of this name."""
        return name in parameters(load(self.key, self.target))

    @property
    def passes_on(self) -> bool:
        """Whether it is a function that takes keywords beside those it names, such as torchvision's of a network."""
        made = load(self.key, self.target)
        return not isinstance(made, type) and takes_any(parameters(made))


def shown(group: str, class_name: str) -> str:
    """What folders and reports call a class: its name, marked where a choice of the group has the same."""
    return f"own-{class_name}" if class_name in of(group) else class_name


def source(key: str, target: str) -> str:
    """What identifies the code behind a target: 'sha256:…', or an installed distribution and its version."""
    where, name = _split(key, target)
    if _is_installed(f"{key}={target}", where):
        from importlib import metadata  # noqa: PLC0415 - takes its time, and few cells ask

        package = where.partition(".")[0]
        (distribution, *_) = metadata.packages_distributions().get(package, [package])
        return f"{distribution} {metadata.version(distribution).partition('+')[0]}"  # not which device it is built for
    digest = hashlib.sha256(name.encode())
    for file_name, path in files(key, target).items():
        digest.update(f"\n{file_name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def files(key: str, target: str) -> dict[str, Path]:
    """The source files of a target by name relative to the folder it is imported from; {} for an installed package."""
    where, _ = _split(key, target)
    asked = f"{key}={target}"
    if _is_installed(asked, where):
        return {}
    first = _file(asked, where)
    # A module of a package is imported from the folder that holds the package.
    depth = 0 if where.endswith(".py") else where.count(".") + (first.name == "__init__.py")
    folder = first.parents[depth]
    waiting = [first, *(file for level in range(depth) if (file := first.parents[level] / "__init__.py").is_file())]
    found = {}
    while waiting:
        path = waiting.pop()
        name = path.relative_to(folder).as_posix()
        if name not in found:
            found[name] = path
            waiting += _local_imports(path, folder)
    return dict(sorted(found.items()))


def load(key: str, target: str) -> Any:
    """What a target names. Raises UserError, with the line of the user's code that raised, where it cannot be had."""
    where, name = _split(key, target)
    found = module(f"{key}={target}", where)
    if not hasattr(found, name):
        defined = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"{key}={target}: {where} has no {name}.{nearest(name, defined)}")
    made = getattr(found, name)
    if not callable(made):
        raise UserError(f"{key}={target}: {name} is {type(made).__name__}, expected a class or a function.")
    return made


def module(asked: str, where: str) -> ModuleType:
    """The module `where`, a file or a dotted name. Raises UserError that begins with `asked` where it cannot be had."""
    path = _file(asked, where) if where.endswith(".py") else None
    return _imported(asked, where, path, path.stat().st_mtime_ns if path else 0)


@functools.lru_cache(maxsize=64)
def _imported(asked: str, where: str, path: Path | None, _changed: int) -> ModuleType:
    try:
        if path is None:
            _spec(asked, where)
            return _with_torchvision(lambda: importlib.import_module(where))
        _on_path(path.parent)
        name = f"dbnrun_own_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look their module up there
        _with_torchvision(functools.partial(spec.loader.exec_module, module))
        return module
    except UserError:
        raise
    except Exception as error:
        raise refusal(asked, error) from None


def _with_torchvision(load: Callable[[], T]) -> T:
    """load(), once more after our own import of torchvision where torchvision's stops beside a CPU-only torch."""
    try:
        return load()
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        from dbnrun import torchvision_shim  # noqa: F401, PLC0415 - torch

        return load()


def call(
    key: str, target: str, positional: Iterable[Any], offered: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Call a target. Raises UserError where its signature lacks an option, or where the call raises."""
    made = load(key, target)
    positional = tuple(positional)
    takes = parameters(made)
    prefix = key.rpartition(".")[0]
    if not takes_any(takes):
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


def takes_any(kinds: Mapping[str, Any]) -> bool:
    """Whether one of these kinds of parameters is **keywords."""
    return inspect.Parameter.VAR_KEYWORD in kinds.values()


def refusal(what: str, error: BaseException) -> UserError:
    """One line for an error in a user's own code, with the last line of that code that it passed through."""
    if isinstance(error, SyntaxError) and error.filename:
        return UserError(
            f"{what}: {Path(error.filename).name}, line {error.lineno}: {type(error).__name__}: {error.msg}."
        )
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not _is_library(Path(f.filename)) and ours not in Path(f.filename).parents]
    at = f"{Path(theirs[-1].filename).name}, line {theirs[-1].lineno}: " if theirs else ""
    if "backward through the graph a second time" in said:
        said = "a step uses a tensor of the step before with its gradient; update running statistics in torch.no_grad()"
    return UserError(f"{what}: {at}{said}.")


def _split(key: str, target: str) -> tuple[str, str]:
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UserError(f"{key}={target}: {EXPECTED}.")
    return where, name


def _file(asked: str, where: str) -> Path:
    """The file that holds the code of a module."""
    if where.endswith(".py"):
        path = Path(where).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"{asked}: there is no file {where}; {EXPECTED}.")
        return path
    return Path(str(_spec(asked, where).origin))


def _spec(asked: str, where: str) -> Any:
    _on_path(Path.cwd())
    try:
        spec = _with_torchvision(lambda: importlib.util.find_spec(where))
    except (ImportError, ValueError):
        spec = None
    except Exception as error:  # of a package that holds the module, and is imported to find it
        raise refusal(asked, error) from None
    if spec is None or spec.origin is None:
        raise UserError(f"{asked}: there is no module {where}, here or installed.")
    return spec


def _is_installed(asked: str, where: str) -> bool:
    return not where.endswith(".py") and _is_library(Path(str(_spec(asked, where).origin)))


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
    modules: list[Path] = []  # without the ending, and the packages that hold them
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [each for alias in node.names for each in _within(folder, alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.level < len(path.parents):
            start = path.parents[node.level - 1] if node.level else folder
            names = [".".join(filter(None, [node.module, alias.name])) for alias in node.names]
            modules += [each for name in names for each in [start, *_within(start, name)]]
    files = [each for base in modules for each in (base.with_suffix(".py"), base / "__init__.py")]
    return [file for file in files if file.is_file() and folder in file.parents]


def _within(folder: Path, name: str) -> list[Path]:
    """Where a dotted name, and each package on the way to it, would stand in a folder."""
    parts = name.split(".")
    return [folder.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
