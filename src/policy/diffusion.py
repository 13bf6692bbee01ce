"""The policy: the denoiser of any diffusers StableDiffusionPipeline folder, fine-tuned by LoRA or in full."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from lightning import LightningModule
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from src.errors import UserError
from src.policy import ddim
from src.policy.loading import load_pipeline
from src.policy.lora import add_lora
from src.policy.schedule import ddim_schedule
from src.progress import advance
from src.runs.resuming import how_to_go_on
from src.texts import longer_than
from src.types import Rollout

TEXT_CACHE = 1024  # prompts whose states are kept on the device; 243 MB of Stable Diffusion's


class DiffusionPolicy(LightningModule):
    """p_theta(x_{t-1} | x_t, c): samples trajectories, and gives the distribution of any step of one.

    Args:
        path: folder or hub id of a StableDiffusionPipeline with safetensors weights.
        revision: commit of the hub's.
        variant: of the weight files, such as `fp16`; all are computed with in float32.
        finetune: `lora` trains adapters on `lora_targets`, `full` the whole UNet.
        lora_rank, lora_alpha: an adapter adds alpha / rank times the product of its two matrices.
        lora_targets: ends of the names of the layers that get an adapter.
        num_steps: DDIM steps of a trajectory.
        eta: 0 deterministic, 1 the noise of DDPM. Must be positive, or no step has a density.
        guidance: classifier-free guidance scale, in sampling and in training; at 1 the second forward is left out.
        sampling_batch: trajectories denoised at a time.
        gradient_checkpointing: activations of the UNet's blocks are computed again for the backward pass, not kept.
        compile: the UNet's transformer blocks run through torch.compile (torch 2.13 compiles a whole UNet to wrong
            gradients on the CPU).
        vae_slicing: pictures are decoded one at a time.
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
        lora_targets: list[str] | str = ("to_q", "to_k", "to_v", "to_out.0"),  # type: ignore[assignment]
        revision: str | None = None,
        variant: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        vae_slicing: bool = False,
    ):
        super().__init__()
        if eta <= 0:
            raise UserError(f"policy.eta={eta}: a step has a log-probability only when eta is positive.")
        self.num_steps, self.eta, self.guidance, self.sampling_batch = num_steps, eta, guidance, sampling_batch
        self.finetune = finetune
        self.annealing: float | None = None  # p of annealed importance guidance, where it is sampled with
        self._at_base = False
        pipeline = load_pipeline(path, revision, variant)
        self.tokenizer = pipeline.tokenizer
        self._scheduler, self._option = pipeline.scheduler, f"policy.path={path}"
        self.schedule = ddim_schedule(pipeline.scheduler, num_steps, self._option)
        self.text_encoder = pipeline.text_encoder.requires_grad_(False).eval()
        self.vae = pipeline.vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.unet = pipeline.unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self._frozen: list[torch.nn.Module] = []  # of full fine-tuning: what it started from; no part of what is saved
        if finetune == "full":
            self._frozen = [copy.deepcopy(self.unet)]
            self.unet.requires_grad_(True)
        else:
            add_lora(self.unet, lora_rank, lora_alpha, lora_targets)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if vae_slicing:
            self.vae.enable_slicing()
        if compile:
            # Sampling and training become two programs. Unless both round wherever eager code does, the ratio of an
            # unmoved policy is off 1 in half precision, by more than the clip range.
            self.unet.compile_repeated_blocks(options={"emulate_precision_casts": True})
        self._text_cache: dict[str, Tensor] = {}

    @property
    def step_std(self) -> Float[Tensor, " t"]:
        """sigma_t of every sampling step; it depends on the schedule and eta alone."""
        at, after = self.schedule.alpha_bars(self.timesteps)
        zeros = torch.zeros(self.num_steps, 1, 1, 1, device=self.device)
        return ddim.ddim_step(zeros, zeros, at, after, self.eta, self.schedule.prediction_type)[1].flatten()

    @property
    def has_density(self) -> bool:
        """Whether every step is a Gaussian; without noise, as at eta 0, there are no log-probabilities and no KL."""
        return bool((self.step_std > 0).all())

    @contextmanager
    def sampling(
        self, num_steps: int | None = None, eta: float | None = None, guidance: float | None = None
    ) -> Iterator[None]:
        """Other ways of sampling than in training, for as long as the context lasts; eta may be 0 here."""
        before = self.schedule, self.num_steps, self.eta, self.guidance
        try:
            if num_steps is not None:
                self.num_steps, self.schedule = num_steps, ddim_schedule(self._scheduler, num_steps, self._option)
            self.eta = self.eta if eta is None else eta
            self.guidance = self.guidance if guidance is None else guidance
            yield
        finally:
            self.schedule, self.num_steps, self.eta, self.guidance = before

    def trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.unet.parameters() if p.requires_grad]

    @property
    def base_unet(self) -> torch.nn.Module:
        """Of full fine-tuning, the network that it started from."""
        return self._frozen[0]

    @property
    def timesteps(self) -> Int[Tensor, " t"]:
        return self.schedule.timesteps.to(self.device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Float[Tensor, "b token d"]:
        """Text states of the prompts; each distinct prompt is encoded once, unless many others came in between."""
        length = self.tokenizer.model_max_length
        for prompt in dict.fromkeys(prompts):
            if prompt in self._text_cache:
                continue
            # by itself: in a batch its states would depend, in their last bits, on what else happened to be new
            tokens = self.tokenizer(
                prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            self._text_cache[prompt] = self.text_encoder(tokens.input_ids.to(self.device))[0][0].float()
        found = torch.stack([self._text_cache[prompt] for prompt in prompts])
        for prompt in dict.fromkeys(prompts):
            self._text_cache[prompt] = self._text_cache.pop(prompt)  # the last to go
        while len(self._text_cache) > TEXT_CACHE:
            del self._text_cache[next(iter(self._text_cache))]
        return found

    @property
    def max_tokens(self) -> int:
        """Of a prompt that the text encoder sees."""
        return self.tokenizer.model_max_length

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose end the text encoder does not see."""
        return longer_than(self.max_tokens, self.tokenizer, prompts)

    def predict(self, x_t: ddim.Latents, t: Int[Tensor, " b"], text: Float[Tensor, "b token d"]) -> ddim.Latents:
        """The guided output of the network, float32; on request drawn to the base's at high noise.

        Annealed importance guidance (2409.06493): g tuned + (1 - g) base with g = (1 - t / T)^p. At p = 0 that is the
        tuned network, at p = infinity the base.
        """
        if self.annealing is None or self._at_base:
            return self._guided(x_t, t, text)
        share = (1 - t.double() / len(self.schedule.before)) ** self.annealing
        share = share.float().view(-1, 1, 1, 1)
        if (share == 1).all():
            return self._guided(x_t, t, text)
        with self.as_base():
            base = self._guided(x_t, t, text)
        return base if (share == 0).all() else share * self._guided(x_t, t, text) + (1 - share) * base

    def _guided(self, x_t: ddim.Latents, t: Int[Tensor, " b"], text: Float[Tensor, "b token d"]) -> ddim.Latents:
        if self.guidance == 1:
            return self.unet(x_t, t, text, return_dict=False)[0].float()
        empty = self.encode_prompts([""]).expand_as(text)
        both = self.unet(x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([empty, text]), return_dict=False)[0].float()
        unconditional, conditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def step_distribution(
        self, x_t: ddim.Latents, t: Int[Tensor, " b"], text: Float[Tensor, "b token d"]
    ) -> tuple[ddim.Latents, Float[Tensor, "b 1 1 1"]]:
        """Mean and standard deviation of p_theta(x_{t-1} | x_t, c)."""
        return self.step_of(self.predict(x_t, t, text), x_t, t)

    def step_of(
        self, output: ddim.Latents, x_t: ddim.Latents, t: Int[Tensor, " b"]
    ) -> tuple[ddim.Latents, Float[Tensor, "b 1 1 1"]]:
        """The same from the network's output."""
        alpha_bar, alpha_bar_prev = self.schedule.alpha_bars(t)
        kind = self.schedule.prediction_type
        return ddim.ddim_step(output, x_t, alpha_bar, alpha_bar_prev, self.eta, kind)

    def predicted_clean(self, output: ddim.Latents, x_t: ddim.Latents, t: Int[Tensor, " b"]) -> ddim.Latents:
        """The x_0 that the network's output stands for."""
        alpha_bar, _ = self.schedule.alpha_bars(t)
        return ddim.predicted_clean(output, x_t, alpha_bar, self.schedule.prediction_type)[0]

    def predicted_noise(self, output: ddim.Latents, x_t: ddim.Latents, t: Int[Tensor, " b"]) -> ddim.Latents:
        """The noise that it stands for."""
        alpha_bar, _ = self.schedule.alpha_bars(t)
        return ddim.predicted_clean(output, x_t, alpha_bar, self.schedule.prediction_type)[1]

    def noised(self, x_0: ddim.Latents, t: Int[Tensor, " b"], noise: ddim.Latents) -> ddim.Latents:
        """x_t of the forward process: sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
        alpha_bar, _ = (part.view(-1, 1, 1, 1) for part in self.schedule.alpha_bars(t))
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise

    def output_gains(self) -> Float[Tensor, " t"]:
        """|d mean / d output| of every sampling step: how far the network's output moves x_{t-1}."""
        zeros = torch.zeros(self.num_steps, 1, 1, 1, device=self.device)
        still, moved = (self.step_of(output, zeros, self.timesteps)[0] for output in (zeros, zeros + 1))
        return (moved - still).abs().flatten()

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The model as it was before fine-tuning, for as long as the context lasts."""
        self._at_base = True
        if self.finetune == "lora":
            self.unet.disable_adapters()
            try:
                yield
            finally:
                self.unet.enable_adapters()
                self._at_base = False
        else:
            tuned, self.unet = self.unet, self.base_unet.to(self.device)
            try:
                yield
            finally:
                self.unet = tuned
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
        """KL(p_theta || p_base) of each step at the states a rollout visited, nats, summed over latent dimensions."""
        text = self.encode_prompts(rollout.prompts)
        columns = []
        for j, t in enumerate(rollout.timesteps):
            parts = []
            for rows in torch.arange(len(rollout)).split(self.sampling_batch):
                x_t, step = rollout.latents[rows, j], t.expand(len(rows))
                mean, std = self.step_distribution(x_t, step, text[rows])
                with self.as_base():
                    reference, _ = self.step_distribution(x_t, step, text[rows])
                parts.append(ddim.gaussian_kl(mean, reference, std))
            columns.append(torch.cat(parts))
        return torch.stack(columns, 1)

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
        for i in range(0, len(prompts), self.sampling_batch):
            part = slice(i, i + self.sampling_batch)
            noise = self.noise(seeds[part], starts[part] if starts else None)
            parts.append(self._sample_batch(prompts[part], noise, keep_predicted, keep_means))
            advance("pictures", len(prompts[part]))
        latents, log_probs, images, predicted, means = (torch.cat(column) for column in zip(*parts, strict=True))
        kept = {"predicted": predicted if keep_predicted else None, "means": means if keep_means else None}
        return Rollout(prompts, seeds, latents, self.timesteps, log_probs, images, **kept)

    def _sample_batch(
        self, prompts: list[str], noise: Float[Tensor, "b t1 c h w"], keep_predicted: bool, keep_means: bool
    ) -> tuple[Tensor, ...]:
        text = self.encode_prompts(prompts)
        x_t = noise[:, 0].clone()
        latents, log_probs, predicted, means = [x_t], [], [], []
        for i, t in enumerate(self.timesteps.unsqueeze(1).expand(-1, len(prompts))):
            output = self.predict(x_t, t, text)
            if keep_predicted:
                predicted.append(self.predicted_clean(output, x_t, t))
            mean, std = self.step_of(output, x_t, t)
            if keep_means:
                means.append(mean)
            x_t = mean + std * noise[:, i + 1]
            log_probs.append(ddim.gaussian_log_prob(x_t, mean, std))
            latents.append(x_t)
        kept = [torch.stack(column, 1) if column else torch.empty(0) for column in (predicted, means)]
        return torch.stack(latents, 1), torch.stack(log_probs, 1), self.decode(x_t), *kept

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1] from latents as the UNet sees them; differentiable where no pixel is clamped."""
        pictures = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def save(self, run_dir: Path, averaged: Sequence[Tensor] | None = None) -> Path:
        """Writes lora/, in the format of `pipe.load_lora_weights`, or unet/, a UNet2DConditionModel; says where.

        `averaged` weights, in the order of `trainable`, are written likewise, below ema/. Raises UserError where there
        is no room.
        """
        if averaged is not None:
            with self.holding(averaged):
                self.save(run_dir / "ema")
        folder = run_dir / ("unet" if self.finetune == "full" else "lora")
        try:
            self._write(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} could not be written ({error}): make room, then {how_to_go_on()}.") from error
        return folder

    def _write(self, folder: Path) -> None:
        if self.finetune == "full":
            self.unet.save_pretrained(folder)
        else:
            StableDiffusionPipeline.save_lora_weights(
                folder,
                unet_lora_layers=get_peft_model_state_dict(self.unet),
                unet_lora_adapter_metadata=self.unet.peft_config["default"].to_dict(),  # alpha is not in the weights
            )
