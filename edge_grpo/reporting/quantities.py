"""What the figures over training show: the paper's curves, and reward and accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_grpo.reporting.curves import Curve
from edge_grpo.reporting.evaluations import AVERAGE
from edge_grpo.reporting.scores import HELD_OUT


@dataclass(frozen=True)
class Quantity:
    """One figure over training.

    Attributes:
        name: that its files begin with.
        lines: label -> curve, a panel each; "" where there is one.
        is_share: drawn in %.
        estimator: a sentence, for the caption.
    """

    name: str
    title: str
    unit: str
    lines: Mapping[str, Curve]
    is_share: bool
    estimator: str

    @property
    def is_evaluated(self) -> bool:
        """Whether its points are evaluations, few and not smoothed."""
        return any(of.evaluated for of in self.lines.values())


OF_TRAINING = (
    Quantity(
        name="entropy",
        title="Policy entropy",
        unit="nats per token",
        lines={"": Curve("train/entropy")},
        is_share=False,
        estimator="Mean over sampled tokens of the entropy over the whole vocabulary, before correction.",
    ),
    Quantity(
        name="advantage_variance",
        title="Advantage variance",
        unit="variance of the advantages",
        lines={"": Curve("train/advantage_var")},
        is_share=False,
        estimator="Population variance over responses of the mean token advantage.",
    ),
    Quantity(
        name="reward",
        title="Reward after correction",
        unit="reward after correction",
        lines={"": Curve("train/reward")},
        is_share=False,
        estimator="Mean over responses after correction: what the advantage is taken over.",
    ),
    Quantity(
        name="accuracy",
        title="Accuracy in training",
        unit="responses right",
        lines={"as sampled": Curve("train/accuracy"), "after correction": Curve("train/accuracy_corrected")},
        is_share=True,
        estimator="Responses to training problems that are right, as sampled and after correction.",
    ),
)


def of_sets(sets: Sequence[str]) -> list[Quantity]:
    """The score of every set over training."""
    titles = {HELD_OUT: "Held-out accuracy", AVERAGE: "Accuracy over all benchmarks"}
    return [
        Quantity(
            name=f"score_{name}",
            title=titles.get(name, f"Accuracy on {name}"),
            unit=titles[name].lower() if name in titles else f"right of {name}",
            lines={"": Curve(name, evaluated=True)},
            is_share=True,
            estimator="Problems answered right (avg@n) by the policy after that many updates.",
        )
        for name in sets
    ]
