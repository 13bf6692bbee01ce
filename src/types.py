"""The vocabulary: what an iteration passes from phase to phase. Axes: b samples, t denoising steps, in that order."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

BY_STEP = ("latents", "log_probs", "predicted", "means", "reference_means")  # of a rollout: tables with a step axis
BY_SAMPLE = (*BY_STEP, "images")


@dataclass(frozen=True)
class Conditioning:
    """What a network is told of the prompts of samples: token states, and what else its pipeline has (pooled states).

    One row a distinct prompt in every table, for samples of one prompt share them.
    """

    tables: list[Float[Tensor, "p ..."]]  # the first: states of tokens, p token d
    which: Int[Tensor, " b"]  # the row of each sample

    def __len__(self) -> int:
        return len(self.which)

    def of(self, samples: Int[Tensor, " n"] | slice) -> "Conditioning":
        """Of these samples alone."""
        return replace(self, which=self.which[samples])

    def split(self, size: int) -> list["Conditioning"]:
        """So many samples at a time, as torch splits tensors."""
        return [replace(self, which=part) for part in self.which.split(size)]

    def rows(self) -> list[Float[Tensor, "b ..."]]:
        """The tables, a row for each sample."""
        return [table[self.which] for table in self.tables]

    @property
    def states(self) -> Float[Tensor, "b token d"]:
        """Of the prompts' tokens, a row for each sample."""
        return self.tables[0][self.which]


@dataclass
class Rollout:
    """Denoising trajectories of one iteration, as they were sampled."""

    prompts: list[str]  # b
    seeds: list[int]  # b; whatever is drawn for a sample is a function of its own
    latents: Float[Tensor, "b t1 c h w"]  # x_T ... x_0; t1 = t + 1; scaled as the network sees them
    timesteps: Num[Tensor, " t"]  # as the network is told them, descending
    log_probs: Float[Tensor, "b t"]  # log p(x_{t-1} | x_t) / (c h w), float32: the mean over latent dimensions
    images: Float[Tensor, "b 3 H W"]  # decoded x_0 in [0, 1]
    predicted: Float[Tensor, "b t c h w"] | None = None  # x_0 as predicted from every x_t, where somebody wants it
    means: Float[Tensor, "b t c h w"] | None = None  # mu of p(x_{t-1} | x_t) that sampled, likewise
    reference_means: Float[Tensor, "b t c h w"] | None = None  # the reference's, of the same states, likewise
    clean: Float[Tensor, "b c h w"] | None = None  # x_0, where the last steps are cut off
    conditioning: Conditioning | None = None  # of each sample; of the policy that sampled

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def x_0(self) -> Float[Tensor, "b c h w"]:
        """The latents that were decoded, whatever steps are left of the trajectories."""
        return self.latents[:, -1] if self.clean is None else self.clean

    def window(self, steps: range) -> "Rollout":
        """These steps, one after the other, of every trajectory."""
        tables = {name: getattr(self, name) for name in BY_STEP}
        ends = {name: steps.stop + (name == "latents") for name in tables}
        cut = {name: table[:, steps.start : ends[name]] for name, table in tables.items() if table is not None}
        return replace(self, timesteps=self.timesteps[steps.start : steps.stop], clean=self.x_0, **cut)

    def of(self, samples: Int[Tensor, " n"]) -> "Rollout":
        """These samples alone."""
        prompts, seeds = ([column[i] for i in samples.tolist()] for column in (self.prompts, self.seeds))
        tables = {name: getattr(self, name) for name in (*BY_SAMPLE, "clean")}
        own = {name: table[samples] for name, table in tables.items() if table is not None}
        told = self.conditioning and self.conditioning.of(samples)
        return replace(self, prompts=prompts, seeds=seeds, conditioning=told, **own)


@dataclass
class Credit:
    """What each denoising step is worth; made by the algorithm, consumed by the update."""

    advantages: Float[Tensor, "b t"]  # standard deviations
    returns: Float[Tensor, "b t"] | None = None  # the critic's targets, in normalised reward
    values: Float[Tensor, "b t"] | None = None  # the critic's predictions before the update
    partners: Int[Tensor, " b"] | None = None  # of a preferred sample the one it is preferred to; -1: it costs nothing

    def of(self, part: slice) -> "Credit":
        """The credit of these samples, and partners counted among them."""
        returns, values = (None if table is None else table[part] for table in (self.returns, self.values))
        partners = self.partners
        if partners is not None:
            partners = torch.where(partners[part] >= 0, partners[part] - (part.start or 0), -1)
        return Credit(self.advantages[part], returns, values, partners)


@dataclass
class States:
    """Where a policy may take a step: x_t, t and what it is conditioned on; with its guidance, or without any."""

    x_t: Float[Tensor, "n c h w"]
    t: Num[Tensor, " n"]
    conditioning: Conditioning
    guided: bool = True


@dataclass
class Rows:
    """(sample, timestep slot) rows of a rollout and its credit, as a loss sees them. Axis: n rows."""

    rollout: Rollout
    credit: Credit
    samples: Int[Tensor, " n"]
    slots: Int[Tensor, " n"]
    reward: Any = None  # the RewardModel that is trained on
    reference: Any = None  # the policy's Reference
    draw: int = 0  # a seed that all rows of an optimizer step share
    first: int = 0  # of this rank's samples, among all

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def x_t(self) -> Float[Tensor, "n c h w"]:
        """States before the step."""
        return self.rollout.latents[self.samples, self.slots]

    @property
    def x_prev(self) -> Float[Tensor, "n c h w"]:
        """x_{t-1}, states after it."""
        return self.rollout.latents[self.samples, self.slots + 1]

    @property
    def x_0(self) -> Float[Tensor, "n c h w"]:
        """Ends of the trajectories that the rows are of."""
        return self.rollout.x_0[self.samples]

    @property
    def t(self) -> Num[Tensor, " n"]:
        """Timesteps, as the network is told them."""
        return self.rollout.timesteps[self.slots]

    @property
    def conditioning(self) -> Conditioning:
        """What the network is told of each row's prompt."""
        assert self.rollout.conditioning is not None, "the rollout was sampled without what it was conditioned on"
        return self.rollout.conditioning.of(self.samples)

    @property
    def old_log_prob(self) -> Float[Tensor, " n"]:
        """log p(x_{t-1} | x_t) of the policy that sampled, mean over latent dimensions."""
        return self.rollout.log_probs[self.samples, self.slots]

    @property
    def old_mean(self) -> Float[Tensor, "n c h w"]:
        """mu of p(x_{t-1} | x_t) of the policy that sampled."""
        assert self.rollout.means is not None, "the rollout was sampled without its means"
        return self.rollout.means[self.samples, self.slots]

    @property
    def reference_mean(self) -> Float[Tensor, "n c h w"]:
        """The reference's, in the same states."""
        assert self.rollout.reference_means is not None, "nobody has asked the reference"
        return self.rollout.reference_means[self.samples, self.slots]

    @property
    def prompts(self) -> list[str]:
        """Of the rows' samples."""
        return [self.rollout.prompts[i] for i in self.samples.tolist()]

    @property
    def seeds(self) -> list[int]:
        """Of the rows' samples."""
        return [self.rollout.seeds[i] for i in self.samples.tolist()]

    @property
    def advantage(self) -> Float[Tensor, " n"]:
        """Standard deviations."""
        return self.credit.advantages[self.samples, self.slots]

    def partners(self) -> "Rows":
        """The same slots of the samples that these are preferred to."""
        assert self.credit.partners is not None, "no sample is preferred to another"
        return replace(self, samples=self.credit.partners[self.samples])


Metrics = dict[str, float]  # logged key -> value; every key is in src/metrics/glossary.py
Row = dict[str, float | int]  # the same as it is logged, counts among them
