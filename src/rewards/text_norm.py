"""TextNorm (Kim et al. 2024, arXiv 2404.01863): how sure a reward is of the prompt, among prompts of other meanings.

exp(r(x, c) / tau) / sum_i exp(r(x, c_i) / tau), c_i the prompt and its contrasts: a picture that a reward likes
whatever it is said to show gains nothing.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from src.errors import UserError
from src.prompts import SIMPLE_ANIMALS
from src.rewards.base import Images, RewardModel


class TextNormReward(RewardModel):
    """The softmax of a reward over the prompt and `contrasts` others.

    Args:
        members: the one reward, which must see the prompt. prompts: what contrasts are taken from, null for the
        training animals; a prompt is never its own. contrasts: how many, those that follow the prompt in the
        list (from its beginning for a prompt that is not in it). tau: temperature, in the reward's unit.
    """

    def __init__(
        self, members: list[RewardModel], prompts: list[str] | None = None, contrasts: int = 8, tau: float = 1.0
    ):
        super().__init__()
        if len(members) != 1 or not members[0].sees_prompt:
            raise UserError("text_norm: it wraps one reward that sees the prompt, such as hps; aesthetic does not.")
        prompts = list(SIMPLE_ANIMALS if prompts is None else prompts)
        if not 1 <= contrasts < len(prompts):
            raise UserError(
                f"text_norm: contrasts={contrasts} must lie in 1..{len(prompts) - 1}, one less than prompts."
            )
        if tau <= 0:
            raise UserError(f"text_norm: tau={tau} must be positive.")
        self.members = torch.nn.ModuleList(members)
        self.prompts, self.contrasts, self.tau = prompts, contrasts, tau
        self.embed_dim = members[0].embed_dim
        self.queries = 1 if members[0].scores_embeddings else 1 + contrasts  # a picture that is embedded once is one

    def contrasts_of(self, prompt: str) -> list[str]:
        """Those that follow the prompt in the list, around its end; the first ones for a prompt that is not in it."""
        start = self.prompts.index(prompt) + 1 if prompt in self.prompts else 0
        circle = [*self.prompts[start:], *self.prompts[:start]]
        return [other for other in circle if other != prompt][: self.contrasts]

    def embed_images(self, images: Images) -> Float[Tensor, "b d"]:
        return self.members[0].embed_images(images)  # type: ignore[operator]

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        asked = [list(prompts), *map(list, zip(*(self.contrasts_of(prompt) for prompt in prompts), strict=True))]
        return (self._scores(images, asked) / self.tau).softmax(0)[0]

    def _scores(self, images: Images, asked: list[list[str]]) -> Float[Tensor, "k b"]:
        reward: RewardModel = self.members[0]  # type: ignore[assignment]
        if not reward.scores_embeddings:
            return torch.stack([reward._score(images, prompts) for prompts in asked])
        embedded = reward.embed_images(images)
        return torch.stack([reward.score_of(embedded, prompts) for prompts in asked])
