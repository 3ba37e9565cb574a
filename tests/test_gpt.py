"""The model: its size, its weights, what it may look at, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from dlcourse.formulas.parameters import num_parameters
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.targets import check_batch
from dlcourse.models.tiny import MoE, TinyLM

SMALL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_number_of_parameters(tie_embeddings):
    for config in (
        GPTConfig(tie_embeddings=tie_embeddings),
        GPTConfig(n_layer=1, n_embd=24, n_head=3, tie_embeddings=tie_embeddings),
    ):
        assert GPT(config).num_parameters() == num_parameters(config)


def test_default_size_is_what_the_docstring_says():
    assert GPT().num_parameters() == 873_728
    assert f"{873_728:,}" in GPTConfig.__doc__


def test_tied_embeddings_are_one_parameter():
    model = GPT(GPTConfig(tie_embeddings=True))
    assert model.head.weight is model.token_embedding.weight
    assert GPT().head.weight is not GPT().token_embedding.weight


def test_a_tied_model_from_meta_is_the_one_made_at_once():
    """to_empty gives each module a matrix of its own."""
    config = GPTConfig(n_layer=1, n_embd=24, n_head=3, tie_embeddings=True)
    with torch.device("meta"):
        model = GPT(config, seed=3)
    model = model.to_empty(device="cpu")
    model.init_weights(3)
    at_once = GPT(config, seed=3)
    assert model.head.weight is model.token_embedding.weight
    assert model.num_parameters() == at_once.num_parameters()
    for name, value in at_once.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("value", ["False", "no", None, 1, 2, 0])
def test_tied_is_true_or_false(value):
    with pytest.raises(ValueError, match=rf"tie_embeddings={value!r} is not allowed: give True or"):
        GPTConfig(tie_embeddings=value)


TOKENS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("model", [GPT(SMALL), TinyLM("dense")], ids=["gpt", "tiny"])
@pytest.mark.parametrize(
    ("tokens", "targets"),
    [
        (TOKENS, TOKENS.t()),
        (TOKENS, TOKENS.view(3, 4)),
        (TOKENS, TOKENS.flatten()),
        (TOKENS[0], TOKENS[0]),
        (TOKENS[None], TOKENS[None]),
    ],
)
def test_tokens_and_targets_that_do_not_go_together(model, tokens, targets):
    """Flattened they have as many numbers, and the loss would be of other pairs."""
    with pytest.raises(ValueError, match=r"tokens of shape .* and targets of shape .* the same"):
        model(tokens, targets)


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, True])
def test_micro_batches_are_a_whole_number(accumulate):
    with pytest.raises(ValueError, match=f"accumulate={accumulate} is not allowed"):
        check_batch(TOKENS, TOKENS, SMALL, accumulate=accumulate)


def test_tokens_of_one_sequence_alone():
    with pytest.raises(ValueError, match=r"tokens of shape \(6,\): both must be \(sequences"):
        GPT(SMALL)(TOKENS[0])


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = GPT(SMALL, seed=3).state_dict()
    torch.manual_seed(2)
    second = GPT(SMALL, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = GPT(SMALL, seed=4).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_float64_model_starts_from_the_same_numbers():
    torch.set_default_dtype(torch.float64)
    try:
        double = GPT(SMALL, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    single = GPT(SMALL, seed=3)
    for a, b in zip(double.parameters(), single.parameters(), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a.float(), b)


def test_initial_spread_of_the_weights():
    model = GPT()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    shrunk = 0.02 / math.sqrt(2 * model.config.n_layer)
    for block in model.blocks:
        assert block.mlp.down.weight.std().item() == pytest.approx(shrunk, rel=0.05)
        assert block.attention.proj.weight.std().item() == pytest.approx(shrunk, rel=0.05)
        assert torch.equal(block.mlp_norm.weight, torch.ones(128))
        assert not block.mlp.up.bias.any()


def test_first_loss_is_that_of_guessing():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (4, 128), generator=generator)
    assert GPT()(tokens, tokens).item() == pytest.approx(math.log(256), abs=0.1)


def test_forward_is_the_transformer_written_out():
    """Without modules, one head after the other, with the mask and the softmax spelled out."""
    model = GPT(SMALL, seed=1).double()
    with torch.no_grad():  # the initial values of norms and biases would hide mistakes
        for parameter in model.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    w = dict(model.named_parameters())
    tokens = torch.arange(24).reshape(2, 12) * 7

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][:12]
    future = torch.ones(12, 12).triu(1).bool()
    for layer in ("blocks.0", "blocks.1"):
        h = norm(x, f"{layer}.attention_norm")
        q, k, v = (h @ w[f"{layer}.attention.{name}.weight"].T for name in "qkv")
        heads = []
        for columns in (slice(0, 8), slice(8, 16)):
            scores = q[..., columns] @ k[..., columns].mT / math.sqrt(8)
            weights = scores.masked_fill(future, -math.inf).softmax(-1)
            heads.append(weights @ v[..., columns])
        proj = f"{layer}.attention.proj"
        x = x + torch.cat(heads, -1) @ w[f"{proj}.weight"].T + w[f"{proj}.bias"]
        h = norm(x, f"{layer}.mlp_norm")
        h = h @ w[f"{layer}.mlp.up.weight"].T + w[f"{layer}.mlp.up.bias"]
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + h @ w[f"{layer}.mlp.down.weight"].T + w[f"{layer}.mlp.down.bias"]
    expected = norm(x, "norm") @ w["head.weight"].T
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_a_position_sees_only_the_past():
    model = GPT(SMALL).eval()
    tokens = torch.arange(16)[None]
    changed = tokens.clone()
    changed[0, 10] = 200
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_a_position_sees_all_of_the_past_and_where_it_stands():
    model = GPT(SMALL).eval()
    tokens = torch.arange(16)[None]
    changed = tokens.clone()
    changed[0, 0] = 200
    assert not torch.allclose(model(tokens)[:, 15], model(changed)[:, 15], atol=1e-7)
    same = model(torch.full((1, 16), 7))
    assert not torch.allclose(same[:, 3], same[:, 12], atol=1e-4)


def test_loss_is_the_mean_over_all_positions():
    model = GPT(SMALL)
    tokens = torch.arange(32).reshape(2, 16)
    targets = tokens + 1
    log_p = torch.log_softmax(model(tokens), dim=-1)
    by_hand = -log_p.gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(model(tokens, targets), by_hand)


def test_every_parameter_is_trained():
    model = GPT(SMALL)
    tokens = torch.arange(32).reshape(2, 16)
    model(tokens, tokens + 1).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_a_model_without_storage():
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=32, n_embd=4096, n_head=32, block_size=2048))
    assert model.num_parameters() > 6e9
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 3}, r"n_head=3 does not divide n_embd=128"),
        ({"n_layer": 0}, r"n_layer=0 is not allowed"),
        ({"n_embd": 12.5}, r"n_embd=12.5 is not allowed"),
        ({"vocab_size": -1}, r"vocab_size=-1 is not allowed"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**options)


def test_too_long_a_sequence():
    with pytest.raises(ValueError, match=r"17 tokens does not fit block_size=16"):
        GPT(SMALL)(torch.zeros(1, 17, dtype=torch.long))


# --- The smallest models ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["dense", "moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiny_models_under_autocast(architecture, dtype):
    """Loss and gradients are those of float32, to the digits that 16 bits have (bfloat16: 8)."""
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        model = TinyLM(architecture)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = model(tokens, tokens.roll(-1, 1))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert loss.dtype == torch.float32
    exact, low = gradients
    assert (low - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_routes_as_float32_does(dtype):
    """Two experts closer than 16 bits can tell apart: the router computes in float32."""
    layer = MoE(8, 2)
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([[1.0], [1.0 + 2**-14]]).expand(2, 8))
        for number, expert in enumerate(layer.experts):
            expert[2].weight.zero_()
            expert[2].bias.fill_(number)
    with torch.autocast("cpu", dtype):
        y = layer(torch.ones(5, 8))
    assert (y > 0.4).all()  # all go to the second expert, with half of the weight
    assert (layer.to(dtype)(torch.ones(5, 8, dtype=dtype))).dtype == dtype
