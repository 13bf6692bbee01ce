"""Training of the gold annotator: what is a sound picture of which animal, and what is none.

Three kinds of pictures: real ones under augmentation; broken ones, whose target moves from their subject to "no such
picture" as severity grows; and adversarial ones, found by climbing the annotator's own utility as it then is.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from src.mini.animals import AnimalStage
from src.mini.corruptions import CORRUPTIONS, Pictures, corrupt
from src.mini.data import augment, to_float
from src.mini.gold import utility

Target = Float[Tensor, "b n"]  # probabilities of the classes, "no such picture" last


class GoldStage(AnimalStage):
    """`members` classifiers with their own first weights, on the same pictures; soft cross-entropy.

    Args:
        real_share, adversarial_share: of a batch; the rest is broken pictures.
        attack_every: steps between two attacks; each adds `attack_batch` pictures to a memory of the latest
            `attack_memory`.
    """

    def __init__(
        self,
        *,
        members: int,
        hidden_sizes: list[int],
        depths: list[int],
        real_share: float,
        adversarial_share: float,
        attack_every: int,
        attack_batch: int,
        attack_memory: int,
        export_dir: str,
        **kw,
    ):
        super().__init__(**kw)
        self.none = len(self.emoji.names)
        self.export_dir = Path(export_dir)
        names = dict(enumerate([*self.emoji.names, "no such picture"]))
        config = ResNetConfig(
            embedding_size=hidden_sizes[0],
            hidden_sizes=list(hidden_sizes),
            depths=list(depths),
            layer_type="basic",
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
        torch.manual_seed(self.seed)
        self.members = torch.nn.ModuleList(ResNetForImageClassification(config) for _ in range(members))
        self.members.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.real_share, self.adversarial_share = real_share, adversarial_share
        self.attack_every, self.attack_batch, self.attack_memory = attack_every, attack_batch, attack_memory
        self.attacks = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)  # no buffers: weight averaging leaves them alone
        self.attack_targets = torch.zeros(0, self.none + 1)

    # ------------------------------------------------------------------------------------------------ pictures

    def one_hot(self, concept: Int[Tensor, " b"]) -> Target:
        """Targets that name one concept with certainty."""
        return F.one_hot(concept, self.none + 1).float()

    def spoilt(self, target: Target, severity: Float[Tensor, " b"]) -> Target:
        """Moves the share `severity` of the probability to "no such picture"."""
        nothing = self.one_hot(torch.full((len(target),), self.none))
        return torch.lerp(target, nothing, severity[:, None])

    def broken(self, n: int, rng: torch.Generator) -> tuple[Pictures, Target]:
        """One corruption, or two, or a blend with another picture."""
        images, concept = self.real(n, rng)
        target, done = self.one_hot(concept), torch.zeros(n)
        kinds = list(CORRUPTIONS)
        for chance in (0.85, 0.25):
            severity = torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < chance)
            chosen = torch.randint(len(kinds), (n,), generator=rng).tolist()
            images = corrupt(images, severity, [kinds[k] for k in chosen], rng)
            done = 1 - (1 - done) * (1 - severity)
        share = torch.rand(n, generator=rng) * (done == 0)
        other = torch.randperm(n, generator=rng)
        images = torch.lerp(images, images[other], share[:, None, None, None])
        # half of each is neither: (1 - a)^2, a^2, and the rest is no such picture
        mixed = target * ((1 - share) ** 2)[:, None] + self.spoilt(target, done)[other] * (share**2)[:, None]
        mixed[:, self.none] += 2 * share * (1 - share)
        return images, torch.where((share > 0)[:, None], mixed, self.spoilt(target, done))

    def draw(self, rng: torch.Generator) -> tuple[Pictures, Target]:
        """A batch: real pictures, broken ones, and attacks on the members, with soft targets [b, concept + 1]."""
        n_real = round(self.real_share * self.batch_size)
        n_attack = round(self.adversarial_share * self.batch_size) if len(self.attacks) else 0
        images, concept = self.real(n_real, rng)
        target = self.one_hot(concept)
        broken, broken_target = self.broken(self.batch_size - n_real - n_attack, rng)
        images, target = torch.cat([images, broken]), torch.cat([target, broken_target])
        # a third passes through the base's decoder, so that its handwriting tells nothing; some of that with noise
        index = torch.randperm(len(images), generator=rng)[: len(images) // 3]
        severity = torch.rand(len(index), generator=rng) * (torch.rand(len(index), generator=rng) < 0.4)
        images[index] = self.through_vae(images[index], 1.2 * severity, rng)
        target[index] = self.spoilt(target[index], severity)
        if n_attack:
            chosen = torch.randint(len(self.attacks), (n_attack,), generator=rng)
            images = torch.cat([images, augment(to_float(self.attacks[chosen]), rng, 0.5)])
            target = torch.cat([target, self.attack_targets[chosen]])
        return images, target

    # ------------------------------------------------------------------------------------------------- attacks

    def attack(self, rng: torch.Generator) -> None:
        """Climbs the present utility from four kinds of starts, in pixels or in latents; remembers what it finds.

        From rubbish towards any animal: no such picture. From one animal towards another: mostly no such picture.
        From a picture, sound or spoilt, towards its own subject: no better than it was.
        """
        n = self.attack_batch
        images, concept = self.real(n, rng)
        kind = torch.randint(4, (n,), generator=rng)  # 0, 1: rubbish; 2: another animal; 3: its own
        severity = torch.where(kind == 3, 0.7 * torch.rand(n, generator=rng), torch.zeros(n))
        severity = torch.where(kind <= 1, torch.ones(n), severity)
        chosen = torch.randint(len(CORRUPTIONS), (n,), generator=rng).tolist()
        images = corrupt(images, severity, [list(CORRUPTIONS)[k] for k in chosen], rng)
        clouds = F.interpolate(torch.rand(n, 3, 6, 6, generator=rng), size=64, mode="bicubic").clamp(0, 1)
        images = torch.where((kind == 0)[:, None, None, None], clouds, images)
        goal = torch.where(kind == 3, concept, torch.randint(self.none, (n,), generator=rng))
        loss_of_faith = torch.where(kind == 2, torch.full((n,), 0.6), severity)
        loss_of_faith = torch.where(kind == 3, 0.8 * severity + 0.2, loss_of_faith)
        found = self.climb(images, goal, rng)
        target = self.spoilt(self.one_hot(concept), loss_of_faith)
        self.attacks = torch.cat([(found * 255).round().byte(), self.attacks])[: self.attack_memory]
        self.attack_targets = torch.cat([target, self.attack_targets])[: self.attack_memory]

    def climb(self, images: Pictures, goal: Int[Tensor, " b"], rng: torch.Generator) -> Pictures:
        """Gradient ascent of the utility for `goal`, in pixels of a random coarseness or through the base's decoder."""
        was_training = self.members.training
        self.members.eval()
        vae = self._vae[0].to(self.device)
        images, goal = images.to(self.device), goal.to(self.device)
        scale = vae.config.scaling_factor
        in_latents = torch.rand((), generator=rng) < 0.5
        with torch.no_grad():
            start = vae.encode(images * 2 - 1).latents if in_latents else images
        cells = start.shape[-1] if in_latents else [64, 32, 16][int(torch.randint(3, (), generator=rng))]
        delta = torch.zeros(len(images), start.shape[1], cells, cells, device=self.device, requires_grad=True)
        reach = (0.25 / scale if in_latents else 0.08) * (0.3 + torch.rand((), generator=rng).item())
        steps = int(torch.randint(4, 13, (), generator=rng))

        def picture() -> Tensor:
            if in_latents:
                return (vae.decode(start + delta).sample / 2 + 0.5).clamp(0, 1)
            return (start + F.interpolate(delta, size=64, mode="bilinear")).clamp(0, 1)

        with torch.enable_grad():
            for _ in range(steps):
                with torch.autocast(images.device.type, dtype=torch.bfloat16):
                    x = picture() * 2 - 1
                    logits = torch.stack([member(x).logits.float() for member in self.members])
                (gradient,) = torch.autograd.grad(utility(logits, goal).sum(), delta)
                size = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
                direction = gradient.sign() if not in_latents else gradient / size * delta[0].numel() ** 0.5
                delta = (delta + reach * direction).detach().requires_grad_()
        self.members.train(was_training)
        return picture().detach().float().cpu()

    # ------------------------------------------------------------------------------------------------ training

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        rng = self.step_generator()
        if self.global_step % self.attack_every == 0 and self.global_step > 0:
            with torch.autocast(self.device.type, enabled=False):
                self.attack(rng)
        with torch.autocast(self.device.type, enabled=False):
            images, target = (part.to(self.device) for part in self.draw(rng))
        losses, right = [], []
        for member in self.members:
            logits = member(images * 2 - 1).logits.float()
            losses.append(F.cross_entropy(logits, target))
            right.append((logits.argmax(1) == target.argmax(1)).float().mean())
        entropy = torch.special.entr(target).sum(1).mean()
        excess = torch.stack(losses).mean() - entropy  # over the best possible
        self.log_dict({"loss": excess, "top1": torch.stack(right).mean()}, prog_bar=True)
        return excess

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["attacks"] = (self.attacks, self.attack_targets)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.attacks, self.attack_targets = checkpoint["attacks"]

    def export(self) -> None:
        for k, member in enumerate(self.members):
            member.half().save_pretrained(self.export_dir / f"member_{k}")  # type: ignore[operator]
