"""Whether vLLM computes with the policy's weights: both are asked for a sample of every tensor.

vLLM joins what a checkpoint has apart (q, k and v; gate and up), pads the vocabulary, and on the CPU packs a layer's
weight and keeps no other copy. So a layer is not read but used: its product with a unit vector is a column of what it
really multiplies by, exactly, since all other terms are 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edge_grpo.policy.sharding import full

# Between two samples of a matrix the column moves on by a prime, so that in time every column is seen.
_STRIDE = 7919


class Comparison(NamedTuple):
    """Args:
    different: names of those that were not equal.
    unseen: names of those that the engine has under no name known here.
    """

    different: list[str]
    unseen: list[str]


def policy_samples(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, turn: int) -> dict[str, Tensor]:
    """Of every matrix one column, of every vector all, as the engine holds them.

    Args:
        weights: name -> tensor, of the plain model. Of a sharded one every rank passes its parts, and all together.
        dtype: of the engine.
        turn: chooses the columns.

    >>> matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # 7919 * 1 is odd: the second column
    >>> policy_samples([("a.weight", matrix), ("b", matrix[0])], torch.float32, turn=1)
    {'a.weight': tensor([2., 4.]), 'b': tensor([1., 2.])}
    """
    samples = {}
    for name, tensor in weights:
        part = tensor.detach()
        sample = full(part[:, turn * _STRIDE % part.shape[1]] if part.ndim == 2 else part)
        samples[name] = sample.to(dtype, copy=True)
    return samples


def compare(model: Any, samples: Mapping[str, Tensor], turn: int) -> Comparison:
    """Take the same samples of the engine's model and compare them, bit by bit.

    Args:
        model: vLLM's own module.
        samples: of the policy, by `policy_samples` with the same `turn`.
    """
    seen: set[str] = set()
    different: list[str] = []
    for names, sample in _engine_samples(model, samples, turn):
        expected = torch.cat([samples[name] for name in names]).to(sample.device)
        seen.update(names)
        held = sample[: len(expected)].to(expected.dtype)  # rows beyond are padding of the vocabulary
        if not torch.equal(held, expected):
            different.append(" + ".join(names))
    return Comparison(different, sorted(samples.keys() - seen))


def _engine_samples(model: Any, known: Mapping[str, Tensor], turn: int) -> Iterator[tuple[list[str], Tensor]]:
    """Names of the policy's tensors, and the engine's sample of them, one behind the other."""
    joined, head = getattr(model, "packed_modules_mapping", {}), getattr(model, "lm_head", None)
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            names = _names(path, kind, joined, known)
            if not names and module is head and kind == "weight":  # tied: it may have a packed copy of its own
                names = [name for name in known if name.endswith(_EMBEDDINGS)][:1]
            if not names:
                continue
            if kind != "weight" or (parameter.ndim == 1 and parameter.numel()):
                yield names, parameter
            elif module is head or not hasattr(module, "embedding_dim"):
                yield names, _product(module, turn)
            else:
                yield names, parameter[:, turn * _STRIDE % parameter.shape[1]]


# What models call their input embedding.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def _names(path: str, kind: str, joined: Mapping[str, list[str]], known: Mapping[str, Tensor]) -> list[str]:
    """What the policy calls a parameter of the engine's module: one name, those that it joins, or none."""
    above, _, last = path.rpartition(".")
    if f"{path}.{kind}" in known:
        return [f"{path}.{kind}"]
    names = [".".join(filter(None, (above, part, kind))) for part in joined.get(last, ())]
    return names if all(name in known for name in names) else []


def _product(module: Any, turn: int) -> Tensor:
    """[out], a column of what a linear layer multiplies by."""
    weight, width = module.weight, module.input_size
    unit = torch.zeros(1, width, dtype=weight.dtype, device=weight.device)
    unit[0, turn * _STRIDE % width] = 1.0
    return module.quant_method.apply(module, unit, bias=None)[0]
