"""Rollouts of groups with texts, each there for one filter."""

from pathlib import Path

from analysis_rows import rollout, write_rollouts

from edge_grpo.browsing.opening import Recordings


def told(row, step=0, problem="a", before="", after=None, **values):
    """A row with texts: pieces of `after` are (provenance, text)."""
    pieces = None if after is None else [{"by": by, "text": text} for by, text in after]
    texts = {"question": f"{problem}?", "answers": ["2"], "response": before, "pieces_after": pieces}
    grading = {"finish_reason": "stop", "finish_reason_after": "stop", "unparsed": False, "unparsed_after": False}
    eda = {"multiplier": None, "clamped": None}
    return rollout(row=row, step=step, problem=problem, **{**texts, **grading, **eda, **values})


def group(rewards, rewards_after=None, **values):
    """A group whose responses of reward 2 are right."""
    after = rewards if rewards_after is None else rewards_after
    for row, (reward, then) in enumerate(zip(rewards, after, strict=True)):
        numbers = {"reward": float(reward), "reward_after": float(then)}
        yield told(row, correct=reward == 2, correct_after=then == 2, **numbers, **values)


def write_run(folder: Path) -> Path:
    """Two iterations; what each group is for is its problem's id."""
    rows = [
        *group([0, 0], [0, 2], problem="revived", before="no", after=[("sampled", "no"), ("injected", " Wait!")]),
        *group([0, 2], [2, 2], problem="uniform"),
        *group([2, 2], problem="right", finish_reason_after="length"),
        *group([0, 1], problem="wrong", multiplier=9.0, clamped=1.0, before="</script><b>Zürich</b>"),
        *group([0, 2], [2, 0], step=1, problem="revived", unparsed=True),
    ]
    return write_rollouts(folder, rows)


def read(*paths):
    return Recordings([str(path) for path in paths])
