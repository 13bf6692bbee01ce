"""What a person sees while a run goes: a rich bar in a terminal, a line now and then elsewhere."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunProgress(Callback):
    """Iterations done, time left, and the reward of the last iteration."""

    def __init__(self, iterations: int, seconds_between_lines: float = 15.0):
        self.iterations, self.seconds_between_lines = iterations, seconds_between_lines
        self.console = Console()
        self._bar: Progress | None = None
        self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task("training", total=self.iterations, completed=pl_module.iteration)
            self._bar.start()
        self._started, self._first = time.monotonic(), pl_module.iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        row = pl_module.latest
        reward = f"{pl_module.reward_name} {row[f'reward/{pl_module.reward_name}/mean']:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=pl_module.iteration, description=reward)
        elif time.monotonic() - self._last_line > self.seconds_between_lines or trainer.is_last_batch:
            self._last_line = time.monotonic()
            pace = (self._last_line - self._started) / max(1, pl_module.iteration - self._first)
            left = pace * (self.iterations - pl_module.iteration)
            print(f"iteration {pl_module.iteration}/{self.iterations}  {reward}  {left / 60:.1f} min left", flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
