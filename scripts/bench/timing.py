"""Timing by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from bench import Finding

ROUNDS = 7


def by_turns(
    subjects: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, least: float = 0.1
) -> dict[str, list[float]]:
    """Seconds a call of each subject, a value a round; in each round every subject runs once, for `least` seconds."""
    repeats = {}
    for name, subject in subjects.items():
        once = _seconds(subject, 1)  # warm-up, and how many calls fill a turn
        repeats[name] = max(1, round(least / max(min(once, _seconds(subject, 1)), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            times[name].append(_seconds(subject, repeats[name]))
    return times


def _seconds(subject: Callable[[], object], calls: int) -> float:
    _wait()
    started = time.perf_counter()
    for _ in range(calls):
        subject()
    _wait()
    return (time.perf_counter() - started) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(bench: str, what: str, over: list[float], under: list[float], target: str = "") -> Finding:
    """The median over rounds of over / under."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return Finding(bench, what, statistics.median(ratios), "×", min(ratios), max(ratios), target)


def duration(bench: str, what: str, times: list[float], target: str = "") -> Finding:
    return Finding(bench, what, statistics.median(times), "s", min(times), max(times), target)
