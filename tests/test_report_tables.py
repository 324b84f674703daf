"""Tables for papers: marks, Wilson's interval, LaTeX that fits, names and columns."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from report_runs import write_evaluation, write_run
from test_report_numbers import lines, members_of, numbers

from edge_grpo.errors import UserError
from edge_grpo.reporting.latex import as_latex
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.scores import WILSON
from edge_grpo.reporting.table_files import as_markdown
from edge_grpo.reporting.tables import Cell, Table, marked, percent, tables_of
from edge_grpo.statistics.bootstrap import Estimate
from edge_grpo.statistics.palette import KNOWN, LOOKS


def layout(cells="mean_sd", width="column", labels=None, columns=None):
    return Layout(labels, columns, cells, width, 3.25, 6.75)


def estimates(*seeds):
    """A frame as `aggregated` makes it, of so many seeds."""
    rows = [("a", "A", "avg@4", 0.5, 0.01, 0.49, 0.51, n, "seeds") for n in seeds]
    return pd.DataFrame(rows, columns=["arm", "benchmark", "metric", "mean", "std", "low", "high", "n", "resampled"])


def small_table():
    """Three arms, a column that is the same in all, and one that is not."""
    rows = [
        [Cell(arm), Cell("2"), percent(Estimate(value, value - 0.02, value + 0.02, n=2, std=0.01)), percent(None)]
        for arm, value in (("edge_grpo, a|b", 0.5), ("x", 0.25), ("y", 0.125))
    ]
    heads = ["arm", "seeds", "Avg (40)", "B"]
    return Table("table", "Accuracy", "In %.", heads, marked(heads, rows, ["Avg (40)", "B"]), estimates(2), 0.95)


def test_markdown_has_all_of_a_cell():
    assert as_markdown(small_table(), layout(labels={"Avg": "mean"})) == (
        "### Accuracy\n\n"
        "| arm | seeds | mean (40) | B |\n"
        "|---|---:|---:|---:|\n"
        "| edge_grpo, a\\|b | 2 | **50.0 ± 1.0 [48.0, 52.0]** | - |\n"
        "| x | 2 | <ins>25.0 ± 1.0 [23.0, 27.0]</ins> | - |\n"
        "| y | 2 | 12.5 ± 1.0 [10.5, 14.5] | - |\n\n"
        "In %. Mean ± standard deviation over seeds [95 % percentile bootstrap interval over seeds]. Of few seeds such "
        "an interval covers the true value at most 50 % of the time with 2. Bold: the highest mean of a column; "
        "underlined: the second.\n"
    )


def test_latex_shows_what_the_layout_says_and_leaves_out_what_is_the_same():
    text = as_latex(small_table(), layout(labels={"Avg": "mean"}))
    assert text == (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}[t]\n\\centering\n"
        "\\caption{In \\%. Mean $\\pm$ standard deviation over seeds. Bold: the highest mean of a column; underlined: "
        "the second. The same in every row: seeds 2.}\n\\label{tab:table}\n"
        "\\small\\setlength{\\tabcolsep}{4pt}\n\n\\smallskip\n"
        "\\begin{tabular}{@{}lr@{}}\n\\toprule\n"
        "arm & \\shortstack[r]{mean\\\\(40)} \\\\\n\\midrule\n"
        "edge\\_grpo, a\\textbar{}b & \\textbf{50.0} {\\scriptsize $\\pm$1.0} \\\\\n"
        "x & \\underline{25.0} {\\scriptsize $\\pm$1.0} \\\\\n"
        "y & 12.5 {\\scriptsize $\\pm$1.0} \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    of_means = as_latex(small_table(), layout("mean"))
    assert "x & \\underline{25.0} \\\\" in of_means
    assert "In \\%. Mean over seeds. Bold" in of_means
    with_intervals = as_latex(small_table(), layout("interval", "page"))
    assert "x & \\underline{25.0} \\\\\n & {\\scriptsize [23.0, 27.0]} \\\\[2pt]\n" in with_intervals
    assert "\\begin{table*}" in with_intervals
    assert "±" not in of_means + with_intervals


def test_columns_are_those_that_were_asked_for_in_their_order():
    text = as_latex(small_table(), layout(columns={"table": ["Avg", "seeds"]}))
    assert "arm & \\shortstack[r]{Avg\\\\(40)} & seeds \\\\" in text
    assert "The same" not in text  # what was asked for stays


def test_the_highest_and_the_second_are_those_of_the_shown_digits():
    def ranks(*shares, wanted=("A",)):
        rows = [[Cell(str(i)), percent(None if share is None else Estimate(share))] for i, share in enumerate(shares)]
        return [row[1].rank for row in marked(["arm", "A"], rows, wanted)]

    assert ranks(0.1, 0.3, 0.2) == [0, 1, 2]
    assert ranks(0.5001, 0.4999, 0.2, 0.2) == [1, 1, 2, 2]  # 50.0 and 50.0
    assert ranks(0.1, 0.2) == [0, 1]
    assert ranks(0.1, 0.2, None, None) == [0, 1, 0, 0]
    assert ranks(0.1, None, 0.3, 0.2) == [0, 0, 1, 2]
    assert ranks(0.2, 0.2, 0.2) == ranks(0.1, 0.3, 0.2, wanted=()) == [0, 0, 0]


def test_none_right_has_wilsons_interval_over_problems(tmp_path):
    for arm, score, seeds in (("a", 0.0, 1), ("b", 0.0, 2), ("c", 1.0, 2)):
        for seed in range(seeds):
            settings = {"data": {"held_out_count": 16}}
            run = write_run(tmp_path / f"{arm}{seed}", arm, seed, settings=settings, held_out=(0.0, 0.5))
            write_evaluation(run, {"A": score}, width=0.0)
    found, arms = numbers(members_of(tmp_path))
    _, main, differences, learning, _ = tables_of(found, arms, 0.95)
    # z^2 = 3.8415 and 10 problems: 0 to 3.8415 / 13.8415 = 0.2775 at 0, 0.7225 to 1 at 1.
    assert lines(main) == [
        ["a", "1", "0.0 [0.0, 27.8]"],
        ["b", "2", "0.0 ± 0.0 [0.0, 27.8]"],
        ["c", "2", "100.0 ± 0.0 [72.2, 100.0]"],
    ]
    assert "Wilson's over problems" in main.caption
    assert set(main.tidy.loc[main.tidy["metric"] == "avg@2", "resampled"]) == {WILSON}
    # Of 16 held-out problems: 3.8415 / 19.8415. Nothing is known of what is no share of problems.
    assert lines(learning)[1][2:5] == ["0.0 ± 0.0 [0.0, 19.4]", "50.0 ± 0.0", "50.0 ± 0.0"]
    assert lines(differences) == [["b", "1", "+0.0"], ["c", "1", "+100.0"]]
    assert not any(
        re.search(r"\[([^,]+), \1\]", line)
        for table in (main, differences, learning)
        for row in lines(table)
        for line in row
    )


def test_wilsons_interval_of_one_seed_is_called_so(tmp_path):
    """edge-grpo-evaluate has given it its width already."""
    settings = {"data": {"held_out_count": 16}, "evaluation": {"limit": 10}}
    run = write_run(tmp_path / "a", "a", 0, settings=settings, held_out=(0.0, 0.5))
    write_evaluation(run, {"A": 0.0}, width=0.1)
    found, arms = numbers(members_of(tmp_path))
    main, learning, _ = tables_of(found, arms, 0.95)
    assert lines(main) == [["a", "1", "0.0 [0.0, 27.8]"]]
    assert main.caption.endswith("One seed. Of a share of 0 or 100 % the interval is Wilson's over problems.")
    # Of the 10 held-out problems that evaluation.limit left.
    assert lines(learning)[0][2:4] == ["0.0 [0.0, 27.8]", "50.0"]
    assert "One seed. Of a share of 0" in learning.caption


def test_names_that_are_not_there_are_refused():
    tables = {"table": ["arm", "seeds", "Avg (40)"]}
    layout(labels={"edge_grpo": "ours", "Avg": "mean"}, columns={"table": ["Avg"]}).check(["edge_grpo"], tables)
    refused = {
        "layout.labels names edge-grpo, which is no arm and no column; did you mean edge_grpo?": {
            "labels": {"edge-grpo": "ours"}
        },
        "layout.columns names tabel, which is no table of this report; did you mean table?": {
            "columns": {"tabel": ["Avg"]}
        },
        "layout.columns.table names AIME24, which is no column of it; there are: arm; seeds; Avg; Avg (40)": {
            "columns": {"table": ["AIME24"]}
        },
    }
    refused["two arms would be called vanilla; the arms: edge_grpo; vanilla"] = {"labels": {"edge_grpo": "vanilla"}}
    refused["layout.columns.table names no column"] = {"columns": {"table": []}}
    for message, own in refused.items():
        with pytest.raises(UserError, match=re.escape(message)):
            layout(**own).check(["edge_grpo", "vanilla"], tables)
    for message, make in {
        "layout.cells=sd: must be one of mean, mean_sd, interval": lambda: layout("sd"),
        "layout.width=both: must be one of column, page": lambda: layout(width="both"),
        "several have the name ours": lambda: layout(labels={"a": "ours", "b": "ours"}),
        "layout.column_inches=9": lambda: Layout(None, None, "mean", "column", 9, 6.75),
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            make()


def test_the_arms_of_the_sweeps_have_looks_of_their_own():
    lines = (Path(__file__).parents[1] / "multirun_scripts" / "cures.txt").read_text().splitlines()
    arms = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert arms - set(KNOWN) == set()  # a new arm is added at the end of the list
    assert len(set(KNOWN)) == len(KNOWN) <= len(LOOKS)


def wide_table(rows, columns):
    """Long names and long heads, and more rows than a page has."""
    heads = ["arm", *(f"groups without advantage {i}" for i in range(columns))]
    names = [f"edge_grpo, advantage.clamp={i}, importance_correction=masked_geometric" for i in range(rows)]
    names[0] = r"[mine] a_b % & # ~ ^ \ {} $x$ < > |, β = 0.1, Δ −1 → ∞"
    cells = [
        [Cell(name), *(percent(Estimate(-i / 50 - j, -i - 1.0, i + 1.0, n=3, std=0.123)) for j in range(columns))]
        for i, name in enumerate(names)
    ]
    return Table(
        "wide", "Wide", "What is shown, at some length. " * 9, heads, marked(heads, cells, heads), estimates(3), 0.95
    )


def test_names_of_arms_are_broken_before_narrow_columns_are_parted():
    names = ["advantage=vanilla", "advantage=ngrpo", "advantage=entropy_driven"]
    heads = ["arm", "seeds", "Avg (10)", *(f"chain{i} (2)" for i in range(2, 5))]
    rows = [[Cell(name), Cell(str(i)), *[percent(Estimate(i / 10, n=1))] * 4] for i, name in enumerate(names)]
    text = as_latex(Table("t", "T", "W.", heads, rows, estimates(1), 0.95), layout())
    assert text.count("begin{tabular}") == 1
    width = int(re.search(r"p\{(\d+)pt\}", text)[1])
    # A fifth of a column's 235 points at least, and less than the 98 that names may have where there is room.
    assert 47 <= width < 98


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_no_line_is_too_wide(tmp_path):
    page = "\\usepackage[textwidth=6.75in,textheight=9in,columnsep=0.25in]{geometry}"
    text = [f"\\documentclass[twocolumn]{{article}}{page}\\usepackage{{booktabs}}\\begin{{document}}"]
    for number, (cells, width) in enumerate((("mean_sd", "column"), ("interval", "column"), ("interval", "page"))):
        for table in (small_table(), wide_table(5, 7), wide_table(40, 1)):
            text.append(as_latex(table, layout(cells, width)).replace("tab:", f"tab:{number}-") + "\\clearpage")
    (tmp_path / "paper.tex").write_text("\n".join([*text, "\\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "paper.log").read_text(errors="replace").replace("\n", "")
    assert done.returncode == 0, log[-2000:]
    assert re.findall(r"Overfull \\hbox[^[]*", log) == []
    assert re.findall(r"Float too large[^.]*", log) == []
    # What fits is not split: beside names this long a column of a paper has room for two, a page for five.
    assert [len(re.findall("begin{tabular}", own)) for own in text[2::3]] == [4, 4, 2]


def test_files_are_utf_8_whatever_the_machine_speaks(tmp_path):
    code = (
        "from pathlib import Path; from edge_grpo.reporting.table_files import write_table; "
        "from test_report_tables import layout, small_table; write_table(small_table(), layout(), Path('.'))"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ascii_only, "PYTHONPATH": path}, check=True
    )
    assert "50.0 ± 1.0" in (tmp_path / "table.md").read_text("utf-8")
