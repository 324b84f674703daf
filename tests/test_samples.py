"""Sampled completions: who wrote which part of them, as rows, as HTML, and across a resume."""

import json
from dataclasses import replace
from types import SimpleNamespace

import torch

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.samples import SampleWriter, describe_rows, pieces
from edge_grpo.corrections.base import Corrected
from edge_grpo.loggers.hooks import RunLogger
from edge_grpo.loggers.samples import as_html
from edge_grpo.types import Problem, Provenance, Response, Rollout, ScoredRollout, Scores, Turn

KINDS = {"s": Provenance.SAMPLED, "i": Provenance.INJECTED, "r": Provenance.REFERENCE}
EOS = 0


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


def test_pieces_are_runs_of_one_writer():
    assert pieces(BATCH.scored.rollout.responses[0], decode) == [
        ["sampled", "it is 3"],
        ["injected", " Wait!"],
        ["sampled", " 2"],
    ]
    # An EOS that somebody else wrote has no text, so it is no piece.
    assert pieces(response(("s", "2"), ("i", "\0")), decode) == [["sampled", "2"]]


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
        "pieces": [["sampled", "it is 3"], ["injected", " Wait!"], ["sampled", " 2"]],
    }
    assert [row["branch"] for row in rows] == ["reflect", "solution"]  # two rows were asked for


def test_text_is_coloured_by_who_wrote_it_and_never_markup():
    page = as_html([["sampled", "<script>alert('x')</script> & 1 < 2"], ["injected", '" onload="x'], ["sampled", "!"]])
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
        self.seen.append((step, [row["pieces"] for row in rows]))


def test_a_resumed_run_cuts_the_file_back_and_shows_the_rest_again(tmp_path):
    def part(steps):
        logger = Shown()
        trainer = SimpleNamespace(is_global_zero=True, current_epoch=steps[0], loggers=[object(), logger])
        module = SimpleNamespace(policy=SimpleNamespace(decode=decode))
        writer = SampleWriter(str(tmp_path), every_n_iterations=2, num_rows=2)
        writer.on_train_start(trainer, module)
        for trainer.current_epoch in steps:
            writer.on_train_batch_end(trainer, module, {"iteration": Iteration({}, corrected=BATCH)})
        return logger.seen

    expected = [[["sampled", "it is 3"], ["injected", " Wait!"], ["sampled", " 2"]], [["reference", "so 2"]]]
    assert part(range(5)) == [(step, expected) for step in (0, 2, 4)]
    # From a checkpoint of iteration 3: 0 and 2 stay and are shown again, 4 is drawn anew.
    assert part(range(3, 7)) == [(step, expected) for step in (0, 2, 4, 6)]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4, 6, 6]
