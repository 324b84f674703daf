"""Sampled completions: who wrote which part of them, as rows, as HTML, and across a resume."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from edge_grpo.algorithms.iteration import Iteration, TrainedRows
from edge_grpo.callbacks.rollouts import RolloutRecords, rollout_rows
from edge_grpo.callbacks.samples import Samples, describe_rows
from edge_grpo.callbacks.token_texts import TokenTexts
from edge_grpo.corrections.base import Corrected
from edge_grpo.errors import UserError
from edge_grpo.loggers.hooks import RunLogger
from edge_grpo.loggers.samples import as_page
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.runs.rollout_files import RolloutFiles, read_table, rollout_files
from edge_grpo.types.problems import Problem, Turn
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

KINDS = {"s": Provenance.SAMPLED, "i": Provenance.INJECTED, "r": Provenance.REFERENCE}
EOS = 0
# What ByteLevel writes for a byte: printable ones as they are, the others from U+0100 on, in order.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_WRITTEN = {b: chr(b) for b in _PRINTABLE} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}
BYTE_IDS = {b: i for i, b in enumerate(sorted(_WRITTEN, key=_WRITTEN.__getitem__))}
"""byte -> its token in `byte_tokenizer`"""


def decode(ids):
    """Ids are code points; 0 is the EOS, which is no text."""
    return "".join(map(chr, ids[ids != EOS].tolist()))


def response(*parts):
    """(kind, text) pairs as one response; the character NUL stands for the EOS."""
    text = "".join(text for _, text in parts)
    kinds = [KINDS[kind] for kind, text in parts for _ in text]
    ids = torch.tensor(list(map(ord, text)))
    zeros = torch.zeros(len(ids))
    return Response(ids, zeros, zeros, torch.tensor(kinds, dtype=torch.int8), "stop")


def corrected(*responses, branches):
    problems = (Problem("p7", "1 + 1?", ("2", "two")),)
    n = len(responses)
    accuracy = torch.arange(n).remainder(2).float()
    texts = tuple(decode(r.token_ids) for r in responses)
    scores = Scores(accuracy + 1, {"accuracy": accuracy, "format": torch.ones(n)}, accuracy == 1)
    return Corrected(ScoredRollout(Rollout(problems, responses, n), texts, scores), branches)


BATCH = corrected(
    response(("s", "it is 3"), ("i", " Wait!"), ("s", " 2\0")),
    response(("r", "so 2\0")),
    response(("s", "never asked for")),
    branches=("reflect", "solution", None),
)


def pieces(one, text):
    texts = TokenTexts(decode)
    return texts.pieces(one, text, texts.characters(one, text))


def test_pieces_are_runs_of_one_writer():
    assert pieces(BATCH.scored.rollout.responses[0], "it is 3 Wait! 2") == [
        ("sampled", "it is 3"),
        ("injected", " Wait!"),
        ("sampled", " 2"),
    ]
    # An EOS that somebody else wrote has no text, so it is no piece.
    assert pieces(response(("s", "2"), ("i", "\0")), "2") == [("sampled", "2")]


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def characters(content):
        ids = torch.tensor([BYTE_IDS[byte] for byte in content])
        one = Response(ids, ids * 0.0, None, (ids * 0).to(torch.int8), "stop")
        return texts.characters(one, texts.decode(ids))

    assert characters("½ = €".encode()) == [0, 1, 1, 1, 1, 0, 0, 1]
    # A byte that is no character shows as one that stands for it, and what follows stays in its place.
    assert characters(b"a\xffb") == [1, 1, 1]
    assert characters(b"\xe2\x82b") == [1, 0, 1]


def test_a_space_that_a_token_alone_does_not_have_is_the_tokens():
    words = {1: "so", 2: "it", 3: "is"}
    texts = TokenTexts(lambda ids: " ".join(words[i] for i in ids.tolist()))
    one = Response(torch.tensor([1, 2, 3]), torch.zeros(3), None, torch.zeros(3, dtype=torch.int8), "stop")
    assert texts.characters(one, "so it is") == [2, 3, 3]


def test_a_chat_is_shown_with_its_turns():
    scored = BATCH.scored
    chat = replace(scored.rollout.problems[0], turns=(Turn("system", "Think."),))
    batch = replace(BATCH, scored=replace(scored, rollout=replace(scored.rollout, problems=(chat,))))
    assert describe_rows(batch, 1, decode)[0]["question"] == "system: Think.\n\nuser: 1 + 1?"


def test_rows_hold_rewards_branch_and_pieces():
    rows = describe_rows(BATCH, 2, decode)
    assert rows[0] == {
        "id": "p7",
        "question": "1 + 1?",
        "response": "it is 3 Wait! 2",
        "gold": "2 | two",
        "correct": False,
        "reward": 1.0,
        "reward_accuracy": 0.0,
        "reward_format": 1.0,
        "branch": "reflect",
        "sampled_tokens": 7 + 3,  # "it is 3", " 2" and the EOS
        "tokens": 7 + 6 + 3,
        "finish_reason": "stop",
        "pieces": [("sampled", "it is 3"), ("injected", " Wait!"), ("sampled", " 2")],
    }
    assert [row["branch"] for row in rows] == ["reflect", "solution"]  # two rows were asked for


def test_text_is_coloured_by_who_wrote_it_and_never_markup():
    pieces = [["sampled", "<script>alert('x')</script> & 1 < 2"], ["injected", '" onload="x'], ["sampled", "!"]]
    row = {"id": "p", "question": "<i>", "gold": "</title>", "reward": 1.0, "correct": True, "branch": "<b>"}
    page = as_page([row | {"pieces": pieces}, row | {"pieces": [["sampled", "2"]]}])
    assert not any(markup in page for markup in ("<i>", "</title></", "<b><", "<b>,"))
    assert page.count("&lt;i&gt;") == 1  # a problem of two rows
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; 1 &lt; 2" in page
    assert 'onload="x' not in page
    ground = 'title="injected by the correction" style="background:#ffd97d"'
    assert page.count(ground) == 2  # the legend and the piece
    assert "reference" not in page  # a kind that is not there is not in the legend


class Shown(RunLogger):
    """A logger that shows samples."""

    def __init__(self):
        self.seen = []

    def log_samples(self, rows, step):
        assert {row["step"] for row in rows} == {step}
        self.seen.append((step, [{k: v for k, v in row.items() if k != "step"} for row in rows]))


def test_a_resumed_run_shows_again_what_its_rollouts_have(tmp_path):
    sampled = replace(BATCH.scored, rollout=Rollout(BATCH.scored.rollout.problems, (response(("s", "?")),) * 3, 3))
    n = torch.zeros(3)
    iteration = Iteration({}, sampled=sampled, corrected=BATCH, trained=TrainedRows(torch.arange(3), n, {}))
    policy, rewards = SimpleNamespace(decode=decode), SimpleNamespace(unparsed=lambda problems, texts: [False] * 3)
    module = SimpleNamespace(policy=policy, rewards=rewards)

    def part(steps, keep_gb=None):
        logger = Shown()
        trainer = SimpleNamespace(
            is_global_zero=True, current_epoch=steps[0], loggers=[object(), logger], world_size=1, global_rank=0
        )
        callbacks = [
            Samples(str(tmp_path), every_n_iterations=2, num_rows=2),
            RolloutRecords(str(tmp_path), True, keep_gb),
        ]
        for callback in callbacks:
            callback.on_train_start(trainer, module)
        for trainer.current_epoch in steps:
            for callback in callbacks:
                callback.on_train_batch_end(trainer, module, {"iteration": iteration})
        return logger.seen

    expected = describe_rows(BATCH, 2, decode)
    assert part(range(5)) == [(step, expected) for step in (0, 2, 4)]
    # From a checkpoint of iteration 3: 0 and 2 are shown again from the files, 4 is drawn anew.
    assert part(range(3, 7)) == [(step, expected) for step in (0, 2, 4, 6)]
    assert [step for step, _, _ in rollout_files(tmp_path)] == list(range(7))
    # The bound leaves the numbers of all, and shows what is there.
    size = max(path.stat().st_size for _, _, path in rollout_files(tmp_path))
    assert part(range(7, 9), keep_gb=3.5 * size / 1e9) == [(step, expected) for step in (0, 2, 4, 6, 8)]
    texts = read_table(tmp_path, ["step", "response"]).to_pylist()
    assert {row["step"] for row in texts} == set(range(9))
    assert {row["step"] for row in texts if row["response"] is not None} == {6, 7, 8}


def test_a_row_has_the_prompt_that_it_is_trained_under_where_that_is_another():
    problem = replace(BATCH.scored.rollout.problems[0], prompt_ids=tuple(map(ord, "1 + 1?")))
    sampled = replace(BATCH.scored, rollout=Rollout((problem,), (response(("s", "?")),) * 3, 3))
    plain, hinted, own = (replace(one, prompt_ids=None) for one in BATCH.scored.rollout.responses)
    hinted = replace(hinted, prompt_ids=tuple(map(ord, "1 + 1? Two.")))
    own = replace(own, prompt_ids=problem.prompt_ids)  # it was drawn under a hint
    after = replace(BATCH.scored, rollout=Rollout((problem,), (plain, hinted, own), 3))
    trained = TrainedRows(torch.arange(3), torch.zeros(3), {})
    iteration = Iteration({}, sampled=sampled, corrected=replace(BATCH, scored=after), trained=trained)
    rewards = SimpleNamespace(unparsed=lambda problems, texts: [False] * 3)
    rows = rollout_rows(iteration, TokenTexts(decode), rewards, tokens=False)
    assert [row.get("prompt_after") for row in rows] == [None, "1 + 1? Two.", None]


def test_a_resume_drops_what_it_writes_again_and_no_more(tmp_path):
    ranks = [RolloutFiles(tmp_path, rank, keep_bytes=None, world=2) for rank in (0, 1)]
    for step in range(4):
        for files in ranks:
            files.append(step, [{"group": 0, "row": 0}])
    (tmp_path / "rollouts" / ".iteration-000004-rank0.tmp").write_text("half")  # as a kill leaves it
    assert len(pd.read_parquet(tmp_path / "rollouts")) == 8
    ranks[0].cut_back(2)
    left = [(step, rank) for step, rank, _ in rollout_files(tmp_path)]
    assert left == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 1)]
    assert not list(tmp_path.rglob("*.tmp"))
    # Nobody else answers for the files of a rank that is no more.
    RolloutFiles(tmp_path, 0, keep_bytes=0).cut_back(2)
    assert [(step, rank) for step, rank, _ in rollout_files(tmp_path)] == left[:4]


def test_files_that_are_gone_or_damaged_stop_neither_a_run_nor_its_resume(tmp_path, caplog):
    def append(files, step):
        files.append(step, [{"group": 0, "row": 0, "response": "a", "token_characters": [70_000]}])

    files = RolloutFiles(tmp_path, 0, keep_bytes=None)
    for step in range(4):
        append(files, step)
    paths = [path for *_, path in rollout_files(tmp_path)]
    paths[1].write_bytes(b"")  # as a loss of power may leave it
    resumed = RolloutFiles(tmp_path, 0, keep_bytes=1)
    resumed.cut_back(4)
    assert f"{paths[1]} cannot be read" in caplog.text
    paths[2].unlink()  # to make room
    caplog.clear()
    append(resumed, 4)
    assert not caplog.text
    assert read_table(tmp_path, ["step", "response"], steps=[0, 3, 4]).to_pylist() == [
        {"step": step, "response": None} for step in (0, 3, 4)
    ]


def test_rows_that_a_full_disk_refuses_leave_no_file(tmp_path, monkeypatch, caplog):
    def full(table, path, **options):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    files = RolloutFiles(tmp_path, 0, keep_bytes=None)
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        files.append(0, [{"group": 0, "row": 0}])
    files.append(1, [{"group": 0, "row": 0}])
    assert "lacks the rows of step 0: No space left on device" in caplog.text
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["iteration-000001-rank0.parquet"]


def test_a_bound_below_zero_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"callbacks.rollouts.keep_gb=-1 must be at least 0, or null"):
        RolloutRecords(str(tmp_path), True, -1)


@pytest.mark.parametrize("values", [(0, 4), (5, 0), (5, -1)])
def test_fewer_than_one_is_refused_by_its_key(tmp_path, values):
    with pytest.raises(UserError, match=r"callbacks\.samples\.every_n_iterations=.* must be at least 1"):
        Samples(str(tmp_path), *values)
