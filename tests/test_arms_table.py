"""The table of a sweep, from files written by hand."""

import json

from edge_grpo.reporting.arms_table import arms_table


def write_run(folder, name, after, dead):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    summary = {"name": name, "accuracy": {"before": 0.0, "after": after}, "seconds": 60.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        "step,collapse/after/zero_variance,train/entropy,train/advantage_var,train/num_rollouts,eval/held_out/accuracy"
    ]
    lines += [f"{step},{value},0.5,1.0,{128 * (step + 1)},{'' if step else 0.0}" for step, value in enumerate(dead)]
    (folder / "metrics.csv").write_text("\n".join([*lines, f"{len(dead)},,,,,{after}"]) + "\n")


def test_one_row_an_arm_with_the_range_over_seeds(tmp_path):
    write_run(tmp_path / "0", "vanilla", 0.2, [1.0, 0.5])
    write_run(tmp_path / "1", "vanilla", 0.6, [0.5, 0.0])
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "config.yaml").write_text("")
    (tmp_path / "0" / ".hydra").mkdir()  # Hydra's own record of a run is not another run
    (tmp_path / "0" / ".hydra" / "config.yaml").write_text("")
    table = arms_table(tmp_path)
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    # After: mean of 0.2 and 0.6. Half of the problems right: at step 2 in one run, never in the other.
    # Dead groups: means 0.75 and 0.25. Rollouts: two iterations of 128.
    assert cells[:6] == [
        "vanilla",
        "2",
        "0.000 (0.000 to 0.000)",
        "0.400 (0.200 to 0.600)",
        "2.000 (2.000 to 2.000, 1 never)",
        "0.500 (0.250 to 0.750)",
    ]
    assert cells[9] == "256 (256 to 256)"
    assert [line for line in table.splitlines() if "unfinished" in line] == [f"unfinished: {tmp_path / '2'}"]
