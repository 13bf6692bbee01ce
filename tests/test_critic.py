"""What critics see of a rollout."""

import pytest
import torch

from src.critic.base import Head
from src.critic.image_tower import ImageTowerCritic
from src.critic.latent import LatentCritic
from src.errors import UserError
from src.ranks import Ranks
from src.rewards.clip import CLIPReward
from tests.conftest import ROOT
from tests.test_policy import make_policy

PROMPTS, SEEDS, STEPS = ["cat", "cat", "owl"], [1, 2, 2], 4


@pytest.fixture(scope="module")
def policy():
    return make_policy(num_steps=STEPS, sampling_batch=2)


@pytest.fixture(scope="module")
def rollout(policy):
    return policy.sample(PROMPTS, SEEDS, keep_predicted=True)


@pytest.fixture(scope="module")
def reward():
    return CLIPReward(str(ROOT / "src/mini/weights/clip"))


def test_predicted_pictures_are_those_that_the_steps_were_made_of(policy, rollout):
    at, after = policy.sampler.schedule.alpha_bars(policy.timesteps)
    noise = policy.noise(SEEDS)
    for i in range(STEPS):
        x_t, x_0 = rollout.latents[:, i], rollout.predicted[:, i]
        epsilon = (x_t - at[i].sqrt() * x_0) / (1 - at[i]).sqrt()
        std = policy.step_std[i]
        mean = after[i].sqrt() * x_0 + (1 - after[i] - std**2).sqrt() * epsilon
        torch.testing.assert_close(mean + std * noise[:, i + 1], rollout.latents[:, i + 1], atol=1e-4, rtol=1e-4)


def test_keeping_predictions_changes_no_sample(policy, rollout):
    plain = policy.sample(PROMPTS, SEEDS)
    assert torch.equal(plain.latents, rollout.latents) and plain.predicted is None


@pytest.mark.parametrize("kind", [ImageTowerCritic, LatentCritic])
def test_prompt_and_timestep_are_appended(kind, policy, rollout, reward):
    bare = kind(reward, policy, [8], timestep_input=False).features(rollout)
    critic = kind(reward, policy, [8], timestep_input=True, prompt_input=True)
    features, width = critic.features(rollout), policy.text_encoder.config.hidden_size
    assert features.shape == (3, STEPS, bare.shape[2] + width + 1)
    assert torch.equal(features[..., : bare.shape[2]], bare)
    prompt = features[..., bare.shape[2] : -1]
    assert torch.equal(prompt[0], prompt[1]) and not torch.allclose(prompt[1], prompt[2])
    torch.testing.assert_close(prompt.square().mean(-1), torch.ones(3, STEPS))
    assert features[0, :, -1].tolist() == pytest.approx([t / 1000 for t in policy.timesteps.tolist()])
    assert critic(features.flatten(0, 1)).shape == (3 * STEPS,)


@pytest.mark.parametrize("kind", [ImageTowerCritic, LatentCritic])
def test_the_predicted_state_is_clean_from_the_first_step_on(kind, policy, rollout, reward):
    """What is predicted from x_T is nearer to the final picture than x_T is."""
    noisy, predicted = (
        kind(reward, policy, [8], timestep_input=False, state=state).features(rollout)
        for state in ("noisy", "predicted")
    )
    final = predicted[:, -1]
    assert ((predicted[:, 0] - final).norm(dim=-1) < (noisy[:, 0] - final).norm(dim=-1)).all()


def test_a_step_in_between_goes_by_the_state_before_it(policy, rollout, reward):
    every = ImageTowerCritic(reward, policy, [8], timestep_input=False).features(rollout)
    second = ImageTowerCritic(reward, policy, [8], timestep_input=False, stride=2).features(rollout)
    torch.testing.assert_close(second, every[:, [0, 0, 2, 2]])


def test_dropout_has_one_rate_or_one_a_layer():
    assert [d.p for d in Head(4, [8, 8], dropout=0.2).dropouts] == [0.2, 0.2]
    assert [d.p for d in Head(4, [8, 8], dropout=[0.5, 0.0]).dropouts] == [0.5, 0.0]
    with pytest.raises(UserError, match="one for each"):
        Head(4, [8, 8], dropout=[0.1])


def test_features_keep_unit_length_on_request(policy, rollout, reward):
    bare = ImageTowerCritic(reward, policy, [8], timestep_input=False, scale_features=False).features(rollout)
    torch.testing.assert_close(bare.norm(dim=-1), torch.ones(3, STEPS))


def test_the_rewards_own_score_is_told_within_the_prompts_samples(policy, rollout, reward, monkeypatch):
    bare = ImageTowerCritic(reward, policy, [8], timestep_input=False, state="predicted").features(rollout)
    critic = ImageTowerCritic(reward, policy, [8], timestep_input=True, state="predicted", score_input=True)
    raw = critic.features(rollout)
    torch.testing.assert_close(raw[..., :-2], bare)
    scores = raw[..., -2].clone()
    features = critic.compared(raw, PROMPTS, Ranks())
    torch.testing.assert_close(features[..., :-2], bare)
    score = features[..., -2]
    spread = scores.std(0, correction=0)
    torch.testing.assert_close(score[2], (scores[2] - scores.mean(0)) / spread, atol=1e-4, rtol=1e-4)  # the only owl
    # of two samples one is a standard deviation above the mean; of scores about 10, which float32 rounds to 1e-6
    torch.testing.assert_close(score[0], -score[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(score[0].abs(), torch.ones(STEPS), atol=1e-3, rtol=0)
    monkeypatch.setattr(Ranks, "gather", lambda self, rows: scores)  # of two ranks, the first of which has two samples
    own = critic.compared(critic.features(rollout.of(torch.tensor([0, 1]))), PROMPTS, Ranks(0, 2))
    torch.testing.assert_close(own[..., -2], score[:2])
    final = reward.score(policy.decode(rollout.predicted[:2, -1]), PROMPTS[:2])
    assert score[0, -1].sign() == (final[0] - final[1]).sign()
    assert critic(features.flatten(0, 1)).shape == (3 * STEPS,)


def test_the_score_is_that_of_the_reward_though_pictures_are_embedded_once(policy, rollout, reward, monkeypatch):
    pictures = policy.decode(rollout.predicted[:, -1])
    embedded, scores = reward.embed_and_score(pictures, PROMPTS)
    torch.testing.assert_close(embedded, reward.embed_images(pictures))
    torch.testing.assert_close(scores, reward.score(pictures, PROMPTS))
    looks = []
    embed = reward.embed_images
    monkeypatch.setattr(reward, "embed_images", lambda images: looks.append(len(images)) or embed(images))
    critic = ImageTowerCritic(reward, policy, [8], timestep_input=True, state="predicted", score_input=True)
    critic.features(rollout)
    assert sum(looks) == len(PROMPTS) * STEPS


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_precision_is_what_the_processor_computes_in(policy, rollout, reward, monkeypatch, able, dtype):
    monkeypatch.setattr("src.critic.image_tower.computes_in_bfloat16", lambda device: able)
    seen = []
    decode = policy.decode

    def decode_and_note(latents):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return decode(latents)

    monkeypatch.setattr(policy, "decode", decode_and_note)
    ImageTowerCritic(reward, policy, [8], precision="auto").features(rollout)
    assert set(seen) == {dtype}
