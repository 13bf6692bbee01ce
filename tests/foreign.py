"""Weights as other frameworks write them, of the miniature base: by their own libraries where these are at hand."""

import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.conftest import BASE

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def base_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(BASE, subfolder="unet", torch_dtype=torch.float32)


def trained_lora(targets: list[str] | None = None, alpha: int = 8, steps: int = 4, lr: float = 5e-3):
    """A UNet with a LoRA that diffusers and peft alone have trained for some steps."""
    torch.manual_seed(0)
    unet = base_unet().requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=targets or TARGETS, init_lora_weights="gaussian"))
    learnt = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=lr)
    for _ in range(steps):
        latents, t, text = torch.randn(4, 4, 16, 16), torch.randint(1000, (4,)), torch.randn(4, 16, 128)
        loss = (unet(latents, t, text).sample - 0.5 * torch.randn_like(latents)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet


def matrices(unet) -> dict[str, torch.Tensor]:
    return {key: value.detach().contiguous() for key, value in get_peft_model_state_dict(unet).items()}


def save_diffusers(unet, folder: Path, metadata: bool = True) -> Path:
    noted = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()} if metadata else {}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=matrices(unet), **noted)
    return folder


def save_kohya(unet, file: Path, **others: torch.Tensor) -> Path:
    """lora_unet_MODULE.lora_down.weight, lora_up.weight and alpha."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = dict(others)
    for key, value in matrices(unet).items():
        module, which = key.removesuffix(".weight").rsplit(".", 1)
        name = f"lora_unet_{module.replace('.', '_')}"
        state[f"{name}.lora_{'down' if which == 'lora_A' else 'up'}.weight"] = value
        state[f"{name}.alpha"] = torch.tensor(float(unet.peft_config["default"].lora_alpha))
    save_file(state, file)
    return file


def save_peft(unet, folder: Path) -> Path:
    """As PeftModel.save_pretrained does, by which flow_grpo saves."""
    config = unet.peft_config["default"]
    again = LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules))
    model = get_peft_model(base_unet(), again)
    model.load_state_dict(
        {f"base_model.model.{_named(key)}": value for key, value in matrices(unet).items()}, strict=False
    )
    model.save_pretrained(folder)
    return folder


def _named(key: str) -> str:
    module, which, ending = key.rsplit(".", 2)
    return f"{module}.{which}.default.{ending}"


def save_attention_processors(unet, folder: Path) -> Path:
    """As diffusers 0.17's save_attn_procs, by which ddpo-pytorch saves: a pickle of tensors; alpha is the rank."""
    folder.mkdir(parents=True)
    state = {}
    for key, value in matrices(unet).items():
        module, which = key.removesuffix(".weight").rsplit(".", 1)
        attention, projection = module.removesuffix(".0").rsplit(".", 1)
        end = "down" if which == "lora_A" else "up"
        state[f"{attention}.processor.{projection}_lora.{end}.weight"] = value
    torch.save(state, folder / "pytorch_lora_weights.bin")
    return folder


def merged(unet) -> UNet2DConditionModel:
    """A plain UNet with the LoRA added to its weights."""
    plain, state, config = base_unet(), matrices(unet), unet.peft_config["default"]
    with torch.no_grad():
        for key in state:
            if ".lora_A." in key:
                module = key.split(".lora_A.")[0]
                down, up = state[key].flatten(1), state[key.replace("lora_A", "lora_B")].flatten(1)
                weight = plain.get_submodule(module).weight
                weight += (up @ down).view_as(weight) * config.lora_alpha / config.r
    return plain


def accelerate_state(folder: Path) -> Path:
    """What accelerate's save_state leaves beside the weights."""
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (folder / name).write_bytes(b"\x80\x04cposix\nsystem\n")  # not to be opened
    return folder


def save_pipeline(unet, folder: Path) -> Path:
    shutil.copytree(BASE, folder)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    return folder
