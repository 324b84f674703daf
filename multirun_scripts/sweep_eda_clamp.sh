#!/usr/bin/env bash
# How much of the entropy-driven advantage may be clamped away? Bounds on 1 / P^; null, the paper's, is none.
#   SEEDS=0,1,2 bash multirun_scripts/sweep_eda_clamp.sh experiment=eda
set -euo pipefail
source "$(dirname "$0")/common.sh"
train advantage.clamp=null,10,4,2,1.5 seed="$seeds" "$@"
report title="'The clamp of the entropy-driven advantage'"
exit "$failed"
