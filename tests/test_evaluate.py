"""edge-grpo-evaluate: what it writes, that it goes on after a kill, and what it refuses."""

import json
import logging
import re
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from analysis_rows import completion
from omegaconf import OmegaConf
from small_runs import SMALL_MODEL, composed, run_small

from edge_grpo.command_line.check import check_config, instantiate
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.errors import Stopped, UserError
from edge_grpo.evaluation import pace
from edge_grpo.evaluation.benchmarks import ArithmeticBenchmark, FileBenchmark, load_benchmarks
from edge_grpo.evaluation.completions import SCHEMA, read_completions
from edge_grpo.evaluation.entropy import ResponseEntropy
from edge_grpo.evaluation.reflection import MARKERS, ForcedReflection, spontaneous
from edge_grpo.evaluation.results import reflection_line
from edge_grpo.evaluation.sampling import sample
from edge_grpo.policy.tiny import random_tiny_policy
from edge_grpo.programs import evaluate_run as program
from edge_grpo.programs.evaluate import check_run
from edge_grpo.programs.evaluate_run import run_evaluation
from edge_grpo.rewards.accuracy import Accuracy
from edge_grpo.rewards.base import WeightedRewards, score_rollout
from edge_grpo.rewards.verifier import MathVerifier
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.runs.quiet import ToldOnce, silence_expected_warnings
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, written_response
from edge_grpo.types.rollouts import Rollout

COLUMNS = {"question": ["question"], "answer": ["answer"]}


def engine():
    return NativeRollout(8, 1.0, 1.0, 0, 0.0, (), None)


def rewards():
    return WeightedRewards({"accuracy": Accuracy(MathVerifier())}, {"accuracy": 1.0})


def problem(policy, name="p", question="1 + 1 = ?", answers=("2",)):
    return Problem(name, question, answers, prompt_ids=policy.encode(question), origin=name)


def written(policy, *texts):
    """A rollout of these texts to one problem."""
    responses = [
        written_response(torch.tensor([*policy.encode(t), *policy.eos_ids[:1]]), Provenance.SAMPLED, "stop")
        for t in texts
    ]
    return Rollout((problem(policy),), tuple(responses), len(texts))


def evaluate(folder, *overrides, typed=()):
    cfg, _ = composed("evaluate", "accelerator=cpu", "bootstrap.resamples=50", *overrides, f"paths.run_dir={folder}")
    check_config(cfg)
    return run_evaluation(cfg, lambda *keys: bool({*keys} & {*typed}))


def small(*names):
    """The arithmetic evaluation at its smallest, of a random model."""
    left_out = [f"~evaluation.benchmarks.{name}" for name in ("chain2", "chain3", "chain4", "chain5", "chain6")]
    return (
        *SMALL_MODEL,
        *(text for text in left_out if text.rpartition(".")[2] not in names),
        "evaluation.limit=3",
        "evaluation.num_samples=2",
        "evaluation.max_new_tokens=6",
        "reflection=forced",
        "reflection.max_new_tokens=4",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    score = evaluate(folder, *small("chain2", "chain5"), "problems_per_batch=2")
    return folder, score


def test_every_completion_is_in_the_file_with_its_grading(finished):
    folder, score = finished
    rows = pd.read_parquet(folder / "completions.parquet")
    assert list(rows.columns) == SCHEMA.names
    # 2 sets of 3 problems with 2 samples each, in the order of the sets and their problems.
    assert list(rows["benchmark"]) == ["chain2"] * 6 + ["chain5"] * 6
    assert list(rows["problem"][:6]) == [f"arithmetic-2-terms-{i}" for i in (0, 0, 1, 1, 2, 2)]
    assert list(rows["sample"]) == [0, 1] * 6
    assert rows["prompt"][0] == f"<|user|>{rows['question'][0]}<|assistant|>"
    assert rows["tokens"].between(1, 6).all()
    # A random policy over 261 tokens: near ln 261 = 5.56 nats.
    assert rows["entropy"].between(5.0, 5.57).all()
    assert rows["forced_tokens"].between(1, 4).all()
    assert score == rows["correct"].mean()
    assert not list(folder.glob(".parts"))


def test_a_benchmark_of_chats_is_asked_with_its_turns(tmp_path):
    turns = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1 = ?"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": turns, "reward_model": {"ground_truth": "2"}}))
    args = ("evaluation=file", f"evaluation.benchmarks.file.path={tmp_path}/b.jsonl", "data/template=question")
    evaluate(tmp_path / "out", *SMALL_MODEL, *args, "evaluation.max_new_tokens=2", "evaluation.num_samples=1")
    (row,) = read_completions(tmp_path / "out").to_dict("records")
    assert row["prompt"] == "<|system|>Think.<|user|>1 + 1 = ?<|assistant|>"
    assert (row["question"], list(row["answers"])) == ("system: Think.\n\nuser: 1 + 1 = ?", ["2"])


def test_the_results_name_the_policy_and_the_sampling(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert set(results["benchmarks"]) == {"chain2", "chain5"}
    assert results["benchmarks"]["chain5"]["problems"] == 3
    assert (results["num_samples"], results["name"], results["run"]) == (2, "arithmetic", None)
    assert results["sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6}
    assert "| total | 6 |" in (finished[0] / "results.md").read_text()


def test_the_scores_can_be_had_again_without_the_model(finished, tmp_path):
    again = evaluate(tmp_path, f"from_file={finished[0]}/completions.parquet", "seed=0")
    before = json.loads((finished[0] / "results.json").read_text())
    after = json.loads((tmp_path / "results.json").read_text())
    assert again == finished[1]
    assert after["benchmarks"] == before["benchmarks"]


def test_an_average_of_no_benchmark_of_the_file_is_refused(finished, tmp_path):
    file = f"from_file={finished[0]}/completions.parquet"
    with pytest.raises(UserError, match=r"evaluation.average=\['AMC'\]: the completions are of chain2, chain5"):
        evaluate(tmp_path, file, "evaluation.average=[AMC]", typed=["evaluation"])


def test_a_file_keeps_its_name_and_average(finished, tmp_path):
    made = tmp_path / "made"
    shutil.copytree(finished[0], made)
    config = OmegaConf.load(made / "config.yaml")
    config.name, config.evaluation.average = "mine", ["chain5"]
    OmegaConf.save(config, made / "config.yaml")
    file = f"from_file={made}/completions.parquet"
    for typed, name, averaged in (
        ((), "mine", ["chain5"]),
        (("name", "evaluation"), "arithmetic", ["chain2", "chain5"]),
    ):
        evaluate(tmp_path / name, file, typed=typed)
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["name"], results["total"]["benchmarks"]) == (name, averaged)


def test_unequal_numbers_of_samples_are_told(finished, tmp_path):
    read_completions(finished[0]).iloc[:-1].to_parquet(tmp_path / "cut.parquet")
    with pytest.raises(UserError, match=r"cut.parquet: 1 completions of problem \('chain5', .*2 of \('chain2'"):
        evaluate(tmp_path / "out", f"from_file={tmp_path}/cut.parquet")


def test_a_finished_evaluation_is_not_sampled_again(finished, monkeypatch):
    monkeypatch.setattr(program, "load_subject", lambda *_, **__: pytest.fail("a model was loaded"))
    assert evaluate(finished[0], *small("chain2", "chain5"), "bootstrap.confidence=0.5") == finished[1]
    assert json.loads((finished[0] / "results.json").read_text())["confidence"] == 0.5


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "argv", ["/bin/edge-grpo-evaluate", "model=tiny", "hydra.run.dir='a b'"])
    append, calls = program.CompletionStore.append, []

    def dying(self, rows):
        append(self, rows)
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(program.CompletionStore, "append", dying)
    with pytest.raises(Stopped) as stopped:
        evaluate(tmp_path, *small("chain2", "chain5"), "problems_per_batch=1")
    assert stopped.value.code == 130
    way_on = shlex.join(["edge-grpo-evaluate", "model=tiny", "hydra.run.dir='a b'"])
    assert caplog.messages[-1] == f"stopped by SIGINT; to go on: {way_on}"
    assert len(list((tmp_path / ".parts").iterdir())) == 2
    evaluate(tmp_path, *small("chain2", "chain5"), "problems_per_batch=4")
    assert calls == [2, 2, 2, 6]  # 2 problems before, then the third of chain2 and the three of chain5
    told = [message for message in caplog.messages if "tokens/s  left" in message]
    assert len(told) == 1 + 2  # the batch that was killed has not been told of
    assert re.fullmatch(r"chain2  1/3 problems  [\d.]+ % right  [\d,]+ tokens/s  left 0:\d\d:\d\d", told[0])
    assert told[-1].endswith("left 0:00:00")
    compared = [name for name in SCHEMA.names if name != "entropy"]
    whole, resumed = (read_completions(folder)[compared] for folder in (finished[0], tmp_path))
    pd.testing.assert_frame_equal(whole, resumed)


def test_a_kill_while_its_record_is_written_leaves_an_evaluation_that_goes_on(tmp_path, monkeypatch):
    append, save = program.CompletionStore.append, Path.write_text

    def dying(self, rows):
        append(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program.CompletionStore, "append", dying)
        with pytest.raises(Stopped):
            evaluate(tmp_path, *small("chain2"), "problems_per_batch=1")
    for name in ("policy.json", "config.yaml"):

        def half(self, text, *args, name=name, **kwargs):
            save(self, text[: len(text) // 2] if self.name.startswith(name) else text, *args, **kwargs)
            if self.name.startswith(name):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", half)
            with pytest.raises(KeyboardInterrupt):
                evaluate(tmp_path, *small("chain2"))
    evaluate(tmp_path, *small("chain2"))
    assert len(read_completions(tmp_path)) == 6


def test_the_pace_is_of_what_was_done_in_this_session(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    left = pace.Pace(10)
    clock[0] += 6
    assert left.after(2, 1200) == "200 tokens/s  left 0:00:24"  # 3 s a problem, 8 problems left
    clock[0] += 12
    assert left.after(8, 600) == "100 tokens/s  left 0:00:00"


def test_a_hub_that_does_not_answer_is_told_of_once_a_run(caplog):
    hub = logging.getLogger("huggingface_hub.utils._http")
    for _ in range(2):  # two jobs of a sweep
        silence_expected_warnings()
        for i in range(3):
            hub.warning("'no route to host' thrown while requesting HEAD https://hub/config.json")
            hub.warning("Retrying in %ds [Retry %d/5].", 2**i, i + 1)
    hub.warning("something else")
    told = "the model hub does not answer (no route to host): trying again, half a minute for each file; "
    told += "HF_HUB_OFFLINE=1 takes the files that are here at once"
    assert caplog.messages == [told, told, "something else"]
    assert sum(isinstance(each, ToldOnce) for each in hub.filters) == 1


def test_completions_of_other_settings_are_not_mixed(finished):
    with pytest.raises(UserError, match=r"under other settings:\n  evaluation.temperature: 1.0 -> 0.5\nchoose another"):
        evaluate(finished[0], *small("chain2", "chain5"), "evaluation.temperature=0.5")


def test_completions_of_other_weights_are_not_taken_for_the_runs(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    args = (f"run={run}", "evaluation.limit=1", "evaluation.max_new_tokens=2", "evaluation.num_samples=1")
    evaluate(tmp_path / "out", *args)
    evaluate(tmp_path / "out", *args)  # is evaluated already
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match=r"under other settings:\n  SHA-256 of the weights: "):
        evaluate(tmp_path / "out", *args)


def test_the_bound_on_the_cache_changes_no_completion(finished, tmp_path):
    evaluate(tmp_path, *small("chain2", "chain5"), "rollout.kv_cache_gb=1.0e-9")
    compared = [name for name in SCHEMA.names if name != "entropy"]
    whole, bounded = (read_completions(folder)[compared] for folder in (finished[0], tmp_path))
    pd.testing.assert_frame_equal(whole, bounded)


@pytest.mark.parametrize(
    ("given", "weights", "autocast"),
    [("null", "bfloat16", False), ("bf16-mixed", "float32", True), ("32-true", "float32", False)],
)
def test_a_run_is_evaluated_in_its_own_precision_unless_another_is_given(
    trained, tmp_path, monkeypatch, given, weights, autocast
):
    """The recorded one is changed: the run itself was float32 throughout."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = OmegaConf.load(run / "config.yaml")
    config.trainer.precision = "bf16-true"
    OmegaConf.save(config, run / "config.yaml")
    seen, draw = [], NativeRollout.generate

    def noted(self, policy, *args):
        seen.append((str(policy.model.dtype), torch.is_autocast_enabled("cpu")))
        return draw(self, policy, *args)

    monkeypatch.setattr(NativeRollout, "generate", noted)
    args = ("evaluation.limit=1", "evaluation.max_new_tokens=2", "evaluation.num_samples=1", f"precision={given}")
    evaluate(tmp_path / "out", f"run={run}", *args)
    assert set(seen) == {(f"torch.{weights}", autocast)}
    recorded = OmegaConf.load(tmp_path / "out" / "config.yaml").precision
    assert recorded == ("bf16-true" if given == "null" else given)
    other = "32-true" if given != "32-true" else "bf16-mixed"
    with pytest.raises(UserError, match=f"under other settings:\n  precision: {recorded} -> {other}"):
        evaluate(tmp_path / "out", f"run={run}", *args[:-1], f"precision={other}")


def test_samples_do_not_depend_on_their_batch(policy):
    problems = [problem(policy, f"p{i}", f"{i} + {i} = ?") for i in range(4)]
    settings = {"num_samples": 2, "sampling": Sampling(), "max_new_tokens": 6, "seed": 3}
    together = sample(engine(), policy, problems, **settings)
    alone = sample(engine(), policy, problems[2:3], **settings)
    for j in range(2):
        assert torch.equal(together.responses[4 + j].token_ids, alone.responses[j].token_ids)
    other = sample(engine(), policy, problems[2:3], **{**settings, "seed": 4})
    assert any(not torch.equal(a.token_ids, b.token_ids) for a, b in zip(alone.responses, other.responses, strict=True))


@pytest.fixture
def short_sighted():
    return random_tiny_policy(0, 32, 1, 2, 1, 32, context_length=64)


def test_a_prompt_that_fills_the_context_gets_an_empty_response(short_sighted):
    policy = short_sighted
    limit = policy.context_length
    problems = [problem(policy, str(i), "x" * (limit - i)) for i in (0, 2)]
    rollout = sample(engine(), policy, problems, num_samples=1, sampling=Sampling(0), max_new_tokens=5, seed=0)
    assert [len(r) for r in rollout.responses] == [0, 2]
    assert rollout.responses[0].finish_reason == "length"
    assert ResponseEntropy(4096, 64, True)(policy, rollout).isna().tolist() == [True, False]


@pytest.mark.parametrize("packing", [True, False])
def test_response_entropy_is_the_mean_at_temperature_1(policy, packing):
    rollout = sample(
        engine(), policy, [problem(policy)], num_samples=3, sampling=Sampling(0.5), max_new_tokens=6, seed=0
    )
    measured = ResponseEntropy(16, 4, packing)(policy, rollout)
    for row, response in enumerate(rollout.responses):
        ids = torch.tensor([[*rollout.problem_of(row).prompt_ids, *response.token_ids.tolist()]])
        logits = policy.model(input_ids=ids).logits.detach()[0, -len(response) - 1 : -1].double()
        expected = torch.distributions.Categorical(logits=logits).entropy().mean()
        assert measured[row] == pytest.approx(float(expected), rel=1e-5)


def test_spontaneous_reflections_are_graded_before_the_first_marker(policy):
    texts = (
        r"\boxed{3} Wait, that is off. \boxed{2}",
        r"\boxed{2} Let me re-check: \boxed{3}",
        r"Wait, first think. \boxed{2}",
        r"\boxed{2}",
        "The waiter waits.",
    )
    found = spontaneous(score_rollout(written(policy, *texts), rewards(), policy.decode), rewards())
    assert list(found["reflection"]) == ["Wait", "Let me re-check", "Wait", None, None]
    assert list(found["correct_before_reflection"]) == [False, True, None, None, None]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Hold on, 3", True),
        ("I made a mistake", True),
        ("Let's double-check", True),
        ("that is incorrect", True),
        ("waiting room", False),
        ("verify", False),
        ("the let me in", False),
    ],
)
def test_what_counts_as_a_reflection(text, is_one):
    assert bool(MARKERS.search(text)) == is_one


class Continuing:
    """An engine that continues every prefix with the same text and remembers what it was given."""

    def __init__(self, text):
        self.text = text

    def generate(self, policy, prefixes, budgets, sampling, generator):
        self.prefixes, self.budgets = prefixes, budgets
        ids = torch.tensor([*policy.encode(self.text), *policy.eos_ids[:1]])
        return [written_response(ids, Provenance.SAMPLED, "stop") for _ in prefixes]


def test_a_forced_reflection_continues_behind_the_phrase_and_grades_the_whole(policy):
    scored = score_rollout(written(policy, r"\boxed{3}", r"\boxed{2}"), rewards(), policy.decode)
    forced = ForcedReflection(" Wait!", 20)
    wiser = Continuing(r" \boxed{2}")
    made = forced(scored, wiser, policy, rewards(), Sampling(), 0)
    # The EOS of the response is gone, and its text stands before the phrase.
    assert [policy.decode(torch.tensor(p)) for p in wiser.prefixes] == [
        r"1 + 1 = ?\boxed{3} Wait!",
        r"1 + 1 = ?\boxed{2} Wait!",
    ]
    assert wiser.budgets == [20, 20]
    assert list(made["forced_correct"]) == [True, True]
    assert list(made["forced_response"]) == [r" \boxed{2}"] * 2
    # A continuation without an answer leaves the one before it the last.
    silent = forced(scored, Continuing(" Hm."), policy, rewards(), Sampling(), 0)
    assert list(silent["forced_correct"]) == [False, True]
    assert list(silent["forced_tokens"]) == [5, 5]  # bytes of " Hm." and the EOS


def test_a_forced_reflection_needs_room(short_sighted):
    policy = short_sighted
    long = "x" * (policy.context_length - len("1 + 1 = ?") - len(" Wait!"))
    scored = score_rollout(written(policy, long, r"\boxed{2}"), rewards(), policy.decode)
    made = ForcedReflection(" Wait!", 20)(scored, Continuing(r"\boxed{2}"), policy, rewards(), Sampling(), 0)
    assert made["forced_correct"].isna().tolist() == [True, False]


def test_unparsed_answers_are_told_apart(policy):
    texts = (r"\boxed{3}", r"\boxed{)(}", "3", r"\boxed{2}")
    graded = rewards()
    problems = [problem(policy)] * 4
    assert graded(problems, texts).correct.tolist() == [False, False, False, True]
    assert graded.unparsed(problems, texts) == [False, True, True, False]


def test_benchmarks_of_arithmetic_hold_no_training_problem():
    cfg, _ = composed("train", "evaluation=arithmetic")
    data = instantiate(cfg.data)
    trained_on = {p.question for p in data.load()[0]}
    sets = load_benchmarks(instantiate(cfg.evaluation).benchmarks, None)
    assert {name: len(problems) for name, problems in sets.items()} == {f"chain{n}": 200 for n in range(2, 7)}
    for name, problems in sets.items():
        assert {p.question.count("+") + p.question.count("-") for p in problems} == {int(name[-1]) - 1}
        assert not trained_on & {p.question for p in problems}


def test_more_chains_than_are_held_out_are_refused():
    with pytest.raises(UserError, match=r"chains of 2 numbers are held out: ask for at most so many"):
        ArithmeticBenchmark(2, 1000, 2, 4, 99, 0).load([])


def test_bad_rows_of_a_benchmark_are_refused_together(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text('{"question": "q", "answer": "1"}\n{"question": "", "answer": "1"}\nnot json\n')
    with pytest.raises(UserError, match=r"evaluated whole, and 2 rows are bad:\n.*b.jsonl:3: .*\n.*b.jsonl:2"):
        load_benchmarks({"b": FileBenchmark(str(path), None, COLUMNS)}, None)


def test_gold_answers_are_graded_as_responses(tmp_path):
    path = tmp_path / "golds.jsonl"
    rows = [{"question": "a", "answer": ["1/2", "0.5"]}, {"question": "b", "answer": "{"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = evaluate(tmp_path / "out", "evaluation=file", f"evaluation.benchmarks.file.path={path}", "grade_golds=true")
    assert right == pytest.approx(2 / 3)  # \boxed{{} is no complete box
    (failed,) = [json.loads(line) for line in (tmp_path / "out" / "failed_golds.jsonl").read_text().splitlines()]
    assert (failed["gold"], failed["origin"]) == ("{", f"{path}:2")


def test_real_gold_answers_are_all_right(tmp_path, shared_data):
    suite = [f"paths.evaluation_suite={shared_data}/evaluation_suite", "~evaluation.benchmarks.GSM8K"]
    assert evaluate(tmp_path, "evaluation=paper", *suite, "grade_golds=true") == 1.0
    assert (tmp_path / "failed_golds.jsonl").read_text() == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run_small(tmp_path_factory.mktemp("run") / "run", "experiment=vanilla", "optimizer.lr=0.01")


def test_a_run_is_evaluated_with_its_model_and_prompts(trained, tmp_path):
    args = ("evaluation.limit=2", "evaluation.max_new_tokens=4", "evaluation.num_samples=1", "evaluation.template=null")
    evaluate(tmp_path, f"run={trained}", *args)
    rows = read_completions(tmp_path)
    assert rows["prompt"][0] == f"<|user|>{rows['question'][0]}<|assistant|>"  # data/template=question of the run
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["run"], results["iteration"]) == (str(trained), 2)
    evaluate(tmp_path / "typed", f"run={trained}", "data/template=plain", *args, typed=["data/template"])
    assert read_completions(tmp_path / "typed")["prompt"][0] == f"{rows['question'][0]}\n"


def test_an_evaluation_that_grades_otherwise_than_the_run_was_rewarded_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text("def right(response):\n    return 1.0\n")
    own = ("reward=python", "reward.function=mine.py:right")
    run_small(tmp_path / "run", "experiment=vanilla", "trainer.max_iterations=1", *own)
    settings = (f"run={tmp_path / 'run'}", *small("chain2")[len(SMALL_MODEL) :])
    evaluate(tmp_path / "boxed", *settings)
    told = "the run was rewarded by reward.function=mine.py:right, and this evaluation grades otherwise"
    assert [told in record.message for record in caplog.records if "rewarded by" in record.message] == [True]
    caplog.clear()
    assert evaluate(tmp_path / "own", *settings, *own) == 1.0
    assert "rewarded by" not in caplog.text


def test_a_checkpoint_is_evaluated_with_its_weights(trained, tmp_path):
    args = ("evaluation.limit=2", "evaluation.max_new_tokens=4", "evaluation.num_samples=1")
    made = {}
    for name in ("", "/checkpoints/iteration-000001", "/checkpoints/iteration-000002"):
        folder = tmp_path / (name[-1:] or "end")
        evaluate(folder, f"run={trained}{name}", *args)
        made[name] = read_completions(folder)
    # The last checkpoint is what was exported.
    pd.testing.assert_frame_equal(made[""], made["/checkpoints/iteration-000002"])
    results = json.loads((tmp_path / "1" / "results.json").read_text())
    assert (results["run"], results["iteration"]) == (str(trained), 1)


def test_a_checkpoint_may_be_named_from_its_own_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained / "checkpoints")
    args = ("evaluation.limit=1", "evaluation.max_new_tokens=2", "evaluation.num_samples=1")
    evaluate(tmp_path, "run=iteration-000001", *args)
    assert json.loads((tmp_path / "results.json").read_text())["run"] == str(trained)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "run=DIR evaluates a run, model=... another model, and neither is given"),
        (("run=nowhere", "model=tiny"), "and both are given"),
        (("run=nowhere", "from_file=x"), "run and from_file are given: one evaluation has one of them"),
        (("model=tiny", "grade_golds=true"), "model and grade_golds are given"),
        (("run=nowhere",), "run=nowhere: no run there"),
        (("model=tiny", "precision=16-mixed"), "precision=16-mixed is none of 32-true, 64-true, bf16-mixed, bf16-true"),
        (("model=tiny", "accelerator=tpu"), "accelerator=tpu is none of auto, cpu, gpu"),
        (("model=tiny", "evaluation=greedy"), "evaluation=greedy holds no benchmark"),
        (("model=tiny", "evaluation.average=[chain]"), "no benchmark chain; did you mean chain"),
        (("model=tiny", "evaluation.temperature=0"), "4 greedy responses to a problem are all equal"),
        (("model=tiny", "evaluation.num_samples=0"), "evaluation.num_samples=0 must be at least 1"),
        (("model=tiny", "bootstrap.confidence=1.0"), r"bootstrap.confidence=1.0 must lie between 0 and 1"),
        (("run=tests",), "run=tests: no run there"),
        (("from_file=nowhere.parquet",), "nowhere.parquet: no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_told(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path / "out", *overrides)


def test_another_table_is_no_completions(tmp_path):
    pd.DataFrame({"correct": [True]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: no column benchmark, problem"):
        read_completions(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"correct": None}, r"row 1 \(counted from 0\) has correct = None, expected bool"),
        ({"tokens": -1}, r"row 1 \(counted from 0\) has tokens = -1, expected a whole number from 0"),
        ({"entropy": float("inf")}, r"row 1 \(counted from 0\) has entropy = inf, expected a finite number"),
        ({"problem": None}, r"row 1 \(counted from 0\) has problem = None, expected string"),
        ({"tokens": 1.5}, r"t.parquet: not the completions.parquet of edge-grpo-evaluate \(.*1.5.*truncated"),
    ],
)
def test_a_value_that_no_evaluation_writes_is_refused_by_its_row(tmp_path, value, message):
    """Nulls where they may be, as the first row has them, are none."""
    path = tmp_path / "t.parquet"
    pd.DataFrame([completion(entropy=None, answer=None), completion(**value)]).to_parquet(path)
    with pytest.raises(UserError, match=message):
        read_completions(path)


def test_a_checkpoint_finds_the_assets_of_this_checkout(trained, tmp_path):
    checkpoint = shutil.copytree(trained, tmp_path / "run") / "checkpoints" / "iteration-000001"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    tiny = OmegaConf.to_container(composed("train", "model=tiny")[0].model)
    manifest["config"]["model"] = {**tiny, "path": "/gone/edge_grpo/assets/tiny_base"}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    # The tiny base is there, and not what this checkpoint's weights are of.
    with pytest.raises(UserError, match="of another model than its config says"):
        evaluate(tmp_path / "out", f"run={checkpoint}")


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration-000001"
    checkpoint.mkdir(parents=True)
    for name in ("state.ckpt", "manifest.json"):
        data = (trained / "checkpoints" / "iteration-000001" / name).read_bytes()
        (checkpoint / name).write_bytes(data[:-1] if name == "state.ckpt" else data)
    (tmp_path / "run" / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"the checkpoint is damaged \(state.ckpt has"):
        evaluate(tmp_path / "out", f"run={checkpoint}")


@pytest.mark.parametrize(
    ("target", "arguments"),
    [("os.system", {"command": "true"}), ("torch.load", {"f": "evil.pt", "weights_only": False})],
)
def test_a_recorded_config_may_not_run_code(trained, tmp_path, target, arguments):
    config = OmegaConf.load(trained / "config.yaml")
    config.data.template = {"_target_": target, **arguments}
    shutil.copytree(trained, tmp_path / "run")
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    refused = rf"run=.*: template._target_={target}: only targets under edge_grpo.data.templates are"
    with pytest.raises(UserError, match=refused):
        evaluate(tmp_path / "out", f"run={tmp_path}/run", "evaluation.limit=1")


def test_a_template_that_is_typed_wins_over_that_of_the_evaluation(trained, tmp_path):
    args = (f"run={trained}", "evaluation.limit=1", "evaluation.max_new_tokens=2", "evaluation.num_samples=1")
    evaluate(tmp_path, *args, "data/template=plain", typed=["data/template"])
    assert read_completions(tmp_path)["prompt"][0] == "9 + 6 = ?\n"


def test_the_programs_set_the_target_of_every_evaluation():
    assert [
        path.stem for path in (config_dir() / "evaluation").glob("*.yaml") if "Evaluation\n" in path.read_text()
    ] == []


def test_the_table_says_what_forced_reflections_did():
    frame = pd.DataFrame(
        {"correct": [True, True, False, False, False], "forced_correct": [True, False, True, False, None]}
    )
    # Of the three wrong ones the last had no room for a reflection.
    assert reflection_line(frame) == "forced reflection: 1 of 2 wrong responses repaired, 1 of 2 right ones broken"
    assert reflection_line(frame.assign(forced_correct=None)) is None


def test_a_place_that_is_no_run_is_named_for_what_it_is(trained, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "job").symlink_to(trained)
    (tmp_path / "empty").mkdir()
    for place, said in {
        trained / "model": f"a model: model=hf model.path={trained / 'model'}",
        trained
        / "checkpoints": f"a folder of checkpoints: name one of them, such as {trained}/checkpoints/iteration-000002",
        tmp_path / "sweep": f"a folder of 1 runs: name one of them, such as {tmp_path}/sweep/job",
        tmp_path / "empty": "no run there",
        tmp_path / "absent": "no such folder",
    }.items():
        with pytest.raises(UserError, match=re.escape(f"run={place}: {said}")):
            check_run(place)
    check_run(trained)
    check_run(trained / "checkpoints" / "iteration-000001")


def test_a_benchmark_that_cannot_be_read_is_named_with_the_way_to_leave_it_out(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text('{"question": "q", "gold": "1"}\n')
    said = r"evaluation.benchmarks.mine: .*evaluation.benchmarks.mine.columns.answer.*\('~evaluation.benchmarks.mine'"
    with pytest.raises(UserError, match=said):
        load_benchmarks({"mine": FileBenchmark(str(path), None, COLUMNS)}, None)
    with pytest.raises(UserError, match=r"evaluation.benchmarks.mine: .*absent: no such file or folder \('~"):
        load_benchmarks({"mine": FileBenchmark(str(tmp_path / "x" / "absent"), None, COLUMNS)}, None)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (("1 + 1 = ?", "2"), "mine-2"),  # one row fewer
        (("1 + 1 = ?", "2", "2 + 3 = ?", "6"), "mine-2"),  # another gold answer under the same id
        (("1 + 2 = ?", "2", "2 + 3 = ?", "5"), "mine-1"),
        (("1 + 1 = ?", "2", "2 + 3 = ?", "5", "4 + 4 = ?", "8"), "mine-3"),  # goes on where the evaluation was killed
    ],
)
def test_completions_of_other_problems_are_not_taken_for_those_of_a_changed_benchmark(
    tmp_path, monkeypatch, rows, problem, complete
):
    file, out = tmp_path / "mine.jsonl", tmp_path / "out"

    def write(*texts):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in zip(texts[::2], texts[1::2], strict=True)]
        file.write_text("\n".join(lines))

    settings = (*SMALL_MODEL, "evaluation=file", f"evaluation.benchmarks.file.path={file}", "data/template=question")
    settings += ("evaluation.max_new_tokens=2", "entropy=null")
    write("1 + 1 = ?", "2", "2 + 3 = ?", "5")
    evaluate(out, *settings)
    if not complete:  # as a kill before the last step leaves it
        (out / ".parts").mkdir()
        (out / "completions.parquet").rename(out / ".parts" / "000000.parquet")
    write(*rows)
    if complete or problem != "mine-3":
        monkeypatch.setattr(program, "load_subject", lambda *_, **__: pytest.fail("a model was loaded"))
        with pytest.raises(UserError, match=rf"other problems: file has changed since they were made \({problem}\)"):
            evaluate(out, *settings)
    else:
        evaluate(out, *settings)
        assert list(read_completions(out)["problem"]) == ["mine-1", "mine-2", "mine-3"]
