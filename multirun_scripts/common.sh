# Sourced by the scripts beside it. Folders are named after settings: running a script again runs what is missing.
# SMOKE=1 makes it a matter of seconds; FOLDER and SEEDS say where and with which seeds.
name="$(basename "$0" .sh)"
settings=() failed=0
read -ra limits <<< "evaluation=${EVALUATION:-arithmetic}"
if [[ "${SMOKE:-0}" == 1 ]]; then
  name+=_smoke SEEDS="${SEEDS:-0}"
  settings=(debug=smoke data.held_out_count=8 trainer=cpu logger=csv)
  limits+=(evaluation.limit=2 evaluation.num_samples=2 evaluation.max_new_tokens=16 bootstrap.resamples=100)
fi
for override; do [[ "$override" == hydra.* ]] || name+="_${override//[^a-zA-Z0-9=.,_-]/-}"; done
folder="${FOLDER:-multirun/$name}" seeds="${SEEDS:-0,1,2}"

# Failed jobs (1) are named by the command itself and do not stop the script; a wrong setting (2) or a signal does.
go_on() { "$@" || { local code=$?; ((code == 1)) || exit "$code"; failed=1; }; }
train() { go_on edge-grpo-train -m "hydra.sweep.dir='$folder'" "${settings[@]}" "$@"; }

evaluate() { # every finished run
  local runs="" summary
  for summary in "$folder"/*/summary.json; do [[ ! -e "$summary" ]] || runs+="${runs:+,}'${summary%/*}'"; done
  [[ -z "$runs" ]] || go_on edge-grpo-evaluate -m "hydra.sweep.dir='$folder/evaluation'" "run=$runs" "${limits[@]}"
}

report() { go_on edge-grpo-report "runs='$folder'" "hydra.run.dir='$folder/report'" "$@"; }
