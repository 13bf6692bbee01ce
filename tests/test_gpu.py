"""What has to hold on a GPU as on a CPU; where there is no GPU, the same lines run on the CPU."""

import pytest
import torch

from src.policy.diffusion import DiffusionPolicy
from tests.conftest import TINY, rows_of
from tests.forked import run_forked
from tests.test_policy import PROMPTS, SEEDS, log_probs, make_policy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
long_on_a_cpu = pytest.mark.slow if DEVICE.type == "cpu" else lambda test: test
needs_a_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="compares a GPU with the CPU")


def policy_there(**changes) -> DiffusionPolicy:
    return make_policy(finetune="full", **changes).to(DEVICE)


@pytest.mark.parametrize("half", [False, True])
def test_an_unmoved_policy_has_ratios_of_one(half):
    policy = policy_there(guidance=3.0)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
        rollout = policy.sample(PROMPTS, SEEDS)
        for slot in range(policy.num_steps):
            assert torch.equal(
                (log_probs(policy, rollout, slot) - rollout.log_probs[:, slot]).exp().cpu(), torch.ones(3)
            )


@needs_a_gpu
def test_it_draws_what_the_cpu_draws():
    """The noise is drawn on the CPU, whatever samples."""
    there = policy_there().sample(PROMPTS, SEEDS)
    here = make_policy(finetune="full").sample(PROMPTS, SEEDS)
    assert torch.allclose(there.images.cpu(), here.images, atol=0.02)
    assert torch.allclose(there.log_probs.cpu()[:, :-1], here.log_probs[:, :-1], atol=1e-3)


@long_on_a_cpu
def test_a_run_trains_resets_evaluates_and_goes_on(tmp_path):
    """TDPO-R whole, by the command; what was logged before it went on stays."""
    plain = [o for o in TINY if not o.startswith("threads")]
    first = run_forked(
        *plain, "reset.every=1", "iterations=2", "evaluation.max_prompts=4", f"run_dir={tmp_path / 'run'}"
    )
    assert first.returncode == 0, first.stderr[-2000:]
    rows = rows_of(tmp_path / "run")
    more = run_forked(f"resume={tmp_path / 'run'}", "iterations=3")
    assert more.returncode == 0, more.stderr[-2000:]
    after = rows_of(tmp_path / "run")
    assert after[: len(rows)] == rows and after[-1]["iteration"] == 3
