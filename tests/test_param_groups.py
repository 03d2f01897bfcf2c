"""Sorting a model's parameters: real architectures with random weights, and every rule overridden."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from kradagrad_ext import KrADagrad, param_groups

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = TINY | {"num_key_value_heads": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 2, "n_embd": 24, "n_head": 4, "vocab_size": 50, "n_positions": 16}
        | {"bos_token_id": None, "eos_token_id": None},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 3}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TINY),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {k: TINY[k] for k in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")}
        | {"image_size": 8, "patch_size": 4, "num_labels": 5},
    ),
}

KINDS: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {
    "gpt2": {
        "matrices": (6, {}),
        "fused": (2, {"split": 3, "split_dim": 1}),
        "embeddings": (2, {"precondition": False}),
        "norms": (5, {"precondition": False, "weight_decay": 0.0}),
        "biases": (13, {"precondition": False, "weight_decay": 0.0}),
    },
    "llama": {"matrices": (14, {}), "embeddings": (1, {}), "heads": (1, {}), "norms": (5, {})},
    "mixtral": {
        "matrices": (10, {}),
        "experts": (2, {"batch_dims": 1, "split": 2, "split_dim": 1}),
        "experts_2": (2, {"batch_dims": 1}),
        "embeddings": (1, {}),
        "heads": (1, {}),
        "norms": (5, {}),
    },
    "phi3": {
        "matrices": (4, {}),
        "fused": (2, {"split": (24, 12, 12)}),
        "fused_2": (2, {"split": 2}),
        "embeddings": (1, {}),
        "heads": (1, {}),
        "norms": (5, {}),
    },
    "neox": {
        "matrices": (6, {}),
        "fused": (2, {"split": 12}),
        "embeddings": (1, {}),
        "heads": (1, {}),
        "norms": (5, {}),
        "biases": (13, {}),
    },
    "vit": {
        "matrices": (13, {}),
        "embeddings": (1, {}),
        "heads": (1, {}),
        "norms": (5, {}),
        "biases": (19, {}),
        "vectors": (1, {}),
    },
}  # fmt: skip


def make(name: str) -> nn.Module:
    model, config, options = MODELS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**options))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_the_group_that_it_belongs_to(name: str) -> None:
    model = make(name)
    groups = param_groups(model, show=None)
    assert Counter(id(p) for group in groups for p in group["params"]) == Counter(map(id, model.parameters()))
    assert {group["name"]: len(group["params"]) for group in groups} == {
        kind: count for kind, (count, _) in KINDS[name].items()
    }
    for group in groups:
        _, expected = KINDS[name][group["name"]]
        assert expected.items() <= group.items()
        shared = {"params", "name", "precondition", "weight_decay"}
        assert not expected or group.keys() - shared == expected.keys() - shared


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_train_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = make(name)
    optimizer = KrADagrad(param_groups(model, show=None), lr=1e-2, weight_decay=0.1)
    losses = []
    tokens = torch.randint(0, 50, (2, 8))
    batch = (
        {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}
        if name == "vit"
        else {"input_ids": tokens, "labels": tokens}
    )
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_blocks_of_fused_and_experts_weights() -> None:
    """No block spans a GPT-2's queries, keys and values, or an expert's gate and up."""
    gpt2 = KrADagrad(param_groups(make("gpt2"), show=None), block_size=16)
    mixtral = KrADagrad(param_groups(make("mixtral"), show=None), block_size=16)
    for optimizer, shapes in ((gpt2, [24, 24]), (mixtral, [40, 24])):
        (group,) = [g for g in optimizer.param_groups if g.get("name") in ("fused", "experts")]
        p = group["params"][0]
        p.grad = torch.randn_like(p)
        optimizer.step()
        sides = Counter()
        for key, tensor in optimizer.state[p].items():
            if (
                key.startswith("factor_")
                and "stats" not in key
                and key.endswith(f"_{group['split_dim'] - group['batch_dims']}")
            ):
                sides[tensor.shape[-1]] += len(tensor)
        assert set(sides) == {16, 8}
        width = shapes[0] if optimizer is gpt2 else 40
        assert sides[8] / sides[16] == (width % 16 != 0) / (width // 16)


def test_a_table_shows_the_groups() -> None:
    shown: list[str] = []
    model = make("gpt2")
    model.transformer.h[0].requires_grad_(False)
    groups = param_groups(model, show=shown.append)
    lines = shown[0].splitlines()
    assert lines[0].split() == ["group", "parameters", "elements", "options", "for", "example"]
    assert [line.split()[0] for line in lines[1:6]] == [group["name"] for group in groups]
    assert lines[1].split()[:3] == ["matrices", "3", f"{24 * 24 + 2 * 24 * 96:,}"]
    assert "split=3, split_dim=1" in lines[2]
    assert lines[-2] == "tied, listed once: transformer.wte.weight = lm_head.weight"
    assert lines[-1] == "frozen, left out: 12 parameters, transformer.h.0.ln_1.weight the first"
    thawed = param_groups(model, frozen=True, show=None)
    assert sum(len(group["params"]) for group in thawed) == len(list(model.parameters()))


def test_the_table_is_printed_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    param_groups(nn.Linear(3, 4))
    assert "matrices" in capsys.readouterr().out
    param_groups(nn.Linear(3, 4), show=None)
    assert capsys.readouterr().out == ""


def test_rules_and_options_override_what_is_built_in() -> None:
    model = make("llama")
    groups = param_groups(
        model,
        rules={"*.mlp.gate_proj.weight": "vectors", "lm_head.*": {"precondition": True, "lr": 1e-3}},
        options={"matrices": {"lr": 3e-2}, "embeddings": {"precondition": True}},
        show=None,
    )
    by_name = {group["name"]: group for group in groups}
    assert by_name["matrices"]["lr"] == 3e-2
    assert len(by_name["matrices"]["params"]) == 12
    assert by_name["embeddings"]["precondition"]
    assert {key: by_name["heads"][key] for key in ("precondition", "lr")} == {
        "precondition": True,
        "lr": 1e-3,
    }
    assert [list(p.shape) for p in by_name["vectors"]["params"]] == [[40, 24]] * 2
    assert not by_name["vectors"]["precondition"]


def test_a_pattern_may_name_a_tied_weight_by_either_name() -> None:
    groups = param_groups(make("gpt2"), rules={"lm_head.weight": "heads"}, show=None)
    counts = {group["name"]: len(group["params"]) for group in groups}
    assert (counts["heads"], counts["embeddings"]) == (1, 1)


class Configured(nn.Module):
    """A module of Megatron-Core's names, with its configuration and one linear layer."""

    def __init__(self, name: str, layer: nn.Module, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.add_module(name, layer)


class LayerNormLinear(nn.Linear):
    """A norm and a linear layer in one, as Transformer Engine has it."""


HEADS = dict(num_attention_heads=6, num_query_groups=2, kv_channels=4)


@pytest.mark.parametrize(
    ("module", "kind", "split"),
    [
        (Configured("linear_qkv", nn.Linear(24, 40, bias=False), **HEADS), "fused", (12, 4, 4) * 2),
        # One of two tensor-parallel ranks has one of the groups.
        (Configured("linear_qkv", LayerNormLinear(24, 20, bias=False), **HEADS), "fused", (12, 4, 4)),
        (Configured("linear_qkv", nn.Linear(24, 36, bias=False), **HEADS), "fused", None),
        (Configured("linear_qkv", nn.Linear(24, 40, bias=False)), "fused", None),
        (Configured("linear_fc1", nn.Linear(8, 32, bias=False), gated_linear_unit=True), "fused", 2),
        (Configured("linear_fc1", nn.Linear(8, 32, bias=False), gated_linear_unit=False), "matrices", None),
        (Configured("linear_fc1", nn.Linear(8, 32, bias=False)), "matrices", None),
    ],
)
def test_fused_matrices_of_megatron_core(module: nn.Module, kind: str, split: Any) -> None:
    (group,) = param_groups(nn.ModuleDict({"layer": module}), show=None)
    assert (group["name"], group.get("split")) == (kind, split)
    optimizer = KrADagrad([group], block_size=8)
    (p,) = group["params"]
    p.grad = torch.ones_like(p)
    optimizer.step()


def test_modules_of_torch_itself_and_meta_parameters() -> None:
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(32, 4)
        groups = {group["name"]: group for group in param_groups(layer, show=None)}
    assert groups["fused"]["split"] == 3
    assert (len(groups["matrices"]["params"]), len(groups["norms"]["params"])) == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": [1]}, TypeError, "`model` must be a torch.nn.Module, got list"),
        ({"rules": {"*.q.weight": "heads"}}, ValueError, "`rules` must match .*, '\\*.q.weight' does not"),
        ({"rules": {"*": "moons"}}, ValueError, "a kind must be one of matrices, .*, got 'moons'"),
        ({"options": {"moons": {}}}, ValueError, "a kind must be one of matrices, .*, got 'moons'"),
        ({"model": nn.Linear(2, 2).requires_grad_(False)}, ValueError, "to train, got 2 frozen ones"),
        ({"model": nn.ReLU()}, ValueError, "must have parameters to train, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = arguments.pop("model", nn.Linear(2, 2))
    with pytest.raises(error, match=message):
        param_groups(model, **arguments)
