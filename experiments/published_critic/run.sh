#!/usr/bin/env bash
# The published critic: 60 runs. SEEDS=0,1 names the seeds; options are handed on.
source "$(dirname "$0")/../study.sh"
into published_critic
published="critic=image_tower +preset=official critic.initial_width=768 critic_epochs=10 iterations=30 reset.every=10
  lr_ramp=30 evaluation.every=30 evaluation.samples_per_prompt=1 evaluation.max_prompts=15 evaluation.kl_samples=8"
arms() { for reset in none active full; do job +experiment=tdpo_r_aesthetic $published reset=$reset "$@"; done; }
arms critic.initial=authors                                             # slip
arms critic.initial=authors critic_gradient_factor=1.0
arms critic.initial=fan_in
arms critic.initial=fan_in critic_gradient_factor=1.0
exit "$failed"
