"""A one-step Gaussian bandit with the interface of a policy, on which everything has a closed form.

x_0 ~ N(theta, s^2 I) whatever x_T; the base has theta = 0, and the reward is g . x_0. So E r = g . theta, and the KL
from the base is |theta|^2 / (2 s^2). The network's output is its prediction of x_0, theta; the forward process noises
x_0 to a signal power of `alpha_bar`. And a chain of a few DDIM steps, all of whose states are Gaussian.
"""

from contextlib import contextmanager

import torch
from diffusers import DDIMScheduler
from lightning import LightningModule

from src.policy.ddim import DDIM
from src.policy.diffusion import DiffusionPolicy
from src.rewards.base import RewardModel
from src.types import Conditioning, Credit, Rollout, Rows

ZOOM = 1e-3  # of pictures about grey, so that they stay within [0, 1]


def no_text(prompts) -> Conditioning:
    return Conditioning([torch.zeros(1, 1, 1)], torch.zeros(len(prompts), dtype=torch.long))


class Bandit(DiffusionPolicy):
    num_steps, sampling_batch, guidance = 1, 10**9, 1.0
    timesteps, step_std = torch.tensor([7]), None

    def __init__(self, shape=(3, 1, 1), std=0.5, theta=0.0, alpha_bar=0.6):
        LightningModule.__init__(self)
        self.theta = torch.nn.Parameter(torch.full(shape, theta) if isinstance(theta, float) else theta.clone())
        self.std, self.alpha_bar = std, torch.tensor(alpha_bar)
        self.step_std = torch.tensor([std])

    def trainable(self):
        return [self.theta]

    def encode_prompts(self, prompts):
        return no_text(prompts)

    def predict(self, x_t, t, text):
        return self.theta.expand(len(x_t), *self.theta.shape)

    def step_of(self, output, x_t, t):
        return output, torch.full((len(x_t), 1, 1, 1), self.std)

    def step_distribution(self, x_t, t, text):
        return self.step_of(self.predict(x_t, t, text), x_t, t)

    def predicted_clean(self, output, x_t, t):
        return output

    def predicted_noise(self, output, x_t, t):
        return (x_t - self.alpha_bar.sqrt() * output) / (1 - self.alpha_bar).sqrt()

    def noised(self, x_0, t, noise):
        return self.alpha_bar.sqrt() * x_0 + (1 - self.alpha_bar).sqrt() * noise

    def output_gains(self, t):
        return torch.ones(len(t))

    def noise(self, seeds):
        return self.drawn[: len(seeds)]

    def decode(self, latents):
        return 0.5 + ZOOM * latents

    @contextmanager
    def holding(self, weights):
        own = self.theta.data
        self.theta.data = weights[0]
        yield
        self.theta.data = own

    @contextmanager
    def as_base(self):
        with self.holding([torch.zeros_like(self.theta)]):
            yield

    @torch.no_grad()
    def sample(self, n: int, group: int = 1, seed: int = 0) -> Rollout:
        rng = torch.Generator().manual_seed(seed)
        self.drawn = torch.randn(n, 2, *self.theta.shape, generator=rng)
        mean = self.theta.detach().clone().expand(n, 1, *self.theta.shape)
        latents = torch.stack([self.drawn[:, 0], mean[:, 0] + self.std * self.drawn[:, 1]], 1)
        log_probs = -0.5 * self.drawn[:, 1:].square().mean((2, 3, 4)) - torch.log(torch.tensor(self.std))
        log_probs = log_probs - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        prompts = [f"prompt {i // group}" for i in range(n)]
        images = torch.zeros(n, 3, 1, 1)
        zeros = torch.zeros_like(mean)
        told = self.encode_prompts(prompts)
        kept = {"means": mean, "reference_means": zeros, "conditioning": told}
        return Rollout(prompts, list(range(n)), latents, self.timesteps, log_probs, images, **kept)


class Chain(Bandit):
    """Several steps x' = (through + direct) x + theta + s z; the network's output is through x + theta."""

    def __init__(self, num_steps=3, through=0.6, direct=0.3, **options):
        super().__init__(**options)
        self.num_steps, self.through, self.direct = num_steps, through, direct
        self.timesteps = torch.arange(num_steps, 0, -1) * 7
        self.step_std = torch.full((num_steps,), self.std)

    def predict(self, x_t, t, text):
        return self.through * x_t + self.theta

    def step_of(self, output, x_t, t):
        return output + self.direct * x_t, torch.full((len(x_t), 1, 1, 1), self.std)

    @torch.no_grad()
    def sample(self, n: int, group: int = 1, seed: int = 0) -> Rollout:
        rng = torch.Generator().manual_seed(seed)
        self.drawn = torch.randn(n, self.num_steps + 1, *self.theta.shape, generator=rng)
        latents, means, gain = [self.drawn[:, 0]], [], self.through + self.direct
        for k in range(self.num_steps):
            means.append(gain * latents[-1] + self.theta)
            latents.append(means[-1] + self.std * self.drawn[:, k + 1])
        states, means = torch.stack(latents, 1), torch.stack(means, 1)
        log_probs = torch.distributions.Normal(means, self.std).log_prob(states[:, 1:]).mean((2, 3, 4))
        prompts = [f"prompt {i // group}" for i in range(n)]
        kept = {"means": means, "reference_means": gain * states[:, :-1], "conditioning": self.encode_prompts(prompts)}
        seeds = [n * seed + i for i in range(n)]
        return Rollout(prompts, seeds, states, self.timesteps, log_probs, torch.zeros(n, 3, 1, 1), **kept)


class GaussianChain(DiffusionPolicy):
    """DDIM with noise, and the exact network of x_0 ~ N(0, spread I): every step is a linear map and a Gaussian."""

    sampling_batch, latent_shape = 10**9, (3, 1, 1)

    def __init__(self, num_steps=4, spread=0.25):
        LightningModule.__init__(self)
        self.num_steps, self.eta, self.spread = num_steps, 1.0, spread
        self.sampler = DDIM(DDIMScheduler(), num_steps, self.eta, "the toy")

    def encode_prompts(self, prompts):
        return no_text(prompts)

    def predict(self, x_t, t, text):
        alpha_bar = self.sampler.schedule.alpha_bars(t)[0].view(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * x_t / (alpha_bar * self.spread + 1 - alpha_bar)

    def decode(self, latents):
        return 0.5 + ZOOM * latents

    @property
    def variance(self) -> float:
        """Of x_0 as the chain draws it, which with few steps is not `spread`."""
        variance, one = torch.tensor(1.0), torch.ones(1, *self.latent_shape)
        for t in self.timesteps:
            gain, std = self.step_distribution(one, t[None], self.encode_prompts([""]))
            variance = gain.flatten()[0] ** 2 * variance + std.flatten()[0] ** 2
        return variance.item()


class Linear(RewardModel):
    """g . x_0, read off the decoded picture."""

    embed_dim = 3

    def __init__(self, g: torch.Tensor):
        super().__init__()
        self.g = g

    def forward(self, images, prompts):
        return ((images - 0.5) / ZOOM * self.g).sum((1, 2, 3))


def rows_of(rollout: Rollout, credit: Credit, reward=None, reference=None, draw: int = 0) -> Rows:
    n = len(rollout)
    samples = torch.arange(n) if credit.partners is None else (credit.partners >= 0).nonzero().flatten()
    slots = torch.zeros(len(samples), dtype=torch.long)
    return Rows(rollout, credit, samples, slots, reward, reference, draw)
