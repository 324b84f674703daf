"""What lies on the disk after a checkpoint was written, damaged or deleted."""

import json

import pytest

from edge_grpo.runs.checkpoints import checkpoints, damage, read_manifest, remove, write_checkpoint
from edge_grpo.runs.resume import drop_later, find_checkpoint


def write(folder, iteration, text="state"):
    return write_checkpoint(folder, iteration, lambda path: path.write_text(text), {"config": {"seed": 1}})


def test_a_checkpoint_says_what_it_holds(tmp_path):
    path = write(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (path.name, manifest["iteration"], manifest["config"]) == ("iteration-000005", 5, {"seed": 1})
    # printf state | sha256sum
    sha256 = "4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e"
    assert manifest["files"] == {"state.ckpt": {"bytes": 5, "sha256": sha256}}
    assert damage(path) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iteration-000005"]


def test_a_folder_of_shards_is_covered_too(tmp_path):
    def save(path):
        path.mkdir()
        (path / "shard-0").write_text("a")
        (path / "shard-1").write_text("b")

    path = write_checkpoint(tmp_path, 1, save, {})
    assert set(read_manifest(path)["files"]) == {"state.ckpt/shard-0", "state.ckpt/shard-1"}
    (path / "state.ckpt" / "shard-1").unlink()
    assert damage(path) == "state.ckpt/shard-1 is missing"


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda p: (p / "state.ckpt").write_text("stat"), "state.ckpt has 4 bytes of 5"),
        (lambda p: (p / "state.ckpt").write_text("stake"), "state.ckpt has another SHA-256 than its manifest says"),
        (lambda p: (p / "state.ckpt").unlink(), "state.ckpt is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text('{"files": '), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json lists no files"),
    ],
)
def test_damage_is_found(tmp_path, harm, found):
    path = write(tmp_path, 1)
    harm(path)
    assert damage(path) == found


def test_a_fault_while_writing_leaves_the_one_before_and_nothing_else(tmp_path):
    write(tmp_path, 1)

    def fails(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, fails, {})
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-000001"]


def test_a_checkpoint_replaces_the_damaged_one_of_the_same_iteration(tmp_path):
    (write(tmp_path, 3) / "state.ckpt").write_text("")
    assert damage(write(tmp_path, 3, "again")) is None
    assert [p.name for p in checkpoints(tmp_path)] == ["iteration-000003"]


def test_the_newest_whole_checkpoint_is_found_and_later_ones_are_dropped(tmp_path):
    for iteration in (1, 2, 3):
        write(tmp_path, iteration)
    (tmp_path / "iteration-000003" / "state.ckpt").write_text("half")
    (tmp_path / ".iteration-000004.tmp").mkdir()
    found = find_checkpoint(tmp_path)
    assert found == tmp_path / "iteration-000002"
    drop_later(tmp_path, found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iteration-000001", "iteration-000002"]
    drop_later(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    assert find_checkpoint(tmp_path) is None


def test_order_is_by_iteration_and_removal_leaves_no_trace(tmp_path):
    for iteration in (10, 9, 100):
        write(tmp_path, iteration)
    (tmp_path / "iteration-000200-backup").mkdir()  # the user's own
    (tmp_path / "iteration-000300.ckpt").touch()
    found = checkpoints(tmp_path)
    assert [p.name[-3:] for p in found] == ["009", "010", "100"]
    remove(found[:2])
    assert [p.name for p in checkpoints(tmp_path)] == ["iteration-000100"]
    assert len(list(tmp_path.iterdir())) == 3
