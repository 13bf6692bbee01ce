"""What can be counted without a GPU: arithmetic and bytes, on tensors that have shapes and no content."""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from src.finetuner import RewardFinetuner
from src.policy.diffusion import DiffusionPolicy
from src.policy.gaussian import gaussian_log_prob
from src.rewards.base import RewardModel
from src.tasks.building import build_finetuner

GIB = 2**30


def train_rows(policy: DiffusionPolicy, rows: int) -> None:
    """The forward and the backward pass of so many (sample, timestep) rows of an update."""
    x = torch.zeros(rows, *policy.latent_shape, device=policy.device)
    t = policy.timesteps[:1].expand(rows)
    log_prob = gaussian_log_prob(x, *policy.step_distribution(x, t, policy.encode_prompts(["a cat"] * rows)))
    torch.autograd.grad(log_prob.sum(), policy.trainable())


def flops_a_row(policy: DiffusionPolicy) -> int:
    """Of one trained row: guided forward and its backward, without what checkpointing computes again."""
    policy.encode_prompts(["", "a cat"])  # cached; without content they must not be
    return flops_of(policy, lambda: train_rows(policy, 1))


def flops_of(policy: DiffusionPolicy, phase: Callable[[], object]) -> int:
    """Of a phase, without what checkpointing computes again."""
    checkpointing = policy.network.is_gradient_checkpointing
    policy.network.disable_gradient_checkpointing()
    try:
        return _flops(phase)
    finally:
        if checkpointing:
            policy.network.enable_gradient_checkpointing()


def _flops(phase: Callable[[], object]) -> int:
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),  # as matrix products, which are counted on every device
        FlopCounterMode(display=False) as counter,
    ):
        phase()
    return counter.get_total_flops()


class Phase(NamedTuple):
    """What a run does for a while."""

    run: Callable[[], object]
    rows: int  # that a call of it takes
    an_iteration: int = 0  # rows of an iteration; 0: in evaluations alone


def rows_of(finetuner: RewardFinetuner, cfg: dict[str, Any]) -> int:
    """(sample, timestep) rows trained on in an iteration."""
    return finetuner.algorithm.rows_trained(cfg["samples_per_iteration"], len(finetuner.trained_steps()))


def estimated(cfg: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a run of the configuration asks of a GPU, counted on the CPU: memory, and an iteration's arithmetic."""
    finetuner, rewards = build_finetuner(cfg)
    finetuner.policy.encode_prompts(["", "a cat"])
    return {
        "gib_counted_not_measured": estimated_memory(finetuner, rewards, cfg),
        "pflop_an_iteration": estimated_arithmetic(finetuner, rewards, cfg),
    }


def estimated_arithmetic(
    finetuner: RewardFinetuner, rewards: dict[str, RewardModel], cfg: dict[str, Any]
) -> dict[str, float]:
    """PFLOP of an iteration of a policy gradient, by phase, without what gradient checkpointing computes again."""
    found = {
        name: phase.an_iteration * flops_of(finetuner.policy, phase.run) / phase.rows
        for name, phase in phases(finetuner, rewards, cfg).items()
        if phase.an_iteration
    }
    return {key: float(f"{value / 1e15:.3g}") for key, value in (found | {"in all": sum(found.values())}).items()}


def estimated_memory(
    finetuner: RewardFinetuner, rewards: dict[str, RewardModel], cfg: dict[str, Any]
) -> dict[str, float]:
    """GiB, in the types that a GPU computes in.

    Left out: the CUDA context, cuDNN's workspaces, and what the allocator loses to fragmentation.
    """
    trained = [p for p in finetuner.parameters() if p.requires_grad]
    kept = {
        "weights": bytes_of([finetuner, *rewards.values()]),
        "gradients and Adam's moments": 3 * sum(p.nbytes for p in trained),
        "rollout": rollout_bytes(finetuner, cfg["samples_per_iteration"]),
    }
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(cfg["trainer"]["precision"])
    passing = {
        name: peak_bytes([finetuner, *rewards.values()], phase.run, mixed)
        for name, phase in phases(finetuner, rewards, cfg).items()
    }
    total = sum(kept.values()) + max(passing.values())
    return {key: float(f"{value / GIB:.4g}") for key, value in (kept | passing | {"peak": total}).items()}


def phases(finetuner: RewardFinetuner, rewards: dict[str, RewardModel], cfg: dict[str, Any]) -> dict[str, Phase]:
    """What needs memory for a while, by name."""
    policy, critic, samples = finetuner.policy, finetuner.critic, cfg["samples_per_iteration"]
    shape, side = policy.latent_shape, picture_side(policy)
    batch, seen = policy.sampling_batch, getattr(critic, "batch_size", policy.sampling_batch)

    def sample() -> None:
        t = policy.timesteps[:1].expand(batch)
        policy.predict(torch.zeros(batch, *shape), t, policy.encode_prompts(["a cat"] * batch))

    def score(reward: RewardModel, n: int) -> None:
        reward(torch.zeros(n, 3, side, side), ["a cat"] * n)

    def scoring(name: str, reward: RewardModel) -> Phase:
        n = min(reward.batch_size, samples)
        return Phase(torch.no_grad()(lambda: score(reward, n)), n, samples * (name == finetuner.reward_name))

    def features() -> None:
        finetuner.reward.embed_images(policy.decode(torch.zeros(seen, *shape)))

    states = samples * len(finetuner.trained_steps()[:: getattr(critic, "stride", 1)]) if critic is not None else 0
    return {
        "sampling": Phase(torch.no_grad()(sample), batch, samples * policy.num_steps),
        "decoding": Phase(lambda: policy.decode(torch.zeros(batch, *shape)), batch, samples),
        **{f"scoring by {name}": scoring(name, reward) for name, reward in rewards.items()},
        "critic's features": Phase(torch.no_grad()(features), seen, states),
        "update": Phase(
            lambda: train_rows(policy, finetuner.microbatch), finetuner.microbatch, rows_of(finetuner, cfg)
        ),
    }


def bytes_of(models: list[nn.Module]) -> int:
    """Of the distinct weights: several models may share some."""
    tensors = {t.untyped_storage().data_ptr(): t for m in models for t in (*m.parameters(), *m.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def rollout_bytes(finetuner: RewardFinetuner, samples: int) -> int:
    """Trajectories, pictures and the critic's features of an iteration, float32."""
    policy = finetuner.policy
    latent, steps = math.prod(policy.latent_shape), policy.num_steps
    seen = finetuner.critic.head.layers[0].weight.shape[1] if finetuner.critic is not None else 0
    return 4 * samples * ((steps + 1) * latent + 3 * picture_side(policy) ** 2 + steps * seen)


def picture_side(policy: DiffusionPolicy) -> int:
    """Pixels."""
    return policy.latent_shape[1] * policy.pipeline.factor


def peak_bytes(models: list[nn.Module], phase: Callable[[], object], mixed: torch.dtype | None) -> int:
    """The most bytes alive at a time in a phase, beside the weights."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, like_cuda(mixed):
        known = [fake.from_tensor(t) for m in models for t in (*m.parameters(), *m.buffers())]
        with LiveBytes(known) as live:
            phase()
    return live.peak


@contextmanager
def like_cuda(mixed: torch.dtype | None) -> Iterator[None]:
    """Autocast as on CUDA, which takes norms in float32; the CPU's leaves them in half precision."""
    with (
        torch.autocast("cpu", dtype=mixed or torch.bfloat16, enabled=mixed is not None),
        mock.patch.object(F, "group_norm", in_float32(F.group_norm)),
        mock.patch.object(F, "layer_norm", in_float32(F.layer_norm)),
    ):
        yield


def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, in float32 under autocast. By patching: a torch function mode is off in recomputation."""

    def wide(*args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return norm(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
            return norm(*args, **{k: v.float() if isinstance(v, Tensor) else v for k, v in kwargs.items()})

    return wide


class LiveBytes(TorchDispatchMode):
    """Adds up the memory of every tensor that an operation makes, until it is gone; `peak` is the most at a time."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
