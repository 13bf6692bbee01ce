"""Writes fidelity.json: what the formulas of TDPO and of its authors' code give, in plain numpy, float64.

`python -m tests.golden.make_fidelity`. Inputs are closed formulas (`wave`), so that no generator matters. Nothing of
src is used here: it is what src is held against.
"""

import json
import math
from pathlib import Path

import numpy as np

SHAPE = (4, 8, 8)  # of a latent
STEPS, TRAINED = 50, 1000
AT = (981, 501, 21, 1)
PROMPTS = ("cat", "dog", "fox")


def wave(n: int, frequency: float, phase: float = 0.0) -> np.ndarray:
    return np.sin(frequency * np.arange(1, n + 1) + phase)


def alphas_cumprod() -> np.ndarray:
    """Stable Diffusion 1.x: betas linear in their roots from 0.00085 to 0.012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINED) ** 2
    return np.cumprod(1 - betas)


def ddim_log_prob(t: int) -> dict[str, float]:
    """One step at eta 1 (Song et al. 2021, eq. 12 and 16), its log-density averaged over the latent's dimensions."""
    table, n = alphas_cumprod(), math.prod(SHAPE)
    now, after = table[t], table[max(t - TRAINED // STEPS, 0)]
    x, noise = wave(n, 0.37), wave(n, 0.53, 1.0)
    std = math.sqrt((1 - after) / (1 - now) * (1 - now / after))
    clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
    mean = math.sqrt(after) * clean + math.sqrt(1 - after - std**2) * noise
    z = 0.9 * wave(n, 0.71, 2.0)
    log_prob = np.mean(-(z**2) / 2 - math.log(std) - math.log(math.sqrt(2 * math.pi)))
    return {"std": std, "mean_first": mean[0], "log_prob": log_prob}


def per_prompt_moments() -> list[list[float]]:
    """Three batches of 18 rewards, six a prompt; buffer 32, batch statistics until a prompt has 16 rewards."""
    seen: dict[str, list[float]] = {prompt: [] for prompt in PROMPTS}
    batches = []
    for k in range(3):
        rewards = 5 + 2 * wave(18, 0.9, k)
        for prompt in PROMPTS:
            own = rewards[[i for i in range(18) if PROMPTS[i % 3] == prompt]]
            seen[prompt] = [*seen[prompt], *own][-32:]
        normalised = []
        for i, reward in enumerate(rewards):
            past = seen[PROMPTS[i % 3]]
            by = np.array(past if len(past) >= 16 else rewards)
            normalised.append((reward - by.mean()) / (by.std() + 1e-6))
        batches.append(normalised)
    return batches


def temporal_rewards() -> list[list[float]]:
    """G_t - V_t of four samples and three steps, z-scored over all of them; G_t is the sample's reward at every t."""
    returns = np.repeat(wave(4, 1.3)[:, None], 3, 1)
    difference = returns - 0.5 * wave(12, 0.8).reshape(4, 3)
    return ((difference - difference.mean()) / difference.std()).tolist()


def losses() -> dict[str, float]:
    """PPO's and the critic's, clipped, over six rows."""
    ratio, advantage = np.exp(3e-4 * wave(6, 1.1)), wave(6, 2.3)
    policy = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - 1e-4, 1 + 1e-4)).mean()
    value, old, target = wave(6, 0.7), wave(6, 0.7, 0.4), wave(6, 1.9)
    near = np.clip(value, old - 0.2, old + 0.2)
    critic = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
    return {"policy": policy, "critic": critic}


def weights(fan_in: int, fan_out: int, k: int) -> np.ndarray:
    return wave(fan_in * fan_out, 0.61 + 0.1 * k, k).reshape(fan_out, fan_in)


def dormancy() -> dict[str, list]:
    """Scores of a linear head 3-4-2-1 by the ReLU that it never applies, on five states."""
    x = np.abs(wave(15, 0.5)).reshape(5, 3)
    scores = []
    for k, (a, b) in enumerate(((3, 4), (4, 2))):
        x = x @ weights(a, b, k).T
        magnitude = np.maximum(x, 0).mean(0)
        scores.append(magnitude / magnitude.mean())
    return {"scores": [layer.tolist() for layer in scores], "dormant": [(layer <= 0).tolist() for layer in scores]}


def main() -> None:
    golden = {
        "timesteps": [TRAINED // STEPS * k + 1 for k in reversed(range(STEPS))],  # leading, offset 1
        "ddim": {t: ddim_log_prob(t) for t in AT},
        "moments": per_prompt_moments(),
        "temporal_rewards": temporal_rewards(),
        "losses": losses(),
        "dormancy": dormancy(),
        "initial_std": {str(d): 1 / (d + 1) for d in (768, 1024)},
    }
    (Path(__file__).parent / "fidelity.json").write_text(json.dumps(golden, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
