"""Exact KL divergence of a fine-tuned diffusion policy from its base, along the policy's own trajectories."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class TrajectoryKL(Metric):
    """KL(p_theta || p_base) of whole trajectories: the sum over steps of the Gaussians' KL, averaged over samples.

    By the chain rule it is exact in each step and an average over visited states. Both policies share sigma_t, so a
    step's KL is |mu_theta - mu_base|^2 / (2 sigma_t^2), summed over dimensions (nats).
    """

    total: Tensor
    count: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_steps, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, kl: Float[Tensor, "b t"]) -> None:
        self.total += kl.double().sum(0)
        self.count += len(kl)

    def compute(self) -> dict[str, float]:
        """`trajectory`, its root `sqrt`, and `step_0`, `step_1`, ...: the mean of each step, from the noisiest on."""
        profile = (self.total / self.count.clamp(min=1)).tolist()
        kl = sum(profile)
        return {"trajectory": kl, "sqrt": kl**0.5} | {f"step_{k}": value for k, value in enumerate(profile)}
