#!/usr/bin/env bash
# The paper's main table and figures: five arms, several seeds, their benchmarks, the report. Overrides go to training:
#   SEEDS=0,1,2 bash multirun_scripts/paper_table.sh data=arithmetic_hard
#   EVALUATION="paper paths.evaluation_suite=DIR" bash multirun_scripts/paper_table.sh data=file data.path=...
set -euo pipefail
source "$(dirname "$0")/common.sh"
train experiment=sft,vanilla,force_r,force_r_eda,edge_grpo seed="$seeds" "$@"
evaluate
report baseline=vanilla title="'SFT, GRPO and the cures for its advantage collapse'"
exit "$failed"
