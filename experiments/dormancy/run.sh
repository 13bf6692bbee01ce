#!/usr/bin/env bash
# Critics and gradients: 20 runs, and five of reset_ablation. SEEDS=0,1 names the seeds; options are handed on.
source "$(dirname "$0")/../study.sh"
arms() { job +experiment=tdpo_aesthetic evaluation.every=25 "$@"; }  # what it is about is measured in training
shared_tdpo
into dormancy
divided=critic_gradient_factor=1.52587890625e-05
arms critic.activation=none
arms critic.activation=relu,none "$divided"
arms critic=image_tower critic_epochs=1 +preset=official critic.initial_width=768 reset=none
exit "$failed"
