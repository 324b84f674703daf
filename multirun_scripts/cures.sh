#!/usr/bin/env bash
# The cures for advantage collapse, each arm of cures.txt to the same number of generated tokens, and the report:
#   SEEDS=0,1,2,3,4 TOKENS=110000 ARMS=vanilla,edge_grpo,dynamic bash multirun_scripts/cures.sh
# Overrides go to training. Called again with more seeds, arms or TOKENS it does what is missing.
set -euo pipefail
source "$(dirname "$0")/common.sh"
arms="${ARMS:-}" list="${0%.sh}.txt" ran="" tokens="${TOKENS:-110000}" iterations="trainer.max_iterations=1000" # tokens end it
[[ "${SMOKE:-0}" != 1 ]] || tokens="${TOKENS:-150}" iterations=""
for arm in ${arms//,/ }; do
  grep -q "^$arm\b" "$list" || { echo "ARMS: no $arm in $list" >&2; exit 2; }
done
while read -r arm overrides; do
  [[ -n "$arm" && "$arm" != \#* && (-z "$arms" || ",$arms," == *",$arm,"*) ]] || continue
  [[ "$overrides" == *experiment=* ]] || overrides="experiment=[cures,vanilla] $overrides"
  read -ra own <<< "name=$arm trainer.max_generated_tokens=$tokens $iterations $overrides"
  ran+="${ran:+,}$arm"
  train "hydra.sweep.subdir='\${name},seed=\${seed}'" "${own[@]}" seed="$seeds" "$@" < /dev/null
done < "$list"
report baseline=vanilla "arms=[$ran]" title="'Cures for advantage collapse, at an equal number of generated tokens'"
exit "$failed"
