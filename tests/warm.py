"""What the server of forks does once, so that no fork does it again: imports, and filling of caches.

Hydra's parsed files, transformers' table of renamed weights, plotly's template.
"""

import gc
import importlib
from pathlib import Path

import pandas as pd  # noqa: F401  (which W&B imports for a table)
import plotly.graph_objects as go
from hydra import compose, initialize_config_dir

import src.tasks.finetune  # noqa: F401
from src.report.figures import styled
from src.screen import quieten
from tests.cached_hydra import compose_faster

quieten()
compose_faster()
with initialize_config_dir(str(Path(__file__).parent.parent / "conf"), version_base="1.3"):
    compose("config", ["+experiment=tdpo_r_hps", "+debug=tiny"], return_hydra_config=True)
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("clip")
styled(go.Figure())
gc.collect()
gc.freeze()  # or every collection of a fork would go through all of it
