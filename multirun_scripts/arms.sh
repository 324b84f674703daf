#!/usr/bin/env bash
# The arms of the paper side by side, then their table. Extra overrides go through:
#   SEEDS=0,1,2 bash multirun_scripts/arms.sh data=arithmetic_hard
set -euo pipefail
folder="multirun/arms/$(date +%Y-%m-%d_%H-%M-%S)"
edge-grpo-train -m experiment=vanilla,force_r,force_r_eda,edge_grpo seed="${SEEDS:-0,1}" hydra.sweep.dir="$folder" "$@"
python -m edge_grpo.reporting.arms_table "$folder"
