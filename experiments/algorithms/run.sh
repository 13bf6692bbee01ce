#!/usr/bin/env bash
# Every algorithm with the defaults that ship: 33 runs. SEEDS=0,1 and ALGORITHMS=ddpo,grpo (two or more, for a sweep
# names a run by what it varies) select; options are handed on.
source "$(dirname "$0")/../study.sh"
protocol= SEEDS=${SEEDS:-0,1,2}
into algorithms
all=grpo,dpok,d3po,dpo_online,nft,draft,alignprop,refl,ddpo,tdpo,tdpo_r
job +experiment="${ALGORITHMS:-$all}" train_reward=hps evaluation.every=20 logger=none threads=1
exit "$failed"
