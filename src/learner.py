"""What callbacks ask of the module that Lightning trains, whether it is trained or goes through points."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor

from src.loggers.tracker import log_row
from src.policy.diffusion import DiffusionPolicy
from src.ranks import Ranks
from src.types import Metrics, Rollout, Row

AFTER = "after {:,} reward queries"


@runtime_checkable
class Drawing(Protocol):
    """What an evaluation draws its pictures from: a policy, or the base as a control draws it."""

    @property
    def has_density(self) -> bool:
        """Whether the KL from the base can be measured on what is drawn."""
        ...

    def sampling(
        self, num_steps: int | None = None, eta: float | None = None, guidance: float | None = None
    ) -> AbstractContextManager[None]:
        """Other ways of sampling than in training, for as long as the context lasts."""
        ...

    def as_base(self) -> AbstractContextManager[None]:
        """The base, for as long as the context lasts."""
        ...

    def sample(self, prompts: list[str], seeds: list[int]) -> Rollout:
        """A picture for each prompt and seed."""
        ...


class Learner(LightningModule):
    """A policy on its way through a run, with its place on the x-axis and the rows that are logged of it.

    Attributes:
        policy: whose weights are trained, or taken up.
        reward_name: of the trained reward; None where nobody knows it, of weights of others.
        reward_members: names of the rewards that it is made of, where it is an ensemble.
        iteration: how many are over.
        reward_queries: the x-axis of all curves.
    """

    policy: DiffusionPolicy
    reward_name: str | None
    reward_members: list[str]
    iteration: int
    reward_queries: int

    @property
    def drawn_from(self) -> Drawing:
        """What an evaluation draws its pictures from."""
        return self.policy

    @property
    def averaged(self) -> list[Tensor] | None:
        """Trained parameters of the policy, averaged, where such are kept."""
        return None

    @property
    def ranks(self) -> Ranks:
        """This process's place among those that share the samples."""
        return Ranks()

    @property
    def when(self) -> str:
        """How captions tell the place on the x-axis, to be formatted with it."""
        return AFTER

    def heading(self, kind: str) -> Row:
        """What a row of this kind, `iteration`, `evaluation` or `watch`, says before its metrics."""
        raise NotImplementedError(f"{type(self).__name__} does not define heading")

    def record(self, kind: str, metrics: Metrics) -> Row:
        """Sends one row to every logger and returns it."""
        row = self.heading(kind) | metrics
        log_row(self.loggers, kind, row, self.iteration)
        return row

    def check_pictures(self, images: Float[Tensor, "b 3 h w"], where: str = "") -> None:
        """Raises TrainingError on pictures that are no longer any."""
        raise NotImplementedError(f"{type(self).__name__} does not define check_pictures")

    def check_scores(self, name: str, scores: Float[Tensor, " b"], where: str = "") -> None:
        """Raises TrainingError on what a reward says of pictures that are in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define check_scores")
