"""How well the overoptimization watch does where the truth is known: its alarm against gold's peak."""

from dataclasses import dataclass

from src.metrics.watching import Keep, Signal, alarm_index, every_reward_fell, is_unsound, kept_index, signal_of
from src.report.runs import Run

FALLEN = 0.5  # base sd that gold must have lost at the end for the run to count as overoptimized


@dataclass(frozen=True)
class Detection:
    """One run, judged. Queries are reward queries; gains are gold's, in base sd."""

    alarm: int | None  # queries at the alarm
    judge_peak: int  # queries at gold's highest gain
    best: int  # queries of the weights that the watch keeps
    shipped: float  # gold's gain of those weights
    held_out: float  # the same on prompts that no run trains on; nan where there are none
    last: float  # gold's gain at the end
    overoptimized: bool  # gold ended FALLEN or more below its peak

    @property
    def verdict(self) -> str:
        """missed: overoptimized without an alarm; early: alarm before gold's peak; false alarm: not overoptimized."""
        if self.overoptimized:
            return "missed" if self.alarm is None else "early" if (self.delay or 0) < 0 else ""
        return "" if self.alarm is None else "false alarm"

    @property
    def delay(self) -> int | None:
        """Queries from gold's peak to the alarm; negative where the alarm came first."""
        return None if self.alarm is None else self.alarm - self.judge_peak


def followed(run: Run, signal: Signal) -> list[float] | None:
    """What a watch follows, evaluation by evaluation, as the callback does; None where one lacks what it needs."""
    others, rewards = run.others, run.config["suite"]["rewards"]
    looked_at = [name for name in rewards if name == run.trained or name in others]
    found = [signal_of(row, run.trained, looked_at, signal) for row in run.evaluations]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def collapsed(run: Run) -> list[int]:
    """The evaluations in which every reward fell below the base."""
    rewards = list(run.config["suite"]["rewards"])
    return [k for k, row in enumerate(run.evaluations) if every_reward_fell(row, rewards)]


def unsound(run: Run) -> list[int]:
    """The evaluations whose weights are not to be kept."""
    rewards = list(run.config["suite"]["rewards"])
    return [k for k, row in enumerate(run.evaluations) if is_unsound(row, run.trained, rewards)]


@dataclass(frozen=True)
class Shipment:
    """What a run's own watch says, asked by nothing but its rows."""

    index: int  # of the evaluation whose weights it would ship; 0 is the base
    alarm: bool
    collapsed: bool = False  # whether every reward fell below the base somewhere


def shipment(run: Run) -> Shipment | None:
    """What the run's watch would ship, by its options; None without a watch, or where it lacks what it follows.

    Where there is no alarm, that is what it kept last. Of a control, or of weights by degrees, in which no watch has
    spoken, the same rule is asked of the settings: in their order, degrees from the base on. Where nobody knows what
    was trained on, the base is shipped if every reward fell below it everywhere. So it is of weights of others of which
    none has more of the trained reward.
    """
    watch = (run.config.get("callbacks") or {}).get("watch")
    if not watch:
        return None
    signals, fallen, order = followed(run, watch["signal"]), collapsed(run), from_the_base(run)
    if signals is None:
        everywhere = bool(fallen) and len(fallen) == len(run.evaluations) - 1
        return Shipment(0, alarm=True, collapsed=True) if everywhere else None
    ordered, bars = [signals[k] for k in order], [order.index(k) for k in unsound(run)]
    index = kept_index(ordered, watch["margin"], watch["patience"], watch.get("keep", "peak"), bars)
    alarm = alarm_index(ordered, watch["margin"], watch["patience"])
    if index is None:
        return None
    if run.config.get("task") == "evaluate" and not rose(run):
        index = 0
    return Shipment(order[index], alarm is not None or bool(fallen), collapsed=bool(fallen))


def rose(run: Run) -> bool:
    """Whether the trained reward is anywhere above the base's, its whole 95% interval."""
    return any(row.get(f"eval/{run.trained}/gain_low", 0) > 0 for row in run.evaluations[1:])


def from_the_base(run: Run) -> list[int]:
    """The evaluations in the order that a watch looks at them: as they were made, but degrees from the base on."""
    numbers = list(range(1, len(run.evaluations)))
    if run.is_frontier:
        numbers.sort(key=lambda k: run.places[k], reverse=run.layout == "aig")  # an infinite power is the base
    return [0, *numbers]


def detect(
    run: Run,
    signal: Signal,
    margin: float,
    patience: int = 1,
    keep: Keep = "peak",
    judge: str = "gold",
) -> Detection | None:
    """What a watch with these options would have said of a run; None without a judge or what the signal needs."""
    known, gold = followed(run, signal), run.series(f"eval/{judge}/gain")
    if known is None or any(value != value for value in gold):
        return None
    alarm = alarm_index(known, margin, patience)
    best, peak = kept_index(known, margin, patience, keep, unsound(run)), gold.index(max(gold))
    if best is None:
        return None
    return Detection(
        alarm=None if alarm is None else run.queries[alarm],
        judge_peak=run.queries[peak],
        best=run.queries[best],
        shipped=float(gold[best]),
        held_out=float(run.series(f"held_out/{judge}/gain")[best]),
        last=float(gold[-1]),
        overoptimized=gold[peak] - gold[-1] >= FALLEN,
    )
