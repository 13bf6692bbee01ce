"""What is computed must not depend on what was computed before: caches, and runs resumed at every iteration."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from tests.conftest import LONGER, composed
from tests.forked import run_forked
from tests.released import FOUR_REWARDS
from tests.test_policy import make_policy
from tests.test_resume import final_state, same, timeless

HISTORIES = ([["cat"], ["dog", "a spotted horse", "cow"]], [["cow", "dog", "cat", "a spotted horse"]])


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def embedded_after(model, history: list[list[str]]) -> torch.Tensor:
    for prompts in history:
        model(prompts)
    return model(["cat", "dog", "a spotted horse", "cow"])


@pytest.mark.parametrize("name", FOUR_REWARDS)
def test_a_score_is_the_same_bits_whatever_prompts_came_before(name, pictures):
    config = composed().suite.rewards[name]
    scores = []
    for history in HISTORIES:
        reward = instantiate(config)
        for prompts in history:
            reward.score(pictures[: len(prompts)], prompts)
        scores.append(reward.score(pictures, ["cat", "dog", "a spotted horse", "cow"]))
    assert torch.equal(*scores)


def test_text_states_are_the_same_bits_whatever_prompts_came_before():
    after = [embedded_after(make_policy().encode_prompts, history).states for history in HISTORIES]
    assert torch.equal(*after)


def test_a_prompt_is_embedded_by_itself():
    """On processors where a batch rounds like a single row the tests above could not fail."""
    reward, sizes = instantiate(composed().suite.rewards.hps), []
    reward.clip.text_model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    policy = make_policy()
    policy.text_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    reward.embed_texts(["cat", "dog", "cat"]), policy.encode_prompts(["cat", "dog", "cat"])
    assert sizes == [1, 1, 1, 1]


def resumed_at_every_iteration(folder: Path, *options: str) -> None:
    """A run of one iteration, extended to two in another process, and so on to six."""
    for k in range(1, 7):
        begun = [*LONGER, *options, "checkpoint_every=1", f"run_dir={folder}"] if k == 1 else [f"resume={folder}"]
        done = run_forked(*begun, f"iterations={k}")
        assert done.returncode == 0, done.stderr[-2000:]


def trained(folder: Path) -> list[dict]:
    """Rows of iterations: a run that is extended has also been evaluated where it had ended."""
    return [row for row in timeless(folder) if row["kind"] == "iteration"]


def evaluated(folder: Path, iteration: int) -> dict:
    """Without what depends on which evaluations came before: peaks and areas."""
    rows = [row for row in timeless(folder) if row["kind"] == "evaluation" and row["iteration"] == iteration]
    return {key: value for key, value in rows[-1].items() if not key.endswith(("below_peak", "kl_area"))}


def check_resumed_at_every_iteration(whole: Path, folder: Path, *options: str) -> None:
    resumed_at_every_iteration(folder, *options)
    assert trained(folder) == trained(whole)
    for part in ("state_dict", "optimizer_states", "progress"):
        assert same(final_state(folder)[part], final_state(whole)[part]), part
    assert evaluated(folder, 6) == evaluated(whole, 6)


@pytest.mark.slow
def test_resumed_at_every_iteration_equals_uninterrupted(finished, tmp_path):
    """Evaluated after every iteration on the one side and after every third on the other."""
    check_resumed_at_every_iteration(finished, tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("name", FOUR_REWARDS)
def test_resumed_at_every_iteration_with_every_reward(name, every, tmp_path):
    options = [f"train_reward={name}", f"evaluation.every={every}"]
    done = run_forked(*LONGER, *options, f"run_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr[-2000:]
    check_resumed_at_every_iteration(tmp_path / "whole", tmp_path / "resumed", *options)


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_is_refused_and_nothing_in_it_is_executed(finished, tmp_path):
    folder, proof = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"extra": Hostile(proof)}, path)
    done = run_forked(f"resume={folder}", "iterations=7")
    assert done.returncode == 2 and "is not a readable checkpoint" in done.stderr, done.stderr[-2000:]
    assert not proof.exists()
    pickle.loads(pickle.dumps(Hostile(proof)))  # as a plain pickle it would have been
    assert proof.exists()


def test_a_checkpoint_with_numbers_of_numpys_resumes(finished, tmp_path):
    import numpy as np

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    history = checkpoint["callbacks"]["CrossRewardEvaluation"]["history"]
    history[-1] = {key: np.float64(value) for key, value in history[-1].items()}
    torch.save(checkpoint, path)
    done = run_forked(f"resume={folder}", "iterations=7")
    assert done.returncode == 0, done.stderr[-2000:]
