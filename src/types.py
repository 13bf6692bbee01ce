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

    def __len__(self) -> int:
        return len(self.prompts)

    def noisiest(self, steps: int) -> "Rollout":
        """The first steps of every trajectory."""
        return Rollout(
            self.prompts, self.latents[:, : steps + 1], self.timesteps[:steps], self.log_probs[:, :steps], self.images
        )

    def first(self, n: int) -> "Rollout":
        """The first n samples."""
        return Rollout(self.prompts[:n], self.latents[:n], self.timesteps, self.log_probs[:n], self.images[:n])


@dataclass
class Credit:
    """What each denoising step is worth; made by the algorithm, consumed by the update."""

    advantages: Float[Tensor, "b t"]  # standard deviations
    returns: Float[Tensor, "b t"] | None = None  # the critic's targets, in normalised reward
    values: Float[Tensor, "b t"] | None = None  # the critic's predictions before the update


Metrics = dict[str, float]  # logged key -> value; every key is in src/metrics/glossary.py
