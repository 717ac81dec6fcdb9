"""Workers run the trials that an engine asks for: this process, and others that share its run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from subcompress.search.trials import Engine, Trial, trial_of
from subcompress.support.listener import Listener, Progress, StepProgress
from subcompress.training.attempts import DiedTwiceError
from subcompress.training.fitter import Fitter
from subcompress.training.probe import DIED, Fit, Probe
from subcompress.training.run import Run
from subcompress.training.workers import POLL

FINISH = "finish"
"""The claim of the worker that reads the test split and writes the result."""

DEAD = "-died"
"""The end of the names of trainings that died, in the journal."""


def work(fitter: Fitter, engine: Engine, run: Run) -> tuple[Probe, dict[str, Any]]:
    """Run trials, together with other workers of the folder, until the engine has no more; return the engine's result.

    Trainings of other workers count like those of this one. Raises SubcompressError as the engine does.
    """
    told: set[str] = set()
    while True:
        run.refresh()
        for trial, probe in _ended(run, told):
            engine.tell(trial, probe)
        claimed = [each for name in run.worker.claimed() if (each := trial_of(name)) is not None]
        running = [each for each in claimed if each.key not in told]
        _share_minutes(engine, len(running) + 1)
        wanted = engine.ask(running)
        if wanted is not None and run.worker.claim(wanted.key):
            _train(fitter, engine, run, wanted)
        elif wanted is not None or running:
            time.sleep(POLL)
        else:
            return engine.result()


def _train(fitter: Fitter, engine: Engine, run: Run, trial: Trial) -> None:
    """Run a trial that this worker has claimed, unless another one ended it just before."""
    listener = fitter.listener
    try:
        run.refresh()
        if trial.key in run.journal:
            return
        run.worker.says(trial.key)
        fitter.listener = Reporting(listener, run, trial.key)
        if trial.d == 0:
            fitter.baseline(trial.seed, trial.lr, short=trial.short)
        else:
            fitter.probe(
                trial.d,
                trial.seed,
                limit=trial.limit,
                room=trial.room,
                short=trial.short,
                rate=trial.rate,
                hopeless=engine.hopeless(trial),
            )
    except DiedTwiceError:
        pass  # the journal says so
    finally:
        fitter.listener = listener
        run.worker.says("")
        run.worker.release(trial.key)


class Reporting(Listener):
    """Passes on what a training says, and lets other workers and `subcompress runs` know how far it is."""

    def __init__(self, listener: Listener, run: Run, key: str) -> None:
        self.listener, self.worker, self.key = listener, run.worker, key

    def note(self, text: str) -> None:
        self.listener.note(text)

    def run(self, title: str, epochs: int) -> None:
        self.listener.run(title, epochs)

    def epoch(self, progress: Progress) -> None:
        p = progress
        self.worker.says(f"{self.key}, epoch {p.epoch}/{p.epochs}, {p.metric} {p.value:.4f}")
        self.listener.epoch(progress)

    def step(self, progress: StepProgress) -> None:
        self.listener.step(progress)

    def probes(self, probes: Sequence[Any]) -> None:
        self.listener.probes(probes)


def _share_minutes(engine: Engine, workers: int) -> None:
    """Tell a search with a limit of minutes how many workers share them."""
    if (spending := getattr(engine, "spending", None)) is not None:
        spending.workers = workers


def _ended(run: Run, told: set[str]) -> Iterator[tuple[Trial, Probe]]:
    """The trials of the journal that were not told yet, in the order in which they ended."""
    for key, entry in run.journal.items():
        name = key.removesuffix(DEAD).removesuffix("-again") if key.endswith(DEAD) else key
        trial = trial_of(name)
        if trial is None or name in told:
            continue
        if not key.endswith(DEAD):
            told.add(name)
            yield trial, Probe.from_json(entry)
        elif trial.d == 0 or key.endswith("-again" + DEAD):
            told.add(name)
            epochs, seconds = int(entry["epochs"]), float(entry["seconds"])
            if (first := run.journal.get(name + DEAD)) is not None and trial.d:
                epochs, seconds = epochs + int(first["epochs"]), seconds + float(first["seconds"])
            lost = Probe(trial.d, trial.seed, 0.0, (), epochs, seconds, True, DIED, warnings=(entry["note"],))
            yield trial, replace(lost, short=trial.short, rate=trial.rate)


def finish(fitter: Fitter, run: Run, chosen: Probe, found: dict[str, Any], origin: dict[str, Any]) -> Fit:
    """Read the test split and write the result, or take it from the worker that did."""
    with run.worker.alone(FINISH):
        if (summary := run.finished) is not None:
            return Fit.from_json(summary["fit"])
        return fitter.finish(chosen, found, origin)


__all__ = ["Reporting", "finish", "work"]
