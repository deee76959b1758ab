"""Networks. Each takes its normalizer as a factory, norm(features, spatial), and knows no kind of it.

What one can choose stands in options.py, which imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbnrun.models.convert import convert_norm

__all__ = ["convert_norm"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dbnrun.models import convert  # torch, which a command that trains nothing does without

    return getattr(convert, name)
