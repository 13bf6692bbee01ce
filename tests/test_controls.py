"""CoDe and DAS: exact on a Gaussian chain, equal to the base and to best of n where they have to be; their command."""

import math

import numpy as np
import pytest
import torch

from src.config import check
from src.errors import TrainingError, UserError
from src.loggers.wandb_files import sessions
from src.metrics.glossary import lookup
from src.report.figures import treatments
from src.report.headline import headline
from src.report.page import write_report
from src.report.runs import find_runs
from src.rewards.base import RewardModel
from src.seeding import EVALUATION_STREAM, seed_of
from src.tasks.code import CoDe, blockwise, choice_kl
from src.tasks.control import Guided, Scorer, Setting, streams
from src.tasks.das import DAS, log_ratio, resampled, ssp, with_particles
from tests.bandit import GaussianChain, Linear
from tests.conftest import composed, rows_of
from tests.forked import run_forked
from tests.test_finetuner import Redness
from tests.test_policy import PROMPTS, SEEDS, make_policy
from tests.test_resume import kill_at

G = torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1)


def linear(g=G) -> Scorer:
    return Scorer("linear", Linear(g), place="the toy")


# ---------------------------------------------------------------------------------------------------------------- CoDe


def test_one_candidate_is_the_base_to_the_bit():
    policy = make_policy()
    drawn = CoDe(block_size=2, n=1).draw(policy, Scorer("red", Redness()), PROMPTS, SEEDS, n=1)
    assert torch.equal(drawn, policy.sample(PROMPTS, SEEDS).x_0)


@pytest.mark.parametrize("block_size", [4, 9])
def test_one_block_of_all_steps_is_best_of_n_on_the_same_noise(block_size):
    policy, reward, n = make_policy(sampling_batch=9), Redness(), 3
    pool = policy.sample([prompt for prompt in PROMPTS for _ in range(n)], streams(SEEDS, n))
    kept = reward.score(pool.images, pool.prompts).view(3, n).argmax(1)
    assert kept.any()  # not the base's own
    drawn = CoDe(block_size, n).draw(policy, Scorer("red", reward), PROMPTS, SEEDS, n=n)
    assert torch.equal(drawn, pool.x_0.unflatten(0, (3, n))[torch.arange(3), kept])


@pytest.mark.parametrize("block_size", [1, 2, 3])
@torch.no_grad()
def test_each_block_goes_on_from_the_candidate_whose_predicted_x_0_scores_best(block_size):
    """Written out for one picture, one candidate after the other; three steps leave a shorter block of four."""
    policy, reward, n = GaussianChain(4), Linear(G), 5
    noise, text = policy.noise(streams([7], n)), policy.encode_prompts(["x"])
    starts = list(noise[:, 0])
    for first in range(0, 4, block_size):
        steps, ends, scores = range(first, min(first + block_size, 4)), [], []
        for k in range(n):
            x = starts[k][None]
            for i in steps:
                mean, std = policy.step_distribution(x, policy.timesteps[i][None], text)
                x = mean + std * noise[k, i + 1]
            ends.append(x[0])
            if steps[-1] < 3:
                t = policy.timesteps[steps[-1] + 1][None]
                x = policy.predicted_clean(policy.predict(x, t, text), x, t)
            scores.append(reward.score(policy.decode(x), ["x"]).item())
        starts = [ends[int(np.argmax(scores))]] * n
    drawn = CoDe(block_size, n).draw(policy, linear(), ["x"], [7], n=n)
    torch.testing.assert_close(drawn[0], starts[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("control", [CoDe(2, 2), DAS(2, 1.0)], ids=["code", "das"])
def test_another_seed_of_the_run_draws_others_beside_the_pictures_own(control):
    policy, options = GaussianChain(4), {"n": 2} if isinstance(control, CoDe) else {"particles": 2, "alpha": 1.0}
    drawn = []
    for control.seed in (0, 0, 1):
        drawn.append(control.draw(policy, linear(), ["x"] * 4, [1, 2, 3, 4], **options))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert streams([7], 2, 1)[0] == streams([7], 2)[0] == 7 and streams([7], 2, 1)[1] != streams([7], 2)[1]


def test_more_candidates_and_more_blocks_score_higher():
    policy, reward, seeds = GaussianChain(4), linear(), list(range(400))
    means = {
        (b, n): (CoDe(b, n).draw(policy, reward, ["x"] * 400, seeds, n=n) * G).sum((1, 2, 3)).mean().item()
        for b, n in ((4, 1), (4, 4), (2, 4), (2, 8))
    }
    assert means[4, 1] < 0.15 < means[4, 4] < means[2, 4] < means[2, 8]
    sd = math.sqrt(policy.variance * G.square().sum())
    assert means[4, 4] == pytest.approx(1.02938 * sd, abs=4 * sd / 20)  # the mean of the highest of four normal numbers


def test_cost_and_kl_by_hand():
    two, four = CoDe(4, [4, 2]).settings(num_steps=10, queries=1)  # blocks of 4, 4 and 2
    assert (two.at, four.at, two.label) == (6, 12, "N = 2") and four.columns["reward_gradients"] == 0
    assert four.columns["kl/trajectory"] == pytest.approx(3 * (math.log(4) - 0.75))
    assert choice_kl(5, 1) == 0 and choice_kl(1, 2) == pytest.approx(math.log(2) - 0.5)
    assert CoDe(5, 3).settings(10, queries=2)[0].at == 12  # two rewards are asked of each candidate
    assert CoDe(5, 3).base_columns()["kl/trajectory"] == 0


# ----------------------------------------------------------------------------------------------------------------- DAS


@pytest.mark.parametrize(("ess_threshold", "gamma"), [(0.5, None), (0.0, None), (1.0, 0.3)])
def test_particles_approach_the_closed_form_of_the_tilted_base(ess_threshold, gamma):
    """x_0 of the chain is N(0, V I); tilted by exp(g . x_0 / alpha) it is N(V g / alpha, V I)."""
    policy, alpha, p, n = GaussianChain(4), 0.3, 1024, 16
    control = DAS(p, alpha, gamma, ess_threshold)
    x_0, log_w = control.particles_of(policy, linear(), ["x"] * n, list(range(n)), p, alpha)
    w, wanted = log_w.softmax(1)[..., None, None, None], policy.variance * G / alpha
    mean = (w * x_0).sum(1)
    ratio = (mean * G).sum((1, 2, 3)) / (wanted * G).sum()
    error = ratio.std().item() / n**0.5
    assert error < 0.03 and ratio.mean().item() == pytest.approx(1, abs=4 * error)
    variance = (w * (x_0 - mean[:, None]) ** 2).sum(1).mean().item()
    assert variance == pytest.approx(policy.variance, rel=0.05)


def test_the_reward_is_measured_in_its_unit():
    """alpha in base sd: of a reward of twice the spread a value is worth half as much."""
    policy, options = GaussianChain(3), {"particles": 4, "alpha": 1.0}
    double = Scorer("double", Linear(2 * G), unit=2.0)
    single, same = (DAS(4, 1.0).draw(policy, r, ["x"], [5], **options) for r in (linear(), double))
    torch.testing.assert_close(single, same, atol=1e-5, rtol=0)


@pytest.mark.parametrize("particles", [1, 3])
def test_an_infinite_temperature_is_the_base(particles):
    policy = make_policy(sampling_batch=3 * particles)
    policy.requires_grad_(False)
    control = DAS(particles, math.inf)
    drawn = control.draw(policy, Scorer("red", Redness()), PROMPTS, SEEDS, particles=particles, alpha=math.inf)
    expected = policy.sample(PROMPTS, SEEDS).x_0
    torch.testing.assert_close(drawn, expected, atol=0 if particles == 1 else 1e-5, rtol=0)
    near = control.draw(policy, Scorer("red", Redness()), PROMPTS, SEEDS, particles=particles, alpha=1e-2)
    assert Redness().score(policy.decode(near), PROMPTS).mean() > Redness().score(policy.decode(drawn), PROMPTS).mean()


def test_weights_equal_the_densities_written_out():
    """Of one step: log p - log q by torch's normal distribution, and the potential by hand."""
    rng = torch.Generator().manual_seed(0)
    z, shift = torch.randn(2, 4, 3, 1, 1, generator=rng)
    mean, std = torch.full((4, 3, 1, 1), 0.3), 0.7
    x, normal = mean + std * (z + shift), torch.distributions.Normal
    p, q = (normal(at, std).log_prob(x).sum((1, 2, 3)) for at in (mean, mean + std * shift))
    torch.testing.assert_close(log_ratio(z, shift), p - q)
    policy = GaussianChain(1)
    x_0, log_w = DAS(3, 2.0, ess_threshold=0.0).particles_of(policy, linear(), ["x"], [1], 3, 2.0)
    noise = policy.noise(streams([1], 3))
    x_1 = noise[:, 0]
    alpha_bar = policy.sampler.schedule.alpha_bars(policy.timesteps)[0]
    slope = (
        1 - (1 - alpha_bar) / (alpha_bar * policy.spread + 1 - alpha_bar)
    ) / alpha_bar.sqrt()  # predicted x_0 / x_1
    gain, std = policy.step_distribution(torch.ones(1, 3, 1, 1), policy.timesteps, policy.encode_prompts(["x"]))
    push = std.item() * slope * G / 2  # sigma grad v, lambda_1 = 1
    expected = gain[0] * x_1 + std.item() * (noise[:, 1] + push)
    torch.testing.assert_close(x_0[0], expected, atol=1e-4, rtol=1e-4)
    by_hand = log_ratio(noise[:, 1], push.expand(3, 3, 1, 1)) + (expected * G).sum((1, 2, 3)) / 2
    torch.testing.assert_close(log_w[0].log_softmax(0), by_hand.log_softmax(0), atol=1e-3, rtol=1e-3)


def test_resampling_by_the_effective_sample_size():
    uneven, even = [0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1]  # 1 / sum w^2 is 1.06 and 3.33
    log_w = torch.tensor([uneven, even]).log() + 5  # a constant makes no difference
    rows, after = resampled(log_w.clone(), 0.5, [0, 1])
    assert rows[4:].tolist() == [4, 5, 6, 7] and rows[:3].tolist() == [0, 0, 0]
    torch.testing.assert_close(after.exp(), torch.tensor([[0.25] * 4, even]))
    assert resampled(log_w.clone(), 0.0, [0, 1])[0].tolist() == list(range(8))
    torch.testing.assert_close(resampled(log_w.clone(), 0.9, [0, 1])[1].exp(), torch.full((2, 4), 0.25))


def test_ssp_leaves_floor_or_ceiling_of_what_weights_ask_and_that_in_the_mean():
    rng, weights = np.random.default_rng(0), np.array([0.05, 0.5, 0.13, 0.32])
    drawn = np.array([np.bincount(ssp(weights, rng), minlength=4) for _ in range(20_000)])
    assert (drawn.sum(1) == 4).all()
    assert (drawn >= np.floor(4 * weights)).all() and (drawn <= np.ceil(4 * weights)).all()
    np.testing.assert_allclose(drawn.mean(0), 4 * weights, atol=0.015)  # four standard errors
    assert ssp(np.array([0.0, 1.0]), rng).tolist() == [1, 1] and ssp(np.ones(3) / 3, rng).tolist() == [0, 1, 2]


def test_tempering_by_hand():
    authors = DAS(4, 0.1, gamma=0.008).temperatures(100)
    assert authors[0] == 0 and authors[86] == pytest.approx(1.008**86 - 1) and authors[87:] == [1.0] * 14
    assert DAS(4, 0.1).temperatures(100) == pytest.approx(authors, abs=1e-3)
    few = DAS(4, 0.1).temperatures(10)
    assert few[8] < 1 == few[9] == few[10] and len(few) == 11 and few == sorted(few)
    assert DAS(4, 0.1, gamma=0.008).temperatures(2)[1:] == pytest.approx([0.008, 1])


def test_cost_of_particles_by_hand():
    one, four = DAS([4, 1], 0.1).settings(num_steps=10, queries=1)
    assert (one.at, four.at, four.label) == (11, 44, "P = 4")
    assert four.columns == {"reward_gradients": 40, "das/particles": 4, "das/alpha": 0.1}  # and nothing of a KL
    assert [s.label for s in DAS(2, [0.1, 1]).settings(10, 2)] == ["alpha = 1", "alpha = 0.1"]
    assert DAS(2, 0.1).settings(10, 2)[0].at == 44


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: CoDe(0, 2), "code.block_size=0 must be at least 1"),
        (lambda: CoDe(2, [2, 0]), "code.n=.2, 0.: give whole numbers from 1 on"),
        (lambda: CoDe(2, 2.5), "code.n=2.5: give whole numbers from 1 on"),
        (lambda: CoDe(2, "many"), "code.n=many: give numbers"),
        (lambda: DAS([2, 2], 1), "das.particles=.2, 2.: give different numbers"),
        (lambda: DAS(4, [1, 0]), "das.alpha=.1, 0.: a temperature is above 0"),
        (lambda: DAS(4, []), "das.alpha=..: a temperature is above 0"),
        (lambda: DAS([1, 2], [1, 2]), "das: one curve varies either das.particles or das.alpha"),
        (lambda: DAS(4, 1, gamma=0.0), "das.gamma=0.0 must be above 0, or null"),
        (lambda: DAS(4, 1, ess_threshold=2.0), "das.ess_threshold=2.0 lies outside 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(made, message):
    with pytest.raises(UserError, match=message) as told:
        made()
    assert "\n" not in str(told.value)


def configured(folder, *overrides: str) -> dict:
    small = ["+debug=tiny", "logger.mode=disabled", "threads=1", "evaluation.max_prompts=2"]
    folder.mkdir(parents=True)
    return check(composed(*overrides, *small)) | {"name": "control", "run_dir": str(folder)}


class Flat(Redness):
    def forward(self, images, prompts):
        return super().forward(images.detach(), prompts)


def test_refusals_of_the_command(tmp_path):
    for k, (task, act) in enumerate((("code", blockwise), ("das", with_particles))):
        with pytest.raises(UserError, match=rf"task={task} needs its options: choose \+experiment={task}"):
            act(configured(tmp_path / str(k), f"task={task}"), tmp_path)
    folder = tmp_path / "still"
    with pytest.raises(UserError, match=r"evaluation.eta=0: without noise all samples from one state are the same"):
        blockwise(configured(folder, "+experiment=code", "evaluation.eta=0.0"), folder)
    cfg = configured(folder / "flat", "+experiment=das")
    cfg["suite"]["rewards"]["hps"] = {"_target_": "tests.test_controls.Flat"}
    with pytest.raises(UserError, match="train_reward=hps: Flat has no gradient with respect to the picture, which"):
        with_particles(cfg, folder)
    assert not list(folder.glob("**/metrics.jsonl"))


class Nan(RewardModel):
    def forward(self, images, prompts):
        return images.sum((1, 2, 3)) * math.nan


def test_scores_that_are_no_numbers_stop_with_the_setting():
    with pytest.raises(TrainingError, match=r"the reward nan is not finite at N = 2; stopped\. .* mend the reward, or"):
        CoDe(2, 2).draw(GaussianChain(), Scorer("nan", Nan(), place="N = 2"), ["x"], [1], n=2)
    said = (
        r"a predicted picture is not finite at N = 2; stopped\. The base is in order: start anew without this setting"
    )
    with pytest.raises(TrainingError, match=said):
        Scorer("nan", Nan(), place="N = 2")(torch.full((1, 3, 8, 8), torch.nan), ["x"])


# ------------------------------------------------------------------------------------------------------------ as a run


class Counted(CoDe):
    drawn = 0

    def draw(self, policy, reward, prompts, seeds, n):
        self.drawn += len(seeds)
        return super().draw(policy, reward, prompts, seeds, n)


def test_a_picture_is_drawn_once_at_a_setting(tmp_path):
    policy, control = GaussianChain(), Counted(2, 2)
    policy.sampling_batch = 4  # two pictures at a time
    setting, other = Setting("N = 2", 4, {}, {"n": 2}), Setting("N = 3", 6, {}, {"n": 3})
    prompts, seeds = ["x"] * 5, [1, 2, 3, 4, 5]
    guided = Guided(policy, control, linear(), tmp_path)
    guided.take_up(0, setting, 1.0)
    first = guided.sample(prompts, seeds).images
    assert control.drawn == 5 and torch.equal(guided.sample(prompts[:2], seeds[1:3]).images, first[1:3])
    (tmp_path / "000/5.npz").unlink()  # a kill came before it
    again = Guided(policy, control, linear(), tmp_path)
    again.take_up(0, setting, 1.0)
    torch.testing.assert_close(again.sample(prompts, seeds).images, first)
    assert control.drawn == 6
    with again.as_base():
        assert torch.equal(again.sample(prompts, seeds).x_0, policy.sample(prompts, seeds).x_0)
    again.take_up(1, other, 1.0)
    assert not (tmp_path / "000").exists() and not torch.equal(again.sample(prompts, seeds).images, first)


OPTIONS = [
    *("+experiment=code", "+debug=tiny", "logger.mode=offline", "code.n=2,3", "code.block_size=2", "microbatch=4"),
    *("evaluation.max_prompts=3", "evaluation.grid_pictures=2", "threads=1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code") / "run"
    done = run_forked(*OPTIONS, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "N = 3" in done.stdout and "wandb sync" in done.stdout
    return folder


def test_the_command_writes_curve_pictures_and_report(folder):
    base, two, three = rows_of(folder)
    assert all(lookup(key) for row in (base, two, three) for key in row)
    assert [row["reward_queries"] for row in (base, two, three)] == [0, 4, 6]  # two blocks of three steps
    assert [row["code/n"] for row in (base, two, three)] == [1, 2, 3] and base["kl/trajectory"] == 0
    assert three["kl/trajectory"] == pytest.approx(2 * (math.log(3) - 2 / 3))
    assert base["eval/hps/gain"] == 0 < min(two["eval/hps/gain"], three["eval/hps/gain"])
    assert {"held_out/gold/gain", "pictures/vendi", "eval/joint_domination"} <= three.keys()
    assert {path.name for path in (folder / "samples").iterdir()} == {*(f"0000{k}.png" for k in range(3)), "hacks.png"}
    page = (folder / "report.html").read_text()
    told = "Drawing from the base by hps block by block raised it by "
    assert told in page and "reward queries a picture [images]" in page and "No KL" not in page
    assert not (folder / "pool").exists() and (folder / "summary.json").exists()
    assert "it is finished" in run_forked(f"resume={folder}").stderr


def test_killed_it_goes_on_where_it_was(folder, tmp_path):
    killed = tmp_path / "run"
    first = seed_of(0, 0, EVALUATION_STREAM)
    kill_at(killed, f"pool/001/{first}.npz", [*OPTIONS, f"run_dir={killed}"])
    assert run_forked(f"resume={killed}").returncode == 0
    assert rows_of(killed) == rows_of(folder)
    sent = [row for session in sessions(killed) for row in session.rows().values()]
    assert sent == [("evaluation", k) for k in range(3)]


def test_particles_as_a_run_beside_other_controls(folder, tmp_path):
    """Over temperatures at one cost; no KL is told of it."""
    das, options = tmp_path / "das", ("das.particles=2", "das.alpha=[3,0.3]")
    with_particles(configured(das, "+experiment=das", *options), das)
    base, mild, strong = rows_of(das)
    assert [row["reward_queries"] for row in (base, mild, strong)] == [0, 8, 8]
    assert [row["reward_gradients"] for row in (base, mild, strong)] == [0, 6, 6]
    assert [row.get("das/alpha") for row in (base, mild, strong)] == [None, 3, 0.3]
    assert not any(key.startswith("kl/") or key.endswith("kl_area") for row in (base, mild, strong) for key in row)
    assert strong["eval/hps/gain"] > mild["eval/hps/gain"] != 0
    assert "has no closed form" in (das / "report.html").read_text()
    runs = find_runs([str(folder), str(das)])
    assert list(treatments(runs)) == ["CoDe (B = 2) by hps", "DAS (P = 2) by hps"]
    assert "with particles that follow its gradient" in headline(runs[1]) and runs[1].told(2) == "at alpha = 0.3"
    page = write_report(runs, tmp_path / "both.html").read_text()
    assert "Controls by what a picture costs" in page and "gold over what a picture costs" in page


def test_the_base_is_that_of_training(folder, tmp_path):
    """Gains of controls and of runs are over the same pictures."""
    options = (*OPTIONS[1:3], *OPTIONS[5:], "microbatch=4", "iterations=1", f"run_dir={tmp_path}/run")
    done = run_forked("+experiment=ddpo_hps", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (
        {key: value for key, value in rows_of(run, "evaluation")[0].items() if key.endswith("/mean")}
        for run in (folder, tmp_path / "run")
    )
    assert ours == theirs and "eval/gold/mean" in ours
