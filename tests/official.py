"""`python tests/official.py [FOLDER]`: our own path held against numbers of the released EDGE-GRPO trainer.

FOLDER (default: ../shared/official beside the checkout) holds a model, a tokenizer and `released.npz`: what the
released trainer computed in float64 on scripted rollouts. For every scenario

- the scripted responses are graded, corrected (branches and continuations are scripted too), encoded and graded again
  as `experiment=edge_grpo_official` or its launched layout does it: the rows whose prompt, text, tokens or mask is not
  the released one are counted, and the largest difference of a reward is taken;
- the released prompt and completion tokens, masks and rewards go through `GRPOUpdate` with the advantage of that
  experiment: the largest difference of each quantity is taken.

Layouts: `one_batch`, all rows padded in one process; `row_a_rank`, one row a process, as the released script launches
it, which has no padding. There bnpo is a mean over rows of their token means, so it is our loss=grpo.
"""

import json
import sys
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from small_runs import composed
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_grpo.advantages.base import AdvantageInputs
from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.command_line.check import instantiate
from edge_grpo.corrections.base import UNIFORM_WEIGHT, CorrectionTools
from edge_grpo.corrections.guided_official import OfficialGuidedCorrection
from edge_grpo.data.base import with_prompt
from edge_grpo.losses.base import UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.rewards.base import score_rollout
from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout
from edge_grpo.types.update import Step

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "official"
PAD = "pad_is_eos"
TEMPERATURE = 0.6  # of the released launch script


def load_model(folder: Path):
    """In float64 throughout: Qwen2's own norm rounds to float32 inside."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64).eval()
    for name, module in list(model.named_modules()):
        if "norm" in name.rsplit(".", 1)[-1]:
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


class Released:
    """One scenario under one loss and layout."""

    def __init__(self, numbers, scenario: str, loss: str, layout: str) -> None:
        self.numbers, self.prefix = numbers, f"{PAD}/{scenario}/{loss}/{layout}"
        self.layout = layout

    def __getitem__(self, what: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.numbers[f"{self.prefix}/{what}"]))

    def __contains__(self, what: str) -> bool:
        return f"{self.prefix}/{what}" in self.numbers

    @property
    def num_rows(self) -> int:
        """N, where each row is on a rank of its own."""
        return len({key.split("/")[4] for key in self.numbers if key.startswith(f"{self.prefix}/row")})

    def of_rows(self, what: str) -> list[Tensor]:
        """[N] of [T]; one batch is padded, rows on ranks of their own are not."""
        if self.layout == "one_batch":
            return list(self[what])
        return [self[f"row{row}/{what}"][0] for row in range(self.num_rows)]

    def texts(self) -> list[str]:
        """[N], after correction."""
        if self.layout == "one_batch":
            return self.numbers[f"{self.prefix}/texts"].tolist()
        return [str(self.numbers[f"{self.prefix}/row{row}/texts"][0]) for row in range(self.num_rows)]

    def advantages(self) -> Tensor:
        """[N], before EDA."""
        return torch.stack([part.reshape(()) for part in self.of_rows("advantages")]).double()

    def batch(self, pad_id: int):
        """Trained rows, each cut at its released mask."""
        columns = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        problems, responses = [], []
        for prompt, shown, completion, mask in zip(*map(self.of_rows, columns), strict=True):
            responses.append(sampled(completion[mask.bool()], "length"))
            problems.append(Problem(str(len(problems)), "", ("",), prompt_ids=tuple(prompt[shown.bool()].tolist())))
        rollout = Rollout(tuple(problems), tuple(responses), 1)
        device = torch.device("cpu")
        return to_update_batch(rollout, range(len(problems)), token_weight=UNIFORM_WEIGHT, pad_id=pad_id, device=device)


class Given:
    """The released advantages before EDA, where there is no EDA after them."""

    reads_entropy = differentiates_entropy = reads_padding = False
    inside_update = True  # one micro-batch holds all rows

    def __init__(self, advantages: Tensor) -> None:
        self.advantages = advantages

    def __call__(self, inputs: AdvantageInputs):
        return self.advantages, {}


def sampled(ids: Tensor, finish_reason) -> Response:
    kinds = torch.full(ids.shape, Provenance.SAMPLED, dtype=torch.int8)
    return Response(ids, torch.zeros(len(ids)), torch.zeros(len(ids)), kinds, finish_reason)


@cache
def experiment(padded: bool):
    """The settings of the preset for this layout; the tokenizer's chat template has the instruction already."""
    preset = f"experiment=edge_grpo_official{'' if padded else '_launched'}"
    cfg, _ = composed("train", preset, "data/template=question")
    return cfg


def official(base, padded: bool) -> EntropyDriven:
    """The advantage of the preset for this layout, over `base`."""
    return replace(instantiate(experiment(padded).advantage), base=base)


class ScriptedChoices(OfficialGuidedCorrection):
    """The branches of the rows that are corrected, one after the other, instead of drawn ones."""

    def script(self, branches) -> None:
        self.left = [branch for branch in branches if branch is not None]

    def _draw(self, u, candidates):
        branch = self.left.pop(0)
        assert branch in candidates, f"{branch} is none of {list(candidates)}"
        return branch


def corrected(policy: Policy, scenario, padded: bool) -> ScoredRollout:
    """The scripted responses after correction, by the stages of the preset."""
    cfg = experiment(padded)
    rewards, template = rewards_of(padded), instantiate(cfg.data.template)
    eos = policy.tokenizer.eos_token_id

    def responses(rows) -> list[Response]:
        return [sampled(torch.tensor(row["ids"] + [eos] * row["eos"]), "stop") for row in rows]

    def continuations(prefixes, budgets) -> list[Response]:
        assert len(prefixes) == len(scenario["rows"])  # all of them, whether they reflect or not
        assert set(budgets) == {256}
        return responses(scenario["continuations"])

    columns = (scenario[name] for name in ("questions", "answers", "solutions"))
    problems = tuple(
        with_prompt(Problem(question, question, (answer,), solution), template, policy.tokenizer)
        for question, answer, solution in zip(*columns, strict=True)
    )
    rollout = Rollout(problems, tuple(responses(scenario["rows"])), scenario["G"])
    settings = {name: value for name, value in cfg.correction.items() if name != "_target_"}
    correction = ScriptedChoices(**settings)
    correction.script(scenario["branches"])
    tools = CorrectionTools(
        generate=continuations,
        score=rewards,
        encode=policy.encode,
        decode=policy.decode,
        eos_ids=policy.eos_ids,
        pad_id=policy.pad_id,
        generator=torch.Generator(),
        max_new_tokens=cfg.rollout.max_new_tokens,
        max_reward=rewards.max_reward,
        prompt=lambda problem, question: problem.prompt_ids,
        problem=lambda problem_id: problems[int(problem_id)],
        history=History(),
        iteration=0,
        context_length=policy.context_length,
    )
    done = correction(score_rollout(rollout, rewards, policy.decode), tools)
    assert done.branches == tuple(scenario["branches"])
    return done.scored


@cache
def rewards_of(padded: bool):
    return instantiate(experiment(padded).reward)


def of_correction(policy: Policy, released: Released, scenario) -> dict[str, float]:
    """Rows whose prompt, text, tokens or mask after correction is not the released one; difference of the rewards."""
    padded = released.layout == "one_batch"
    ours = corrected(policy, scenario, padded)
    found: defaultdict[str, float] = defaultdict(float)
    found["texts: unequal rows"] = sum(a != b for a, b in zip(ours.texts, released.texts(), strict=True))
    rows = range(ours.rollout.num_rows)
    for part in [rows] if padded else [[row] for row in rows]:
        for name, values in as_released(ours.rollout, part, policy.pad_id).items():
            theirs = released.of_rows(name)
            unequal = [gap(value, theirs[row]) > 0 for value, row in zip(values, part, strict=True)]
            found[f"{name}: unequal rows"] += sum(unequal)
    if "rewards" in released:
        scores = torch.stack([ours.scores.parts["format"], ours.scores.parts["accuracy"]], dim=1)
        found["rewards"] = gap(scores, released["rewards"])
    return dict(found)


def as_released(rollout: Rollout, rows, pad_id: int) -> dict[str, Tensor]:
    """Tokens and masks of an update batch as released: prompts padded on the left, completions on the right."""
    batch = to_update_batch(rollout, rows, token_weight=UNIFORM_WEIGHT, pad_id=pad_id, device=torch.device("cpu"))
    width = int(batch.prompt_lengths.max())
    prompts = [batch.tokens[i, :n] for i, n in enumerate(batch.prompt_lengths.tolist())]
    return {
        "prompt_ids": torch.stack([F.pad(prompt, (width - len(prompt), 0), value=pad_id) for prompt in prompts]),
        "prompt_mask": torch.arange(width)[None] >= width - batch.prompt_lengths[:, None],
        "completion_ids": batch.response_tokens,
        "completion_mask": batch.completion_mask,
    }


class Backward:
    """An `optimise` that computes gradients and takes no step."""

    def __init__(self, model) -> None:
        self.model = model

    def __call__(self, microbatch_losses) -> Step:
        self.model.zero_grad()
        losses = [microbatch_loss() for microbatch_loss in microbatch_losses]
        for loss in losses:
            loss.backward()
        return Step(sum(float(loss.detach()) for loss in losses), 0.0)


def forward_of(padded: bool) -> MicrobatchForward:
    return MicrobatchForward(TEMPERATURE, 10**9, chunk_tokens=10**6, packing=False, every_position=padded)


def run(model, released: Released, loss: str, advantage, max_length: int):
    """The update's loss and gradients."""
    padded = released.layout == "one_batch"
    batch = released.batch(model.config.pad_token_id)
    n = batch.num_rows
    update = GRPOUpdate(
        model=model,
        reference=None,
        batch=batch,
        rewards=torch.zeros(n, dtype=torch.float64),
        computed=torch.arange(n),
        advantage=advantage,
        loss=ClippedLoss(
            aggregation=loss if padded else "grpo",
            epsilon_low=0.2,
            epsilon_high=0.2,
            beta=0.0,
            kl="k3",
            max_response_tokens=max_length,
        ),
        num_generations=n,  # so that one micro-batch holds all rows
        forward=forward_of(padded),
    )
    update.prepare()
    (step,) = update.run(1, [UpdateSize(*size) for size in update.sizes()], Backward(model))
    return step.loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def gap(ours, theirs) -> float:
    """Largest difference; infinite where shapes differ or anything is not finite."""
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return float((ours - theirs).abs().max())


def differences(folder: Path = FOLDER) -> dict[str, float]:
    """Quantity -> largest difference over all scenarios, losses and layouts."""
    numbers = dict(np.load(folder / "released.npz", allow_pickle=False))
    scenarios = json.loads((folder / "scenarios.json").read_text())
    model = load_model(folder)
    policy = Policy(model, AutoTokenizer.from_pretrained(folder / PAD))
    largest: defaultdict[str, float] = defaultdict(float)
    for scenario, loss, layout in sorted({tuple(key.split("/")[1:4]) for key in numbers}):
        released = Released(numbers, scenario, loss, layout)
        found = {**of_update(model, released, loss), **of_tokens(model, released)}
        found |= of_correction(policy, released, scenarios[scenario])
        if "rewards" in released:
            found["advantages before EDA"] = of_advantages(released, scenarios[scenario]["G"])
        for name, value in found.items():
            largest[name] = max(largest[name], value)
    return dict(largest)


def of_update(model, released: Released, loss: str) -> dict[str, float]:
    """Loss and gradient, without EDA and with it."""
    padded = released.layout == "one_batch"
    given = Given(released.advantages())
    max_length = 64
    if loss == "dr_grpo":  # its constant length is not recorded: the one that the loss without EDA has, for both
        value, _ = run(model, released, loss, given, max_length)
        max_length = round(value * max_length / float(released["loss_noeda"]))
    found = {}
    for suffix, advantage in (("_noeda", given), ("", official(given, padded))):
        value, gradients = run(model, released, loss, advantage, max_length)
        total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        known = {f"loss{suffix}": value, f"grad{suffix}_norm": total}
        known |= {f"grad{suffix}/{name}": gradient for name, gradient in gradients.items()}
        for name, ours in known.items():
            if name in released:
                label = name.partition("/")[0].replace("_noeda", " without EDA").replace("_norm", " norm")
                found[label] = max(found.get(label, 0.0), gap(ours, released[name]))
    return found


def of_tokens(model, released: Released) -> dict[str, float]:
    """Log-probs of the trained tokens; their entropies, and where there is padding those past the ends too."""
    padded = released.layout == "one_batch"
    batch, forward = released.batch(model.config.pad_token_id), forward_of(padded)
    with torch.no_grad(), forward.on(model):
        stats = forward(model, batch)
    found = {}
    # A row whose prompt is padded on the left stands at other positions there, and RoPE is float32.
    shifted = ", shifted" if len(set(batch.prompt_lengths.tolist())) > 1 and padded else ""
    for name, ours in (("logps", stats.logprobs), ("entropy", stats.entropy)):
        pairs = zip(ours, released.of_rows(name), released.of_rows("completion_mask"), strict=True)
        everywhere = padded and name == "entropy"
        gaps = [gap(*(x[: len(t)][m.bool() | everywhere] for x in (o, t))) for o, t, m in pairs]
        found[name + shifted] = max(gaps)
    return found


def of_advantages(released: Released, num_generations: int) -> float:
    rewards = released["rewards"].double().sum(1)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    ours, _ = Vanilla(eps=1e-4)(AdvantageInputs(rewards, num_generations, mask, mask))
    return gap(ours, released.advantages())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not (folder / "released.npz").is_file():
        print(f"skipped: {folder / 'released.npz'} is not there")
        return
    for name, value in sorted(differences(folder).items()):
        print(f"{name:32} {value:.1e}")


if __name__ == "__main__":
    main()
