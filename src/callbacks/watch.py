"""The overoptimization watch: an alarm from what a practitioner has, without a look at any judge."""

import os
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from src.callbacks.evaluation import CrossRewardEvaluation
from src.errors import UserError
from src.files import make_folder, remove, write_json
from src.learner import AFTER, Learner
from src.metrics.watching import Keep, Signal, alarm_index, kept_index, needs_others, signal_of


class OveroptimizationWatch(Callback):
    """Follows a signal (see signal_of) from evaluation to evaluation.

    best/ holds the weights that the rule would ship, with at.json to say when that was; where a regulariser averages
    weights, best/ema their average at that time.

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
        self.queries: list[int] = []
        self.signals: list[float] = []
        self.when = AFTER

    @property
    def alarm(self) -> int | None:
        """Reward queries at the alarm."""
        k = alarm_index(self.signals, self.margin, self.patience)
        return None if k is None else self.queries[k]

    @property
    def best(self) -> int | None:
        """Reward queries of the weights that are kept."""
        k = kept_index(self.signals, self.margin, self.patience, self.keep)
        return None if k is None else self.queries[k]

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
        value = signal_of(row, pl_module.reward_name, apart, self.signal)
        self.when = pl_module.when  # of checkpoints of others, queries are not known
        if value is None or row["reward_queries"] in self.queries:
            return
        known = self.alarm
        self.queries.append(int(row["reward_queries"]))
        self.signals.append(value)
        if self.best == self.queries[-1] and trainer.is_global_zero:
            self._keep(pl_module, value)
        below = max(self.signals) - value
        alarmed = float(self.alarm is not None)
        pl_module.record("watch", {"watch/signal": value, "watch/below_peak": below, "watch/alarm": alarmed})
        if self.alarm is not None and known is None:
            rank_zero_only(print)(f"watch: {self.sentence()}", flush=True)
            trainer.should_stop = trainer.should_stop or self.action == "stop"

    def _keep(self, pl_module: Learner, value: float) -> None:
        partial, old = self.folder.with_suffix(".partial"), self.folder.with_suffix(".old")
        for left in (partial, old):
            remove(left)
        make_folder(partial)
        pl_module.policy.save(partial, pl_module.averaged)
        queries = self.queries[-1]
        write_json(partial / "at.json", {"reward_queries": queries, "iteration": pl_module.iteration, "signal": value})
        if os.path.lexists(self.folder):
            self.folder.rename(old)
        partial.rename(self.folder)
        remove(old)

    def sentence(self) -> str:
        """What the watch has to say so far."""
        if not self.signals:
            return "off, for the evaluations lack what it follows."
        kept = f"weights {self.when.removesuffix(' reward queries').format(self.best)} kept: {self.folder}"
        if self.alarm is None:
            return f"no alarm by {self.signal}; {kept}"
        return (
            f"alarm {self.when.format(self.alarm)}, {self.signal} has fallen more than {self.margin} below its peak; "
            f"{kept}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"queries": self.queries, "signals": self.signals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.queries, self.signals = state_dict["queries"], state_dict["signals"]
