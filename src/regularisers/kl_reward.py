"""A KL penalty on the reward: maximise E[r] - beta KL(p_theta || p_ref) by the score function (Ziegler et al. 2019).

The KL of a trajectory is the mean of sum_t l_t, l_t = log p_theta(x_{t-1} | x_t) - log p_ref(x_{t-1} | x_t), so that
the return of step t is the reward less beta times l_t and those after it. It takes the *sampled* l_t: its score term
is the gradient of the step's own KL, which an exact KL in its place would leave out.

A nat costs the same at every step, however an algorithm weighs what its steps are worth (`timestep_weighting`): nearly
all of the KL is paid for the last ones, which such weights all but leave out.
"""

from jaxtyping import Float
from torch import Tensor

from src.ranks import Ranks
from src.regularisers.base import log_ratios
from src.regularisers.near import NearReference
from src.types import Rollout


class KLReward(NearReference):
    """Takes off step t beta (sum_{s <= t} l_s, less its mean over the b samples).

    The mean holds the sample itself: the expected gradient is that without it, times 1 - 1 / b.
    """

    needs_returns = True

    def penalty(self, rollout: Rollout, step_std: Float[Tensor, " t"], ranks: Ranks) -> Float[Tensor, "b t"]:
        to_go = ranks.gather(log_ratios(rollout, step_std)).flip(1).cumsum(1).flip(1)
        return self.beta * (to_go - to_go.mean(0))
