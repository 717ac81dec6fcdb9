"""The results of a fit: of each training, and of all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.support.tables import html_table

DIED = "died twice"
"""The note of a training that died, its second try too; its only warning says why."""


@dataclass(frozen=True)
class Probe:
    """One training.

    value: the metric on the validation split, measured with the rebuilt weights unless the training was stopped. curve:
    the metric after each epoch. epochs: the number of trained epochs, including attempts that died. note: anything
    unusual.
    """

    d: int
    seed: int
    value: float
    curve: tuple[float, ...]
    epochs: int
    seconds: float
    stopped: bool = False
    note: str = ""
    warm: int = 0
    """Zero. In folders of former versions, the d whose coordinates a shortened training began with."""
    lr: float | None = None
    """The learning rate of the attempt that did not die."""
    bytes: int = 0
    """The size of the whole file; zero if there is no file."""
    coded: int = 0
    """The part of `bytes` that the coordinates take."""
    warnings: tuple[str, ...] = ()
    """What looks wrong with the training."""
    statistics: int = 0
    """The part of `coded` that running statistics take."""
    cut: int = 0
    """By how many bytes the file was shortened: its smallest coordinates became zero."""
    short: bool = False
    """Whether it was trained for few epochs only, to show a search where to look."""
    rate: float | None = None
    """The price of a bit, where a search varied it."""
    pressed: int = 0
    """By how many bytes the coordinates were shorter than with steps of the usual length, which did not fit."""

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Probe:
        """What a journal keeps."""
        return cls(**{**held, "curve": tuple(held["curve"]), "warnings": tuple(held.get("warnings", ()))})

    def at(self, d: int) -> bool:
        """Whether this is a training of its own in d coordinates."""
        return self.d == d and self.whole

    @property
    def whole(self) -> bool:
        """Whether it was trained for all epochs."""
        return not (self.short or self.warm)


def training_key(d: int, seed: int, rate: float | None = None) -> str:
    """What a training is called in the run folder. rate: the price of a bit, where a search varies it."""
    return f"d{d}-s{seed}" + ("" if rate is None else f"-p{rate:g}")


def _place(probe: Probe) -> tuple[int, float | None, int, bool]:
    """What trainings with other seeds share."""
    return probe.d, probe.rate, probe.warm, probe.short


class TargetMissedError(SubcompressError):
    """Raised if a search does not reach its target. `fit` is the best result, which the run folder holds."""

    def __init__(self, fit: Fit) -> None:
        super().__init__(f"{fit.failure}; {kept_words(fit)}")
        self.fit = fit


def kept_words(fit: Fit) -> str:
    """What is left of a fit that failed."""
    if not fit.bytes:
        return f"the best training, with d = {fit.d}, is kept in {fit.run}"
    return f"the best file has {fit.bytes} bytes and is kept: subcompress pack {fit.run} -o net.safetensors"


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    The test split was read once, at the end, for `test`. Fields that belong to a search are empty if d was given.

    Attributes:
        run: The run folder.
        d: Number of coordinates.
        D: Number of weights that can be trained.
        bits: Bits of a coordinate before entropy coding.
        seed: The seed of the file.
        metric: The name of the metric.
        validation: The metric of the rebuilt weights on the validation split.
        test: The same on the test split.
        seconds: How long the fit took.
        operator: The projection.
        bytes: Size of the file that `pack` writes.
        target: The value that the search had to meet.
        within: The number of bytes that the search had to keep to.
        probes: Every training.
        frontier: The trainings for which no smaller file is as good.
        d_spread: How much the d that meets the target varies between seeds.
        validation_spread: Standard deviation of `validation` between the trainings of `validation_mean`, or between
            seeds if there is none.
        validation_mean: The mean that decided that the target is met: over the trainings at or near d (in a search for
            a price, at or near it). The line through all trainings carries the metric of each from its d to this one.
        validation_trainings: The number of trainings in that mean.
        baseline: The metric of direct training.
        full_fits: What the search cost, in full trainings.
        warnings: What looks wrong, one line each.
        reached: Whether the target is met, if there is one.
        learned: False if the metric is no better than that of a constant answer.
        failure: Why the file should not be used as it is: the target is missed, or nothing was learned.
        baseline_lr: The step of the direct training that the target counts from, if there was one.
        rate: The price of a bit, if the search varied it.
    """

    run: Path
    d: int
    D: int
    bits: int
    seed: int
    metric: str
    validation: float
    test: float
    seconds: float
    operator: str = "hadamard"
    bytes: int = 0
    target: float | None = None
    within: int | None = None
    probes: tuple[Probe, ...] = ()
    frontier: tuple[Probe, ...] = ()
    d_spread: dict[str, float] | None = None
    validation_spread: float | None = None
    baseline: float | None = None
    full_fits: float = 1.0
    warnings: tuple[str, ...] = ()
    reached: bool = True
    """Whether the target is met, where there is one."""
    learned: bool = True
    """False where the metric is no better than that of a constant answer."""
    failure: str = ""
    """Why the file should not be used as it is: the target is missed, or nothing was learned."""
    baseline_lr: float | None = None
    """The learning rate of the direct training that the target counts from, if there was one."""
    validation_mean: float | None = None
    """The mean that decided that the target is met."""
    validation_trainings: int | None = None
    """The number of trainings in that mean."""
    rate: float | None = None
    """The price of a bit, where the search varied it."""

    def __repr__(self) -> str:
        size = f" {self.bytes:,} bytes," if self.bytes else ""
        line = (
            f"Fit: {self.D:,} weights in {self.d:,} coordinates of {self.bits} bits:{size} {self.metric} "
            f"{self.validation:.4f} on validation, {self.test:.4f} on test, {self.seconds:.1f} s, in {self.run}"
        )
        told = [self.failure] if self.failure else []
        return "\n  ".join([line, *told, *(f"warning: {w}" for w in self.warnings if w != self.failure)])

    def _repr_html_(self) -> str:
        """The figures as a table, for a notebook."""
        number = "{:.4f}".format
        rows = [
            ("file", f"{self.bytes:,} bytes" if self.bytes else "none, because the operator cannot be packed"),
            ("weights", f"{self.D:,} in {self.d:,} coordinates of {self.bits} bits"),
            (f"validation {self.metric}", number(self.validation)),
            (f"test {self.metric}", number(self.test)),
            ("target", None if self.target is None else f"{self.target:.4g}, {'met' if self.reached else 'missed'}"),
            ("what meets it", self.mean_words),
            ("bytes allowed", None if self.within is None else f"{self.within:,}"),
            ("trained directly", None if self.baseline is None else number(self.baseline)),
            ("trainings", f"{max(1, len(self.probes))}, {self.seconds:.1f} s"),
            ("run folder", self.run),
        ]
        told = [f"<p><b>{escape(self.failure)}</b></p>"] if self.failure else []
        told += [f"<p>warning: {escape(warning)}</p>" for warning in self.warnings if warning != self.failure]
        return "".join([html_table(row for row in rows if row[1] is not None), *told])

    @property
    def mean_words(self) -> str | None:
        """The mean that decided that the target is met, for people; None if there is none."""
        if self.validation_mean is None:
            return None
        spread = "" if self.validation_spread is None else f" +- {self.validation_spread:.4f}"
        n = "" if self.validation_trainings is None else f"{self.validation_trainings} "
        at = f"d = {self.d}" if self.rate is None else f"price {self.rate:g}"
        of = f"{n}training{'' if self.validation_trainings == 1 else 's'}"
        return f"mean {self.metric} {self.validation_mean:.4f}{spread} of {of} at or near {at}"

    @property
    def validation_accuracy(self) -> float:
        """`validation`, for the metric it usually is."""
        return self.validation

    @property
    def test_accuracy(self) -> float:
        """`test`, for the metric it usually is."""
        return self.test

    def to_json(self) -> dict[str, Any]:
        """Plain values; accuracies under their own names too. `probes` are by d, `trainings` one by one."""
        fields = asdict(self) | {"run": str(self.run)}
        fields["trainings"] = fields.pop("probes")
        fields["probes"] = [self._probe(*at) for at in dict.fromkeys(map(_place, self.probes))]
        fields["frontier"] = [
            {"bytes": p.bytes, "value": p.value, "training": self.probes.index(p)} for p in self.frontier
        ]
        if self.metric.endswith("accuracy"):
            fields |= {"validation_accuracy": self.validation, "test_accuracy": self.test}
            fields |= {"baseline_accuracy": self.baseline}
        return fields

    def _probe(self, d: int, rate: float | None, warm: int, short: bool) -> dict[str, Any]:
        """What was trained at one d, or at one price of a bit."""
        found = [p for p in self.probes if _place(p) == (d, rate, warm, short)]
        name = "accuracies" if self.metric.endswith("accuracy") else "values"
        return {
            "d": d,
            "bytes": [p.bytes for p in found],
            "seeds": [p.seed for p in found],
            name: [p.value for p in found],
            "seconds": sum(p.seconds for p in found),
            "stopped": [p.seed for p in found if p.stopped],
            "warm": warm,
            "short": short,
            **({} if rate is None else {"rate": rate}),
        }

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Fit:
        """What `to_json` gave."""
        fields = {k: v for k, v in held.items() if k in cls.__dataclass_fields__}
        probes = tuple(Probe.from_json(p) for p in held["trainings"])
        frontier = tuple(probes[f["training"]] for f in held["frontier"])
        warnings = tuple(fields.get("warnings", ()))
        return cls(
            **{**fields, "run": Path(fields["run"]), "probes": probes, "frontier": frontier, "warnings": warnings}
        )
