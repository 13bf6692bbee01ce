"""What a critic is: V(features of x_t, t), features computed once per rollout, and a head whose neurons are read."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn

from src.errors import UserError
from src.policy.diffusion import DiffusionPolicy
from src.ranks import Ranks
from src.types import Rollout


class Head(nn.Module):
    """Multi-layer perceptron to one value; its hidden neurons are what resets act on.

    It computes in float32 whatever the precision of training: values of half precision would make ties of scores.

    Args:
        inputs: width of what it sees.
        hidden: widths of the hidden layers.
        dropout: one rate, or one for each hidden layer.
        activation: after hidden layers; `none` is the authors', a linear network, in which dormancy means little.
        initial: standard deviation of first weights, and of those that a reset redraws; biases are zero. `fan_in`:
            1/sqrt(n + 1) in a layer of n inputs, so that signals keep their size. `authors`: 1/(d + 1) in every layer,
            d the head's inputs, whatever the layer's own width (TDPO's code, critic_model.py): with d = 768 five
            layers shrink what they see to some 1e-10, and V is a constant until training has grown the weights.
        initial_width: d of `authors`; null for `inputs`.

    Raises UserError on no hidden layer, or rates that are not as many as those.
    """

    def __init__(
        self,
        inputs: int,
        hidden: list[int],
        dropout: float | list[float] = 0.0,
        activation: Literal["relu", "none"] = "relu",
        initial: Literal["fan_in", "authors"] = "fan_in",
        initial_width: int | None = None,
    ):
        super().__init__()
        if initial_width is not None and initial_width < 1:
            raise UserError(f"critic.initial_width={initial_width} must be at least 1, or null for the head's own.")
        if not hidden or min(hidden) < 1:
            raise UserError(f"critic.hidden={hidden} must name at least one layer, each at least 1 wide.")
        widths = [inputs, *hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        rates = dropout if isinstance(dropout, list) else [dropout] * len(hidden)
        if len(rates) != len(hidden):
            raise UserError(f"critic.dropout={dropout} must be one rate, or one for each of critic.hidden={hidden}.")
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in rates)
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()
        self.initial, self.initial_width = initial, initial_width or inputs
        with torch.no_grad():
            for layer in self.linears:
                self.draw(layer.weight)
                layer.bias.zero_()

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers in order: those of the hidden neurons `[out, in]`, then the one that gives the value `[1, in]`."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def draw(self, weight: Float[Tensor, "out n"], generator: torch.Generator | None = None) -> None:
        """Draws a layer's weights from their initial distribution, in place."""
        n = weight.shape[1]
        std = (n + 1) ** -0.5 if self.initial == "fan_in" else 1 / (self.initial_width + 1)
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        with in_float32(x):
            for layer, dropout in zip(self.layers[:-1], self.dropouts, strict=True):
                x = dropout(self.activation(layer(x)))
            return self.layers[-1](x).squeeze(-1)

    def gradients(self, x: Float[Tensor, "n d"], target: Float[Tensor, " n"]) -> list[Float[Tensor, "n _"]]:
        """dL/dz of the hidden neurons, layer by layer: L half the squared error of V(x), z the sum into a neuron.

        By z and not by the neuron's output, so that a silent ReLU, whose weights learn nothing, has gradient 0.
        """
        sums = []
        with torch.enable_grad(), in_float32(x):
            for layer in self.layers[:-1]:
                sums.append(layer(x).requires_grad_())
                x = self.activation(sums[-1])
            error = self.layers[-1](x).squeeze(-1) - target
            return list(torch.autograd.grad(error.square().sum() / 2, sums))

    @torch.no_grad()
    def hidden(self, x: Float[Tensor, "n d"]) -> list[Float[Tensor, "n _"]]:
        """Outputs of the hidden neurons, layer by layer, without dropout; after ReLU also for a linear head."""
        outputs = []
        with in_float32(x):
            for layer in self.layers[:-1]:
                before = layer(x)
                x = self.activation(before)
                outputs.append(before.relu())
        return outputs


def in_float32(x: Tensor) -> torch.autocast:
    """Within, nothing on the device of x is computed in half precision."""
    return torch.autocast(x.device.type, enabled=False)


class Critic(LightningModule):
    """V(x_t, t). Subclasses say what the head sees of a rollout.

    Args:
        feature_dim: width of one state's features.
        timestep_input: whether the head also sees t / 1000, the share of the training schedule.
        prompt_input: whether it also sees the prompt: the mean of the text states that `policy` conditions on.
        state: what stands for x_t, itself (`noisy`) or the x_0 that the policy predicts from it (`predicted`).
        hidden, dropout, activation, initial, initial_width: see Head.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden: list[int],
        dropout: float | list[float],
        activation: Literal["relu", "none"],
        timestep_input: bool,
        prompt_input: bool = False,
        state: Literal["noisy", "predicted"] = "noisy",
        policy: DiffusionPolicy | None = None,
        initial: Literal["fan_in", "authors"] = "fan_in",
        initial_width: int | None = None,
    ):
        super().__init__()
        self.timestep_input, self.state = timestep_input, state
        self._encode_prompts = None
        if prompt_input:
            assert policy is not None, "a critic that sees the prompt needs the policy's text encoder"
            self._encode_prompts = policy.encode_prompts  # bound: the encoder is none of this module's parts
            feature_dim += policy.text_width
        self.head = Head(feature_dim + timestep_input, hidden, dropout, activation, initial, initial_width)

    def features(self, rollout: Rollout) -> Float[Tensor, "b t d"]:
        """What the head sees of every x_t before its step; no gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not define features")

    def compared(self, features: Float[Tensor, "own t d"], prompts: Sequence[str], ranks: Ranks) -> Tensor:
        """The features of this rank's samples, put in relation to all samples, whose prompts these are."""
        return features

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.head(features)

    @torch.no_grad()
    def values(self, features: Float[Tensor, "own t d"], ranks: Ranks) -> Float[Tensor, "b t"]:
        """V of all ranks' states, without dropout."""
        return ranks.gather(self.eval()(features.flatten(0, 1)).unflatten(0, features.shape[:2]))

    def states(self, rollout: Rollout) -> Float[Tensor, "b t c h w"]:
        """The latents that stand for x_t."""
        if self.state == "noisy":
            return rollout.latents[:, :-1]
        assert rollout.predicted is not None, "the rollout was sampled without its predicted x_0"
        return rollout.predicted

    def in_context(self, features: Float[Tensor, "b t d"], rollout: Rollout) -> Float[Tensor, "b t d1"]:
        """The features with what else the head sees: prompt, timestep."""
        parts = [features]
        if self._encode_prompts is not None:
            prompt = F.normalize(self._encode_prompts(rollout.prompts).states.mean(1), dim=-1)
            # components of about unit variance, as the pictures' embeddings have
            parts.append((prompt * prompt.shape[1] ** 0.5)[:, None].expand(-1, features.shape[1], -1))
        if self.timestep_input:
            parts.append((rollout.timesteps.float() / 1000).view(1, -1, 1).expand(len(features), -1, 1))
        return torch.cat([part.to(features) for part in parts], -1).float()
