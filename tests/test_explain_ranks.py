"""The code that an explanation gives trains as DeepSpeed does from the same JSON, in real ranks."""

from __future__ import annotations

import os
import sys

import cloudpickle
import pytest

from dlcourse import Ranks
from dlcourse.explain import explain
from dlcourse.peers import deepspeed_installed as installed

pytestmark = pytest.mark.skipif(
    not installed.is_installed() and "CI" not in os.environ, reason="DeepSpeed is not installed"
)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks cannot import it

WORLD, STEPS, BLOCK = 2, 4, 64  # as in the code
ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}  # torch's: needs no compiler
BATCH = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4}
CONFIGS = {
    "stage 0, as it comes": {**BATCH, "optimizer": ADAM},
    "stage 1, clipped hard": {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.05,
        "optimizer": {
            "type": "Adam",
            "params": {
                "lr": 2e-3,
                "betas": [0.8, 0.95],
                "eps": 1e-6,
                "weight_decay": 0.1,
                "torch_adam": True,
            },
        },
        "zero_optimization": {"stage": 1},
    },
    "stage 1, bf16, offload": {
        **BATCH,
        "optimizer": ADAM,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    },
    "stage 2, a schedule, not clipped": {
        **BATCH,
        "gradient_clipping": 0,
        "optimizer": ADAM,
        "zero_optimization": {"stage": 2},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"total_num_steps": 5, "warmup_num_steps": 2, "warmup_max_lr": 2e-3},
        },
    },
    "stage 2, offload, SGD": {
        **BATCH,
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    },
    "stage 3, both offloads": {
        **BATCH,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "cpu"},
        },
    },
    "stage 3, checkpointing": {
        **BATCH,
        "optimizer": ADAM,
        "activation_checkpointing": {},
        "zero_optimization": {"stage": 3},
    },
    "stage 3, bf16": {
        **BATCH,
        "optimizer": ADAM,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
    },
}


def with_deepspeed(config, steps, block):
    """Losses of this rank's part of each batch, and how often each block ran forward in a step."""
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.peers.deepspeed_engine import configured

    model, corpus, losses, calls = GPT(), Corpus(), [], []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    engine = configured(model, config)
    micro, accumulate = (
        engine.train_micro_batch_size_per_gpu(),
        engine.gradient_accumulation_steps(),
    )
    for step in range(steps):
        tokens, targets = corpus.batch(
            step,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            micro_batch=micro * accumulate,
            block=block,
        )
        parts = zip(tokens.chunk(accumulate), targets.chunk(accumulate), strict=True)
        mean = 0.0
        for x, y in parts:
            loss = engine(x, y)
            engine.backward(loss)
            engine.step()
            mean += loss.item() / accumulate
        losses.append(mean)
    forwards = len(calls) / steps / accumulate
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    divided = engine.zero_optimization_stage() == 3
    with GatheredParameters(list(engine.module.parameters()), enabled=divided):
        after = loss_of({name: p.detach().clone() for name, p in engine.module.named_parameters()})
    engine.destroy()
    return losses, after, forwards


def loss_of(weights):
    """What a model of these weights has to say about a batch that it was not trained on."""
    import torch

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT

    model = GPT()
    names = (name.replace(".layers.0", "") for name in weights)  # of a checkpointed block
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    with torch.no_grad():
        return model(*Corpus().batch(1000, micro_batch=8, block=64)).item()


def of_the_code(loss_of):
    """The same of the model that the code has left."""
    import sys
    from contextlib import nullcontext

    model = sys.modules["__main__"].model
    with getattr(model, "gathered", nullcontext)():
        return loss_of(dict(model.module.named_parameters()))


@pytest.fixture(scope="module")
def ranks():
    with Ranks(WORLD, device="cpu") as pool:
        yield pool


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_code_trains_as_deepspeed_does_from_the_same_json(name, ranks):
    config = CONFIGS[name]
    explanation = explain(config, world_size=WORLD)
    assert not explanation.refused
    offloads = "offload_param" in config.get("zero_optimization", {})
    assert ("model = OffloadedZeRO3(model)" in explanation.code) == offloads
    # float32: sums in another order, over four steps. bfloat16 has 8 bits: neighbours of a loss of
    # 5 are 0.03 apart, and so are these; what a float32 model says of the weights is finer.
    allowed, allowed_after = (0.04, 2e-4) if "bf16" in config else (2e-5, 2e-5)
    theirs = ranks.run(with_deepspeed, config, STEPS, BLOCK)
    ranks.cell(explanation.code)
    ours, afterwards = ranks["losses"], ranks.run(of_the_code, loss_of)
    for (losses, after, _), mine, mine_after in zip(theirs, ours, afterwards, strict=True):
        off = max(abs(a - b) for a, b in zip(losses, mine, strict=True))
        print(f"{name}: losses off {off:.1e}, afterwards {after - mine_after:.1e}")
        assert off < allowed
        assert abs(after - mine_after) < allowed_after
    assert theirs[0][0] != theirs[1][0], "each rank has its own part of a batch"


@pytest.mark.timeout(400)
def test_the_block_activation_checkpointing_alone_checkpoints_nothing(ranks):
    config = CONFIGS["stage 3, checkpointing"] | {"zero_optimization": {"stage": 0}}
    (_, _, forwards), _ = ranks.run(with_deepspeed, config, 1, BLOCK)
    assert forwards == 1  # a checkpointed block runs forward again in backward
    said = [(one.kind, one.path) for one in explain(config, world_size=WORLD).findings]
    assert ("implies", "activation_checkpointing") in said


def linears(config):
    """Whether torch's own ``linear`` is in place: before, while DeepSpeed runs, and after."""
    import torch
    import torch.nn.functional as F

    from dlcourse.models.gpt import GPT
    from dlcourse.peers.deepspeed_engine import configured

    model, own, seen = GPT(), F.linear, []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(F.linear is own))
    seen.append(F.linear.__module__ != "deepspeed.runtime.zero.linear")
    engine = configured(model, config)
    seen.append(F.linear is own)
    tokens = torch.zeros(engine.train_micro_batch_size_per_gpu(), 64, dtype=torch.long)
    engine.backward(engine(tokens, tokens))
    seen.append(F.linear is own)
    engine.destroy()
    return seen


@pytest.mark.timeout(400)
def test_zero_3_leaves_torchs_linear_to_others(ranks):
    """DeepSpeed puts its own in place for the whole process; the learner's next cell had it."""
    config = {**BATCH, "optimizer": ADAM, "zero_optimization": {"stage": 3}}
    assert ranks.run(linears, config) == [[True, True, False, True]] * WORLD


@pytest.mark.parametrize(
    "more",
    [
        {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}},
        {"fp16": {"enabled": True, "loss_scale": 128}},
        {"torch_autocast": {"enabled": True}, "zero_optimization": {"stage": 3}},
    ],
)
def test_the_code_of_autocast_trains_nearly_as_float32(more, ranks):
    """DeepSpeed has no fp16 on a CPU, so the code stands beside that of float32."""
    losses = []
    for config in ({**BATCH, "optimizer": ADAM}, {**BATCH, "optimizer": ADAM, **more}):
        ranks.cell(explain(config).code)  # without a world size: the code finds it
        losses.append(ranks["losses"][0])
    assert losses[1] == pytest.approx(losses[0], abs=0.01)  # 16-bit products of numbers near 1
    assert losses[1] != losses[0]
