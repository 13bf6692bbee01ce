"""Options that cannot be: one sentence that says which, why, and how to write what was meant; exit code 2."""

import json
import shlex

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import ModelCheckpoint

from src.config import check, run_name
from src.errors import TrainingError, UserError, sentence_of
from src.normalise import PromptNormaliser
from src.overrides import understood, written
from src.rewards.base import RewardModel
from src.rewards.ensemble import EnsembleReward
from src.tasks.best_of_n import score_pool
from src.tasks.train_reward import weights_of
from tests.conftest import TINY, composed, rows_of
from tests.forked import run_forked
from tests.test_finetuner import NotANumber, Redness, build, fit
from tests.test_policy import make_policy
from tests.test_report import make_run
from tests.test_run import run_in_process

VALUES = ["läufe", "a b", "x=1,y=2", "~/x", "[a", "{b", "c)", "it's", '"so"', "$HOME", "1e3", "true", "null", "last"]
VALUES += ["runs/one", "multirun/s/reset.ratio=0.1,seed=0", "狐狸", "a\\b"]

COMMANDS = {
    "several values": (["seed=0,1"], "gives several values: add -m for a sweep over them, or write seed=[0,1] for"),
    "several of a group": (["reset=none,active"], "reset=none,active gives several values: add -m"),
    "a range": (["seed=range(0,3)"], "seed=range(0,3) gives several values: add -m"),
    "an umlaut": (["run_dir=läufe"], "Hydra reads a value with ä in it in quotes only: \"run_dir='läufe'\"."),
    "an equals sign": (["run_dir=out/r=a"], "with = in it in quotes only: \"run_dir='out/r=a'\"."),
    "a tilde": (["run_dir=~/x"], "with ~ in it in quotes only: \"run_dir='~/x'\"."),
    "brackets": (["name=my(run"], "with ( in it in quotes only: \"name='my(run'\"."),
    "an open bracket": (["run_dir=[a"], "\"run_dir='[a'\""),
    "a key that is none": (["läufe=3"], "'läufe' is no key that Hydra can read"),
    "no value": (["seed"], "'seed' is no KEY=VALUE; a value with a space in it needs quotes"),
    "not whole": (["seed=1.5"], "seed=1.5: it takes a whole number."),
    "no number": (["iterations=abc"], "iterations=abc: it takes a whole number."),
    "no number at all": (["lr_factor=abc"], "lr_factor=abc: it takes a number."),
    "neither true nor false": (["neuron_probe_scattered=5.5"], "neuron_probe_scattered=5.5: it takes true or false."),
    "an unknown task": (["task=foo"], "task=foo: Invalid value 'foo', expected one of [finetune, "),
    "no folder": (["run_dir="], "run_dir= is empty: name a folder"),
    "nothing to resume": (["resume="], "resume=: no run there"),
    "no such option": (["reset=foo"], "there is no conf/reset/foo.yaml: choose from active, dormant, full, none"),
    "an unknown budget": (["budget=stduy"], "budget=stduy is not one of suite=mini: default, study."),
    "a group as null": (["logger=null"], "logger=null: choose from none, tensorboard, wandb, or leave it out for"),
    "a group as a number": (["reset=3"], "an override chooses something of a group"),
    "an option of nothing": (["reward_training.max_epochs=3"], "not chosen: it needs +experiment=train_reward_hps."),
    "a misspelt key": (["iteratons=3"], "iteratons is not a key of the configuration: did you mean iterations?"),
    "a misspelt option, swept": (["-m", "reset.ratoi=0.1,0.2"], "reset.ratoi is not an option of reset=none: did you"),
    "a sweep, to be shown": (["-m", "seed=0,1", "--cfg", "job"], "-m and --cfg exclude each other: drop -m, and give"),
    "a resumed run, to be shown": (["resume=last", "--cfg", "job"], "resume=last goes on with the configuration that"),
    "an option of one arm": (["-m", "prompts=simple_animals,file", "prompts.path=x"], "by a command each, into one"),
    "no critic": (["critic=null"], "for no critic choose an algorithm that has none, such as +experiment=ddpo."),
    "no critic by name": (["critic=none"], "for no critic choose an algorithm that has none"),
    "a key taken away": (["~seed"], "seed is missing: a run needs it, so leave out ~seed."),
    "a component taken away": (["~evaluation"], "evaluation is missing: give evaluation=VALUE."),
    "a component without a name": (["+debug=tiny", "~evaluation"], "which says what it is; a run needs it"),
    "Lightning's trial": (["+trainer.fast_dev_run=true"], "for a short run there is +debug=tiny."),
    "no epoch of a reward": (["+reward_training=hps", "reward_training.max_epochs=0"], "max_epochs must be at least 1"),
    "an option taken away": (["~policy.path"], "policy.path is missing: src.policy.diffusion.Diffusion"),
    "no tower": (["suite.tower=null"], "suite.tower=null: it takes something other than null."),
    "a reward as null": (["suite.rewards.hps=null"], "hps=None has no _target_, which says what it is; or leave"),
    "a callback as a number": (["callbacks.watch=5"], "callbacks.watch=5 has no _target_"),
    "a module that is none": (["optimizer._target_=torch.optim.Foo"], "optimizer._target_: torch.optim has no Foo"),
    "a name with a slash": (["name=a/b"], "name='a/b' cannot name folders and W&B's tags: it holds a /."),
    "a long name": ([f"name={'a' * 70}"], "it is longer than 64 bytes."),
    "a group of one": (["samples_per_iteration=1"], "samples_per_iteration=1: DDPO compares samples, and of one"),
    "Lightning's steps": (["+trainer.max_steps=1"], "trainer.max_steps=1: how long a run lasts is iterations=."),
    "no epoch": (["trainer.max_epochs=0"], "trainer.max_epochs=0 must stay 1"),
    "no learning rate": (["optimizer.lr=nan"], "optimizer.lr=nan is no number: give one."),
    "no guidance": (["guidance=nan"], "guidance=nan is no number: give one."),
    "gradients turned round": (["max_grad_norm=-1"], "max_grad_norm=-1.0 must be above 0."),
    "a word for a moment": (
        ["suite.base_moments.hps.std=wide"],
        "suite.base_moments.hps={'mean': 9.121, 'std': 'wide'}: give two numbers, {mean: ..., std: ...}.",
    ),
    "half of the moments": (
        ["+suite.base_moments.mine={mean: 1}"],
        "suite.base_moments.mine={'mean': 1}: give two numbers, {mean: ..., std: ...}.",
    ),
    "no clip range": (["algorithm.clip_range=0"], "algorithm.clip_range=0 must be above 0."),
    "bytes that the locale cannot read": (["run_dir='l\udcc3\udca4ufe'"], "cannot be read in this locale"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_that_cannot_be_is_told_in_one_sentence(case, tmp_path, capfd, monkeypatch):
    overrides, message = COMMANDS[case]
    place = [] if any("run_dir" in override for override in overrides) else [f"run_dir={tmp_path / 'new'}"]
    place += [f"hydra.sweep.dir={tmp_path / 'sweep'}"] if "-m" in overrides else []
    code, err = run_in_process(["+experiment=ddpo_hps", "logger.mode=disabled", *place, *overrides], capfd, monkeypatch)
    assert code == 2 and err.startswith("error: ") and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("key", "value"), [("RANK", "1"), ("SLURM_NTASKS", "2")])
def test_the_environment_of_several_processes_is_refused_where_one_is_asked_for(
    key, value, tmp_path, capfd, monkeypatch
):
    """By the command, and by a run that goes on: what counts is the trainer that it was started with."""
    monkeypatch.setenv(key, value)
    said = (
        f"error: {key}={value} is set, as where several processes are started, but trainer.devices=1: unset it (env -u"
    )
    new, run = f"run_dir={tmp_path / 'new'}", make_run(tmp_path / "run", [0.0, 0.1], [0.0, 0.2])
    config = (run / "config.yaml").read_text()
    for command in (["+experiment=ddpo_hps", *TINY[1:], new], [f"resume={run}"]):
        code, err = run_in_process(command, capfd, monkeypatch)
        assert code == 2 and err.startswith(said) and len(err.splitlines()) == 1, err
    (run / "config.yaml").write_text(f"{config}trainer: {{devices: 2}}\n")
    code, err = run_in_process([f"resume={run}"], capfd, monkeypatch)
    assert code == 2 and f"{run}/config.yaml cannot be read" in err  # it is for two processes, and lacks the rest
    assert not (tmp_path / "new").exists()


REJECTED = ["optimizer.betas=[1.9,0.9]", "+trainer.gradient_clip_val=1", "trainer.devices=abc"]


@pytest.mark.parametrize("override", REJECTED)
def test_what_torch_and_lightning_reject_is_told_too(override, tmp_path, capfd, monkeypatch):
    command = ["+experiment=ddpo_hps", *TINY[1:], f"run_dir={tmp_path / 'run'}", override]
    code, err = run_in_process(command, capfd, monkeypatch)
    assert code == 2 and err.startswith(("error: optimizer", "error: trainer: ")) and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("value", VALUES)
def test_what_is_told_to_be_typed_is_what_was_meant(value):
    """Through the shell and through Hydra."""
    (argument,) = shlex.split(written("run_dir", value))
    parsed = OverridesParser.create().parse_override(argument)
    assert not parsed.is_sweep_override() and str(parsed.value()) == value


def test_a_trial_is_short_wherever_it_is_written():
    assert understood(["+debug=tiny", "+study=critic", "-m", "seed=1"]) == [
        "-m",
        "+study=critic",
        "seed=1",
        "+debug=tiny",
    ]
    assert understood(["+debug=tiny", "seed=1", "--cfg", "job"]) == ["seed=1", "+debug=tiny", "--cfg", "job"]
    assert understood(["--cfg", "job", "+debug=tiny", "seed=1"]) == ["--cfg", "job", "seed=1", "+debug=tiny"]
    assert composed(*understood(["+debug=tiny", "+study=critic"])).iterations == 2


def test_no_callbacks():
    assert understood(["callbacks=null", "seed=1"]) == ["~callbacks", "seed=1"]
    assert check(composed("~callbacks"))["callbacks"] == {}
    assert check(composed("callbacks.watch=null"))["callbacks"] == {}


@pytest.mark.slow
def test_a_run_without_callbacks_under_the_longest_name(tmp_path):
    """64 bytes are a tag of W&B's; offline, so that its schema is asked."""
    name, folder = "ä" * 32, tmp_path / "run"
    tiny = [option for option in TINY[1:] if not option.startswith("logger")]
    tiny += ["+experiment=ddpo_hps", "logger.mode=offline", "evaluation.max_prompts=2"]
    done = run_forked(*tiny, "callbacks=null", f"name='{name}'", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "best").exists() and name in (folder / "report.html").read_text(encoding="utf-8")


def test_the_name_of_a_nested_experiment_names_one_folder():
    assert run_name(None, "mine/first", "custom") == "mine_first" and run_name(None, None, "custom") == "custom"
    assert len(run_name(None, "狐" * 50, "custom").encode()) <= 64
    for name in ("", " ", "a\nb", "a/b", "x" * 65):
        with pytest.raises(UserError, match="cannot name folders"):
            run_name(name, None, "custom")


def test_a_buffer_of_one_reward_is_refused():
    with pytest.raises(UserError, match=r"buffer=1 must be at least 2"):
        PromptNormaliser(buffer=1, min_count=1)


# ------------------------------------------------------------------------------------------------ what is no number


def test_a_policy_that_is_gone_before_its_evaluation_ends_in_a_sentence_in_a_sweep_too(tmp_path):
    overrides = ["+experiment=ddpo_hps", *TINY[1:], "iterations=6", "evaluation.every=1", "evaluation.max_prompts=2"]
    done = run_forked("-m", *overrides, "optimizer.lr=1.0", "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (told,) = [json.loads(file.read_bytes()) for file in (tmp_path / "sweep/jobs").glob("*.json")]
    assert told["state"] == "failed" and "a sampled picture is not finite in the evaluation after" in told["sentence"]
    assert "start anew with a lower learning rate" in told["sentence"] and told["exit_code"] == 1
    assert not list((tmp_path / "sweep/jobs").glob("*.traceback.txt"))
    (folder,) = [file.parent for file in (tmp_path / "sweep").glob("*/config.yaml")]
    assert rows_of(folder, "iteration")  # what there was is kept


def test_the_same_as_a_single_command(tmp_path):
    """Exit code 1: there was nothing to mend in what was typed."""
    overrides = ["+experiment=ddpo_hps", *TINY[1:], "iterations=6", "evaluation.every=1", "evaluation.max_prompts=2"]
    done = run_forked(*overrides, "optimizer.lr=1.0", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1 and done.stderr.startswith("error: a sampled picture is not finite in the evaluation")
    assert "start anew with a lower learning rate." in done.stderr and len(done.stderr.splitlines()) == 1
    assert rows_of(tmp_path / "run", "iteration")


def test_a_reward_that_is_no_number_on_the_base(tmp_path):
    """The first evaluation comes before any training: neither the learning rate nor the base is to blame."""
    overrides = ["+experiment=ddpo_hps", *TINY[1:], "evaluation.max_prompts=2", f"run_dir={tmp_path / 'run'}"]
    broken = "+suite.rewards.broken={_target_: tests.test_finetuner.NotANumber}"
    done = run_forked(*overrides, broken)
    said = (
        "error: the reward broken is not finite in the evaluation after iteration 0; stopped. The pictures are in order"
    )
    assert done.returncode == 1 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1, done.stderr
    assert "mend the reward, or leave broken out." in done.stderr


def test_a_reward_that_is_no_number_is_the_rewards_fault():
    said = r"the reward redness is not finite in iteration 1; .* mend the reward"
    with pytest.raises(TrainingError, match=said) as told:
        fit(build(reward=NotANumber()), 1, samples=4)
    assert "no learning rate mends it" in str(told.value) and sentence_of(told.value)[1] == 1


def test_a_base_that_is_broken_is_not_trainings_fault():
    finetuner = build()
    with torch.no_grad():
        finetuner.policy.unet.conv_out.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"a sampled picture is not finite in iteration 1; .* base model's weights"):
        fit(finetuner, 1, samples=4)


def test_weights_that_are_no_numbers_do_not_take_the_place_of_a_checkpoint():
    finetuner = build()
    finetuner.policy.trainable()[0].data.fill_(torch.inf)
    with pytest.raises(
        TrainingError, match=r"a trained weight is not finite after iteration 0; .* lower learning rate"
    ):
        finetuner.on_save_checkpoint({"loops": {}})


def test_best_of_n_says_whose_fault_it_is(tmp_path):
    policy = make_policy(num_steps=2)
    with pytest.raises(TrainingError, match=r"the reward broken is not finite for 'cat'; .* mend the reward"):
        score_pool(policy, {"broken": NotANumber()}, "broken", ["cat"], 2, 0, tmp_path / "pool")
    policy.unet.conv_out.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"a sampled picture of 'cat' is not finite; .* base model's weights"):
        score_pool(policy, {"red": Redness()}, "red", ["cat"], 2, 0, tmp_path / "pool")


def test_a_reward_that_has_learnt_no_number_is_not_kept(tmp_path):
    """Lightning's own stop at a loss that is none ends as if all were well."""
    best = ModelCheckpoint(str(tmp_path), monitor="val/loss")
    for score in (None, torch.tensor(torch.inf)):  # what it takes nan for
        best.best_model_score = score
        with pytest.raises(TrainingError, match=r"val/loss is not finite; start anew with a lower reward_training"):
            weights_of(best)


# ------------------------------------------------------------------------------------------------- rewards of others


class Columns(Redness):
    def forward(self, images, prompts):
        return super().forward(images, prompts)[:, None]


class Scalar(Redness):
    def forward(self, images, prompts):
        return super().forward(images, prompts).mean()


class Listed(Redness):
    def forward(self, images, prompts):
        return super().forward(images, prompts).tolist()


@pytest.mark.parametrize(("reward", "given"), [(Columns, r"\[4, 1\]"), (Scalar, r"\[\]"), (Listed, "a list")])
def test_a_reward_of_another_shape_is_named(reward: type[RewardModel], given: str):
    images, prompts = torch.rand(4, 3, 8, 8), ["cat"] * 4
    ensemble = EnsembleReward([Redness(), reward()], "mean", [0.0, 0.0], [1.0, 1.0])
    for model in (reward(), ensemble):
        with pytest.raises(
            UserError, match=rf"test_faults_options.{reward.__name__} gives {given} for 4 pictures: its"
        ):
            model.score(images, prompts)
