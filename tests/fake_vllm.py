"""A stand-in for the package vllm: transformers computes, and the weights lie joined and packed as vLLM keeps them."""

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
PADDING = 3  # rows behind the vocabulary, as vLLM has them


class Multiplies:
    """How a layer uses its weight, as vLLM has it."""

    def apply(self, layer, x, bias=None):
        return x @ layer.copy.T

    def process_weights_after_loading(self, layer):
        layer.copy = layer.weight.detach().clone()


class Packed(nn.Module):
    """A layer that multiplies by a copy of its weight, and a head that keeps the weight beside it."""

    def __init__(self, weight, bias=None, *, head=False):
        super().__init__()
        self.weight = nn.Parameter(weight if head else weight.new_empty(0))
        self.input_size, self.copy = weight.shape[1], weight.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.quant_method = Multiplies()


class Held(nn.Module):
    """Norms and embeddings, which are read as they are."""

    def __init__(self, weight, **about):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.__dict__.update(about)


class EngineModel(nn.Module):
    """The modules of a Qwen2 as vLLM has them."""

    packed_modules_mapping = JOINED

    def __init__(self, model, head=None):
        super().__init__()
        tensors = dict(model.named_parameters())
        padded = nn.functional.pad(tensors["model.embed_tokens.weight"].detach(), (0, 0, 0, PADDING), value=9.0)
        self._add("model.embed_tokens", Held(padded, embedding_dim=padded.shape[1]))
        self.lm_head = head or Packed(padded, head=True)
        self.lm_head.weight = self.model.embed_tokens.weight
        for name in [name for name in tensors if name.endswith("norm.weight")]:
            self._add(name.removesuffix(".weight"), Held(tensors[name]))
        for i in range(model.config.num_hidden_layers):
            for where, own in (("self_attn", ("qkv_proj", "o_proj")), ("mlp", ("gate_up_proj", "down_proj"))):
                for name in own:
                    parts = [f"model.layers.{i}.{where}.{part}" for part in JOINED.get(name, [name])]
                    biases = [tensors[f"{part}.bias"] for part in parts if f"{part}.bias" in tensors]
                    weight = torch.cat([tensors[f"{part}.weight"] for part in parts])
                    self._add(f"model.layers.{i}.{where}.{name}", Packed(weight, torch.cat(biases) if biases else None))

    def _add(self, path, module):
        here = self
        *above, last = path.split(".")
        for part in above:
            if not hasattr(here, part):
                setattr(here, part, nn.Module())
            here = getattr(here, part)
        setattr(here, last, module)


class FakeLLM:
    """What of `vllm.LLM` is used. The switches are faults to be caught."""

    made: ClassVar[list["FakeLLM"]] = []
    loads = True  # false: a reload that does nothing
    sharpness = 1.0  # logits are multiplied by it
    fails: Exception | None = None

    def __init__(self, **settings):
        if FakeLLM.fails is not None:
            raise FakeLLM.fails
        self.settings, self.params, self.reloads, self.resets, self.closed = settings, [], 0, 0, False
        torch.manual_seed(99)
        torch.set_num_threads = lambda threads: None  # as vLLM on the CPU does
        self.hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings["model"])).eval()
        self.model = EngineModel(self.hf)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        FakeLLM.made.append(self)

    def _shutdown(self):
        self.closed = True

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.reloads += 1
        if FakeLLM.loads:
            self.hf.load_state_dict(dict(kwargs["weights_iterator"]), strict=False)
            self.model = EngineModel(self.hf, head=self.model.lm_head)  # its packed copy stays as it is

    def apply_model(self, function):
        return [function(self.model)]

    def reset_prefix_cache(self):
        self.resets += 1

    def generate(self, prompts, params, use_tqdm):
        self.params = params
        return [
            SimpleNamespace(outputs=[self._one(p["prompt_token_ids"], q)]) for p, q in zip(prompts, params, strict=True)
        ]

    def _one(self, prompt, params):
        ids, logprobs = [], []
        for _ in range(params.max_tokens):
            logits = self.hf(torch.tensor([prompt + ids])).logits[0, -1] * FakeLLM.sharpness
            if params.temperature == 0:
                token, told = int(logits.argmax()), logits.log_softmax(-1)
            else:
                told = (logits / params.temperature).log_softmax(-1)
                token = int(torch.multinomial(told.exp(), 1))
            ids.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(told[token]))})
            if token in params.stop_token_ids:
                return SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="stop")
        return SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="length")


def install(monkeypatch, architectures=("Qwen2ForCausalLM",), version="0.32.0"):
    """Put the stand-in where the package would be, without faults and without an engine of an earlier test."""
    import importlib.metadata

    from edge_grpo.rollouts.vllm_engine import Engine

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, lambda **fields: SimpleNamespace(**fields)
    module.ModelRegistry = SimpleNamespace(get_supported_archs=lambda: list(architectures))
    monkeypatch.setitem(sys.modules, "vllm", module)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "vllm" else real(name))
    for name, value in {"made": [], "loads": True, "sharpness": 1.0, "fails": None}.items():
        monkeypatch.setattr(FakeLLM, name, value)
    monkeypatch.setattr(Engine, "_running", None)
