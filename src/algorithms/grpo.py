"""GRPO on denoising chains (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470; DanceGRPO, Xue et al. 2025, 2505.07818).

A sample is worth how much better it is than the others of its prompt in this rollout, and no critic is needed:
A = (r - mean of the group) / (std + eps), the std of the group (DanceGRPO) or of all samples (Flow-GRPO).
Both take two optimizer steps a rollout (`samples_per_update` half of the samples, as in suite=sd14 and its kin); on
suite=mini there is one, whose ratios are 1.

Two remedies for ratios whose mean is below 1, so that a clip around 1 does not hold:
- GRPO-Guard (Wang et al. 2025, 2510.22319): log rho' = (log rho + |mu - mu_old|^2 / (2 sigma^2 D)) sigma, of mean 0 and
  with no 1/sigma in its spread; each step divided by |d mu / d output|, so that all steps move the network alike.
- Flow-DPPO (2606.11025): no clip; a row costs nothing once its step has moved further than `max_divergence` from the
  one that sampled, if its gradient would move it on.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.algorithms.base import Algorithm, Loss, PerRow, clipped_surrogate, clipped_value_loss, step_and_log_prob
from src.errors import UserError
from src.normalise import PromptNormaliser
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_kl
from src.types import Credit, Rows


class GRPO(Algorithm):
    """Group-relative advantages, clipped to +-advantage_clip, in a clipped surrogate.

    Args:
        std: of the `group`, of all samples (`batch`), or 1 (`none`); population standard deviations.
        eps: added to it.
        clip_range: of the ratio, below 1. clip_range_high: above it (DAPO's asymmetric clip); null for the same.
        advantage_clip: of the advantages, in standard deviations.
        ratio: `plain`, or `guard` (GRPO-Guard). guard_clip_range: the latter's clip range.
        trust: `clip` the ratio, or drop rows by their `divergence` (Flow-DPPO). max_divergence: nats a step, summed
            over dimensions, beyond which rows that would move on are dropped.
        drop_flat: groups without spread are left out of the mean over rows, which they would only dilute (DAPO).
        baseline: `critic` takes V(x_t, t) off what a step is worth. value_clip_range: of the critic's step.
    """

    needs_groups = policy_gradient = True

    def __init__(
        self,
        clip_range: float,
        advantage_clip: float,
        std: Literal["group", "batch", "none"] = "group",
        eps: float = 1e-4,
        clip_range_high: float | None = None,
        ratio: Literal["plain", "guard"] = "plain",
        guard_clip_range: float = 4e-6,
        trust: Literal["clip", "divergence"] = "clip",
        max_divergence: float = 0.66,
        drop_flat: bool = False,
        baseline: Literal["none", "critic"] = "none",
        value_clip_range: float = 0.2,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        if ratio == "guard" and trust == "divergence":
            raise UserError("algorithm.ratio=guard regulates a clip, and trust=divergence has none: choose one.")
        self.clip_low, self.clip_high = clip_range, clip_range if clip_range_high is None else clip_range_high
        self.advantage_clip, self.std, self.eps, self.drop_flat = advantage_clip, std, eps, drop_flat
        self.ratio, self.guard_clip_range = ratio, guard_clip_range
        self.trust, self.max_divergence, self.value_clip_range = trust, max_divergence, value_clip_range
        chosen = {"trust=divergence": trust == "divergence", "clip_range_high": clip_range_high is not None}
        self.idle_at_first = next((f"algorithm.{option}" for option, is_so in chosen.items() if is_so), "")
        self.uses_critic, self.needs_means = baseline == "critic", ratio == "guard" or trust == "divergence"
        self.flat: Tensor | None = None  # samples of groups without spread

    def normalise(
        self, rewards: Float[Tensor, " b"], prompts: Sequence[str], running: PromptNormaliser
    ) -> Float[Tensor, " b"]:
        advantages, self.flat = group_advantages(rewards, prompts, self.std, self.eps)
        return advantages

    def credit(
        self, returns: Float[Tensor, "b t"], step_std: Float[Tensor, " t"], values: Float[Tensor, "b t"] | None
    ) -> Credit:
        worth = returns if values is None else returns - values
        advantages = worth.clamp(-self.advantage_clip, self.advantage_clip) * self.weights(step_std)
        if self.drop_flat and self.flat is not None and self.flat.any():
            spread = ~self.flat
            advantages = advantages * spread[:, None] * (len(spread) / max(1, int(spread.sum())))
        return Credit(advantages, returns, values)

    def weights(self, step_std: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        return torch.ones_like(step_std) if self.ratio == "guard" else super().weights(step_std)

    def loss(self, rows: Rows, policy: DiffusionPolicy) -> Loss:
        step, log_prob = step_and_log_prob(rows, policy)
        log_ratio, advantage = log_prob - rows.old_log_prob, rows.advantage
        if self.trust == "divergence":
            divergence = gaussian_kl(step.mean, rows.old_mean, step.std)
            return replace(masked_surrogate(log_ratio, advantage, divergence, self.max_divergence), steps=[step])
        low, high = self.clip_low, self.clip_high
        if self.ratio == "guard":
            divergence = gaussian_kl(step.mean, rows.old_mean, step.std) / step.mean[0].numel()
            log_ratio = (log_ratio + divergence) * step.std.flatten()
            gains = policy.output_gains(rows.rollout.timesteps)
            advantage = advantage * (gains.mean() / gains)[rows.slots]
            low = high = self.guard_clip_range
        return replace(clipped_surrogate(log_ratio, advantage, low, high), steps=[step])

    def critic_loss(self, value: PerRow, old_value: PerRow, target: PerRow) -> Float[Tensor, ""]:
        return clipped_value_loss(value, old_value, target, self.value_clip_range)


def group_advantages(
    rewards: Float[Tensor, " b"], prompts: Sequence[str], std: Literal["group", "batch", "none"], eps: float
) -> tuple[Float[Tensor, " b"], Tensor]:
    """(r - group mean) / (std + eps), 0 in a group without spread; and which samples are in such a group.

    A group is all samples of a prompt in this rollout.
    """
    places = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([places[prompt] for prompt in prompts], device=rewards.device)
    precise = rewards.double().cpu()  # not every device has float64
    group = group.cpu()
    sizes = torch.bincount(group).double()
    mean = torch.zeros_like(sizes).index_add_(0, group, precise) / sizes
    centred = precise - mean[group]
    variance = torch.zeros_like(sizes).index_add_(0, group, centred**2) / sizes
    low, high = (
        torch.zeros_like(sizes).scatter_reduce(0, group, precise, how, include_self=False) for how in ("amin", "amax")
    )
    flat = (low == high)[group]
    spread = {"group": variance.sqrt()[group], "batch": precise.std(correction=0), "none": torch.ones(())}[std]
    advantages = centred / (spread + (0 if std == "none" else eps))
    advantages[flat] = 0.0  # exactly, whatever their mean rounds to
    return advantages.to(rewards), flat.to(rewards.device)


def masked_surrogate(log_ratio: PerRow, advantage: PerRow, divergence: PerRow, most: float) -> Loss:
    """-A rho, but 0 for rows `most` or more from where they were sampled that would move on; averaged over all."""
    ratio = log_ratio.exp()
    on = ((ratio > 1) & (advantage > 0)) | ((ratio < 1) & (advantage < 0))
    dropped = (divergence >= most) & on
    cost = torch.where(dropped, torch.zeros_like(ratio), -advantage * ratio)
    return Loss(cost.mean(), ratios=(ratio.detach(), dropped.float()))
