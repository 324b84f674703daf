"""Problems through `datasets`, from a local folder."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from edge_grpo.command_line.check import instantiate
from edge_grpo.data.hub import HubDataModule
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Turn

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "sums"
    path.mkdir()
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"problem": f"{split} {i}", "gold": i} for i in range(count)]
        datasets.Dataset.from_list(rows).to_parquet(path / f"{split}.parquet")
    return path


def configured(*overrides: str) -> HubDataModule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("data/hub", overrides=["+seed=0", *overrides]).data)


def test_two_splits(folder: Path) -> None:
    data = configured(f"data.name={folder}", "data.held_out_split=test", "data.held_out_count=null")
    train, held_out = data.divide(*data.load())
    assert [p.question for p in train] == [f"train {i}" for i in range(6)]
    assert [p.answers for p in held_out] == [("0",), ("1",), ("2",)]
    assert (train[2].id, train[2].origin) == ("train-3", f"{folder}[train]:3")


def test_a_part_of_one_split(folder: Path) -> None:
    data = configured(f"data.name={folder}", "data.held_out_count=2")
    train, held_out = data.divide(*data.load())
    assert (len(train), len(held_out)) == (4, 2)


def test_rows_of_other_programs(folder: Path) -> None:
    import datasets

    rows = [
        {
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"{i} + 1"}],
            "reward_model": {"ground_truth": str(i + 1)},
            "extra_info": {"index": i},
        }
        for i in range(3)
    ]
    (folder / "test.parquet").unlink()
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    train, _ = configured(f"data.name={folder}", "data.held_out_count=1").load()
    assert [(p.turns, p.question, p.answers) for p in train] == [
        ((Turn("system", "Think."),), f"{i} + 1", (str(i + 1),)) for i in range(3)
    ]
    assert train[2].columns == {"reward_model": {"ground_truth": "3"}, "extra_info": {"index": 2}}


def test_what_cannot_be_had_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\[tset\]: .*data\.train_split"):
        configured(f"data.name={folder}", "data.train_split=tset").load()
    with pytest.raises(UserError, match=r"absent\[train\]: .*data\.name"):
        configured(f"data.name={folder / 'absent'}").load()
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "datasets", hidden)
    with pytest.raises(UserError, match=r"pip install 'edge-grpo\[hub\]'"):
        configured(f"data.name={folder}").load()
