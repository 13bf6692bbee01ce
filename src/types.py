"""The vocabulary: what an iteration passes from phase to phase. Axes: b samples, t denoising steps, in that order."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Rollout:
    """Denoising trajectories of one iteration, as they were sampled."""

    prompts: list[str]  # b
    latents: Float[Tensor, "b t1 c h w"]  # x_T ... x_0; t1 = t + 1; scaled as the UNet sees them
    timesteps: Int[Tensor, " t"]  # scheduler timesteps, descending
    log_probs: Float[Tensor, "b t"]  # log p(x_{t-1} | x_t) / (c h w), float32: the mean over latent dimensions
    images: Float[Tensor, "b 3 H W"]  # decoded x_0 in [0, 1]
    predicted: Float[Tensor, "b t c h w"] | None = None  # x_0 as predicted from every x_t, where a critic wants it

    def __len__(self) -> int:
        return len(self.prompts)

    def noisiest(self, steps: int) -> "Rollout":
        """The first steps of every trajectory."""
        predicted = None if self.predicted is None else self.predicted[:, :steps]
        latents, log_probs = self.latents[:, : steps + 1], self.log_probs[:, :steps]
        return Rollout(self.prompts, latents, self.timesteps[:steps], log_probs, self.images, predicted)

    def of(self, samples: Int[Tensor, " n"]) -> "Rollout":
        """These samples alone."""
        prompts = [self.prompts[i] for i in samples.tolist()]
        predicted = None if self.predicted is None else self.predicted[samples]
        latents, log_probs, images = (part[samples] for part in (self.latents, self.log_probs, self.images))
        return Rollout(prompts, latents, self.timesteps, log_probs, images, predicted)


@dataclass
class Credit:
    """What each denoising step is worth; made by the algorithm, consumed by the update."""

    advantages: Float[Tensor, "b t"]  # standard deviations
    returns: Float[Tensor, "b t"] | None = None  # the critic's targets, in normalised reward
    values: Float[Tensor, "b t"] | None = None  # the critic's predictions before the update

    def of(self, part: slice) -> "Credit":
        """The credit of these samples."""
        returns, values = (None if table is None else table[part] for table in (self.returns, self.values))
        return Credit(self.advantages[part], returns, values)


Metrics = dict[str, float]  # logged key -> value; every key is in src/metrics/glossary.py
