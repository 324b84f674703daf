"""What a run records of the code that it ran."""

import subprocess

import pytest

from edge_grpo.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one commit that this package seems to lie in; the commit."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "edge_grpo" / "runs" / "provenance.py"))
    provenance._program.cache_clear()
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    yield subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    provenance._program.cache_clear()


def test_the_commit_of_the_checkout_is_recorded(checkout, tmp_path):
    assert provenance.run_info()["git_commit"] == checkout
    assert provenance.run_info()["git_dirty"] is False
    (tmp_path / "new.txt").write_text("")
    assert provenance.run_info()["git_dirty"] is True


def test_a_checkout_without_git_on_the_path_is_told_of_once(checkout, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        info = provenance.run_info()
        assert (info["git_commit"], info["git_dirty"]) == (None, False)
    assert caplog.messages == ["no git on PATH: the commit of this checkout is not recorded"]
