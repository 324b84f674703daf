#!/usr/bin/env bash
# Which learning rate, clamp and branch mixture give the highest held-out accuracy? 20 trials, the best one is in
# optimization_results.yaml; with more of them the earlier ones are not run again.
#   bash multirun_scripts/hparams_optuna.sh hydra.sweeper.n_trials=40
set -euo pipefail
source "$(dirname "$0")/common.sh"
[[ "${SMOKE:-0}" != 1 ]] || settings+=(hydra.sweeper.n_trials=2)
train hparams_search=optuna "$@"
exit "$failed"
