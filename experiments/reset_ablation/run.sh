#!/usr/bin/env bash
# Reset strategies by ratio: 75 runs. SEEDS=0,1 names the seeds; options of the command line are handed on.
source "$(dirname "$0")/../study.sh"
arms() { job +experiment=tdpo_r_aesthetic "$@"; }
shared_tdpo
# the arms of the paper's claims first, so that an unfinished study has all seeds of those
arms reset=full reset.outgoing=redraw
arms reset=active,dormant,random reset.ratio=1.0 reset.outgoing=redraw
arms reset=active,dormant,random reset.ratio=0.5 reset.outgoing=redraw
arms reset=active,dormant,random reset.ratio=0.1,0.25 reset.outgoing=redraw
arms reset=active reset.ratio=1.0 reset.outgoing=zero
exit "$failed"
