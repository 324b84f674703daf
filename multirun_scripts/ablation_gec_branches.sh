#!/usr/bin/env bash
# Which branch of guided error correction does the work? The paper's mixture, each branch alone, and pairs of them.
#   SEEDS=0,1,2 bash multirun_scripts/ablation_gec_branches.sh trainer.max_iterations=80
set -euo pipefail
source "$(dirname "$0")/common.sh"
mixtures=(
  "{reflect:0.5,answer:0.25,solution:0.25}" # the paper's: first, so that the report compares with it
  "{reflect:1,answer:0,solution:0}" "{reflect:0,answer:1,solution:0}" "{reflect:0,answer:0,solution:1}"
  "{reflect:0.5,answer:0.5,solution:0}" "{reflect:0.5,answer:0,solution:0.5}" "{reflect:0,answer:0.5,solution:0.5}"
)
train correction.probabilities="$(IFS=, && echo "${mixtures[*]}")" seed="$seeds" "$@"
report title="'The branches of guided error correction'"
exit "$failed"
