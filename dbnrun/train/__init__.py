"""The training loop. Called, this package trains a run: `dbnrun.train({"norm": "dbn"})`, by runner/notebook.train.

The room and the function have one name, so that the module must be callable: Python puts a package that is imported in
the place of whatever else `dbnrun.train` was.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, settings: Mapping[str, Any]) -> Any:
        """Train one run as the command would with these keys and values; see dbnrun.runner.notebook.train."""
        return importlib.import_module("dbnrun.runner.notebook").train(settings)


sys.modules[__name__].__class__ = _Callable
