"""Cells of several training runs, stacked, each into the folder that it would have had alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from dbnrun import interrupt
from dbnrun.config import RunConfig
from dbnrun.experiment import (
    augmentation,
    build_run,
    captured,
    is_out_of_memory,
    keep,
    keep_weights,
    load_data,
    progress,
    record,
    run_together,
    store,
    under_way,
)
from dbnrun.fused.train import Run, train_stack
from dbnrun.recording import Recording
from dbnrun.records import Outcome
from dbnrun.train import UnderWay, steps_per_epoch


def run_stack(runs: Sequence[Sequence[RunConfig]]) -> list[list[Outcome]]:
    """Train several runs as one program, each the cells that share it; one run alone is trained as ever.

    The runs must be alike but for what `grouping.stack` lets differ. Where memory is short, halves go one by one.
    """
    if len(runs) == 1:
        return [run_together(runs[0])]
    try:
        return record(runs, _corridor)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    half = len(runs) // 2
    return run_stack(runs[:half]) + run_stack(runs[half:])


def _corridor(runs: Sequence[Sequence[Recording]], device: torch.device) -> None:
    runs = sorted(runs, key=lambda run: run[0].config.seed)  # networks that see the same batches side by side
    config, (done, steps) = runs[0][0].config, runs[0][0].position
    data = load_data(config, device)
    together = sum(map(len, runs))
    built = [build_run(recordings, data, device, len(runs), together) for recordings in runs]
    stacked = [Run(cells[0], [cell.view() for cell in cells]) for cells in built]
    with progress(config, steps_per_epoch(len(data.train), config.train), (done, steps)) as bar:
        epochs = done

        def on_step(stand: Callable[[], list[UnderWay]]) -> None:
            bar.update()
            # Of a run that has diverged nothing is kept, and what is never kept is always due.
            alive = next(recordings[0] for recordings in runs if recordings[0].outcome is None)
            if alive.due() or interrupt.noted():
                for recordings, cells, own in zip(runs, built, stand(), strict=True):
                    if recordings[0].outcome is None:
                        keep(recordings, cells, epochs, own)
            interrupt.check()

        def on_divergence(number: int, step: int) -> None:
            for recording in runs[number]:
                recording.diverged_step = step

        for rows_by_run in train_stack(
            stacked,
            data,
            config.train,
            precision=config.precision,
            augment=augmentation(config.dataset),
            epochs_done=done,
            under_way=[u for run in runs if (u := under_way(run[0]))] or None,
            on_step=on_step,
            on_evaluation=lambda: bar.set_description("evaluating"),
            on_divergence=on_divergence,
            captured=captured(config, device),
            compiled=config.compile,
        ):
            epochs += 1
            for recordings, cells, rows in zip(runs, built, rows_by_run, strict=True):
                if rows:  # none of a run that has diverged
                    store(recordings, cells, rows)
                if rows and not math.isfinite(rows[0].train_loss):
                    keep_weights(recordings, cells)
                    for recording in recordings:
                        recording.finish()
            losses = [row.train_loss for row in itertools.chain.from_iterable(rows_by_run)]
            bar.set_postfix(loss=f"{min(losses):.3f} to {max(losses):.3f}" if losses else "", refresh=False)
            bar.set_description()  # draws the bar without "evaluating"
    for recordings, cells in zip(runs, built, strict=True):
        if recordings[0].outcome is None:
            keep_weights(recordings, cells)
