"""What every strategy must do, found by globbing conf/: a new YAML file is held to it without a word here."""

import functools
import io
import json
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import fake_bitsandbytes
import fake_vllm
import pytest
import torch
from allocation_rounds import Rounds, visited
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from omegaconf import OmegaConf
from small_runs import SMALL_GRPO, command, composed, metrics_rows, run_small
from test_corrections import RIGHT, WRONG, score, scored, tools
from test_token_filters import filter_inputs, on_ranks, rows_of_filter

from edge_grpo.advantages.base import AdvantageInputs, Grading, UpdateGroups
from edge_grpo.command_line.check import check_config, instantiate, to_dict
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import Groups
from edge_grpo.importance_corrections.base import Mismatch
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.programs import train_reports
from edge_grpo.programs.train import INJECTED
from edge_grpo.programs.train_run import build_module, run_experiment
from edge_grpo.seeding import stage_generator
from edge_grpo.types.history import Visit

GROUPS = (
    "advantage",
    "algorithm",
    "allocation",
    "callbacks",
    "checkpoint",
    "correction",
    "data",
    "data/template",
    "evaluation",
    "group_filter",
    "importance_correction",
    "logger",
    "loss",
    "model",
    "optimizer",
    "reflection",
    "reward",
    "rollout",
    "scheduler",
    "token_filter",
    "trainer",
)
APART = {"algorithm", "model"}  # tests build the module of these configs
# What only the user knows.
MANDATORY = {
    "data=file": ("data.path=problems.jsonl",),
    "data=hub": ("data.name=owner/name",),
    "model=hf": ("model.path=model",),
    "evaluation=file": ("evaluation.benchmarks.file.path=problems.jsonl",),
    "reward=python": (f"reward.function={Path(__file__).parent}/examples/my_rewards.py:exact",),
    "evaluation=official_evaluate_model": ("paths.evaluation_suite=suite",),
    "evaluation=paper": ("paths.evaluation_suite=suite",),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def every(group: str) -> pytest.MarkDecorator:
    """The test once for each option of the group."""
    return pytest.mark.parametrize("option", options(group))


def program_of(group: str, option: str) -> str:
    sft = f"{group}={option}" in ("algorithm=sft", "callbacks=sft")
    return "evaluate" if group == "reflection" else "sft" if sft else "train"


@functools.cache
def _chosen(program: str, number: int):
    """A program's config with the option of that number of every group that has so many: composing costs 0.2 s."""
    numbered = [(group, options(group)[number]) for group in GROUPS if number < len(options(group))]
    return _composed(program, {g: o for g, o in numbered if g not in APART and program_of(g, o) == program})


def _composed(program: str, chosen: dict[str, str]):
    typed = [f"{group}={option}" for group, option in {"model": "tiny_random", **chosen}.items()]
    cfg, choices = composed(program, *typed, *(override for choice in typed for override in MANDATORY.get(choice, ())))
    assert {group: choices[group] for group in chosen} == chosen  # no experiment wins over what was typed
    return cfg


def chosen(group: str, option: str):
    """The composed config with this option, to be changed at will; others of its groups need not be the default."""
    return shared(group, option).copy()


def shared(group: str, option: str):
    """The same, for tests that change nothing in it: copying takes longer than what they do."""
    program = program_of(group, option)
    if group in APART:
        return _composed(program, {group: option})
    return _chosen(program, options(group).index(option))


def strategy(group: str, option: str):
    return instantiate(shared(group, option)[group])


def test_no_group_is_forgotten():
    folders = {str(p.parent.relative_to(config_dir())) for p in config_dir().rglob("*.yaml")}
    others = {".", "experiment", "paths", "hydra", "hydra/launcher", "resume", "debug", "hparams_search", "layout"}
    assert folders - set(GROUPS) - others == set()


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_option_composes_and_fits_its_constructor(group, option):
    check_config(shared(group, option), INJECTED)


@pytest.mark.parametrize(
    "group",
    [
        "advantage",
        "allocation",
        "correction",
        "data",
        "data/template",
        "evaluation",
        "group_filter",
        "importance_correction",
        "loss",
        "reflection",
        "reward",
        "rollout",
        "token_filter",
    ],
)
def test_every_option_instantiates(group, monkeypatch):
    fake_vllm.install(monkeypatch)
    for option in options(group):
        cfg = shared(group, option)
        node = OmegaConf.select(cfg, group.replace("/", "."))
        built = instantiate(node)
        assert type(built).__module__.startswith("edge_grpo.")
        assert f"{type(built).__module__}.{type(built).__qualname__}" == node._target_


@every("trainer")
def test_every_trainer_is_built_or_asks_for_the_gpu_it_lacks(option):
    node = chosen("trainer", option).trainer
    if node.accelerator == "gpu" and not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU: set trainer=cpu or trainer=auto"):
            instantiate(node, callbacks=[], loggers=[])
    else:
        assert instantiate(node, callbacks=[], loggers=[]).max_epochs == node.max_iterations


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_every_callback_and_logger_is_built(group, tmp_path):
    for option in options(group):
        if option in ("trackio", "mlflow") and find_spec(option) is None:
            continue
        cfg = chosen(group, option)
        nodes = {name: node for name, node in cfg[group].items() if node is not None}
        assert nodes
        for node in nodes.values():
            for key in ("folder", "save_dir"):
                if key in node:
                    node[key] = str(tmp_path)
            assert type(instantiate(node)).__module__.split(".")[0] in ("edge_grpo", "pytorch_lightning")


@every("scheduler")
def test_every_scheduler_starts_at_a_rate_above_zero_and_is_never_negative(option):
    cfg = chosen("scheduler", option)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optimizer.lr)
    scheduler = instantiate(cfg.scheduler)(optimizer)
    rates = []
    for _ in range(50):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert 0 < rates[0] <= cfg.optimizer.lr
    assert min(rates) >= 0


@every("optimizer")
def test_every_optimizer_descends(option, monkeypatch):
    if option == "adamw_kahan":
        pytest.importorskip("optimi")
    fake_bitsandbytes.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # for paged state
    # The gradient of x is 1 everywhere, so any descent lowers x; one step of lr at most for a normalised one.
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = instantiate(chosen("optimizer", option).optimizer)([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert parameter.item() < 0


@every("algorithm")
def test_every_algorithm_takes_its_stages_from_the_config(option):
    cfg = chosen("algorithm", option)
    module = build_module(cfg)
    assert f"{type(module).__module__}.{type(module).__qualname__}" == cfg.algorithm._target_
    assert module.required_fields <= {"answers", "solution"}


def test_float16_weights_are_refused_and_the_types_that_train_are_named():
    cfg = chosen("model", "hf")
    cfg.model.dtype = "float16"
    with pytest.raises(UserError, match=r"^model\.dtype=float16: expected float32 or bfloat16$"):
        check_config(cfg, INJECTED)


def test_the_random_model_is_as_large_as_its_config_says():
    cfg = chosen("model", "tiny_random")
    policy = instantiate(cfg.model)
    assert policy.context_length == cfg.model.context_length
    # Tied embeddings 261 x 128 = 33,408. A layer: q (128 + 1) x 128, k and v (128 + 1) x 64 each, o 128 x 128, MLP
    # 3 x 128 x 384, two norms of 128: 16,512 + 16,512 + 16,384 + 147,456 + 256 = 197,120; four of them; a last norm.
    assert sum(p.numel() for p in policy.model.parameters()) == 33_408 + 4 * 197_120 + 128


# --- experiments ---------------------------------------------------------------------------------------------------


@functools.cache
def experiment(option: str, config_name: str = "train"):
    text = (config_dir() / "experiment" / f"{option}.yaml").read_text()
    model = () if "override /model:" in text else ("model=tiny_random",)  # settings of its model belong to that
    path = ("model.path=model",) if "override /model: hf\n" in text else ()  # of the user's
    return composed(config_name, f"experiment={option}", *model, *path, "logger=csv")[0]


@every("experiment")
def test_every_experiment_composes_and_is_named_after_its_file(option):
    cfg = experiment(option)
    check_config(cfg, INJECTED)
    assert cfg.name == option
    if cfg.algorithm._target_.endswith("SFTModule"):
        assert to_dict(experiment(option, "sft")) == to_dict(cfg)


def test_sft_is_the_default_of_its_entry_point():
    assert to_dict(composed("sft", "logger=csv")[0]) == to_dict(composed("train", "experiment=sft", "logger=csv")[0])


def targets(node, key=""):
    """Dotted keys of every mapping with `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key
        for name, child in node.items():
            yield from targets(child, f"{key}.{name}".lstrip("."))


@every("experiment")
def test_a_key_that_no_constructor_takes_is_refused_wherever_it_stands(option):
    cfg = experiment(option).copy()
    OmegaConf.set_struct(cfg, False)
    keys = list(targets(to_dict(cfg)))
    assert {"data", "model", "reward", "trainer", "evaluation"} <= set(keys)
    for key in keys:
        node = OmegaConf.select(cfg, key)
        node.nothing_reads_this = 1
        with pytest.raises(UserError, match=rf"^{re.escape(key)}\.nothing_reads_this: .* has no argument"):
            check_config(cfg, INJECTED)
        del node.nothing_reads_this


@every("experiment")
def test_every_setting_is_a_constructor_argument_or_read_by_the_run_itself(option):
    plain = to_dict(experiment(option))
    own = {"name", "seed", "resume", "allowed_targets", "paths", "plan"}
    nodes = set(targets(plain))
    for name, node in plain.items():
        if name in own or node is None:
            continue
        inside = [name] if name in nodes else [f"{name}.{child}" for child, value in node.items() if value is not None]
        assert set(inside) <= nodes, f"nothing reads {name}"
    assert set(plain["paths"]) == {"run_dir"}
    assert set(plain["plan"]) == {"memory_gb"}
    assert set(plain["resume"]) == {"directory", "start_over", "allow_changes"}


# --- advantages ----------------------------------------------------------------------------------------------------

G, P, T = 4, 3, 5


def advantage_inputs(rewards, entropy):
    """Rows of an update that is no more than these; right are those of reward 1 and above, the highest is 2.

    No more was drawn than these rows.
    """
    mask = torch.ones(entropy.shape, dtype=torch.bool)
    correct = rewards >= 1
    grouped = rewards.view(-1, G)
    update = UpdateGroups(grouped, correct.view(-1, G), torch.full((len(grouped),), G * T), {"accuracy": grouped})
    # Of the first problem nothing was sampled before, of the second twice, of the third once.
    histories = [(), (Visit(0, G, 1, 0.25, 0.4), Visit(3, 2 * G, G, 0.5, 0.5)), (Visit(2, G, G, 1.0, 0.0),)]
    visits = [histories[row // G % 3] for row in range(len(rewards))]
    drawn = list(grouped.repeat_interleave(G, 0))
    grading = Grading(correct, {"accuracy": rewards}, {"accuracy": 1.0}, 2.0, update, drawn, visits)
    return AdvantageInputs(rewards, G, mask, mask, entropy, grading, logprobs=-entropy)


def rows_of(inputs, rows):
    """Some rows of an update: in another order, or a micro-batch of it."""
    of_rows = ("rewards", "completion_mask", "sampled_mask", "entropy", "logprobs")
    taken = {name: getattr(inputs, name)[rows] for name in of_rows}
    return replace(inputs, grading=inputs.grading.select(rows), **taken)


def tokenwise(advantages):
    """[N] or [N, T] -> [N, T]"""
    return (advantages if advantages.ndim == 2 else advantages[:, None]).expand(-1, T)


REWARDS = npst.arrays("float64", (P, G), elements=st.sampled_from([0.0, 0.1, 1.0, 2.0]))
ENTROPIES = npst.arrays("float64", (P * G, T), elements=st.floats(0, 6))


@every("advantage")
def test_an_advantage_is_zero_on_collapsed_groups_where_its_docstring_says_so(option):
    built = strategy("advantage", option)
    doc = " ".join((type(built).__doc__ or "").split())
    assert "Degenerate case" in doc
    if "exactly 0" not in doc:
        pytest.skip("claims nothing about collapsed groups")
    # 0.1 has no exact float, so the mean of three need not be 0.1: equality must decide, not a small deviation.
    for value in (0.0, 0.1, 1.0, 1 / 3):
        rewards = torch.tensor([value] * G + [0.0, 0.0, 0.0, 1.0] + [value] * G)
        generator = torch.Generator().manual_seed(0)
        taken = tokenwise(built(advantage_inputs(rewards, torch.rand(P * G, T, generator=generator)))[0])
        assert (taken[:G] == 0).all()
        assert (taken[2 * G :] == 0).all()
        assert (taken[G : 2 * G] != 0).all()  # the mixed group in between is alive


@every("advantage")
@settings(max_examples=25, deadline=None)
@given(rewards=REWARDS, entropy=ENTROPIES, order=st.permutations(range(G)))
def test_an_advantage_is_finite_and_follows_a_permutation_of_a_group(option, rewards, entropy, order):
    built = strategies_of_advantage(option)
    rewards, entropy = torch.tensor(rewards).flatten(), torch.tensor(entropy)
    inputs = advantage_inputs(rewards, entropy)
    taken = tokenwise(built(inputs)[0])
    assert torch.isfinite(taken).all()
    rows = torch.tensor([*order, *range(G, P * G)])
    moved = tokenwise(built(rows_of(inputs, rows))[0])
    torch.testing.assert_close(moved, taken[rows], rtol=1e-9, atol=1e-12)


@every("advantage")
@settings(max_examples=25, deadline=None)
@given(rewards=REWARDS, entropy=ENTROPIES)
def test_groups_called_idle_have_no_advantage_and_can_be_left_out(option, rewards, entropy):
    built = strategies_of_advantage(option)
    rewards, entropy = torch.tensor(rewards).flatten(), torch.tensor(entropy)
    inputs = advantage_inputs(rewards, entropy)
    taken = tokenwise(built(inputs)[0])
    idle = built.zero_advantage_groups(replace(inputs, entropy=None, logprobs=None)).repeat_interleave(G)
    assert (taken[idle] == 0).all()
    if idle.any() and not idle.all():
        rest = tokenwise(built(rows_of(inputs, ~idle))[0])
        torch.testing.assert_close(rest, taken[~idle], rtol=1e-9, atol=1e-12)


@every("advantage")
@settings(max_examples=25, deadline=None)
@given(rewards=REWARDS, entropy=ENTROPIES)
def test_an_advantage_of_a_group_does_not_depend_on_the_micro_batch(option, rewards, entropy):
    built = strategies_of_advantage(option)
    if getattr(built, "scope", "group") == "microbatch":
        pytest.skip("by definition over the micro-batch")
    inputs = advantage_inputs(torch.tensor(rewards).flatten(), torch.tensor(entropy))
    taken = tokenwise(built(inputs)[0])
    for group in torch.arange(P * G).view(P, G):
        alone = tokenwise(built(rows_of(inputs, group))[0])
        torch.testing.assert_close(alone, taken[group], rtol=1e-12, atol=1e-12)


@every("advantage")
def test_eda_over_an_advantage_keeps_its_signs_and_zeros(option):
    cfg, _ = composed("train", "model=tiny_random", "advantage=entropy_driven", f"advantage@advantage.base={option}")
    check_config(cfg, INJECTED)
    whole = instantiate(cfg.advantage)
    assert type(whole.base) is type(strategies_of_advantage(option))
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(P * G, T, generator=generator, dtype=torch.float64) + 0.1
    inputs = advantage_inputs(torch.tensor([2.0] * G + [0, 0, 1, 2] + [0] * G, dtype=torch.float64), entropy)
    base, taken = (tokenwise(built(inputs)[0]) for built in (whole.base, whole))
    assert torch.equal(taken.sign(), base.sign())
    assert not torch.equal(taken, base)
    assert torch.equal(whole.zero_advantage_groups(inputs), whole.base.zero_advantage_groups(inputs))


@every("advantage")
def test_an_advantage_trains_for_two_iterations(option, tmp_path):
    assert_trains(tmp_path / "run", f"advantage={option}")


@every("allocation")
def test_an_allocation_trains_for_two_iterations(option, tmp_path):
    assert_trains(tmp_path / "run", f"allocation={option}")


@every("group_filter")
def test_a_group_filter_trains_for_two_iterations(option, tmp_path):
    assert_trains(tmp_path / "run", f"group_filter={option}")


@every("loss")
def test_a_loss_trains_for_two_iterations(option, tmp_path):
    assert_trains(tmp_path / "run", f"loss={option}")


def assert_trains(folder, *chosen):
    # An odd or even checksum makes right and wrong responses of what the random model writes.
    run_small(
        folder,
        *chosen,
        "correction=none",
        "data.problems_per_iteration=4",
        "algorithm.num_generations=8",
        "algorithm.update_epochs=2",
        "reward=python",
        f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum",
    )
    assert json.loads((folder / "summary.json").read_text())["iterations"] == 2
    logged = [row for row in metrics_rows(folder) if row.get("train/effective_rows")]
    assert len(logged) == 2
    for row in logged:
        assert float(row["train/skipped_steps"]) == 0  # what is not finite
        assert float(row["train/effective_rows"]) > 0
        assert float(row["train/grad_norm"]) > 0


_BUILT: dict[str, object] = {}


def strategies_of_advantage(option):
    """Built once: hypothesis calls often."""
    if option not in _BUILT:
        _BUILT[option] = strategy("advantage", option)
    return _BUILT[option]


# --- allocations ---------------------------------------------------------------------------------------------------

strategy_of_allocation = functools.cache(functools.partial(strategy, "allocation"))
GRADED = st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=12), min_size=1, max_size=30)
VISITS = st.lists(st.lists(st.sampled_from([None, 0, 3, 8]), max_size=3), min_size=30, max_size=30)


@every("allocation")
@settings(max_examples=25, deadline=None)
@given(graded=GRADED, visits=VISITS, seed=st.integers(0, 3))
def test_an_allocation_ends_with_whole_groups_of_what_it_took(option, graded, visits, seed):
    built = strategy_of_allocation(option)
    history = visited(**{f"p{i}": of for i, of in enumerate(visits)})

    def drawn():
        of = Rounds(built, {f"p{i}": rewards for i, rewards in enumerate(graded)}, P, 8, history, seed)
        of.draw()  # refuses a choice that is not of 1 to P whole groups
        return of

    of, again = drawn(), drawn()
    assert 1 <= len(of.rounds) <= built.max_rounds
    assert len(of.asked) == min(len(of.rounds) + 1, built.max_rounds)
    assert all(ask.rows >= 1 for asks in of.asked for ask in asks)
    # A problem is a candidate once for each time that the stream brought it.
    sampled = Counter(problem.id for problem in of.pool.problems)
    turns, rest = divmod(of.result.position, len(graded))
    assert all(number <= turns + (int(name[1:]) < rest) for name, number in sampled.items())
    passed_over = sum(not visit.rows for _, visit in of.result.visits)
    assert sum(sampled.values()) + passed_over <= of.result.position
    assert (of.rounds, of.chosen, of.result.position) == (again.rounds, again.chosen, again.result.position)


@every("allocation")
def test_an_allocation_says_what_its_degenerate_case_is(option):
    assert "Degenerate case" in " ".join((type(strategy("allocation", option)).__doc__ or "").split())


# --- corrections ---------------------------------------------------------------------------------------------------

TEXTS = [WRONG, RIGHT, WRONG, RIGHT] + [WRONG] * 8 + [RIGHT] * 4


def lost_tokens(correction):
    """Of a row that is left alone: the released code sends those through text too, and says so in its docstring."""
    return 1 if "*every* response loses its EOS" in " ".join((type(correction).__doc__ or "").split()) else 0


def same_tokens(a, b):
    return torch.equal(a.token_ids, b.token_ids) and torch.equal(a.provenance, b.provenance)


@every("correction")
def test_a_correction_leaves_right_rows_token_identical(option):
    # Only a row that somebody else wrote takes a right one's place, and only a group that holds one another problem.
    built = strategy("correction", option)
    before = scored(TEXTS)
    after = built(before, tools(seed=3))
    assert len(after.branches) == len(TEXTS)
    groups = torch.tensor([r.off_policy for r in after.scored.rollout.responses]).view(-1, G).any(1).tolist()
    for old, new, foreign in zip(before.rollout.problems, after.scored.rollout.problems, groups, strict=True):
        assert foreign or new is old
    lost = lost_tokens(built)
    for row, text in enumerate(TEXTS):
        if text == RIGHT and not groups[row // G]:
            old, new = before.rollout.responses[row], after.scored.rollout.responses[row]
            assert torch.equal(new.token_ids, old.token_ids[: len(old) - lost])
            assert after.branches[row] is None
            assert after.scored.scores.correct[row]
    for row, branch in enumerate(after.branches):
        response = after.scored.rollout.responses[row]
        assert not (response.off_policy and branch is None)
        assert getattr(built, "makes_off_policy", False) or not response.off_policy


@every("correction")
def test_a_corrections_texts_and_scores_are_those_of_its_tokens(option):
    after = strategy("correction", option)(scored(TEXTS), tools(seed=3)).scored
    lent = tools()
    assert list(after.texts) == [lent.decode(r.token_ids) for r in after.rollout.responses]
    again = score([after.rollout.problem_of(row) for row in range(len(TEXTS))], after.texts)
    assert torch.equal(after.scores.rewards, again.rewards)
    assert torch.equal(after.scores.correct, again.correct)


@every("correction")
def test_a_correction_names_the_rows_that_it_changed_and_keeps_what_was_drawn(option):
    built = strategy("correction", option)
    before = scored(TEXTS)
    drawn = tuple(torch.cat([own, torch.zeros(1)]) for own in before.scores.rewards.view(-1, 4))
    after = built(replace(before, drawn=drawn), tools(seed=3, iteration=100))
    for row, branch in enumerate(after.branches):
        if branch is None:
            old, new = before.rollout.responses[row], after.scored.rollout.responses[row]
            assert torch.equal(new.token_ids, old.token_ids[: len(old) - lost_tokens(built)])
            assert new.prompt_ids is None
    # Of each group at least the rewards of its rows, and of one that was left alone all that were drawn for it.
    assert [len(own) >= 4 for own in after.scored.drawn] == [True] * 4
    alone = [group for group in range(4) if not any(after.branches[4 * group : 4 * group + 4])]
    assert all(torch.equal(after.scored.drawn[group], drawn[group]) for group in alone)
    assert set(after.reports) <= {of.of or name for name, of in getattr(built, "metrics", {}).items()}
    assert {len(values) for values in after.reports.values()} <= {len(TEXTS)}


def run_corrected(option, folder, *settings, figure=False):
    """metrics.csv's two iterations, on rows that have all that a correction may ask for."""
    rows = [
        {"question": f"{i} + 1 = ?", "answer": i + 1, "solution": f"\\boxed{{{i + 1}}}", "hints": ["Add.", f"{i}, ..."]}
        for i in range(8)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    has_warmup = "warmup_iterations" in chosen("correction", option).correction
    cfg, _ = composed(
        "train",
        *(setting for setting in SMALL_GRPO if not setting.startswith("data.")),
        *("data=file", f"data.path={folder}/rows.jsonl", "data.held_out_count=2", "data.problems_per_iteration=2"),
        *(f"correction={option}", *["correction.warmup_iterations=1"] * has_warmup, f"paths.run_dir={folder / 'run'}"),
        *settings,
    )
    check_config(cfg, INJECTED)
    with nullcontext() if figure else patch.object(train_reports, "draw_training_figure"):
        run_experiment(cfg)
    assert json.loads((folder / "run" / "summary.json").read_text())["iterations"] == 2
    logged = [row for row in metrics_rows(folder / "run") if row.get("train/skipped_steps")]
    assert [float(row["train/skipped_steps"]) for row in logged] == [0, 0]
    return logged


@every("correction")
def test_a_correction_trains_where_every_group_is_wrong(option, tmp_path):
    # The random model is never right. Whatever is drawn anew is counted: 2 problems of 2 rows are an iteration's least.
    assert float(run_corrected(option, tmp_path, figure=True)[1]["train/num_rollouts"]) >= 8


@every("correction")
def test_a_correction_trains_where_some_responses_are_right(option, tmp_path):
    # An odd or even checksum makes right and wrong responses of what the random model writes.
    logged = run_corrected(
        option,
        tmp_path,
        "advantage=vanilla",
        "data.problems_per_iteration=4",
        "algorithm.num_generations=8",
        "rollout.max_new_tokens=4",
        "reward=python",
        f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum",
    )
    assert all(float(row["train/grad_norm"]) > 0 for row in logged)


@every("correction")
def test_a_correction_is_deterministic_per_seed(option):
    one, two = (strategy("correction", option)(scored(TEXTS), tools(seed=5)) for _ in range(2))
    assert one.branches == two.branches
    pairs = zip(one.scored.rollout.responses, two.scored.rollout.responses, strict=True)
    assert all(same_tokens(a, b) for a, b in pairs)


@every("correction")
def test_a_correction_says_what_it_reports_and_what_it_assumes(option):
    built = strategy("correction", option)
    after = built(scored(TEXTS), tools(seed=3))
    known = {metric.of or name for name, metric in getattr(built, "metrics", {}).items()}
    assert set(after.reports) == known
    assert all(tuple(value.shape) == (len(TEXTS),) for value in after.reports.values())
    doc = " ".join(type(built).__doc__.split())
    assert doc
    assert not known or "Degenerate case" in doc


@every("correction")
def test_the_state_of_a_correction_is_a_snapshot_that_another_one_goes_on_from(option):
    built, other = (strategy("correction", option) for _ in range(2))
    if not hasattr(built, "state_dict"):
        pytest.skip("keeps nothing")
    built(scored(TEXTS), tools(seed=3))
    buffer, snapshot = io.BytesIO(), built.state_dict()
    torch.save(snapshot, buffer)
    following = [built(scored(TEXTS), tools(seed=seed)) for seed in (4, 5)]
    again = io.BytesIO()
    torch.save(snapshot, again)
    assert again.getvalue() == buffer.getvalue()
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for one, seed in zip(following, (4, 5), strict=True):
        two = other(scored(TEXTS), tools(seed=seed))
        assert two.branches == one.branches
        pairs = zip(one.scored.rollout.responses, two.scored.rollout.responses, strict=True)
        assert all(same_tokens(a, b) and a.off_policy == b.off_policy for a, b in pairs)


# --- group filters -------------------------------------------------------------------------------------------------


@every("group_filter")
@settings(max_examples=25, deadline=None)
@given(rewards=npst.arrays("float64", (P, G), elements=st.sampled_from([0.0, 1.0])))
def test_a_group_filter_keeps_mixed_groups(option, rewards):
    if option not in _BUILT:
        _BUILT[option] = strategy("group_filter", option)
    rewards = torch.tensor(rewards)
    kept = _BUILT[option](Groups(rewards, rewards == 1))
    assert (kept.dtype, tuple(kept.shape)) == (torch.bool, (P,))
    mixed = (rewards.sum(1) > 0) & (rewards.sum(1) < G)
    assert kept[mixed].all()


# --- losses --------------------------------------------------------------------------------------------------------


def loss_inputs(logprobs, rows, advantages):
    lengths = torch.tensor([5, 2, 3, 1, 4, 5])
    mask = torch.arange(5)[None] < lengths[:, None]
    # Seeds with which the sequence ratio of row 0 and the ratio of its token of highest entropy are not clipped.
    old = -torch.rand(6, 5, generator=stage_generator(3, "old"), dtype=torch.float64)
    entropy = torch.rand(6, 5, generator=stage_generator(4, "entropy"), dtype=torch.float64)
    return LossInputs(
        logprobs[rows],
        old[rows],
        advantages[rows],
        completion_mask=mask[rows],
        token_weights=mask.double()[rows],
        entropy=entropy[rows],
        group_ids=torch.tensor([0, 0, 0, 1, 1, 1])[rows],
        correct=torch.tensor([True, False, False, True, False, False])[rows],
    )


@every("loss")
def test_a_loss_adds_up_over_micro_batches_and_says_whether_it_reads_rows_without_advantage(option):
    built = strategy("loss", option)
    logprobs = -torch.rand(6, 5, generator=stage_generator(0, "new"), dtype=torch.float64)
    logprobs.requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, 0.0, -2.0], dtype=torch.float64)[:, None].expand(6, 5)

    def gradient(cuts):
        # 5 + 2 + 3 + 1 + 4 + 5 = 20 trained tokens in 6 rows
        size = UpdateSize(rows=6, tokens=20, microbatches=len(cuts))
        loss = sum(built(loss_inputs(logprobs, cut, advantages), size)[0] for cut in cuts)
        return torch.autograd.grad(loss, logprobs)[0]

    whole = gradient([[0, 1, 2, 3, 4, 5]])
    # bnpo counts the tokens of such rows and has no gradient on them.
    bnpo = getattr(built, "aggregation", "") == "bnpo"
    assert bool((whole[[2, 4]] != 0).any()) == (built.reads_every_row and not bnpo)
    assert (whole[0] != 0).any()
    cut = gradient([[3, 4, 5], [0, 1, 2]] if getattr(built, "needs_whole_groups", False) else [[3, 0], [1, 2, 4], [5]])
    if bnpo:  # by definition a mean of the micro-batches' token means
        assert not torch.allclose(cut, whole, rtol=1e-3)
    else:
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-15)


@every("loss")
def test_a_row_that_asks_for_shaping_weighs_luffys_ratio_whatever_the_loss(option):
    built = strategy("loss", option)
    logprobs = -torch.rand(6, 5, generator=stage_generator(0, "new"), dtype=torch.float64)
    logprobs.requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.5, 1.0, -2.0], dtype=torch.float64)[:, None].expand(6, 5)
    inputs = replace(
        loss_inputs(logprobs, list(range(6)), advantages),
        shaping=torch.tensor([0, 0, 0, 0, 0, 0.1], dtype=torch.float64),
    )
    loss, _ = built(inputs, UpdateSize(rows=6, tokens=20, microbatches=1))
    gradient = torch.autograd.grad(loss, logprobs)[0]
    # d/dlog rho of -A rho / (rho + g) is -A g rho / (rho + g)^2; what is left is one average for all tokens of the row.
    rho = torch.exp(logprobs - inputs.old_logprobs).detach()[5]
    scale = gradient[5] / (2 * 0.1 * rho / (rho + 0.1) ** 2)
    assert scale[0] > 0
    torch.testing.assert_close(
        scale, scale[:1].expand(5), rtol=1e-6, atol=0
    )  # gamma is a float32 in the tensor's place
    assert (gradient[3:5] != 0).any()


@every("loss")
def test_where_the_ratio_is_one_a_loss_is_the_policy_gradient_unless_its_docstring_says_otherwise(option):
    built = strategy("loss", option)
    if "Not idle where rho is exactly 1" in " ".join(type(built).__doc__.split()):
        pytest.skip("weighs tokens by more than their ratio")
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, 0.0, -2.0], dtype=torch.float64)[:, None].expand(6, 5)
    inputs = loss_inputs(torch.zeros(6, 5, dtype=torch.float64), list(range(6)), advantages)
    logprobs = inputs.old_logprobs.clone().requires_grad_()
    loss, _ = built(replace(inputs, logprobs=logprobs), UpdateSize(rows=6, tokens=20, microbatches=1))
    lengths = inputs.completion_mask.sum(1, keepdim=True)
    denominator = {"grpo": 6 * lengths, "bnpo": 20, "dapo": 20, "dr_grpo": 6 * built.max_response_tokens}
    expected = torch.where(inputs.completion_mask, -advantages / denominator[built.aggregation], 0.0)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], expected, rtol=1e-12, atol=0)


@every("loss")
def test_what_a_loss_calls_idle_does_nothing_at_ratio_one_and_something_elsewhere(option):
    built = strategy("loss", option)
    idle = re.findall(r"loss\.(\w+)", getattr(built, "idle_at_ratio_one", ""))
    if not idle:
        pytest.skip("calls nothing idle")
    assert set(idle) < set(chosen("loss", option).loss)
    generator = torch.Generator().manual_seed(0)
    rand = lambda: torch.rand(40, 5, generator=generator, dtype=torch.float64)  # noqa: E731
    old, new, entropy, advantages = -3 * rand(), -3 * rand(), rand(), rand() - 0.5
    mask = torch.ones(40, 5, dtype=torch.bool)

    def result(loss, logprobs):
        logprobs = logprobs.clone().requires_grad_()
        inputs = LossInputs(logprobs, old, advantages, mask, mask.double(), entropy)
        value, _ = loss(inputs, UpdateSize(rows=40, tokens=200, microbatches=1))
        return torch.cat([value[None], torch.autograd.grad(value, logprobs)[0].flatten()])

    for name in idle:
        other = replace(built, **{name: 0.6 * getattr(built, name)})
        # Of a soft gate the loss is another number, of the same gradient.
        torch.testing.assert_close(result(other, old)[1:], result(built, old)[1:], rtol=1e-12, atol=0)
        assert (result(other, new) - result(built, new)).abs().max() > 1e-6


@every("loss")
def test_a_loss_that_weights_can_multiply_is_linear_in_how_large_the_advantages_are(option):
    # So a weight of a token's advantage is one of its policy gradient, and of nothing else that the loss holds.
    built = strategy("loss", option)
    if getattr(built, "needs_whole_groups", False):
        pytest.skip("refuses importance_correction")
    logprobs = -2 * torch.rand(6, 5, generator=stage_generator(0, "new"), dtype=torch.float64)
    logprobs.requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, 0.0, -2.0], dtype=torch.float64)[:, None].expand(6, 5)

    def loss(factors):
        inputs = loss_inputs(logprobs, list(range(6)), advantages * factors)
        return built(inputs, UpdateSize(rows=6, tokens=20, microbatches=1))[0]

    def gradient(factors):
        return torch.autograd.grad(loss(factors), logprobs)[0]

    zero = torch.zeros(6, 5, dtype=torch.float64)
    factors = torch.tensor([1.5, 0.25, 1.0, 0.0, 2.0, 0.5], dtype=torch.float64)[:, None]
    rest = gradient(zero)
    torch.testing.assert_close(
        gradient(factors + zero) - rest, factors * (gradient(zero + 1) - rest), rtol=1e-9, atol=1e-12
    )
    # So it is in weights of tokens, also where the tokens of a response share one ratio.
    one, other = torch.rand(2, 6, 5, generator=stage_generator(0, "weights"), dtype=torch.float64) + 0.01
    added = loss(one) + loss(other) - loss(zero)
    torch.testing.assert_close(loss(one + other), added, rtol=1e-9, atol=1e-12)


# --- importance corrections ----------------------------------------------------------------------------------------


@every("importance_correction")
def test_a_token_without_a_mismatch_weighs_one_and_the_others_are_weighed_by_their_response_alone(option):
    built = strategy("importance_correction", option)
    known = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    log_ratio = torch.where(known, torch.tensor([[0.02, -1.0, 9.0, 3.0], [0.004, 9.0, 9.0, 9.0], [9.0] * 4]), 0.0)
    weights, capped = built(Mismatch(log_ratio, known))
    assert weights.shape == capped.shape == known.shape
    assert (weights[~known] == 1).all()
    assert (torch.isfinite(weights) & (weights >= 0)).all()
    assert not capped[~known].any()
    agreeing, none = built(Mismatch(torch.zeros(3, 4), known))
    assert (agreeing == 1).all()
    assert not none.any()
    alone, _ = built(Mismatch(log_ratio[1:2], known[1:2]))
    assert torch.equal(alone, weights[1:2])
    # What does not correct may say so, and nothing else may.
    assert built.corrects == bool((weights != 1).any())


@every("importance_correction")
def test_an_importance_correction_trains_for_two_iterations(option, tmp_path):
    assert_trains(
        tmp_path / "run", f"importance_correction={option}", "advantage=vanilla", "algorithm.minibatch_rows=16"
    )


# --- token filters -------------------------------------------------------------------------------------------------


@every("token_filter")
def test_a_token_filters_factors_do_not_depend_on_what_is_not_trained_or_not_sampled(option):
    built = strategy("token_filter", option)
    inputs = filter_inputs()
    factors, reports = built(inputs)
    assert factors.shape == inputs.entropy.shape
    assert (torch.isfinite(factors) & (factors >= 0)).all()
    assert set(reports) <= {metric.of or name for name, metric in getattr(built, "metrics", {}).items()}
    known = inputs.trained & inputs.sampled
    assert (factors[known] > 0).any()
    other = {
        name: torch.where(known, getattr(inputs, name), 9.0) for name in ("entropy", "sampling_logprobs", "advantages")
    }
    assert torch.equal(built(replace(inputs, **other))[0][known], factors[known])
    # What a correction wrote has no entropy and no log-prob by which it could be judged.
    assert (factors[inputs.trained & ~inputs.sampled] == 1).all()


@every("token_filter")
def test_a_token_filter_keeps_as_many_tokens_on_two_ranks_as_on_one(option):
    built = strategy("token_filter", option)
    inputs = filter_inputs()
    whole = built(inputs)[0][inputs.trained]
    parts = on_ranks(built, [rows_of_filter(inputs, rows) for rows in (slice(0, 2), slice(2, 6))])
    assert sum(int((taken == 1).sum()) for taken in parts) == int((whole == 1).sum())


@every("token_filter")
def test_a_token_filter_trains_for_two_iterations(option, tmp_path):
    assert_trains(tmp_path / "run", f"token_filter={option}", "advantage=vanilla", "algorithm.minibatch_rows=16")


# --- the promise ---------------------------------------------------------------------------------------------------

MY_ADVANTAGE = '''
from dataclasses import dataclass

import torch

from edge_grpo.advantages.base import OverBase
from edge_grpo.types.metric import StrategyMetric


@dataclass(frozen=True)
class MyBonus(OverBase):
    """A_it = the base's A_i + scale * H_it, a token each; reports the bonus."""

    scale: float

    @property
    def metrics(self):
        return {**super().metrics, "mine/bonus": StrategyMetric("1", "mean over tokens of the bonus")}

    def zero_advantage_groups(self, inputs):
        return torch.zeros_like(self.base.zero_advantage_groups(inputs))

    def __call__(self, inputs):
        advantages, entropy, reports = self.of_base(inputs)
        bonus = torch.where(inputs.completion_mask, self.scale * entropy, 0.0)
        return advantages + bonus, {**reports, "mine/bonus": bonus}
'''


def test_a_new_strategy_is_one_python_file_and_one_yaml_file(tmp_path: Path):
    (tmp_path / "my_advantage.py").write_text(MY_ADVANTAGE)
    yaml = tmp_path / "conf" / "advantage" / "mine.yaml"
    yaml.parent.mkdir(parents=True)
    yaml.write_text("defaults: [/advantage@base: vanilla, _self_]\n_target_: my_advantage.MyBonus\nscale: 2.0\n")
    run = tmp_path / "run"
    process = command(
        f"--config-dir={tmp_path}/conf",
        "advantage=mine",
        "correction=none",
        "allowed_targets=[my_advantage]",
        *SMALL_GRPO,
        f"hydra.run.dir={run}",
        path=tmp_path,
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert json.loads((run / "summary.json").read_text())["iterations"] == 2
    chosen = OmegaConf.load(run / "config.yaml").advantage
    assert (chosen._target_, chosen.scale) == ("my_advantage.MyBonus", 2.0)
    logged = [row for row in metrics_rows(run) if row.get("mine/bonus")]
    assert len(logged) == 2
    # Every token is sampled: the bonus is twice the entropy that the rollout recorded.
    for row in logged:
        assert float(row["mine/bonus"]) == pytest.approx(2 * float(row["train/entropy"]), rel=1e-4)
