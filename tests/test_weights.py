"""Weights of others: known by their files, equal in every format, and refused in one sentence where they do not fit."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.errors import UserError
from src.policy.adoption import adopt, check_fit
from src.policy.diffusion import DiffusionPolicy
from src.policy.weights import recognise
from src.tasks.members import names_numbers, numbers, paths_of, points_of
from tests import foreign
from tests.conftest import BASE
from tests.test_policy import make_policy, perturb

CFG = {"weights": None, "scale": None, "aig": None, "steps": None, "queries_per_step": None}


@pytest.fixture(scope="module")
def lora():
    return foreign.trained_lora()


@pytest.fixture(scope="module")
def plain():
    """A LoRA whose alpha is its rank, as formats that do not know it take for granted."""
    return foreign.trained_lora(alpha=4)


@pytest.fixture(scope="module")
def policies() -> dict[str, DiffusionPolicy]:
    return {kind: make_policy(finetune=kind) for kind in ("full", "lora")}


X, T = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([700, 100])


@torch.no_grad()
def output(policy: DiffusionPolicy) -> torch.Tensor:
    return policy.predict(X, T, policy.encode_prompts(["cat", "dog"]))


def adopted(policies, path, scale: float = 1.0) -> torch.Tensor:
    weights = recognise(str(path))
    adopt(policies[weights.kind], weights, BASE, scale)
    return output(policies[weights.kind])


@torch.no_grad()
def expected(unet, policies) -> torch.Tensor:
    return unet(X, T, policies["full"].encode_prompts(["cat", "dog"]).states).sample


def test_every_format_gives_the_same_model(lora, policies, tmp_path):
    right = expected(lora, policies)
    whole = foreign.merged(lora)
    whole.save_pretrained(tmp_path / "unet")
    shutil.copytree(tmp_path / "unet", tmp_path / "alone/anything")
    save_file(load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors"), tmp_path / "state.safetensors")
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="4MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    found = {
        "diffusers": foreign.save_diffusers(lora, tmp_path / "diffusers"),
        "kohya": foreign.save_kohya(lora, tmp_path / "kohya.safetensors"),
        "peft": foreign.save_peft(lora, tmp_path / "peft"),
        "unet/": tmp_path / "unet",
        "a folder": tmp_path / "alone/anything",
        "state dict": tmp_path / "state.safetensors",
        "shards": tmp_path / "sharded",
        "pipeline": foreign.save_pipeline(whole, tmp_path / "pipeline"),
    }
    base = output(make_policy())
    assert (right - base).abs().max() > 0.05
    for name, path in found.items():
        torch.testing.assert_close(adopted(policies, path), right, atol=1e-5, rtol=0, msg=name)
        assert torch.equal(adopted(policies, path, scale=0.0), base), name
        with policies[recognise(str(path)).kind].as_base():
            assert torch.equal(output(policies[recognise(str(path)).kind]), base), name


def test_formats_without_an_alpha_take_the_rank(plain, policies, tmp_path):
    right = expected(plain, policies)
    for path in (
        foreign.save_diffusers(plain, tmp_path / "unnoted", metadata=False),
        foreign.save_attention_processors(plain, tmp_path / "processors"),
    ):
        torch.testing.assert_close(adopted(policies, path), right, atol=1e-5, rtol=0)


def test_convolutions_and_ranks_of_their_own(policies, tmp_path):
    """One module of another rank and alpha than the rest."""
    unet = foreign.trained_lora(targets=["conv1", "conv_out", "time_emb_proj"])
    file = foreign.save_kohya(unet, tmp_path / "l.safetensors")
    torch.testing.assert_close(adopted(policies, file), expected(unet, policies), atol=1e-5, rtol=0)
    state = load_file(file)
    down, up = (state[f"lora_unet_conv_out.lora_{end}.weight"] for end in ("down", "up"))
    state |= {
        "lora_unet_conv_out.lora_down.weight": torch.cat([down, down]),
        "lora_unet_conv_out.alpha": torch.tensor(8.0),
    }
    state["lora_unet_conv_out.lora_up.weight"] = torch.cat([up, up], 1)  # twice the same, at half the weight
    save_file(state, tmp_path / "m.safetensors")
    torch.testing.assert_close(
        adopted(policies, tmp_path / "m.safetensors"), expected(unet, policies), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_a_policy_saves_it_takes_up_to_the_bit(kind, policies, tmp_path):
    ours = make_policy(
        finetune=kind, **({"lora_alpha": 8, "lora_targets": ["conv2", "to_q"]} if kind == "lora" else {})
    )
    perturb(ours)
    ours.save(tmp_path)
    assert torch.equal(adopted(policies, tmp_path), output(ours))


def test_half_of_a_lora_and_half_of_the_way(lora, policies, tmp_path):
    with torch.no_grad():
        for module in lora.modules():
            if hasattr(module, "scaling"):
                module.scaling["default"] /= 2
    right = expected(lora, policies)
    for module in lora.modules():
        if hasattr(module, "scaling"):
            module.scaling["default"] *= 2
    foreign.merged(lora).save_pretrained(tmp_path / "unet")
    for path in (foreign.save_diffusers(lora, tmp_path / "lora"), tmp_path / "unet"):
        torch.testing.assert_close(adopted(policies, path, scale=0.5), right, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------- layouts of others


def test_layouts_of_other_frameworks(plain, policies, tmp_path):
    """TRL 0.23.1's DDPOTrainer, ddpo-pytorch, flow_grpo and diffusers' scripts, as their code writes them."""
    right, whole = expected(plain, policies), foreign.merged(plain)
    layouts = {
        "trl_lora": lambda at: foreign.save_diffusers(plain, at, metadata=False),
        "trl_full": lambda at: whole.save_pretrained(at / "unet"),
        "ddpo_lora": lambda at: foreign.save_attention_processors(plain, at),
        "flow_grpo": lambda at: foreign.save_peft(plain, at / "lora"),
        "diffusers_lora": lambda at: foreign.save_diffusers(plain, at),
    }
    for name, save in layouts.items():
        flow = name == "flow_grpo" or name.startswith("diffusers")
        for number in (20, 100, 3):
            at = tmp_path / name / f"checkpoint{'-' if flow else '_'}{number}"
            save(at)
            foreign.accelerate_state(at)
        if name == "diffusers_lora":  # accelerate saves the whole model beside the LoRA
            save_file({"x": torch.zeros(1)}, at / "model.safetensors")
        points = points_of(CFG | {"weights": str(tmp_path / name)})
        assert [point.at for point in points] == [3, 20, 100] and not points[0].counted
        assert [p.at for p in points_of(CFG | {"weights": f"{tmp_path}/{name}/checkpoint*"})] == [3, 20, 100]
        adopt(policies[points[0].weights.kind], points[0].weights, BASE)
        torch.testing.assert_close(output(policies[points[0].weights.kind]), right, atol=1e-5, rtol=0, msg=name)


def test_numbers_of_names():
    assert names_numbers(["run2/checkpoint-10/unet", "run2/checkpoint-9/unet"]) == [10, 9]
    assert names_numbers(["a/lora-000100.safetensors", "a/lora-001000.safetensors"]) == [100, 1000]
    assert names_numbers(["a/checkpoint_7"]) == [7] and names_numbers(["a/best"]) == [1]
    assert names_numbers(["c/checkpoint-9/unet"]) == [9] and names_numbers(["animal_v2.safetensors"]) == [1]
    for names in (["a1_2", "a2_3"], ["x1", "y2"], ["a", "b"]):
        with pytest.raises(UserError, match=r"give steps=\[\.\.\.\]"):
            names_numbers(names)


def test_points_by_degrees_and_by_steps(lora, tmp_path):
    paths = [str(foreign.save_kohya(lora, tmp_path / f"{name}.safetensors")) for name in ("a", "b")]
    points = points_of(CFG | {"weights": paths, "steps": [9, 4], "queries_per_step": 64})
    assert [(point.at, point.weights.path, point.counted) for point in points] == [
        (4 * 64, paths[1], True),
        (9 * 64, paths[0], True),
    ]
    assert [p.scale for p in points_of(CFG | {"weights": paths[0], "scale": [0, 0.5, 1]})] == [0, 0.5, 1]
    assert [p.aig for p in points_of(CFG | {"weights": paths[0], "aig": "0,2,inf"})] == [0, 2, float("inf")]
    assert [p.scale for p in points_of(CFG | {"weights": paths, "steps": [1, 2], "scale": 0.5})] == [0.5, 0.5]
    with pytest.raises(UserError, match="a frontier has one checkpoint"):
        points_of(CFG | {"weights": paths, "steps": [1, 2], "scale": "0,1"})
    with pytest.raises(UserError, match=r"2 checkpoints need as many numbers"):
        points_of(CFG | {"weights": paths, "steps": [1]})
    with pytest.raises(UserError, match="scale=x: give numbers"):
        numbers("x", "scale")
    with pytest.raises(UserError, match=r"scale=-1: scales must not be negative"):
        points_of(CFG | {"weights": paths[0], "scale": -1})
    with pytest.raises(UserError, match=r"scale=None: give numbers, such as scale=0,0\.5,1, or leave it out"):
        numbers("None", "scale")
    with pytest.raises(UserError, match=r"queries_per_step=64: .*a\.safetensors does not tell its number; give steps="):
        points_of(CFG | {"weights": paths[0], "queries_per_step": 64})
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(UserError, match=r"nothing has such a name \(.* holds checkpoint-10\); correct the path"):
        paths_of(str(tmp_path / "chekpoint-*"))
    with pytest.raises(UserError, match=r"nothing lies there \(.* holds checkpoint-10\)"):
        recognise(str(tmp_path / "checkpoints-10"))
    with pytest.raises(UserError, match="nothing has such a name; correct"):
        paths_of(str(tmp_path / "xyz-*"))
    with pytest.raises(UserError, match="needs weights="):
        paths_of(None)


# ------------------------------------------------------------------------------------------------- what does not fit


def refused(policies, path) -> str:
    with pytest.raises(UserError) as told:
        adopted(policies, path)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_wrong_weights_are_told(lora, policies, tmp_path):
    save = lambda name, state: save_file(state, tmp_path / name) or tmp_path / name  # noqa: E731
    pair = lambda module, wide, a="lora_A", b="lora_B": {  # noqa: E731
        f"{module}.{a}.weight": torch.zeros(4, wide),
        f"{module}.{b}.weight": torch.zeros(64, 4),
    }
    attention = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    sdxl = save("sdxl.safetensors", pair(attention, 2048))
    assert (
        f"a LoRA in diffusers' format that does not fit the base {BASE}: its cross-attention takes text states of "
        "width 2048 (Stable Diffusion XL), and that of the base 128; give a LoRA of that base"
        in refused(policies, sdxl)
    )
    deep = save("deep.safetensors", pair("unet.down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_k", 128))
    layer = "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_k"
    assert f"does not fit the base {BASE}: the base has no layer {layer}; give" in refused(policies, deep)
    kohya_xl = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 1280)}
    assert "of Stable Diffusion XL" in refused(
        policies, foreign.save_kohya(lora, tmp_path / "xl.safetensors", **kohya_xl)
    )
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 128)}
    with_text = foreign.save_kohya(lora, tmp_path / "text.safetensors", **text)
    assert "it has parts for the text encoder" in refused(policies, with_text)
    flux = save("flux.safetensors", pair("transformer.single_transformer_blocks.0.attn.to_q", 3072))
    assert "it is of a transformer (Stable Diffusion 3, Flux)" in refused(policies, flux)
    loha = save("loha.safetensors", {"lora_unet_conv_out.hada_w1_a": torch.zeros(4, 4)})
    assert "no plain LoRA" in refused(policies, loha)
    uneven = pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", 64)
    uneven = {key: torch.zeros(64, 8) if "lora_B" in key else value for key, value in uneven.items()}
    told = refused(policies, save("uneven.safetensors", uneven))
    assert "attn1.to_k have the ranks 4 and 8" in told and "suite.base" not in told
    narrow = save("narrow.safetensors", pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", 9))
    assert "attn1.to_k is of a layer of [64, 9], and that of the base is [64, 64]" in refused(policies, narrow)
    half = save("half.safetensors", dict(list(pair("unet.conv_in", 4).items())[:1]))
    assert "conv_in has one matrix of two" in refused(policies, half)
    original = save("original.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)})
    assert "a checkpoint in the original layout; convert it by" in refused(policies, original)
    classifier = save("other.safetensors", {"fc.weight": torch.zeros(1)})
    assert "holds neither a UNet nor a LoRA; give a run folder" in refused(policies, classifier)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    assert "broken.safetensors cannot be read" in refused(policies, tmp_path / "broken.safetensors")
    (tmp_path / "sd3/transformer").mkdir(parents=True)
    assert "there are no weights in that folder" in refused(policies, tmp_path / "sd3")
    (tmp_path / "empty").mkdir()
    assert "there are no weights in that folder" in refused(policies, tmp_path / "empty")
    assert "nothing lies there" in refused(policies, tmp_path / "nowhere")


def test_a_unet_of_another_architecture_is_told(policies, tmp_path):
    state = {key: value.contiguous() for key, value in foreign.base_unet().state_dict().items()}
    wide = {
        k: v.new_zeros(v.shape[0], 768) if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else v
        for k, v in state.items()
    }
    save_file(wide, tmp_path / "sd1.safetensors")
    told = refused(policies, tmp_path / "sd1.safetensors")
    assert (
        f"a UNet's state dict of another architecture than the base {BASE}: its cross-attention takes text states of "
        "width 768 (Stable Diffusion 1.x), and that of the base 128; give weights"
        in told
        and "suite.base=" in told
    )
    renamed = {key.replace("attn1", "self_attn"): value for key, value in state.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    told = refused(policies, tmp_path / "renamed.safetensors")
    assert ".attn1.to_q.weight is missing, " in told and "width" not in told and "Diffusion" not in told
    more = {"conv_in.weight": torch.zeros(state["conv_in.weight"].shape[0], 9, 3, 3)}
    save_file(state | more, tmp_path / "inpainting.safetensors")
    assert "it takes 9 channels, and the base 4;" in refused(policies, tmp_path / "inpainting.safetensors")
    del state["conv_out.bias"]
    save_file(state, tmp_path / "part.safetensors")
    assert "conv_out.bias is missing, 1 such" in refused(policies, tmp_path / "part.safetensors")


def test_a_pipeline_with_other_parts_is_told(policies, tmp_path):
    folder = foreign.save_pipeline(foreign.base_unet(), tmp_path / "pipeline")
    file = folder / "text_encoder/model.safetensors"
    state = load_file(file)
    save_file({f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}, file)
    adopted(policies, folder)  # the same encoder, as an older transformers names its tensors
    key = next(key for key, value in state.items() if value.ndim == 2)
    save_file(state | {key: state[key] + 1}, file)
    assert "its text_encoder is another than that of the base" in refused(policies, folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_executed_from_a_pickle(policies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.ckpt", "unet/diffusion_pytorch_model.bin", "lora/pytorch_lora_weights.bin"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps({"conv_in.weight": Bomb()}))
    torch.save({"conv_in.weight": Bomb()}, tmp_path / "zip.pt")
    assert "model.ckpt is a pickle, which can run any code" in refused(policies, "model.ckpt")
    assert "zip.pt is a pickle" in refused(policies, "zip.pt")
    assert "diffusion_pytorch_model.bin is a pickle" in refused(policies, "unet")
    told = refused(policies, "lora")
    assert "pytorch_lora_weights.bin is not a checkpoint of plain tensors: it holds more, which could run any" in told
    assert "was not opened; ask for safetensors." in told
    (tmp_path / "only").mkdir()
    for name in ("lora.pt", "optimizer.pt"):
        torch.save({}, tmp_path / "only" / name)
    assert "lora.pt is a pickle, which can run any code" in refused(policies, "only")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_does_not_fit_is_told_without_being_taken_up(kind, lora, policies, tmp_path):
    """By names and shapes; the policy stays as it is."""
    unet = foreign.merged(lora)
    sound = foreign.save_diffusers(lora, tmp_path / "sound") if kind == "lora" else tmp_path / "unet"
    if kind == "full":
        unet.save_pretrained(sound)
    adopt(policies[kind], recognise(str(sound)), BASE, 0.5)
    before = output(policies[kind])
    check_fit(policies[kind], recognise(str(sound)), BASE)
    file = next(sound.glob("*.safetensors"))
    whole = file.read_bytes()
    state = load_file(file)
    key = next(key for key, value in state.items() if value.ndim == 2)
    for fault in (state | {key: torch.zeros(3, 3)}, {f"x.{name}": value for name, value in state.items()}):
        save_file(fault, file)
        with pytest.raises(UserError, match=r"the base|ranks"):
            check_fit(policies[kind], recognise(str(sound)), BASE)
    file.write_bytes(whole[:-64])
    with pytest.raises(UserError, match="cannot be read"):
        check_fit(policies[kind], recognise(str(sound)), BASE)
    assert torch.equal(output(policies[kind]), before)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_that_are_no_numbers_are_told(kind, lora, policies, tmp_path):
    state = foreign.matrices(lora) if kind == "lora" else dict(foreign.base_unet().state_dict())
    key = next(iter(state))
    state = {name: value.clone().contiguous() for name, value in state.items()}
    state[key].view(-1)[0] = torch.nan
    save_file({f"unet.{k}": v for k, v in state.items()} if kind == "lora" else state, tmp_path / "nan.safetensors")
    told = refused(policies, tmp_path / "nan.safetensors")
    assert "1 of its " in told and "hold NaN or infinity" in told and "give an earlier checkpoint" in told
