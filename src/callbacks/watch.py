"""The overoptimization watch: an alarm from what a practitioner has, without a look at any judge."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from src.callbacks.evaluation import CrossRewardEvaluation
from src.callbacks.keeping import keep_weights
from src.errors import UserError
from src.learner import AFTER, Learner
from src.metrics.watching import (
    FELL,
    Keep,
    Signal,
    alarm_index,
    every_reward_fell,
    is_unsound,
    kept_index,
    needs_others,
    needs_trained,
    signal_of,
)


class Seen(NamedTuple):
    """One evaluation as the watch sees it."""

    iteration: int | None  # None in a checkpoint from before it was kept
    queries: int  # reward queries
    signal: float | None  # None where the evaluation lacks what is followed
    collapsed: bool  # every reward fell below the base
    unsound: bool = False  # or the trained one did


class OveroptimizationWatch(Callback):
    """Follows a signal (see signal_of) from evaluation to evaluation, and looks whether all rewards fall together.

    best/ holds the weights that the rule would ship, with at.json to say when that was; where a regulariser averages
    weights, best/ema their average at that time. Never kept are weights whose rewards all lie below the base's, or
    whose trained reward does.

    Args:
        rewards: names of the suite's rewards; judges are none of them.
        signal: what is followed.
        margin: below the peak, in the signal's unit, that raises the alarm. patience: evaluations in a row.
        keep: the weights of the signal's `peak` before the alarm, or of the `last` evaluation within the margin.
        action: `tell` says so once; `stop` also ends the run. A stopped run that is resumed goes on.
    """

    def __init__(
        self,
        run_dir: str,
        rewards: list[str],
        signal: Signal = "agreement",
        margin: float = 0.5,
        patience: int = 1,
        keep: Keep = "last",
        action: Literal["tell", "stop"] = "tell",
    ):
        if margin < 0 or patience < 1:
            raise UserError(f"watch: margin={margin} must not be negative and patience={patience} at least 1.")
        if needs_others(signal) and len(rewards) < 2:
            raise UserError(f"watch: signal={signal} needs a suite with a second reward; choose trained.")
        self.folder, self.rewards, self.signal = Path(run_dir) / "best", rewards, signal
        self.margin, self.patience, self.keep, self.action = margin, patience, keep, action
        self.seen: list[Seen] = []
        self.when, self.knows_trained = AFTER, True

    @property
    def followed(self) -> list[Seen]:
        """The evaluations that have what is followed."""
        return [each for each in self.seen if each.signal is not None]

    @property
    def signals(self) -> list[float]:
        """Theirs."""
        return [each.signal for each in self.seen if each.signal is not None]

    @property
    def alarm(self) -> int | None:
        """Reward queries at the alarm of the signal."""
        k = alarm_index(self.signals, self.margin, self.patience)
        return None if k is None else self.followed[k].queries

    @property
    def collapse(self) -> int | None:
        """Reward queries where every reward was below the base for the first time."""
        return next((each.queries for each in self.seen if each.collapsed), None)

    @property
    def kept(self) -> Seen | None:
        """The evaluation whose weights are kept."""
        followed = self.followed
        unsound = [k for k, each in enumerate(followed) if each.collapsed or each.unsound]
        k = kept_index(self.signals, self.margin, self.patience, self.keep, unsound)
        return None if k is None else followed[k]

    @property
    def best(self) -> int | None:
        """Reward queries of the weights that are kept."""
        return None if self.kept is None else self.kept.queries

    @property
    def fell(self) -> dict[str, str]:
        """What a summary tells of a joint collapse; empty where there was none."""
        return {} if self.collapse is None else {"joint_collapse": self.sentence()}

    @property
    def ships_base(self) -> bool:
        """Whether nothing but the base is left to ship because every reward fell below it."""
        if self.collapse is None:
            return False
        if self.followed:
            return self.kept is None or self.kept is self.seen[0]
        return all(each.collapsed for each in self.seen[1:])

    def on_train_start(self, trainer: Trainer, pl_module: Learner) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Learner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: Learner) -> None:
        """Takes in the evaluation that was made last, if it is new."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # which Lightning sets from outside
        row = next(c for c in callbacks if isinstance(c, CrossRewardEvaluation)).history[-1]
        apart = [name for name in self.rewards if name not in pl_module.reward_members]  # what is not trained on
        self.when = pl_module.when  # of checkpoints of others, queries are not known
        self.knows_trained = pl_module.reward_name is not None
        if self._knows(row):
            return
        value = signal_of(row, pl_module.reward_name, apart, self.signal)
        alarm, collapse = self.alarm, self.collapse
        collapsed = every_reward_fell(row, self.rewards)
        unsound = is_unsound(row, pl_module.reward_name, self.rewards)
        self.seen.append(Seen(int(row["iteration"]), int(row["reward_queries"]), value, collapsed, unsound))
        if value is not None:
            self._record(trainer, pl_module, value)
        if (alarm is None and self.alarm is not None) or (collapse is None and collapsed):
            rank_zero_only(print)(f"watch: {self.sentence()}", flush=True)
            trainer.should_stop = trainer.should_stop or self.action == "stop"

    def _knows(self, row: dict[str, Any]) -> bool:
        return any(
            row["reward_queries"] == each.queries if each.iteration is None else row["iteration"] == each.iteration
            for each in self.seen
        )

    def _record(self, trainer: Trainer, pl_module: Learner, value: float) -> None:
        if self.kept is self.seen[-1] and trainer.is_global_zero:
            keep_weights(self.folder, pl_module, reward_queries=self.seen[-1].queries, signal=value)
        below = max(self.signals) - value
        alarmed = float(self.alarm is not None or self.collapse is not None)
        pl_module.record("watch", {"watch/signal": value, "watch/below_peak": below, "watch/alarm": alarmed})

    def sentence(self) -> str:
        """What the watch has to say so far."""
        heard = []
        if self.alarm is not None:
            at = self.when.format(self.alarm)
            heard.append(f"alarm {at}, {self.signal} has fallen more than {self.margin} below its peak")
        if self.collapse is not None:
            end = ": ship the base" if self.ships_base else ""
            heard.append(f"alarm {self.when.format(self.collapse)} (joint collapse), {FELL}{end}")
        if not self.followed and not self.ships_base:
            heard.append(self._why_off())
        elif not self.ships_base:
            kept = f"weights {self.when.removesuffix(' reward queries').format(self.best)}"
            kept = "the base's weights" if self.kept is self.seen[0] else kept
            heard = [*(heard or [f"no alarm by {self.signal} ({self._fallen()})"]), f"{kept} kept: {self.folder}"]
        return "; ".join(heard)

    def _fallen(self) -> str:
        """How far the signal is on its way to an alarm."""
        signals = self.signals
        return f"{max(signals) - signals[-1]:.2f} below its peak, an alarm at {self.margin:g}"

    def _why_off(self) -> str:
        if not self.knows_trained and needs_trained(self.signal):
            return "which weights to ship it cannot tell without the trained reward: give train_reward=NAME"
        return "off, for the evaluations lack what it follows."

    def state_dict(self) -> dict[str, Any]:
        return {"seen": [list(each) for each in self.seen]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "seen" in state_dict:
            self.seen = [Seen(*each) for each in state_dict["seen"]]
        else:  # of a run that was begun before collapses were looked for
            pairs = zip(state_dict["queries"], state_dict["signals"], strict=True)
            self.seen = [Seen(None, queries, signal, False) for queries, signal in pairs]
