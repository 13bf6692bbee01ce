"""How many neurons are dormant? `python experiments/dormancy/analyse.py [FOLDER]` writes results.csv and tables.md."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from src.report.runs import Run, find_runs, flat
from src.report.study import means, write_tables

HERE = Path(__file__).parent
TAUS = ("0", "0.025", "0.1")
COLUMNS = ["first_0", *(f"last_{tau}" for tau in TAUS), "largest_0", "explained_variance"]


def arm(config: dict[str, Any]) -> str:
    activation = {"relu": "ReLU", "none": "linear"}[config["critic.activation"]]
    gradients = "true gradients" if config["critic_gradient_factor"] == 1 else "gradients / 65,536"
    return f"{activation}, {gradients}, probe of {config['neuron_probe']}"


def row_of(run: Run) -> dict[str, Any]:
    """Dormant shares at the first iteration and at the last, and the best that the critic explained."""
    config, first, last = flat(run.config), run.iterations[0], run.iterations[-1]
    return {
        "arm": arm(config),
        "seed": config["seed"],
        "first_0": first["neurons/dormant_0"],
        **{f"last_{tau}": last[f"neurons/dormant_{tau}"] for tau in TAUS},
        "largest_0": max(run.series("neurons/dormant_0", run.iterations)),
        "gradient_last_0": last["neurons/gradient_dormant_0"],
        "explained_variance": max(run.series("critic/explained_variance", run.iterations)),
    }


def main() -> None:
    runs = find_runs(sys.argv[1:] or ["multirun/dormancy"])
    found = pd.DataFrame(map(row_of, runs)).sort_values(["arm", "seed"]).reset_index(drop=True)
    write_tables(HERE, found, {"Means over seeds": means(found, COLUMNS)})


if __name__ == "__main__":
    main()
