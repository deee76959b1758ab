"""The independent random streams that one seed derives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> Generator:
    """A generator that depends on seed and name alone, so that one stream's draws never shift another's."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Rngs:
    """One generator a purpose. Initialization and data order draw on the CPU, so they agree across devices."""

    init: Generator
    order: Generator
    dropout: Generator  # on the device
    augment: Generator  # on the device

    @classmethod
    def of(cls, seed: int, device: torch.device | str = "cpu") -> Rngs:
        return cls(
            init=stream(seed, "init"),
            order=stream(seed, "order"),
            dropout=stream(seed, "dropout", device),
            augment=stream(seed, "augment", device),
        )

    def state(self) -> dict[str, Tensor]:
        """Where every stream stands, for a checkpoint."""
        return {field.name: getattr(self, field.name).get_state() for field in fields(self)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put every stream to where it stood; one that drew on another kind of device, whose states mean nothing on
        this one, begins anew."""
        for name, value in state.items():
            own: Generator = getattr(self, name)
            if value.numel() == own.get_state().numel():
                own.set_state(value.cpu())
