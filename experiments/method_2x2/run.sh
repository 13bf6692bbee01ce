#!/usr/bin/env bash
# Critic or optimizer steps: 30 runs, and five of reset_ablation. SEEDS=0,1 names the seeds; options are handed on.
source "$(dirname "$0")/../study.sh"
arms() { job +experiment=tdpo_aesthetic "$@"; }
shared_tdpo
into method_2x2
arms algorithm=ddpo algorithm.schedule=trajectory,timestep
arms algorithm=tdpo algorithm.schedule=trajectory
arms algorithm=ddpo algorithm.schedule=trajectory algorithm.samples_per_update=4 optimizer.lr=7e-6
arms algorithm=tdpo algorithm.schedule=timestep critic=image_tower critic_epochs=1
arms algorithm=tdpo algorithm.schedule=timestep critic=image_tower_x0
exit "$failed"
