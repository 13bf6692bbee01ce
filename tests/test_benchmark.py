"""The benchmark at tiny size; the counts of memory and arithmetic against ones by hand."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import iteration, sd14
from benchmarks.counted import LiveBytes, flops_a_row, in_float32, peak_bytes
from benchmarks.weights import SD35, SDXL, TEXT, TEXT_2, UNET, VAE, VIT_H, VIT_L
from src.finetuner import PHASES
from tests.forked import call_forked
from tests.test_policy import make_policy

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def benchmark(*arguments: str) -> None:
    """`python -m benchmarks.sd14`, for a fork of a process that has imported everything."""
    sys.argv = ["benchmarks.sd14", *arguments]
    runpy.run_module("benchmarks.sd14", run_name="__main__", alter_sys=True)


@needs_no_gpu
def test_tiny_size_gives_every_figure_and_they_agree(tmp_path: Path):
    size = ["--size", "tiny", "--samples", "4", "--iterations", "2"]
    done = call_forked(benchmark, *size, "--out", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads(done.stdout)
    assert figures["note"] == "no GPU here: tiny size on the CPU, figures say nothing about a GPU"
    assert (figures["size"], figures["suite"], figures["precision"]) == ("tiny", "sd14", "bf16-mixed")
    assert (
        figures["device"]
        and figures["date"]
        and figures["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    )
    seconds, phases = figures["seconds_per_iteration"], figures["seconds_by_phase"]
    assert set(phases) == set(PHASES) and min(seconds for name, seconds in phases.items() if name != "reference") > 0
    assert seconds == pytest.approx(sum(phases.values()))
    assert figures["extrapolated"] and figures["seconds_per_iteration_of_8"] == pytest.approx(2 * seconds)
    assert figures["sampled_images_per_second"] == pytest.approx(4 / phases["sampling"])
    rows = 4 * 3  # samples, steps
    assert figures["trained_steps_per_second"] == pytest.approx(rows / seconds)
    assert figures["trained_steps_per_second_of_update"] == pytest.approx(rows / phases["update"])
    assert figures["optimizer_updates_per_second_of_update"] == pytest.approx(2 * 3 / phases["update"])
    achieved = figures["gflop_a_trained_step"] * rows / phases["update"] / 1e3
    assert figures["update_tflop_per_second"] == pytest.approx(achieved)
    assert figures["update_share_of_matmul_rate"] == pytest.approx(achieved / figures["matmul_tflop_per_second"])
    # nothing bounds the share here: where bfloat16 is emulated, products are slower than all the rest
    assert figures["update_share_of_matmul_rate"] > 0 and figures["peak_gib"] > 0


@needs_no_gpu
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "error: --size full needs a GPU and there is none here: choose --size tiny, or insist with --force."),
        (["--size", "tiny", "--iterations", "0"], "error: --iterations 0 must be at least 1."),
        (["--size", "tiny", "--samples", "6"], "error: --samples 6 must be a multiple of 4, two microbatches"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.sd14", *arguments])
    with pytest.raises(SystemExit, match="2"):
        sd14.main()
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(sentence)


@pytest.mark.slow
def test_memory_is_counted_by_the_suites_own_options():
    asked = ["--size", "tiny", "--estimate", "microbatch=2"]
    plain, single = (
        sd14.run(sd14.parser().parse_args([*asked, "--suite", suite])) for suite in ("sd14", "sd14_single_gpu")
    )
    pflop, again = plain["pflop_an_iteration"], single["pflop_an_iteration"]
    plain, single = plain["gib_counted_not_measured"], single["gib_counted_not_measured"]
    assert min(plain.values()) > 0
    kept = sum(plain[key] for key in ("weights", "gradients and Adam's moments", "rollout"))
    passing = [plain[key] for key in plain if key.startswith(("sampling", "decoding", "scoring", "critic", "update"))]
    assert len(passing) == 8 and plain["peak"] == pytest.approx(kept + max(passing), rel=1e-3)
    assert single["weights"] < plain["weights"]  # rewards in bfloat16
    assert single["update"] < 0.6 * plain["update"]  # checkpointing
    assert single["decoding"] < 0.7 * plain["decoding"]  # one picture at a time
    assert pflop == again and 2 < pflop["update"] / pflop["sampling"] < 3.5  # as many rows, forward and backward
    assert pflop["critic's features"] > 3 * pflop["decoding"]  # of three steps; and embedded
    assert [name for name in pflop if name.startswith("scoring")] == ["scoring by hps"]  # the others only evaluate
    assert pflop["in all"] == pytest.approx(sum(pflop.values()) / 2, rel=0.02)


def time_and_count(suite: str) -> None:
    asked = ["--size", "tiny", "--samples", "4", "--suite", suite, "microbatch=1"]
    timed = sd14.run(sd14.parser().parse_args(asked))
    counted = sd14.run(sd14.parser().parse_args([*asked, "--estimate"]))
    print(json.dumps(timed | counted))


@pytest.mark.slow
@needs_no_gpu
@pytest.mark.parametrize("suite", ["sdxl", "sd35"])
def test_larger_models_are_timed_and_counted(suite):
    done = call_forked(time_and_count, f"{suite}_single_gpu")
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    trained = 4 * (3 if suite == "sdxl" else 2)  # the flow's last step draws no noise
    assert figures["trained_steps_per_second"] * figures["seconds_per_iteration"] == pytest.approx(trained)
    assert min(figures["gib_counted_not_measured"].values()) > 0


def test_bytes_alive_are_counted():
    x, w = torch.zeros(8, 8), torch.zeros(8, 8)
    size = x.nbytes
    with LiveBytes([x, w]) as live:
        y = x @ w
        z = (y @ w).relu_().T  # in place and a view: no memory of their own
        assert live.now == 2 * size
        del y
        assert live.now == size
        del z
    assert (live.now, live.peak) == (0, 2 * size)


def test_norms_are_counted_in_float32_under_autocast_as_cuda_takes_them():
    norm, x = in_float32(torch.nn.functional.layer_norm), torch.zeros(2, 4, dtype=torch.bfloat16)
    assert norm(x, (4,)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x, (4,)).dtype == torch.float32


def test_arithmetic_is_counted():
    """Of the convolutions by hand: one forward pass, and one for the gradient of their input."""
    policy = make_policy(num_steps=1)
    guided = make_policy(num_steps=1, guidance=3.0)
    flops = flops_a_row(policy)
    assert flops_a_row(guided) == pytest.approx(2 * flops, rel=1e-6)
    seen = []
    for module in policy.unet.modules():
        if type(module) is torch.nn.Conv2d:
            module.register_forward_hook(lambda m, _, y: seen.append(2 * m.weight.numel() * y.shape[2] * y.shape[3]))
    policy.predict(torch.zeros(1, 4, 16, 16), torch.tensor([1]), policy.encode_prompts(["a cat"]))
    assert sum(seen) < flops < 4 * sum(seen)  # and linear layers, attention
    checkpointed = make_policy(num_steps=1, gradient_checkpointing=True)
    assert flops_a_row(checkpointed) == flops and checkpointed.unet.is_gradient_checkpointing


def test_full_size_has_the_parameters_of_the_published_models():
    with torch.device("meta"):
        models = {
            859_520_964: UNet2DConditionModel(**UNET),
            83_653_863: AutoencoderKL(latent_channels=4, **VAE),
            123_060_480: CLIPTextModel(CLIPTextConfig(**TEXT)),
            986_109_441: CLIPModel(CLIPConfig(**VIT_H)),
            427_616_513: CLIPModel(CLIPConfig(**VIT_L)),
            2_567_463_684: UNet2DConditionModel(**SDXL["unet"]),
            694_659_840: CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2)),
            2_243_171_520: SD3Transformer2DModel(**SD35["transformer"]),
        }
    for count, model in models.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_peak_bytes_leaves_the_weights_out():
    policy = make_policy(num_steps=1)
    assert peak_bytes([policy], lambda: policy.unet.conv_in.weight.mul(1), None) == policy.unet.conv_in.weight.nbytes


@pytest.mark.slow
def test_overrides_are_compared_with_the_default_in_turns(monkeypatch, capsys):
    few = ["samples_per_iteration=8", "num_steps=2"]
    monkeypatch.setattr(
        sys, "argv", ["iteration", "--rounds", "2", "--iterations", "1", "--experiment", "ddpo_hps", *few]
    )
    iteration.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found["medians"]) == ["default", " ".join(few)] and len(found["ratio_by_round"]) == 2
    for arm in found["medians"].values():
        assert arm["phases"]["update"] > 0 and arm["seconds_per_iteration"] == pytest.approx(
            sum(arm["phases"].values()), rel=0.2
        )


def test_the_profile_names_operators(monkeypatch, capsys):
    few = ["samples_per_iteration=8", "num_steps=2", "microbatch=8"]
    monkeypatch.setattr(sys, "argv", ["iteration", "--operators", "200", "--experiment", "ddpo_hps", *few])
    iteration.main()
    assert "aten::convolution_backward" in capsys.readouterr().out
