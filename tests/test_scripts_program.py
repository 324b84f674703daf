"""The sweeps and examples are copied to where one can change them, and never over something."""

import pytest

from edge_grpo.programs import scripts


def test_sweeps_and_examples_are_copied(tmp_path, capsys):
    scripts.main([str(tmp_path / "new" / "mine")])
    copied = {str(path.relative_to(tmp_path / "new" / "mine")) for path in (tmp_path / "new" / "mine").rglob("*.*")}
    assert {"multirun_scripts/paper_table.sh", "multirun_scripts/cures.txt", "examples/my_strategies.py"} <= copied
    assert "examples/conf/loss/mine.yaml" in copied
    assert not [path for path in copied if "__pycache__" in path]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_nothing_is_overwritten_and_nothing_is_half_copied(tmp_path, capsys):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "my_strategies.py").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        scripts.main([str(tmp_path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'examples'}: there already")
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]
    assert (tmp_path / "examples" / "my_strategies.py").read_text() == "mine"


def test_the_packed_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(scripts, "PACKAGE", tmp_path / "edge_grpo")
    assert scripts.source("examples") == tmp_path / "tests" / "examples"
    (tmp_path / "edge_grpo" / "examples").mkdir(parents=True)
    assert scripts.source("examples") == tmp_path / "edge_grpo" / "examples"
