"""Optuna's search. Hydra's own Optuna sweeper stops at Optuna 2, of 2022."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from src.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution


class OptunaSweeper(Sweeper):
    """Searches for the values of what is swept that make the jobs' return value best.

    Args:
        n_trials: in all.
        direction: whether the highest value is best or the lowest.
        n_jobs: trials that are asked for, and launched, at a time.
        seed: of the sampler; the same command proposes the same trials as long as they return the same.
        params: key -> value or sweep in Hydra's syntax; the command line's win.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: Literal["maximize", "minimize"],
        seed: int,
        params: DictConfig | None,
    ):
        self.n_trials, self.n_jobs, self.direction, self.seed = n_trials, n_jobs, direction, seed
        if direction not in ("maximize", "minimize"):
            raise UserError(f"hydra.sweeper.direction={direction} must be maximize or minimize.")
        if min(n_trials, n_jobs) < 1:
            raise UserError(f"hydra.sweeper.n_trials={n_trials} and n_jobs={n_jobs} must be at least 1.")
        self.params: Any = OmegaConf.to_container(params, resolve=True) if params is not None else {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        import optuna  # seconds; only where it is used

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        given = {key: f"{key}={value}" for key, value in self.params.items()}
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = {o.get_key_element(): o for o in parser.parse_overrides([*given.values(), *arguments])}
        space = {}
        for key, override in parsed.items():
            if override.is_sweep_override():
                try:
                    space[key] = distribution_of(override)
                except ValueError as error:
                    raise UserError(f"{override.input_line}: {error}") from error
        if self.config.objective is None:
            raise UserError("a search needs objective=, the figure to make best, such as objective=held_out/gold/gain.")
        if "seed" in space:
            raise UserError(
                "seed= is swept: a search compares values under one seed, or it would find the luckiest; give one, and "
                "confirm what it finds by +sweeps=reset_ratio reset.ratio=... seed=1,2,3."
            )
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in parsed.items() if key not in space]
        sampler = optuna.samplers.TPESampler(seed=self.seed)
        study = optuna.create_study(sampler=sampler, direction=self.direction)
        for first in range(0, self.n_trials, self.n_jobs):
            self._batch(study, space, fixed, first, min(self.n_jobs, self.n_trials - first))
        self._tell_best(study)

    def _batch(
        self, study: "Study", space: dict[str, "BaseDistribution"], fixed: Sequence[str], first: int, size: int
    ) -> None:
        from optuna.trial import TrialState

        trials = [study.ask(space) for _ in range(size)]
        jobs = [[*fixed, *(f"{key}={written(value)}" for key, value in trial.params.items())] for trial in trials]
        for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=first), strict=True):
            value = float(job.return_value)
            if math.isnan(value):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, value)

    def _tell_best(self, study: "Study") -> None:
        finished = [trial for trial in study.trials if trial.values]
        if not finished:
            return
        best = study.best_trial
        params = {key: written(value) for key, value in best.params.items()}
        found = OmegaConf.create({"params": params, "value": best.value})
        OmegaConf.save(found, Path(self.config.hydra.sweep.dir) / "best.yaml")
        chosen = " ".join(f"{key}={value}" for key, value in params.items())
        print(f"best of {len(finished)} trials: {chosen} ({best.value:+.3f})")


def distribution_of(override: Override) -> "BaseDistribution":
    """What Optuna draws from, of a sweep in Hydra's syntax."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        kind: Any = IntDistribution if whole else FloatDistribution
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        match sweep.start, sweep.stop, sweep.step:
            case int(start), int(stop), int(step):
                return IntDistribution(start, stop - 1, step=step)
    choices: Any = override.sweep_iterator(transformer=Transformer.encode)
    return CategoricalDistribution(list(choices))


def written(value: Any) -> str:
    """A value as an override; six digits say enough of a float."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
