#!/usr/bin/env bash
# A real pretrained model on a CPU, at most 20 minutes a run: SFT with one seed, vanilla GRPO and EDGE-GRPO with several:
#   MODEL=DIR SEEDS=0,1,2 bash multirun_scripts/smollm2.sh
# Overrides go to training. Stopped and called again it goes on.
set -euo pipefail
source "$(dirname "$0")/common.sh"
[[ "${SMOKE:-0}" != 1 ]] || { MODEL='${asset:tiny_base}' settings+=(data.max_prompt_tokens=400); } # its tokens are bytes
settings+=("model.path='${MODEL:?the folder of SmolLM2-135M-Instruct}'" trainer=cpu)
arm() { train "hydra.sweep.subdir='\${name},seed=\${seed}'" "$@" < /dev/null; }
for seed in ${seeds//,/ }; do
  arm name=vanilla 'experiment=[smollm2,vanilla]' seed="$seed" "$@"
  arm name=edge_grpo 'experiment=[smollm2,edge_grpo]' correction.reflection_tokens=36 seed="$seed" "$@"
  [[ "$seed" != "${seeds%%,*}" ]] || arm name=sft 'experiment=[smollm2,sft]' seed="$seed" "$@"
done
report baseline=vanilla title="'SmolLM2-135M-Instruct on chains of three small numbers'"
exit "$failed"
