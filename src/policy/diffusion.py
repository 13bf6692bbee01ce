"""The policy: a pipeline and a sampler. Its network is fine-tuned by LoRA or in full, whatever these two are."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from jaxtyping import Float
from lightning import LightningModule
from safetensors import SafetensorError
from torch import Tensor

from src.errors import UserError
from src.policy.gaussian import Latents, PerSample, Std, gaussian_kl, gaussian_log_prob
from src.policy.half_precision import laid_out, suited_attention
from src.policy.loading import DTYPES, Source
from src.policy.lora import add_lora
from src.policy.prompts import PromptStates, identity_of
from src.policy.sampler import Sampler, Times, refuse_level
from src.progress import advance
from src.runs.resuming import how_to_go_on
from src.types import Conditioning, Rollout


class Conditions(TypedDict):
    """Ways of sampling, see DiffusionPolicy; null for training's."""

    num_steps: int | None
    eta: float | None
    guidance: float | None


class DiffusionPolicy(LightningModule):
    """p_theta(x_next | x_t, c): samples trajectories, and gives the distribution of any step of one.

    Args:
        path: folder or hub id of a diffusers pipeline with safetensors weights.
        revision: commit of the hub's.
        variant: of the weight files, such as `fp16`.
        finetune: `lora` trains adapters on `lora_targets`, `full` the whole network.
        num_steps: of a trajectory.
        eta: how much noise steps draw: of DDIM 0 (none) to 1 (DDPM's), of flow matching the a of `sde`. Must be
            positive, or no step has a density.
        guidance: classifier-free guidance scale, in sampling and training (the losses of nft and dpo_online have none);
            at 1 the second forward is left out.
        sampling_batch: trajectories denoised at a time.
        lora_rank, lora_alpha: an adapter adds alpha / rank times the product of its two matrices.
        lora_targets: ends of the names of the layers that get an adapter, or one regular expression; null for the
            attention's.
        sde: of flow matching: `flow_grpo`, `constant` or `cps`; see src/policy/flow.py.
        sde_steps: the steps that draw noise, and are trained: [first, end], or so many in a row whose place changes
            at random from iteration to iteration (MixGRPO's random strategy, 2507.21802); null for all.
        gradient_checkpointing: activations of the network's blocks are computed again for the backward pass, not kept.
        compile: the network's transformer blocks run through torch.compile (torch 2.13 compiles a whole UNet to wrong
            gradients on the CPU).
        vae_slicing: pictures are decoded one at a time.
        resolution: of pictures, in pixels; null for what the network was trained with.
        frozen: precision of the network's weights where they are not trained, `fp32`, `bf16` or `fp16`.
        encoders: likewise of the text encoders.
        t5: whether a T5, which Stable Diffusion 3 can do without, is used.
        t5_tokens: of a prompt that it reads, or zeros in its place; diffusers' max_sequence_length.
        vae: another decoder than the pipeline's, a folder or hub id.
        vae_revision: commit of the hub's.
        prompt_cache: folder where prompts' states are kept; null for nowhere.
        drop_text_encoders: they are loaded when a prompt is new, and given up after it.
    """

    def __init__(
        self,
        path: str,
        finetune: Literal["lora", "full"],
        num_steps: int,
        eta: float,
        guidance: float,
        sampling_batch: int,
        lora_rank: int = 4,
        lora_alpha: int = 4,
        lora_targets: list[str] | str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        sde: Literal["flow_grpo", "constant", "cps"] = "flow_grpo",
        sde_steps: int | list[int] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        vae_slicing: bool = False,
        resolution: int | None = None,
        frozen: Literal["fp32", "bf16", "fp16"] = "fp32",
        encoders: Literal["fp32", "bf16", "fp16"] = "fp32",
        t5: bool = True,
        t5_tokens: int = 256,
        vae: str | None = None,
        vae_revision: str | None = None,
        prompt_cache: str | None = None,
        drop_text_encoders: bool = False,
    ):
        super().__init__()
        refuse_level(eta)
        if finetune == "full" and frozen != "fp32":
            raise UserError(f"policy.frozen={frozen}: policy.finetune=full trains all weights, in float32.")
        self.num_steps, self.eta, self.guidance, self.sampling_batch = num_steps, eta, guidance, sampling_batch
        self.finetune, self.frozen, self.sde, self.sde_steps = finetune, frozen, sde, sde_steps
        self.annealing: float | None = None  # p of annealed importance guidance, where it is sampled with
        self._at_base = False
        source = Source(path, revision, variant, t5)
        options = {"t5_tokens": t5_tokens} if "_3" in source.family.texts else {}
        self.pipeline = source.family(
            source.parts(DTYPES[frozen], vae, vae_revision), source.option, resolution, **options
        )
        self.vae = self.pipeline.parts["vae"].to(memory_format=torch.channels_last)
        network = self.pipeline.parts[self.network_name].to(memory_format=torch.channels_last)
        setattr(self, self.network_name, network)
        self._source, self._encoder_dtype, self._drops = source, DTYPES[encoders], drop_text_encoders
        told = {"revision": revision, "variant": variant, "encoders": encoders, "t5": t5, "t5_tokens": t5_tokens}
        self._prompts = PromptStates(self._encode, prompt_cache, identity_of(path, **told))
        if not drop_text_encoders:
            self._load_encoders()
        self.sampler = self._sampler()
        self.sampler.narrow(sde_steps)
        self._frozen: list[torch.nn.Module] = []  # of full fine-tuning: what it started from; no part of what is saved
        self._open_to_training(lora_rank, lora_alpha, lora_targets)
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if vae_slicing:
            self.vae.enable_slicing()
        if compile:
            self._compile()

    def _open_to_training(self, rank: int, alpha: int, targets: list[str] | str | None) -> None:
        """The network's own weights, beside a copy that stays as it is, or adapters."""
        if self.finetune == "full":
            self._frozen = [copy.deepcopy(self.network)]
            self.network.requires_grad_(True)
        else:
            usual = self.pipeline.lora_targets
            add_lora(self.network, rank, alpha, usual if targets is None else targets, usual)

    def _compile(self) -> None:
        if not getattr(self.network, "_repeated_blocks", None):
            raise UserError(f"policy.compile: diffusers names no blocks of a {type(self.network).__name__} to compile.")
        # Sampling and training become two programs. Unless both round wherever eager code does, the ratio of an unmoved
        # policy is off 1 in half precision, by more than the clip range.
        self.network.compile_repeated_blocks(options={"emulate_precision_casts": True})

    # ------------------------------------------------------------------------------------------------------ its parts

    @property
    def network_name(self) -> str:
        """Of the network in the pipeline, and in checkpoints: unet, or transformer."""
        return self.pipeline.network_name

    @property
    def network(self) -> Any:
        """The UNet or transformer that is trained."""
        return getattr(self, self.network_name)

    @property
    def base_network(self) -> torch.nn.Module:
        """Of full fine-tuning, the network that it started from."""
        return self._frozen[0]

    def trainable(self) -> list[torch.nn.Parameter]:
        """The parameters that fine-tuning moves, in an order that checkpoints rely on."""
        return [p for p in self.network.parameters() if p.requires_grad]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.pipeline.latent_shape

    def _sampler(self) -> Sampler:
        return self.pipeline.sampler(self.num_steps, self.eta, self.sde)

    @property
    def timesteps(self) -> Times:
        """Of a trajectory, descending, as the network is told them."""
        return self.sampler.timesteps.to(self.device)

    @property
    def step_std(self) -> Float[Tensor, " t"]:
        """Standard deviation of every sampling step; it depends on the sampler alone."""
        return self.sampler.stds(self.timesteps)

    @property
    def has_density(self) -> bool:
        """Whether any step draws noise; without, as at eta 0, there are no log-probabilities and no KL."""
        return len(self.sampler.stochastic) > 0

    @contextmanager
    def sampling(
        self, num_steps: int | None = None, eta: float | None = None, guidance: float | None = None
    ) -> Iterator[None]:
        """Other ways of sampling than in training, for as long as the context lasts; eta may be 0 here.

        All steps draw noise that can, whichever do in training.
        """
        before = self.sampler, self.num_steps, self.eta, self.guidance
        try:
            self.num_steps = self.num_steps if num_steps is None else num_steps
            self.eta = self.eta if eta is None else eta
            self.guidance = self.guidance if guidance is None else guidance
            self.sampler = self._sampler()
            yield
        finally:
            self.sampler, self.num_steps, self.eta, self.guidance = before

    @contextmanager
    def unguided(self) -> Iterator[None]:
        """The network's conditional output alone, for as long as the context lasts."""
        before, self.guidance = self.guidance, 1.0
        try:
            yield
        finally:
            self.guidance = before

    def place_window(self, seed: int) -> None:
        """Where `sde_steps` says how many steps draw noise, the seed says which, from now on."""
        if isinstance(self.sde_steps, int):
            self.sampler.narrow(self.sde_steps, seed)

    # --------------------------------------------------------------------------------------------------- conditioning

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is told of prompts; a distinct one is encoded once, unless many others came in between."""
        drop = self._drops and self._prompts.missing(prompts)
        if drop:
            self._load_encoders()
        try:
            if drop:
                self._prompts([""], self.device)  # guidance will ask for it next
            return self._prompts(prompts, self.device)
        finally:
            if drop:
                self._drop_encoders()

    def _encode(self, prompt: str) -> tuple[Tensor, ...]:
        return self.pipeline.encode(prompt, self.device)

    def _load_encoders(self) -> None:
        folder = self._source.fetch(self._source.encoders)
        for name in self._source.encoders:
            encoder = self._source.load(name, folder, self._encoder_dtype).to(self.device)
            self.pipeline.parts[name] = encoder
            setattr(self, name, encoder)

    def _drop_encoders(self) -> None:
        for name in self._source.encoders:
            del self.pipeline.parts[name]
            delattr(self, name)

    @property
    def max_tokens(self) -> int:
        """Of a prompt that the text encoder sees."""
        return self.pipeline.max_tokens

    @property
    def text_width(self) -> int:
        """Of a token's state."""
        return self.pipeline.text_width

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose end the text encoder does not see."""
        return self.pipeline.too_long(prompts)

    # -------------------------------------------------------------------------------------------------------- a step

    def predict(self, x_t: Latents, t: Times, told: Conditioning) -> Latents:
        """The guided output of the network, float32; on request drawn to the base's at high noise.

        Annealed importance guidance (2409.06493): g tuned + (1 - g) base with g = (1 - t / T)^p. At p = 0 that is the
        tuned network, at p = infinity the base. The authors' code goes by the share of steps that are done, which is
        the same on evenly spaced timesteps.
        """
        if self.annealing is None or self._at_base:
            return self._guided(x_t, t, told)
        share = (1 - t.double() / self.sampler.count) ** self.annealing
        share = share.float().view(-1, 1, 1, 1)
        if (share == 1).all():
            return self._guided(x_t, t, told)
        with self.as_base():
            base = self._guided(x_t, t, told)
        return base if (share == 0).all() else share * self._guided(x_t, t, told) + (1 - share) * base

    def _guided(self, x_t: Latents, t: Times, told: Conditioning) -> Latents:
        if self.guidance == 1:
            return self._output(x_t, t, told.rows())
        empty = self.encode_prompts([""]).rows()
        both = [torch.cat([none.expand_as(some), some]) for none, some in zip(empty, told.rows(), strict=True)]
        unconditional, conditional = self._output(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _output(self, x_t: Latents, t: Times, told: Sequence[Tensor]) -> Latents:
        """The network's own, float32; frozen weights in half precision compute in it, whatever the trainer's is."""
        half, device = DTYPES[self.frozen], x_t.device
        own = half != torch.float32 and not torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, dtype=half) if own else nullcontext(), suited_attention(self.network, device):
            return self.pipeline.forward(laid_out(self.network, device), x_t, t, told).float()

    def step_distribution(self, x_t: Latents, t: Times, told: Conditioning) -> tuple[Latents, Std]:
        """Mean and standard deviation of p_theta(x_next | x_t, c)."""
        return self.step_of(self.predict(x_t, t, told), x_t, t)

    def step_of(self, output: Latents, x_t: Latents, t: Times) -> tuple[Latents, Std]:
        """The same from the network's output."""
        return self.sampler.step(output, x_t, t)

    def predicted_clean(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        """The x_0 that the network's output stands for."""
        return self.sampler.clean(output, x_t, t)

    def predicted_noise(self, output: Latents, x_t: Latents, t: Times) -> Latents:
        """The noise that it stands for."""
        return self.sampler.noise(output, x_t, t)

    def noised(self, x_0: Latents, t: Times, noise: Latents) -> Latents:
        """x_t of the forward process."""
        return self.sampler.noised(x_0, t, noise)

    def output_gains(self, t: Times) -> PerSample:
        """|d mean / d output| of the steps from these timesteps: how far the network's output moves the next state."""
        return self.sampler.gains(t)

    # -------------------------------------------------------------------------------------------------- other weights

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The model as it was before fine-tuning, for as long as the context lasts."""
        self._at_base = True
        if self.finetune == "lora":
            self.network.disable_adapters()
            try:
                yield
            finally:
                self.network.enable_adapters()
                self._at_base = False
        else:
            tuned = self.network
            setattr(self, self.network_name, self.base_network.to(self.device))
            try:
                yield
            finally:
                setattr(self, self.network_name, tuned)
                self._at_base = False

    @contextmanager
    def holding(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """The trained parameters have these values, in the order of `trainable`, for as long as the context lasts."""
        trained = self.trainable()
        own = [parameter.data for parameter in trained]
        try:
            for parameter, value in zip(trained, weights, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(trained, own, strict=True):
                parameter.data = value

    @torch.no_grad()
    def kl_to_base(self, rollout: Rollout) -> Float[Tensor, "b t"]:
        """KL(p_theta || p_base) of each step at the states a rollout visited, nats, summed over latent dimensions.

        0 in steps that draw no noise: the KL is that of the others.
        """
        told = rollout.conditioning or self.encode_prompts(rollout.prompts)
        columns = []
        for j, t in enumerate(rollout.timesteps):
            parts = []
            for rows in torch.arange(len(rollout)).split(self.sampling_batch):
                if j not in self.sampler.stochastic:
                    parts.append(torch.zeros(len(rows), device=t.device))
                    continue
                x_t, step = rollout.latents[rows, j], t.expand(len(rows))
                mean, std = self.step_distribution(x_t, step, told.of(rows))
                with self.as_base():
                    reference, _ = self.step_distribution(x_t, step, told.of(rows))
                parts.append(gaussian_kl(mean, reference, std))
            columns.append(torch.cat(parts))
        return torch.stack(columns, 1)

    # ------------------------------------------------------------------------------------------------------- sampling

    def noise(self, seeds: list[int], starts: list[int] | None = None) -> Float[Tensor, "b t1 c h w"]:
        """All the randomness of a trajectory, a function of the sample's own seed: x_T, then one draw a step.

        `starts` are other seeds, of x_T alone.
        """
        shape = (self.num_steps + 1, *self.latent_shape)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        for draw, start in zip(draws, starts or [], strict=starts is not None):
            draw[0] = torch.randn(shape, generator=torch.Generator().manual_seed(start))[0]
        return torch.stack(draws).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        seeds: list[int],
        keep_predicted: bool = False,
        keep_means: bool = False,
        starts: list[int] | None = None,
    ) -> Rollout:
        """Samples one trajectory a prompt, in batches of `sampling_batch`; keeps predicted x_0 and means on request.

        seeds, starts: see `noise`.
        """
        parts = []
        told = self.encode_prompts(prompts)
        for i in range(0, len(prompts), self.sampling_batch):
            part = slice(i, i + self.sampling_batch)
            noise = self.noise(seeds[part], starts[part] if starts else None)
            parts.append(self._sample_batch(told.of(part), noise, keep_predicted, keep_means))
            advance("pictures", len(prompts[part]))
        latents, log_probs, images, predicted, means = (torch.cat(column) for column in zip(*parts, strict=True))
        kept = {"predicted": predicted if keep_predicted else None, "means": means if keep_means else None}
        return Rollout(prompts, seeds, latents, self.timesteps, log_probs, images, conditioning=told, **kept)

    def _sample_batch(
        self, told: Conditioning, noise: Float[Tensor, "b t1 c h w"], keep_predicted: bool, keep_means: bool
    ) -> tuple[Tensor, ...]:
        x_t = noise[:, 0].clone()
        latents, log_probs, predicted, means = [x_t], [], [], []
        for i, t in enumerate(self.timesteps.unsqueeze(1).expand(-1, len(told))):
            output = self.predict(x_t, t, told)
            if keep_predicted:
                predicted.append(self.predicted_clean(output, x_t, t))
            mean, std = self.step_of(output, x_t, t)
            if keep_means:
                means.append(mean)
            x_t = mean + std * noise[:, i + 1]
            noisy = i in self.sampler.stochastic
            log_probs.append(gaussian_log_prob(x_t, mean, std) if noisy else x_t.new_zeros(len(x_t)))
            latents.append(x_t)
        kept = [torch.stack(column, 1) if column else torch.empty(0) for column in (predicted, means)]
        return torch.stack(latents, 1), torch.stack(log_probs, 1), self.decode(x_t), *kept

    def decode(self, latents: Latents) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1] from latents as the network sees them; differentiable where no pixel is clamped."""
        return (self.pipeline.decode(latents).float() / 2 + 0.5).clamp(0, 1)

    def save(self, run_dir: Path, averaged: Sequence[Tensor] | None = None) -> Path:
        """Writes lora/, in the format of `pipe.load_lora_weights`, or the network by its name; says where.

        `averaged` weights, in the order of `trainable`, are written likewise, below ema/. Raises UserError where there
        is no room.
        """
        if averaged is not None:
            with self.holding(averaged):
                self.save(run_dir / "ema")
        folder = run_dir / (self.network_name if self.finetune == "full" else "lora")
        try:
            if self.finetune == "full":
                self.network.save_pretrained(folder)
            else:
                self.pipeline.save_lora(self.network, folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} could not be written ({error}): make room, then {how_to_go_on()}.") from error
        return folder
