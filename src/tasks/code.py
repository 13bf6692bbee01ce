"""CoDe (Singh et al. 2025, arXiv 2502.00968): blockwise best of N, by the reward of the picture that a state foretells.

`python -m src.run +experiment=code train_reward=hps`. A trajectory of T steps is cut into blocks of B. From where the
last block ended, N continuations are drawn; the one whose predicted x_0 scores best is kept, and the next block begins
there (section 3, B and N as there). The last block is judged by x_0 itself, and is the short one where B does not
divide T (in the authors' notebook the first is). Nothing is differentiated.

N trajectories of the first block have an x_T each, so that one block of all steps (B = T) is best of N. The authors'
notebook draws them from one x_T, which makes of B = T the best of N continuations of one start. A public pipeline that
bears the name draws N candidates of one step every B steps, and B - 1 steps without a choice: another, cheaper method.

Cost: ceil(T / B) N reward queries a picture. KL: see `choice_kl`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from src.errors import UserError
from src.metrics.best_of_n import best_of_n_kl
from src.policy.diffusion import DiffusionPolicy
from src.tasks import control
from src.tasks.control import Control, Latents, Scorer, Setting, counts, in_batches, repeated, streams
from src.tasks.outcome import Row


def run(composed: DictConfig) -> Row:
    """The whole control; returns its last row."""
    return control.opened(composed, "code", blockwise)


def blockwise(cfg: dict[str, Any], folder: Path) -> Row:
    """What is left of CoDe's run; returns the last row."""
    return control.run(cfg, folder, CoDe)


def choice_kl(blocks: int, n: int) -> float:
    """KL from the base of trajectories that blockwise best of N draws, nats: blocks (log N - (N - 1) / N).

    Given what came before, the law of a block is that of the best of N independent ones, whose KL is log N - (N - 1) /
    N where no two candidates score alike, and less where they do; along a trajectory they add up by the chain rule. It
    is the KL of whole trajectories, as in training: that of the pictures alone is not known, and is at most this.
    """
    return blocks * best_of_n_kl(n)


class CoDe(Control):
    """Blockwise best of N.

    Args:
        block_size: B, denoising steps; as many as a trajectory has, or more, are best of N.
        n: N, candidates of a block; several make a curve.
    """

    def __init__(self, block_size: int, n: Any):
        if block_size < 1:
            raise UserError(f"code.block_size={block_size} must be at least 1: it counts denoising steps.")
        self.block_size, self.n = block_size, counts(n, "code.n")

    def settings(self, num_steps: int, queries: int) -> list[Setting]:
        blocks = math.ceil(num_steps / self.block_size)
        return [Setting(f"N = {n}", blocks * n * queries, self._columns(blocks, n), {"n": n}) for n in self.n]

    def base_columns(self) -> Row:
        return self._columns(1, 1)

    def _columns(self, blocks: int, n: int) -> Row:
        kl = choice_kl(blocks, n)
        return {"reward_gradients": 0, "code/n": n, "kl/trajectory": kl, "kl/sqrt": kl**0.5}

    def width(self, n: int) -> int:
        return n

    def draw(self, policy: DiffusionPolicy, reward: Scorer, prompts: list[str], seeds: list[int], n: int) -> Latents:
        names, noise = repeated(prompts, n), policy.noise(streams(seeds, n, self.seed))
        told, size, last = policy.encode_prompts(names), policy.sampling_batch, policy.num_steps - 1
        x_t, output = noise[:, 0].clone(), None
        for k, t in enumerate(policy.timesteps.unsqueeze(1).expand(-1, len(names))):
            output = in_batches(policy.predict, size, x_t, t, told) if output is None else output
            mean, std = policy.step_of(output, x_t, t)
            x_t, output, clean = mean + std * noise[:, k + 1], None, None
            if k == last:
                clean = x_t
            elif (k + 1) % self.block_size == 0:  # the prediction serves the next step, too
                now = policy.timesteps[k + 1].expand(len(names))
                output = in_batches(policy.predict, size, x_t, now, told)
                clean = policy.predicted_clean(output, x_t, now)
            if clean is not None:
                kept = best(reward(in_batches(policy.decode, size, clean), names), n).repeat_interleave(n)
                x_t, output = x_t[kept], None if output is None else output[kept]
        return x_t[::n]


def best(scores: Tensor, n: int) -> Tensor:
    """The row of the highest score among the n of each picture; of equal ones the first."""
    return torch.arange(len(scores) // n, device=scores.device) * n + scores.view(-1, n).argmax(1)
