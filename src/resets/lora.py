"""Resets of the policy's LoRA: its hidden neurons are the adapters' ranks h = A x, and a fresh one adds nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.resets.ops import Mask, Reinit, Scores
from src.types import Rollout

Half = nn.Linear | nn.Conv2d  # A or B of an adapter


class LoraNeurons:
    """The ranks of every adapter of a policy. Raises UserError where the policy has none.

    Args:
        microbatch: states that go through the network at a time.
    """

    def __init__(self, policy: DiffusionPolicy, microbatch: int):
        self.policy, self.microbatch = policy, microbatch
        adapted = [module for module in policy.network.modules() if getattr(module, "lora_A", None)]
        self.pairs: list[tuple[Half, Half]] = [(m.lora_A["default"], m.lora_B["default"]) for m in adapted]
        if not self.pairs:
            raise UserError("reset.where=policy resets LoRA's ranks and this policy has none: choose policy=lora.")

    @torch.no_grad()
    def magnitudes(self, rollout: Rollout, samples: Int[Tensor, " n"], slots: Int[Tensor, " n"]) -> list[Scores]:
        """sum_x |h_i(x)| over these states, and over places where the adapter is a convolution."""
        with (
            self._summing() as sums,
            torch.compiler.set_stance("force_eager"),
        ):  # a compiled network would not see hooks
            for i, j in zip(samples.split(self.microbatch), slots.split(self.microbatch), strict=True):
                if len(i):
                    assert rollout.conditioning is not None, "the rollout tells nothing of its prompts"
                    self.policy.predict(rollout.latents[i, j], rollout.timesteps[j], rollout.conditioning.of(i))
        return sums

    @contextmanager
    def _summing(self) -> Iterator[list[Scores]]:
        """Adds up what passes through every A while the context lasts."""
        sums = [torch.zeros(a.weight.shape[0], device=a.weight.device) for a, _ in self.pairs]

        def hook_of(total: Scores):
            def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
                channels = output.movedim(1, -1) if output.ndim == 4 else output
                total.add_(channels.float().abs().flatten(0, -2).sum(0))

            return hook

        handles = [a.register_forward_hook(hook_of(total)) for (a, _), total in zip(self.pairs, sums, strict=True)]
        try:
            yield sums
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def reinit(
        self, masks: list[Mask], reinit: Reinit, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """A's rows are drawn anew from N(0, 1 / r^2), as at first; B's columns are 0, as at first."""
        for (a, b), mask in zip(self.pairs, masks, strict=True):
            fresh = torch.randn(a.weight.shape, generator=generator) / len(mask)
            a.weight[mask] = fresh.to(a.weight)[mask]
            b.weight[:, mask] = 0
            rows, columns = (torch.zeros_like(half.weight, dtype=torch.bool) for half in (a, b))
            rows[mask], columns[:, mask] = True, True
            reinit.forget(optimizer, a.weight, rows)
            reinit.forget(optimizer, b.weight, columns)
