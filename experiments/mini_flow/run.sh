#!/usr/bin/env bash
# Does a flow model overoptimize as the UNet does? 6 runs in the default budget, 6 pressed on. SEEDS=0,1 names the seeds;
# EXPERIMENTS=ddpo_hps and BUDGETS=default select; options are handed on.
source "$(dirname "$0")/../study.sh"
protocol="suite=mini_flow threads=1" SEEDS=${SEEDS:-0,1,2}
into mini_flow
# choice() makes a sweep of it, so that it is part of a run's name
for budget in ${BUDGETS:-default study}; do
  for experiment in ${EXPERIMENTS:-tdpo_r_hps ddpo_hps}; do job "+experiment=choice($experiment)" budget=$budget; done
done
exit "$failed"
