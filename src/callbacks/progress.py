"""What a person sees while a run goes: a rich bar in a terminal, a line now and then elsewhere."""

import time
from typing import Any

from lightning import Callback, Trainer

from src.finetuner import RewardFinetuner
from src.progress import Bar


class RunProgress(Callback):
    """Iterations done, time left, and the reward of the last iteration."""

    def __init__(self, iterations: int, seconds_between_lines: float = 15.0):
        self.iterations, self.seconds_between_lines = iterations, seconds_between_lines
        self._bar: Bar | None = None
        self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: RewardFinetuner) -> None:
        if not trainer.is_global_zero:
            return
        self._bar = Bar("training", self.iterations, done=pl_module.iteration, lines=False).start()
        self._started, self._first = time.monotonic(), pl_module.iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RewardFinetuner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        row = pl_module.latest
        reward = f"{pl_module.reward_name} {row[f'reward/{pl_module.reward_name}/mean']:.3f}"
        if self._bar is not None:
            self._bar.update(pl_module.iteration, reward)
        waited = time.monotonic() - self._last_line
        if Bar.live is None and (waited > self.seconds_between_lines or trainer.is_last_batch):
            self._last_line = time.monotonic()
            pace = (self._last_line - self._started) / max(1, pl_module.iteration - self._first)
            left = pace * (self.iterations - pl_module.iteration)
            print(f"iteration {pl_module.iteration}/{self.iterations}  {reward}  {left / 60:.1f} min left", flush=True)

    def teardown(self, trainer: Trainer, pl_module: RewardFinetuner, stage: str) -> None:
        if self._bar is not None:
            self._bar.end()

    def on_exception(self, trainer: Trainer, pl_module: RewardFinetuner, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
