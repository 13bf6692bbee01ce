"""The iteration as a whole, on the real policy, with rewards and critics whose right answer is known."""

import functools

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision

from src.algorithms.ddpo import DDPO
from src.algorithms.tdpo import TDPO
from src.callbacks.evaluation import CrossRewardEvaluation
from src.critic.base import Critic
from src.errors import TrainingError, UserError
from src.finetuner import RewardFinetuner
from src.metrics.glossary import lookup
from src.normalise import PromptNormaliser
from src.prompts import PromptData, PromptSets
from src.regularisers.ema import EMA
from src.resets.active import ActiveReset
from src.resets.none import NoReset
from src.rewards.base import RewardModel
from tests.test_policy import make_policy

STEPS = 2


class Redness(RewardModel):
    """How red a picture is."""

    embed_dim = 12

    def forward(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))

    def embed_images(self, images):
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


class PictureCritic(Critic):
    """Sees the final picture, of which redness is a linear function."""

    def features(self, rollout):
        pooled = F.adaptive_avg_pool2d(rollout.images, 2).flatten(1)
        return pooled[:, None].expand(-1, len(rollout.timesteps), -1).contiguous()


class NotANumber(Redness):
    def forward(self, images, prompts):
        return super().forward(images, prompts) * torch.nan


def build(algorithm=None, critic=None, reward=None, reset=None, lr=0.0, **changes) -> RewardFinetuner:
    torch.manual_seed(changes.get("seed", 0))
    adamw = functools.partial(torch.optim.AdamW, weight_decay=0.0)
    options = {
        "policy": make_policy(num_steps=STEPS, sampling_batch=32, lora_rank=8, lora_targets=["conv1", "conv2"]),
        "reward": reward or Redness(),
        "reward_name": "redness",
        "algorithm": algorithm or TDPO(clip_range=1e-4, value_clip_range=10.0, advantage_clip=5.0),
        "critic": critic,
        "reset": reset or NoReset(),
        "normaliser": PromptNormaliser(buffer=2048, min_count=16),
        "optimizer": functools.partial(adamw, lr=lr),
        "critic_optimizer": functools.partial(adamw, lr=1e-2),
        "microbatch": 32,
        "max_grad_norm": 1.0,
        "seed": 0,
    }
    return RewardFinetuner(**(options | changes))


def fit(finetuner: RewardFinetuner, iterations: int, samples: int = 32, **options) -> list[dict]:
    rows = []
    finetuner.record = lambda kind, metrics: rows.append(metrics) or metrics
    trainer = lightning.Trainer(
        max_epochs=1,
        limit_train_batches=iterations,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **options,
    )
    trainer.fit(finetuner, PromptData(["cat"], samples, 1, seed=0))
    return rows


def new_critic() -> PictureCritic:
    torch.manual_seed(0)
    return PictureCritic(12, hidden=[64], dropout=0.0, activation="relu", timestep_input=False)


def test_the_critic_learns_a_linearly_decodable_return():
    rows = fit(build(critic=new_critic(), critic_epochs=4), iterations=12)
    assert rows[0]["critic/explained_variance"] < 0.5
    assert sum(row["critic/explained_variance"] for row in rows[-5:]) / 5 > 0.9  # on samples it has not seen


@pytest.mark.parametrize("algorithm", [DDPO, TDPO])
def test_the_reward_rises(algorithm):
    """Redness is easy to raise: five iterations lift it well above that of the same seeds before."""
    options = {"clip_range": 1e-2, "advantage_clip": 5.0, "samples_per_update": 16, "timestep_weighting": "variance"}
    if algorithm is TDPO:
        finetuner = build(TDPO(**options, value_clip_range=0.2), critic=new_critic(), lr=3e-3, seed=1)
    else:
        finetuner = build(DDPO(**options), lr=3e-3, seed=1)

    def redness() -> torch.Tensor:
        images = finetuner.policy.sample(["cat"] * 64, list(range(64))).images
        return finetuner.reward.score(images, ["cat"] * 64)

    before = redness()
    fit(finetuner, iterations=5)
    assert (redness() - before).mean() > 0.3 * before.std()


def rows_of_updates(finetuner, t: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of an iteration of 32 samples."""
    return list(finetuner.algorithm.updates(32, t, finetuner.seed, finetuner.iteration))


def test_shuffled_timesteps_still_see_every_row_once():
    shuffled = build(critic=new_critic(), algorithm=TDPO(1e-4, 0.2, 5.0, samples_per_update=8, shuffle_timesteps=True))
    updates = rows_of_updates(shuffled, STEPS)
    pairs = [pair for i, j in updates for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(pairs) == [(i, j) for i in range(32) for j in range(STEPS)] and len(updates) == 4 * STEPS
    assert any(len(set(j.tolist())) > 1 for _, j in updates)


def test_a_group_takes_one_of_each_run_of_neighbours():
    """So that every update sees all prompts, and as many samples of every rank."""
    groups = [i for i, _ in rows_of_updates(build(DDPO(1e-4, 5.0, samples_per_update=8)), 1)]
    assert all((group // 4).tolist() == list(range(8)) for group in groups)
    assert not torch.equal(groups[0], torch.arange(0, 32, 4))


def test_the_critics_gradient_factor_multiplies_its_clipped_gradients_alone():
    """SGD moves each weight by them: where the norm is clipped to 0.01 a quarter of that is left."""
    once, moved, norms = TDPO(1e-4, 10.0, 5.0, schedule="trajectory"), [], []
    for factor in (1.0, 0.25):
        options = {"critic_optimizer": functools.partial(torch.optim.SGD, lr=1.0), "max_grad_norm": 0.01}
        finetuner = build(once, new_critic(), critic_gradient_factor=factor, **options)
        before = [p.detach().clone() for p in finetuner.critic.parameters()]
        row = fit(finetuner, iterations=1, samples=4)[0]
        norms.append([row["policy/grad_norm"], row["critic/grad_norm"]])
        steps = [p.detach() - old for p, old in zip(finetuner.critic.parameters(), before, strict=True)]
        moved.append(torch.cat([step.flatten() for step in steps]).norm().item())
    assert norms[0] == norms[1] and norms[0][1] > 0.01  # logged as they were before
    assert moved == pytest.approx([0.01, 0.0025], rel=1e-4)


def test_the_learning_rate_goes_linearly_to_its_factor():
    finetuner = build(DDPO(1e-4, 5.0), lr=0.2, lr_factor=3.0, lr_ramp=2)
    seen = []
    finetuner.on_train_batch_end = lambda *_: seen.append(finetuner._optimizers()[0].param_groups[0]["lr"])
    fit(finetuner, iterations=4, samples=1)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.6])


def test_updates_per_iteration():
    per_timestep = build(critic=new_critic(), algorithm=TDPO(1e-4, 0.2, 5.0, samples_per_update=8))
    per_trajectory = build(DDPO(1e-4, 5.0, samples_per_update=8))
    assert len(rows_of_updates(per_timestep, STEPS)) == 4 * STEPS
    assert len(rows_of_updates(per_trajectory, STEPS)) == 4
    for finetuner in (per_timestep, per_trajectory):
        pairs = [
            pair for i, j in rows_of_updates(finetuner, STEPS) for pair in zip(i.tolist(), j.tolist(), strict=True)
        ]
        assert sorted(pairs) == [(i, j) for i in range(32) for j in range(STEPS)]  # each row once
    assert all(len(set(j.tolist())) == 1 for _, j in rows_of_updates(per_timestep, STEPS))  # timesteps are aligned


def test_a_fraction_of_the_timesteps_is_trained():
    finetuner = build(TDPO(1e-4, 0.2, 5.0, timestep_fraction=0.5), critic=new_critic())
    seen = []
    predict = finetuner.policy.step_distribution
    finetuner.policy.step_distribution = lambda x_t, t, text: seen.append(t) or predict(x_t, t, text)
    rows = fit(finetuner, 1)
    kept = round(0.5 * STEPS)
    assert finetuner.optimizer_steps == kept and np.isfinite(rows[0]["policy/loss"])
    assert [t.unique().item() for t in seen] == finetuner.policy.timesteps[:kept].tolist()  # the noisiest


@pytest.mark.parametrize("window", [[1, 3], 2])
def test_steps_without_noise_are_sampled_and_not_trained(window):
    """MixGRPO's window, on DDIM: fixed, or at another place in each iteration."""
    policy = make_policy(num_steps=4, sampling_batch=32, lora_rank=8, lora_targets=["conv1"], sde_steps=window)
    finetuner, seen, rollouts = build(TDPO(1e-4, 0.2, 5.0), critic=new_critic(), policy=policy), [], []
    predict, sample = policy.step_distribution, policy.sample
    policy.step_distribution = lambda x_t, t, told: seen.append(t.unique().item()) or predict(x_t, t, told)
    policy.sample = lambda *args: rollouts.append(sample(*args)) or rollouts[-1]
    rows = fit(finetuner, 6, samples=4)
    windows = [tuple(seen[k : k + 2]) for k in range(0, len(seen), 2)]
    pairs = {tuple(policy.timesteps[k : k + 2].tolist()) for k in range(3)}
    assert len(windows) == 6 and set(windows) <= pairs
    assert (set(windows) == {tuple(policy.timesteps[1:3].tolist())}) == (window == [1, 3])
    assert all(row["policy/ratio_mean"] == 1 for row in rows)  # unmoved, at learning rate 0
    trained = rollouts[-1].timesteps == torch.tensor(windows[-1])[:, None]
    log_probs = rollouts[-1].log_probs
    assert log_probs[:, ~trained.any(0)].eq(0).all() and log_probs[:, trained.any(0)].ne(0).all()


def test_microbatches_do_not_change_the_update():
    whole, parts = build(DDPO(1e-4, 5.0), lr=1e-3), build(DDPO(1e-4, 5.0), lr=1e-3, microbatch=8)
    parts.policy.load_state_dict(whole.policy.state_dict())
    a, b = fit(whole, 1, samples=16)[0], fit(parts, 1, samples=16)[0]
    assert a["policy/grad_norm"] == pytest.approx(b["policy/grad_norm"], rel=1e-3)


def test_zero_advantage_leaves_the_policy_alone():
    class Flat(Redness):
        def forward(self, images, prompts):
            return torch.zeros(len(images))

    finetuner = build(DDPO(1e-4, 5.0), reward=Flat(), lr=1e-3)
    before = [p.clone() for p in finetuner.policy.trainable()]
    rows = fit(finetuner, 1, samples=8)
    assert rows[0]["policy/grad_norm"] == 0
    assert all(torch.equal(old, new) for old, new in zip(before, finetuner.policy.trainable(), strict=True))


def test_resets_come_when_due_and_are_recorded():
    reset = ActiveReset(every=2, threshold=None, ratio=0.5)
    rows = fit(build(critic=new_critic(), reset=reset), iterations=4, samples=8)
    assert [row["reset/share"] for row in rows] == [0, 0.5, 0, 0.5]
    assert all(0 <= row["neurons/dormant_0"] <= row["neurons/dormant_0.1"] <= 1 for row in rows)


def test_a_reset_without_a_critic_is_refused():
    with pytest.raises(UserError, match="needs a critic"):
        build(DDPO(1e-4, 5.0), reset=ActiveReset())


def test_not_a_number_is_named_with_its_iteration():
    with pytest.raises(TrainingError, match=r"the reward redness is not finite in iteration 1"):
        fit(build(DDPO(1e-4, 5.0), reward=NotANumber()), 1, samples=8)


def test_resets_of_critic_and_policy_are_logged_with_their_effect():
    finetuner = build(critic=new_critic(), reset=ActiveReset(every=2, ratio=0.5, where="both"), lr=1e-3)
    rows = fit(finetuner, iterations=4, samples=4)
    assert [row.get("reset/share", 0) > 0 for row in rows] == [False, True, False, True]
    assert [row.get("reset/lora_share") for row in rows] == [None, 0.5, None, 0.5]
    reset = rows[-1]
    assert reset["reset/lora_share/layer_0"] == 0.5 and 0 <= reset["reset/lora_overlap"] <= 1
    assert reset["reset/share/layer_0"] == reset["reset/share"]  # the only hidden layer
    assert 0 <= reset["reset/overlap"] <= 1 and "reset/overlap" not in rows[1]
    assert reset["reset/explained_variance_before"] != reset["reset/explained_variance_after"]
    assert {"neurons/gradient_dormant_0", "neurons/dormant_0"} <= reset.keys()


@pytest.mark.parametrize("schedule", ["timestep", "trajectory"])
def test_further_critic_passes_train_the_critic_alone(schedule):
    def run(epochs: int) -> RewardFinetuner:
        algorithm = TDPO(1e-4, 0.2, 5.0, schedule=schedule)
        finetuner = build(algorithm, critic=new_critic(), lr=1e-3, critic_epochs=epochs)
        fit(finetuner, iterations=1, samples=4)
        return finetuner

    once, thrice = run(1), run(3)
    for a, b in zip(once.policy.trainable(), thrice.policy.trainable(), strict=True):
        assert torch.equal(a, b)
    assert thrice.optimizer_steps == once.optimizer_steps
    steps = [next(iter(f._optimizers()[1].state.values()))["step"].item() for f in (once, thrice)]
    assert steps[1] - steps[0] == 2 * once.policy.num_steps  # one a timestep and pass, whatever the policy's schedule


class Tower(Redness):
    def embed_images(self, images):
        return F.normalize(images.flatten(1), dim=1)


@pytest.mark.parametrize("algorithm", [TDPO(1e-4, 0.2, 5.0), DDPO(1e-4, 5.0)])
def test_training_does_not_notice_evaluation(algorithm, tmp_path):
    evaluation = CrossRewardEvaluation(
        run_dir=str(tmp_path),
        rewards={"redness": Tower(), "other": Tower()},
        prompts=PromptSets(["cat", "dog"], ["owl"]),
        tower=Tower(),
        judge=None,
        samples_per_prompt=2,
        every=1,
    )
    trained = []
    for callbacks in ([], [evaluation]):
        finetuner = build(algorithm, critic=new_critic() if algorithm.uses_critic else None, lr=1e-3)
        rows = fit(finetuner, iterations=3, samples=4, callbacks=callbacks)
        trained.append([row for row in rows if "policy/loss" in row])
    assert len(evaluation.history) == 4 and len(trained[0]) == 3
    assert trained[0] == trained[1]


def test_averaged_weights_are_evaluated_beside_the_raw_ones(tmp_path):
    """Same prompts, same seeds, same base; training does not notice, and states of earlier versions still load."""
    options = {"rewards": {"redness": Tower()}, "prompts": PromptSets(["cat", "dog"], ["owl"]), "tower": Tower()}
    evaluation = CrossRewardEvaluation(str(tmp_path), judge=None, samples_per_prompt=2, every=1, **options)
    ema = EMA(decay=0.5)
    finetuner = build(DDPO(1e-2, 5.0), lr=1e-2, regulariser=ema)
    rows = [row for row in fit(finetuner, 3, samples=4, callbacks=[evaluation]) if "policy/loss" in row]
    assert rows == [row for row in fit(build(DDPO(1e-2, 5.0), lr=1e-2), 3, samples=4) if "policy/loss" in row]
    first, *_, last = evaluation.history
    assert first["eval_ema/redness/mean"] == first["eval/redness/mean"]  # the average begins at the base
    part, policy = evaluation.sets[0], finetuner.policy
    with policy.holding(ema.averaged):
        images = policy.sample(part.prompts, part.seeds).images
    mean = Tower().score(images, part.prompts).mean().item()
    assert last["eval_ema/redness/mean"] == pytest.approx(mean, abs=1e-7) != last["eval/redness/mean"]
    gain = (mean - first["eval/redness/mean"]) / first["eval/redness/base_sd"]
    assert last["eval_ema/redness/gain"] == pytest.approx(gain, rel=1e-3)
    assert last["eval_ema/redness/below_peak"] == pytest.approx(
        max(row["eval_ema/redness/gain"] for row in evaluation.history) - last["eval_ema/redness/gain"]
    )
    assert 0 < last["kl_ema/trajectory"] != last["kl/trajectory"] and "held_out_ema/redness/gain" in last
    assert first["pictures_ema/drift"] == first["pictures/drift"] and last["pictures_ema/drift"] > 0
    for key in last:
        lookup(key)
    state = evaluation.state_dict()
    del state["averaged_peaks"]
    evaluation.load_state_dict(state)


def test_gradient_norms_by_timestep_where_updates_have_one():
    (row,) = fit(build(critic=new_critic(), lr=1e-3), iterations=1, samples=4)
    by_step = [row[f"policy/grad_norm/step_{k}"] for k in range(STEPS)]
    assert np.mean(by_step) == pytest.approx(row["policy/grad_norm"])
    (row,) = fit(build(DDPO(1e-4, 5.0), lr=1e-3), iterations=1, samples=4)
    assert "policy/grad_norm/step_0" not in row


def test_recovery_is_told_once_when_the_critic_explains_as_much_again():
    phase = build(critic=new_critic()).reset
    phase.recovering = (10, 0.2)
    assert phase.recovery(13, {"critic/explained_variance": 0.1}) == {}
    assert phase.recovery(14, {"critic/explained_variance": 0.25}) == {"reset/recovery": 4.0}
    assert phase.recovery(15, {"critic/explained_variance": 0.3}) == {}


class Rescaled(MixedPrecision):
    """Float32 under a gradient scaler, so that all that fp16 adds is the scale."""

    def __init__(self, scale: float):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_both_optimizers_receive_true_gradients(fused):
    """The authors' code unscales the critic's gradients twice (65,536 times too small); a fused optimizer, as runs have
    it, could unscale them itself."""
    adamw = functools.partial(torch.optim.AdamW, weight_decay=0.0, fused=fused)
    optimizers = {"optimizer": functools.partial(adamw, lr=1e-3), "critic_optimizer": functools.partial(adamw, lr=1e-2)}
    keys = ("policy/grad_norm", "critic/grad_norm", "critic/loss", "policy/loss")
    plain, scaled = (
        fit(build(critic=new_critic(), **optimizers), iterations=2, samples=4, plugins=plugins)
        for plugins in ([], [Rescaled(65536.0)])
    )
    for a, b in zip(plain, scaled, strict=True):
        assert [b[key] for key in keys] == pytest.approx([a[key] for key in keys], rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_is_left_out(fused):
    finetuner = build(DDPO(1e-4, 5.0), optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, fused=fused))
    before = [p.clone() for p in finetuner.policy.trainable()]
    fit(finetuner, iterations=1, samples=4, plugins=[Rescaled(float("inf"))])
    assert all(torch.equal(a, b) for a, b in zip(before, finetuner.policy.trainable(), strict=True))
