"""What resets are made of: neuron scores, re-initialisation, and the optimizer's memory of what was re-initialised."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from src.critic.base import Head

Scores = Float[Tensor, " _"]  # one value a neuron; layers differ in width
Mask = Bool[Tensor, " _"]


def magnitudes(layers: list[Float[Tensor, "n _"]]) -> list[Scores]:
    """sum_x |h_i(x)| for each layer, of outputs or of gradients."""
    return [values.abs().sum(0) for values in layers]


def neuron_scores(magnitudes: list[Scores]) -> list[Scores]:
    """s_i = mean_x |h_i(x)| / mean_k(mean_x |h_k(x)|) for each layer (ReDo, Sokar et al. 2023, eq. 1).

    From means or sums over the states x alike; of gradients it is GraMa's score (Liu et al. 2025, arXiv 2505.24061). A
    layer that is silent altogether scores 0 throughout.
    """
    return [layer / layer.mean() if layer.mean() > 0 else torch.zeros_like(layer) for layer in magnitudes]


def probe_states(
    b: int, t: int, states: int, scattered: bool, rng: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """(sample, timestep slot) of about so many of b x t states, for neurons to be measured on.

    All timesteps of samples that are spread evenly or, `scattered`, states at random, as in the authors' code.
    """
    if scattered:
        chosen = torch.randperm(b * t, generator=rng)[:states]
        return chosen // t, chosen % t
    samples = torch.linspace(0, b - 1, min(b, max(1, states // t))).round().long()
    return samples.repeat_interleave(t), torch.arange(t).repeat(len(samples))


def even_states(b: int, t: int, states: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """(sample, timestep slot) of at least so many states, as many of each timestep, over evenly spread samples."""
    n = t * -(-states // t)
    return torch.linspace(0, b - 1, n).round().long(), torch.arange(n) % t


def overlap(masks: list[Mask], others: list[Mask]) -> float:
    """Jaccard index of two selections over all layers: shared over selected by either; 0 where nobody is selected."""
    ours, theirs = torch.cat(masks).cpu(), torch.cat(others).cpu()  # a checkpoint's are on the CPU
    return ((ours & theirs).sum() / (ours | theirs).sum().clamp(min=1)).item()


def share_of(eligible: Mask, ratio: float) -> int:
    """How many neurons `ratio` of the eligible ones are, to the nearest."""
    return round(ratio * int(eligible.sum()))


def top_share(scores: Scores, eligible: Mask, ratio: float) -> Mask:
    """The `ratio` share of the eligible neurons with the highest scores."""
    order = torch.where(eligible, scores, -torch.inf).argsort(descending=True, stable=True)
    mask = torch.zeros_like(eligible)
    mask[order[: share_of(eligible, ratio)]] = True
    return mask


@dataclass(frozen=True)
class Reinit:
    """How masked neurons are re-initialised.

    Args:
        outgoing: weights from a masked neuron to a kept one: `zero` leaves the network's output to the kept neurons
            (ReDo), `redraw` changes it at once (the authors' code). To another masked neuron they are redrawn.
        step_counter: Adam's step counter is one per tensor, and its bias correction assumes moments that started at
            zero that long ago. `keep` makes the first update of a re-drawn weight (1 - b1) / sqrt(1 - b2) = 3.2 times
            the learning rate (at .9/.999); `clear` (ReDo) overcorrects the moments of the kept ones instead.
    """

    outgoing: Literal["zero", "redraw"] = "zero"
    step_counter: Literal["keep", "clear"] = "keep"

    @torch.no_grad()
    def __call__(
        self, head: Head, masks: list[Mask], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """Re-initialises the masked hidden neurons of `head` and forgets the optimizer's moments of their weights."""
        layers = head.linears
        nobody = torch.zeros(1, dtype=torch.bool, device=layers[-1].weight.device)
        for k, layer in enumerate(layers):
            before = masks[k - 1] if k > 0 else torch.zeros_like(layer.weight[0], dtype=torch.bool)
            own = masks[k] if k < len(masks) else nobody
            fresh = torch.empty_like(layer.weight)
            head.draw(fresh, generator)
            if self.outgoing == "zero":
                fresh[~own] = 0
            touched = own[:, None] | before[None, :]
            layer.weight[touched] = fresh[touched]
            layer.bias[own] = 0
            self.forget(optimizer, layer.weight, touched)
            self.forget(optimizer, layer.bias, own)

    def forget(self, optimizer: torch.optim.Optimizer, parameter: Tensor, touched: Bool[Tensor, "..."]) -> None:
        """Zeroes the optimizer's moments of the touched weights."""
        state = optimizer.state.get(parameter, {})
        if not touched.any():
            return
        for value in state.values():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                value[touched] = 0
        if self.step_counter == "clear" and "step" in state:
            state["step"] = torch.zeros_like(torch.as_tensor(state["step"]))


@torch.no_grad()
def reinit_all(head: Head, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """The head and its optimizer as on the first day, output layer included."""
    for layer in head.linears:
        head.draw(layer.weight, generator)
        layer.bias.zero_()
        for parameter in (layer.weight, layer.bias):
            optimizer.state.pop(parameter, None)
