# %% [markdown] lang="en"
# # 13 Anatomy of memory: where does it go, and which saving comes first?
#
# "CUDA out of memory." You know four remedies by now: mixed precision
# ([lesson 10](10_mixed_precision.ipynb)), accumulation ([09](09_accumulation.ipynb)), checkpointing
# ([11](11_checkpointing.ipynb)), sharding ([06](06_zero.ipynb)). Which one first? The advice on the net says: in that order, always, and here is
# a pie chart of your memory.
#
# You will take memory apart category by category, check the pie and the order against measurements,
# and end with a calculator for your own GPU. 30 to 40 minutes.
# %% [markdown] lang="ko" en="8c4aa71f"
# # 13 메모리 해부: 메모리는 어디에 쓰이고, 무엇부터 줄여야 할까?
#
# "CUDA out of memory." 처방은 이미 네 가지를 알고 있습니다. 혼합 정밀도(mixed precision,
# [레슨 10](10_mixed_precision.ipynb)), 누적(accumulation, [09](09_accumulation.ipynb)),
# 체크포인팅(checkpointing, [11](11_checkpointing.ipynb)), 샤딩(sharding, [06](06_zero.ipynb))입니다. 무엇부터
# 켜야 할까요? 흔한 조언은 언제나 이 순서대로 켜라고 하며, 메모리가 어떻게 나뉘는지 원그래프도 보여 줍니다.
#
# 메모리를 범주별로 뜯어보고, 원그래프와 순서가 맞는지 재 보고, 마지막에 내 GPU용 계산기를 만듭니다. 30~40분
# 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 2
device = "auto"
# %% [markdown] lang="en"
# Four things live in memory, and not for the same time:
#
# ```mermaid
# flowchart LR
#   P["parameters<br>always"] --> F["forward<br>activations grow"] --> B["backward<br>activations shrink<br>gradients grow"]
#   B --> O["optimizer<br>activations gone<br>gradients all there"] --> F
#   S["optimizer state<br>always"] --> O
# ```
# %% [markdown] lang="ko" en="be9ccf39"
# 메모리에는 파라미터, 그래디언트(gradient), 옵티마이저 상태(optimizer state), 활성화값(activation)이 있는데,
# 머무는 시간이 서로 다릅니다.
#
# ```mermaid
# flowchart LR
#   P["파라미터<br>늘 있음"] --> F["순전파<br>활성화값이 늘어남"] --> B["역전파<br>활성화값이 줄고<br>그래디언트가 늘어남"]
#   B --> O["옵티마이저<br>활성화값은 없고<br>그래디언트는 모두 있음"] --> F
#   S["옵티마이저 상태<br>늘 있음"] --> O
# ```
# %%
from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, show, solution
from dlcourse.figures.memory_anatomy import PICTURE, anatomy_figure, distance
from dlcourse.figures.memory_anatomy import memory_vs_time_figure, shares
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import human_bytes
from dlcourse.formulas.activations import activation_peak
from dlcourse.formulas.memory import predict_peak, step_cost
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig
from dlcourse.formulas.states import exact_state_bytes

lesson(lang=lang, name="13_memory_anatomy")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# ## One loop for everything
#
# So far each technique had a loop of its own. Here is one that composes them. Look at the order in
# `__init__`: checkpoints go around blocks, then parameters get their type, then ZeRO cuts them up.
# %% [markdown] lang="ko" en="b5559710"
# ## 모든 것을 담은 루프 하나
#
# 지금까지는 기법마다 루프가 따로 있었습니다. 이번에는 무엇이든 함께 켤 수 있는 루프 하나를 씁니다. `__init__`의 순서를
# 보세요. 블록을 활성화 체크포인트로 감싸고, 파라미터의 자료형을 바꾸고, 그다음에 ZeRO가 자릅니다.
# %% source="dlcourse.training.memory_anatomy:Training"
# %% [markdown] lang="en"
# **Predict** two numbers for AdamW in float32. First the model states, parameters, gradients and
# optimizer state together: how many bytes for each parameter? Then the peak of activations in bytes:
# 8 layers of width 64 with 4 heads, and 8 sequences of 64 tokens in each rank. By lesson 11 a layer stores
# 4 × tokens × (16 × width + heads + 4) bytes; the loss and what is outside the layers add about a tenth.
# %% [markdown] lang="ko" en="b3e3875d"
# float32 AdamW에 대해 두 가지를 **예측해 보세요.** 먼저 모델 상태, 곧 파라미터와 그래디언트와 옵티마이저 상태를
# 더하면 파라미터 하나에 몇 바이트일까요? 다음은 활성화값의 최대 메모리(peak memory)입니다. 폭 64, 헤드 4개인 층이
# 8개이고, 랭크(rank)마다 토큰 64개짜리 시퀀스가 8개입니다. 레슨 11에서 층 하나는
# 4 × 토큰 × (16 × 폭 + 헤드 + 4)바이트를 저장했습니다. 손실과 층 밖의 것이 여기에 10%쯤 더합니다.
# %%
config = GPTConfig(n_layer=8, n_embd=64, block_size=64)
states = exact_state_bytes(config, Recipe())
activations = activation_peak(config, micro_batch=8, block=64)
each = sum(states.values()) / num_parameters(config)
predict("13.states", ..., formula=each, unit="bytes")
predict("13.activations", ..., formula=activations, unit="bytes")
# %%
# %%ranks --fast
import gc

import numpy as np
from dlcourse.measure import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.corpus import Corpus

config = GPTConfig(n_layer=8, n_embd=64, block_size=64)


def measure(recipe, sequences=8, block=64):
    gc.collect()
    training = Training(GPT(config).to(device), recipe)
    place = dict(rank=rank, world_size=world_size, micro_batch=sequences, block=block)
    first, second = ([x.to(device) for x in Corpus().batch(step, **place)] for step in range(2))
    training.step(*first)
    with Recorder(rank, world_size) as recorder:
        training.step(*second)
    return recorder.record["memory"], training.weights().cpu().numpy().copy()


# %%
# %%ranks --fast
adam, want = measure(Recipe())
# %%
adam = ranks["adam"][0]
found = {name: adam["end"][name] for name in states}
compare("13.states", sum(found.values()) / num_parameters(config))
compare("13.activations", adam["peaks"]["activations"])
assert found == states
assert abs(adam["peaks"]["activations"] / activations - 1) < 0.05
# %% [markdown] lang="en"
# The states agree to the byte: 16 bytes a parameter, and 4 for each tensor, AdamW's step counters.
# Activations agree within 5%. So the formula can be trusted for models that do not fit here.
#
# Now change one thing at a time:
# %% [markdown] lang="ko" en="419a1fae"
# 상태는 한 바이트까지 맞습니다. 파라미터마다 16바이트이고, 텐서마다 AdamW의 스텝 카운터 4바이트가 더 있습니다.
# 활성화값은 5% 안에서 맞습니다. 그러니 이 컴퓨터에 들어가지 않는 모델도 공식으로 계산할 수 있습니다.
#
# 이제 하나씩 바꿔 봅니다.
# %%
# %%ranks --fast
ways = {
    "master": (Recipe(precision="master"), 8),
    "momentum": (Recipe(optimizer="momentum"), 8),
    "sgd": (Recipe(optimizer="sgd"), 8),
    "small": (Recipe(), 2),
    "large": (Recipe(), 16),
}
anatomy = {"adam": adam} | {name: measure(*way)[0] for name, way in ways.items()}
# %%
anatomy = ranks["anatomy"][0]
cases = {t(f".case.{name}"): found["series"] for name, found in anatomy.items()}
peaks = [found["peak_bytes"] for found in anatomy.values()]
low, high = human_bytes(min(peaks)), human_bytes(max(peaks))
anatomy_figure(cases, title=t(".over_time", low=low, high=high))


# %% [markdown] lang="en"
# Same model, same data. Two things to see. With a large batch activations (green) rise like a mountain;
# with a small one more of the area is flat, parameters and optimizer state (blue, yellow). And where the
# mountain is highest, **there are no gradients yet**: they peak at another moment.
#
# ## 25, 25, 35, 15?
#
# The pie says: 25% parameters, 25% gradients, 35% optimizer state, 15% activations. Which case is that?
# %% [markdown] lang="ko" en="873340cf"
# 같은 모델, 같은 데이터입니다. 두 가지를 보세요. 배치가 크면 활성화값(초록색)이 산처럼 솟고, 작으면 평평한
# 파라미터와 옵티마이저 상태(파란색, 노란색)가 차지하는 몫이 커집니다. 그리고 산이 가장 높은 곳에는 **아직
# 그래디언트가 없습니다.** 둘이 최대가 되는 순간은 서로 다릅니다.
#
# ## 25, 25, 35, 15?
#
# 원그래프에 따르면 파라미터 25%, 그래디언트 25%, 옵티마이저 상태 35%, 활성화값 15%입니다. 어떤 경우일까요?
# %%
def share_row(name, sizes):
    return [name, *(f"{x:.0f}%" for x in shares(sizes).values()), f"{distance(sizes):.0f}%"]


rows = [share_row(t(".picture"), PICTURE)]
rows += [share_row(t(f".case.{name}"), found["at_peak"]) for name, found in anatomy.items()]
header = [t(".case"), *(t(f"category.{name}") for name in PICTURE), t(".distance")]
Table(header, rows, caption=t(".shares"))
# %% [markdown] lang="en"
# None so far. For all four to be there at the peak, gradients of an earlier micro-batch must still be
# alive: with accumulation. Activations grow with the tokens. **Predict**: at how many tokens in a
# micro-batch are activations 15% of all?
# %% [markdown] lang="ko" en="ac9d8908"
# 아직 없습니다. 최대 시점에 네 가지가 모두 있으려면 앞선 마이크로배치(micro-batch)의 그래디언트가 남아 있어야
# 합니다. 그래디언트를 누적할 때입니다. 활성화값은 토큰 수에 비례합니다. **예측해 보세요.** 마이크로배치의 토큰이 몇
# 개일 때 활성화값이 전체의 15%가 될까요?
# %%
per_token = activation_peak(config, micro_batch=1, block=64) / 64
predict("13.tokens", ..., formula=round(15 / 85 * sum(states.values()) / per_token))
# %%
# %%ranks --fast
counts = (8, 16, 32, 48)
few = [measure(Recipe(accumulate=2), 2, block)[0]["at_peak"] for block in counts]
# %%
few = ranks["few"][0]
counts = ranks["counts"][0]
by_share = {n: shares(sizes)["activations"] for n, sizes in zip(counts, few, strict=True)}
nearest = min(by_share, key=lambda n: abs(by_share[n] - 15))
compare("13.tokens", nearest)
rows = [share_row(t(".picture"), PICTURE)]
rows += [share_row(t(".tokens", count=n), s) for n, s in zip(counts, few, strict=True)]
Table(header, rows, caption=t(".shares"))
# %% [markdown] lang="en"
# Some 30 tokens: of the lengths measured, 32 comes nearest. Even there the picture does not fit: AdamW's
# two moments are **twice** the parameters, never 35 ÷ 25 = 1.4 times. No optimizer above has such a ratio.
#
# And GPT-2 Large, with its published sizes? Its parameters, and the tokens at which activations are 15%:
# %% [markdown] lang="ko" en="b8fe473d"
# 토큰 30개쯤이고, 재 본 길이 중에서는 32개가 가장 가깝습니다. 그래도 원그래프와는 맞지 않습니다. AdamW의 모멘트
# 둘은 파라미터의 **두 배**이지 35 ÷ 25 = 1.4배가 아닙니다. 앞에서 본 옵티마이저 가운데 그런 비율은 없습니다.
#
# 발표된 크기의 GPT-2 Large라면 어떨까요? 파라미터 수와, 활성화값이 15%가 되는 토큰 수를 계산합니다.
# %%
large_states = sum(exact_state_bytes(GPT2_LARGE, Recipe()).values())
large_token = activation_peak(GPT2_LARGE, micro_batch=1, block=1024) / 1024
dict(parameters=num_parameters(GPT2_LARGE), tokens=round(15 / 85 * large_states / large_token))
# %% [markdown] lang="en"
# Less than one sequence of 1,024 tokens.
# %% [markdown] lang="ko" en="89bc87fa"
# 토큰 1,024개짜리 시퀀스 하나보다도 적습니다.
# %%
found = [distance(sizes) for sizes in few]
at_most = shares(anatomy["large"]["at_peak"])["activations"]
states_there = shares(few[counts.index(nearest)])["optimizer_state"]
claim("D5", nearest=min(found), state=states_there, large=at_most)
# %% [markdown] lang="en"
# ## What shrinks what
#
# The usual table: parameters shrink by sharding and mixed precision; gradients by mixed precision and
# accumulation; optimizer state by mixed precision and ZeRO; activations by checkpointing and
# accumulation. Eight promises. We switch on one technique at a time and read **each category's own**
# peak.
# %% [markdown] lang="ko" en="47ef52b1"
# ## 무엇이 무엇을 줄이나
#
# 흔한 표는 이렇습니다. 파라미터는 샤딩과 혼합 정밀도로, 그래디언트는 혼합 정밀도와 누적으로, 옵티마이저 상태는 혼합
# 정밀도와 ZeRO로, 활성화값은 체크포인팅과 누적으로 줄어든다고 합니다. 약속이 여덟 개입니다. 기법을 하나씩 켜고
# **범주마다 그 최대값**을 읽습니다.
# %%
# %%ranks --fast
alone = {
    "autocast": Recipe(precision="autocast"),
    "bfloat16": Recipe(precision="bfloat16"),
    **{name: Recipe.of([name]) for name in ("mixed", "accumulate", "checkpoint", "zero1", "zero3")},
}
plain, matrix, errors = adam, {}, {}
for name, recipe in alone.items():
    matrix[name], got = measure(recipe)
    errors[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
# %%
matrix, plain, errors = (ranks[name][0] for name in ("matrix", "plain", "errors"))


# %%
def change(now, before):
    ratio = 100 * (now / before - 1)
    return "=" if abs(ratio) < 1 else f"{ratio:+.0f}%".replace("-", "−")


def matrix_row(name, memory):
    cells = [change(memory["peaks"][c], plain["peaks"][c]) for c in PICTURE]
    return [t(f".technique.{name}"), *cells, change(memory["peak_bytes"], plain["peak_bytes"])]


rows = [matrix_row(name, memory) for name, memory in matrix.items()]
header = [t(".technique"), *(t(f"category.{c}") for c in PICTURE), t(".total")]
Table(header, rows, caption=t(".matrix"))
# %% [markdown] lang="en"
# Read down the columns. Accumulation leaves gradients as they are: it *keeps* them longer. Master weights
# make optimizer state **half as large again**, 12 bytes instead of 8; autocast touches no state at all.
# Mixed precision shrinks activations too, which the usual table leaves out.
#
# ZeRO-3 has the layer at work and the next one whole: with only 8 layers parameters do not fall to 1/ranks;
# with more it comes nearer. ZeRO-1 keeps a buffer for all gradients even at the loss, where the peak is:
# with 2 ranks it takes exactly what the state saves.
# %% [markdown] lang="ko" en="c72746ff"
# 열을 따라 내려가며 읽어 보세요. 누적은 그래디언트를 줄이지 않고 오히려 더 오래 *들고 있습니다*. 마스터
# 가중치(master weights)를 쓰면 옵티마이저 상태가 8바이트에서 12바이트로 **절반만큼 늘고**, autocast는 상태를 전혀
# 건드리지 않습니다. 혼합 정밀도는 활성화값도 줄이는데, 흔한 표에는 빠져 있습니다.
#
# ZeRO-3는 계산 중인 층과 다음 층을 온전히 모아 두므로, 층이 8개뿐이면 파라미터가 1/랭크 수까지 줄지 않습니다. 층이
# 많을수록 가까워집니다. ZeRO-1은 최대 시점인 손실 때도 그래디언트 버퍼를 통째로 들고 있습니다. 랭크가 둘이면 상태가
# 줄어든 만큼을 이 버퍼가 차지합니다.
# %%
promised = {
    "parameters": ("zero3", "mixed"),
    "gradients": ("mixed", "accumulate"),
    "optimizer_state": ("mixed", "zero1"),
    "activations": ("checkpoint", "accumulate"),
}
left = lambda name, category: matrix[name]["peaks"][category] / plain["peaks"][category]
kept = sum(left(name, c) < 0.95 for c, names in promised.items() for name in names)
state, halved = left("mixed", "optimizer_state"), left("mixed", "activations")
claim("D6", kept=kept, state=state, activations=halved)
# %% [markdown] lang="en"
# Is it still the same training? One process takes the batches of all ranks at once. Where only the order
# of sums differs, float32 changes less than $10^{-6}$ of what two steps move; we allow $10^{-5}$.
# With SGD, as AdamW would hide a factor in all gradients, a forgotten mean over ranks, say:
# %% [markdown] lang="ko" en="d72cf253"
# 여전히 같은 학습일까요? 단일 프로세스에 모든 랭크의 배치를 한꺼번에 줍니다. 더하는 순서만 다르다면 float32에서는 두
# 스텝 동안 움직인 거리의 $10^{-6}$도 안 되는 차이가 나므로 $10^{-5}$까지 허용합니다. 랭크 평균을 빠뜨리는 것처럼
# 그래디언트 전체에 배수가 붙으면 AdamW로는 드러나지 않으므로 SGD로 봅니다.
# %%
# %%ranks --fast
def one_process(steps):
    gpt = GPT(config).to(device)
    sgd = torch.optim.SGD(gpt.parameters(), lr=1.0)
    for step in range(steps):
        batch = Corpus().batch(step, micro_batch=8 * world_size, block=64)
        sgd.zero_grad()
        gpt(*(x.to(device) for x in batch)).backward()
        sgd.step()
    return torch.cat([p.detach().flatten() for p in gpt.parameters()])


# %%
# %%ranks --fast
def in_ranks(**options):
    training = Training(GPT(config).to(device), Recipe(optimizer="sgd", **options), lr=1.0)
    place = dict(rank=rank, world_size=world_size, micro_batch=8, block=64)
    for step in range(2):
        training.step(*(x.to(device) for x in Corpus().batch(step, **place)))
    return training.weights()


begin, whole = one_process(0), one_process(2)
same = {"baseline": {}, "accumulate": {"accumulate": 4}, "checkpoint": {"checkpoint": True}}
same |= {"zero1": {"stage": 1}, "zero3": {"stage": 3}}
off = {name: (in_ranks(**options) - whole).norm() for name, options in same.items()}
off = {name: (distance / (whole - begin).norm()).item() for name, distance in off.items()}
# %%
off = ranks["off"][0]
assert max(off.values()) < 1e-5
rows = [[t(".baseline"), f"{off.pop('baseline'):.0e}"]]
rows += [[t(f".technique.{name}"), f"{distance:.0e}"] for name, distance in off.items()]
Table([t(".technique"), t(".parity")], rows)
# %% [markdown] lang="en"
# Techniques that contradict each other are refused before anything is built, and a batch that cannot be
# split in its first step:
# %% [markdown] lang="ko" en="4eda8604"
# 서로 맞지 않는 기법은 모델을 만들기 전에 거부하고, 나누어떨어지지 않는 배치는 첫 스텝에서 거부합니다.
# %%
# %%ranks --fails "keeps no master weights"
Recipe(precision="master", optimizer="sgd")
# %%
# %%ranks --fails "a batch of 6 sequences does not divide"
measure(Recipe(accumulate=4), 6)
# %% [markdown] lang="en"
# Does torch count the same as our memory ledger? Its `MemTracker` watches the same loop:
# %% [markdown] lang="ko" en="595df58d"
# torch도 우리 메모리 장부(ledger)와 똑같이 셀까요? torch의 `MemTracker`로 같은 루프를 지켜봅니다.
# %%
# %%ranks --fast
from torch.distributed._tools.mem_tracker import MemTracker

training, tracker = Training(GPT(config).to(device), Recipe()), MemTracker()
tracker.track_external(training.model, training.optimizer)
batch = [half.to(device) for half in Corpus().batch(0, micro_batch=8, block=64)]
with tracker:
    for _ in range(2):
        tracker.reset_mod_stats()
        training.step(*batch)
total = tracker.get_tracker_snapshot("peak")[device]["Total"]
training = tracker = None
# %%
total = ranks["total"][0]
rows = [[t(".ledger.ours"), human_bytes(plain["peak_bytes"])]]
rows += [[t(".ledger.torch"), human_bytes(total)]]
assert abs(total / plain["peak_bytes"] - 1) < 0.01
Table([t(".case"), t(".total")], rows)
# %% [markdown] lang="en"
# ## Which one first?
#
# Recommended: mixed precision, accumulation, checkpointing, then sharding; stop as soon as it fits. That
# is one path through all sets of techniques. A set has a peak and a cost, the time of a step; the best one
# for a memory limit is the **cheapest** that fits. So measure all sets, on fake tensors (shapes without
# numbers): two layers as wide as those of GPT-2 Large, 4 ranks.
# %% [markdown] lang="ko" en="b0c2f370"
# ## 무엇부터?
#
# 권장 순서는 혼합 정밀도, 누적, 체크포인팅, 샤딩이고, 들어가는 순간 멈추라고 합니다. 이것은 기법의 여러 조합을
# 지나는 길 하나일 뿐입니다. 조합마다 최대 메모리와 비용(스텝 시간)이 있고, 어떤 메모리 한도에서 가장 좋은 조합은
# 들어가는 것 중 **가장 싼** 것입니다. 그러니 조합을 모두 재 봅니다. 값 없이 모양만 있는 가짜 텐서(fake tensor)로,
# GPT-2 Large와 폭이 같은 층 2개, 랭크 4개입니다.
# %%
show("dlcourse.plan.technique_order:cheapest,first_that_fits")
# %%
from dlcourse.plan.fake_ledger import Case, ledgers, measured_plans

from dataclasses import replace

from dlcourse.plan.technique_order import Prices, compare_order, pareto_front, path_of_order
from dlcourse.plan.technique_sets import plans

two_layers_wide = replace(GPT2_LARGE, n_layer=2, vocab_size=8192)
everything = measured_plans(two_layers_wide, sequences=16, block=1024, world_size=4)
a100 = dict(flops=156e12, flops16=312e12, per_pass=2e-3)
machines = {
    "fast": Prices(**a100, bandwidth=300e9),
    "network": Prices(**a100, bandwidth=25e9 / 8),
    "plain": Prices(**a100 | dict(flops16=156e12), bandwidth=300e9),
}
two_layers = {name: replace(p, per_pass=2 / 36 * p.per_pass) for name, p in machines.items()}
# %% [markdown] lang="en"
# Bytes, FLOPs and bytes sent are measured. Time is not: it comes from **prices**, which you may change:
# an A100's FLOPs (TF32, bf16) and NVLink by its datasheet [1], the same over a network of 25 Gb/s, and a
# machine where 16 bits are no faster; 2 ms for each micro-batch of all 36 layers are our assumption.
#
# The peak of each set serves as a limit. At how many of them is the order cheapest (within 1%)?
# %% [markdown] lang="ko" en="0becb175"
# 바이트와 FLOPs, 보낸 바이트는 측정값입니다. 시간은 재지 않고 **가격**으로 계산하며, 가격은 바꿔 볼 수 있습니다.
# A100의 FLOPs(TF32, bf16)와 NVLink는 데이터시트[1]의 값이고, 나머지는 25 Gb/s 네트워크를 쓸 때와 16비트가 더
# 빠르지 않은 기계입니다. 36층 전체에 마이크로배치마다 2 ms는 우리의 가정입니다.
#
# 조합마다 그 최대 메모리를 한도로 삼습니다. 권장 순서가 가장 싼(1% 안) 한도는 몇 개일까요?
# %%
def label(plan):
    return " + ".join(t(f".set.{n}") for n in plan.techniques) or t(".baseline")


def path(plans, prices):
    base = prices.seconds(everything[0])
    return [(label(plan), prices.seconds(plan) / base, plan.peak) for plan in plans]


# %%
machine = "fast"  # or "network", "plain"
prices = two_layers[machine]
results = compare_order(everything, prices)
lines = {t(".best_path"): path(pareto_front(everything, prices), prices)}
lines[t(".recommended")] = path(path_of_order(everything), prices)
counted = dict(right=sum(one.extra < 1 for one in results), all=len(results))
title = t(".search", machine=t(f".machine.{machine}"), **counted)
memory_vs_time_figure(path(everything, prices), lines, title=title)
# %%
def percent_right(plans, prices):
    results = compare_order(plans, prices)
    return 100 * sum(one.extra < 1 for one in results) / len(results)


whole = plans(GPT2_LARGE, sequences=16, block=1024, world_size=4)
right = {name: percent_right(everything, prices) for name, prices in two_layers.items()}
right_whole = {name: percent_right(whole, prices) for name, prices in machines.items()}
of_machine = {name: t(f".machine.{name}") for name in machines}
rows = [[of_machine[m], f"{right[m]:.0f}%", f"{right_whole[m]:.0f}%"] for m in machines]
Table([t(f".{key}") for key in ("machine", "right", "right_whole")], rows)
# %%
rows = []
for name, prices in two_layers.items():
    results = compare_order(everything, prices)
    bad = max((one for one in results if one.by_order.techniques), key=lambda one: one.extra)
    cells = [human_bytes(bad.limit), label(bad.best), label(bad.by_order), f"+{bad.extra:.0f}%"]
    rows.append([of_machine[name], *cells])
keys = ("machine", "limit", "cheapest", "recommended_first", "extra")
Table([t(f".{key}") for key in keys], rows)
# %% [markdown] lang="en"
# The second table: the limit at which the order is worst. It pays for checkpointing where ZeRO-1 would have
# been enough. On the whole model (by formula) the picture is the same. Mixed precision first is right
# where 16 bits are faster: it saves time *and* memory. But ZeRO-1 sends what an all-reduce sends
# anyway: with several ranks it is free and comes **before** accumulation and checkpointing. ZeRO-3 sends
# half as much again: on a slow link last, if at all.
#
# On **one** device nothing can be sharded. The limit, below what float32 needs, at which the order is worst,
# for three cases:
# %% [markdown] lang="ko" en="08a1fe3b"
# 둘째 표는 권장 순서가 가장 불리한 한도입니다. ZeRO-1로 충분한데 체크포인팅 값을 치릅니다. 모델 전체(공식)도 결과가
# 비슷합니다. 16비트가 더 빠른 곳이라면 혼합 정밀도가 먼저입니다. 시간과 메모리를 *모두* 아끼니까요. 그러나 ZeRO-1은
# 올리듀스(all-reduce)가 어차피 보내는 만큼만 보내므로, 랭크가 여럿이면 공짜이고 누적과 체크포인팅**보다 먼저**
# 옵니다. ZeRO-3는 절반을 더 보내므로, 링크가 느리면 맨 끝이거나 아예 켜지 않습니다.
#
# 장치가 **하나**라면 나눌 곳이 없습니다. float32 그대로는 들어가지 않는 한도 가운데 권장 순서가 가장 불리한 것을 세
# 경우에 대해 봅니다.
# %%
def worst_alone(block, milliseconds):
    options = plans(GPT2_LARGE, sequences=8, block=block)
    results = compare_order(options, replace(machines["fast"], per_pass=milliseconds / 1000))
    return max((one for one in results if one.by_order.techniques), key=lambda one: one.extra)


jobs = {"alone": (1024, 2), "short": (256, 2), "slow": (256, 10)}
worst = {name: worst_alone(*job) for name, job in jobs.items()}
rows = [
    [f"8 × {block:,}", f"{ms} ms", label(bad.best), label(bad.by_order), f"+{bad.extra:.1f}%"]
    for (block, ms), bad in zip(jobs.values(), worst.values(), strict=True)
]
keys = ("batch", "per_pass", "cheapest", "recommended_first", "extra")
Table([t(f".{key}") for key in keys], rows)
# %% [markdown] lang="en"
# The order turns accumulation on before checkpointing and pays for four micro-batches where one would
# do. Their fixed price hardly counts while each has much to compute; with few tokens, or a
# slow start, it does. So no order is right for all: put your own prices in.
# %% [markdown] lang="ko" en="1d0fe09a"
# 권장 순서는 체크포인팅보다 누적을 먼저 켜므로, 마이크로배치 하나로 될 일에 네 번의 고정 비용을 치릅니다. 한 번에
# 계산할 것이 많으면 그 비용은 거의 드러나지 않지만, 토큰이 적거나 시작하는 데 오래 걸리면 커집니다. 어디서나 맞는 순서는
# 없으니 내 가격을 넣어 보세요.
# %%
claim("D7", **right, **{name: bad.extra for name, bad in worst.items()})
# %% [markdown] lang="en"
# ## GPT-2 Large, row by row
#
# A popular table: 12 GB at first, 6 GB with mixed precision, still 6 with accumulation, 4 with
# checkpointing, 2 on each device with sharding. **Predict** the first row: AdamW, float32, 774 million
# parameters, two sequences of 1,024 tokens.
# %% [markdown] lang="ko" en="555036d9"
# ## GPT-2 Large, 한 줄씩
#
# 널리 알려진 표가 있습니다. 처음에는 12 GB, 혼합 정밀도로 6 GB, 누적을 더해도 6 GB, 체크포인팅으로 4 GB, 샤딩으로
# 장치마다 2 GB라고 합니다. 첫 줄을 **예측해 보세요.** AdamW, float32, 파라미터 7억 7,400만 개, 토큰 1,024개짜리
# 시퀀스 2개입니다.
# %%
two = dict(sequences=2, block=1024)
predict("13.gpt2", ..., formula=plans(GPT2_LARGE, **two)[0].peak, unit="bytes")
# %%
names = ["mixed", "accumulate", "checkpoint", "zero3"]
recipes = [Recipe.of(names[:n], **({"accumulate": 2} if n > 1 else {})) for n in range(5)]
cases = [Case(GPT2_LARGE, recipe, **two, world_size=4 if recipe.stage else 1) for recipe in recipes]
by_ledger = [4, 0]
large = dict(zip(by_ledger, ledgers([cases[n] for n in by_ledger]), strict=True))
# %%
formula = [predict_peak(GPT2_LARGE, c.recipe, **two, world_size=c.world_size) for c in cases]
totals = [sum(sizes.values()) / 1e9 for sizes in formula]
ledger = {n: found["memory"]["peak_bytes"] / 1e9 for n, found in large.items()}
compare("13.gpt2", 1e9 * ledger[0])
assert all(abs(total / totals[n] - 1) < 0.01 for n, total in ledger.items())
costs = [step_cost(GPT2_LARGE, c.recipe, **two)["flops"] for c in cases]
# %%
labels = [t(f".row.{name}", ranks=4, parts=2) for name in ("baseline", *names)]
by_formula = [f"{total:.1f} GB" for total in totals]
measured = [f"{ledger[n]:.1f} GB" if n in ledger else "" for n in range(5)]
flops = [f"×{cost / costs[0]:.3f}" for cost in costs]
claimed = ["12 GB", "6 GB", "6 GB", "4 GB", "2 GB"]
speeds = ["100%", "115%", "110%", "90%", "80%"]
keys = ("technique", "row.claimed", "formula", "ledger", "flops", "speed")
columns = (labels, claimed, by_formula, measured, flops, speeds)
Table([t(f".{key}") for key in keys], zip(*columns, strict=True))
# %%
sums = dict(states=human_bytes(large_states), total=human_bytes(1e9 * totals[0]))
title = t(".large", **sums)
memory_by_category_figure(dict(zip(labels, formula, strict=True)), title=title)
# %% [markdown] lang="en"
# Each whole model by ledger takes seconds, so two rows are measured here and a test of the course
# (`test_gpt2_large_by_ledger`) compares all five. For the other rows put 1, 2 and 3 into `by_ledger`.
#
# "12 GB" is the states alone, 16 bytes a parameter, **without any activation**. And those 16 bytes stay 16
# with mixed precision (2 + 2 + 12), so they do not halve. Only sharding divides them: the last row depends
# on how many devices you have.
#
# Speed is for a GPU to say. One ratio can be checked by FLOPs, if speed goes with them: the claimed step
# from 110 to 90% for checkpointing, beside FLOPs without it ÷ FLOPs with it.
# %% [markdown] lang="ko" en="b6fd81e2"
# 모델 전체를 장부로 재는 데는 한 줄에 몇 초씩 걸리므로 여기서는 두 줄만 잽니다. 다섯 줄은 과정의 테스트
# (`test_gpt2_large_by_ledger`)가 모두 견줍니다. 나머지 줄도 직접 재려면 `by_ledger`에 1, 2, 3을 넣으세요.
#
# "12 GB"는 파라미터마다 16바이트인 상태만의 크기이며, **활성화값은 하나도 들어 있지 않습니다**. 이 16바이트는 혼합
# 정밀도에서도 16바이트(2 + 2 + 12)이므로 절반이 되지 않습니다. 상태를 나누는 것은 샤딩뿐이고, 마지막 줄은 장치가 몇
# 개냐에 달렸습니다.
#
# 속도는 GPU에서 재야 합니다. 속도가 FLOPs를 따라간다면 확인할 수 있는 비율이 하나 있습니다. 체크포인팅으로 110%가
# 90%가 된다는 주장을, 체크포인팅이 없을 때의 FLOPs ÷ 있을 때의 FLOPs와 견줍니다.
# %%
again = costs[3] / costs[2]
assert abs(90 / 110 - 1 / again) < 0.01
dict(claimed=round(90 / 110, 2), flops=round(1 / again, 2))
# %%
figures = ("baseline", "mixed", "accumulate", "checkpoint", "sharded")
claim("D8", states=large_states / 1e9, again=again, **dict(zip(figures, totals, strict=True)))
# %% [markdown] lang="en"
# ## A calculator for your GPU
#
# What fits, and what to switch on first? Put in your own numbers: the free memory of your device
# (`torch.cuda.mem_get_info()`), your model (`replace(GPT2_LARGE, n_layer=48, n_embd=1600, n_head=25)` would
# be GPT-2 XL), your batch and the number of devices.
# %% [markdown] lang="ko" en="087fd1c7"
# ## 내 GPU용 계산기
#
# 무엇이 들어가고, 무엇부터 켜야 할까요? 내 숫자를 넣어 보세요. 장치의 빈 메모리(`torch.cuda.mem_get_info()`),
# 모델(예를 들어 `replace(GPT2_LARGE, n_layer=48, n_embd=1600, n_head=25)`는 GPT-2 XL), 배치, 장치 수입니다.
# %%
my_memory = 20e9
my_model = GPT2_LARGE
my_batch = dict(sequences=8, block=1024)
my_devices = 2
my_prices = machines["fast"]
# %%
options = plans(my_model, **my_batch, world_size=my_devices)
fitting = sorted((p for p in options if p.peak <= my_memory), key=my_prices.seconds)
base = my_prices.seconds(options[0])
rows = [
    [label(plan), f"{plan.peak / 1e9:.1f} GB", f"×{my_prices.seconds(plan) / base:.2f}"]
    for plan in fitting[:6]
] or [[t(".nothing_fits"), "", ""]]
caption = t(".advice", memory=f"{my_memory / 1e9:.0f} GB", ranks=my_devices, **my_batch)
Table([t(f".{key}") for key in ("set", "total", "axis.time")], rows, caption=caption)
# %% [markdown] lang="en"
# Leave room. The calculator counts tensors. A GPU adds what the ledger cannot see: the CUDA context,
# workspaces of libraries, rounding of each tensor to 512 bytes, blocks that are free but in pieces [2], and
# buffers of torch's `foreach` optimizers as large as the parameters [3].
#
# ## The pictures in our heads
#
# Two analogies are popular: moving house, and money. Ask each what it predicts.
#
# ```mermaid
# flowchart LR
#   H["too much furniture"] --> A["accumulation<br>several trips, small van"]
#   H --> M["mixed precision<br>vacuum-packing"]
#   H --> C["checkpointing<br>store some boxes, fetch the rest"]
#   H --> S["sharding<br>parts in several places"]
# ```
#
# ```mermaid
# flowchart LR
#   B["too little cash"] --> A["accumulation<br>instalments"]
#   B --> M["mixed precision<br>notes instead of coins"]
#   B --> C["checkpointing<br>keep some receipts, have the rest reissued"]
#   B --> S["sharding<br>assets in several banks"]
# ```
# %% [markdown] lang="ko" en="226a30e2"
# 여유를 남겨 두세요. 계산기는 텐서만 셉니다. GPU에는 장부에 보이지 않는 것이 더해집니다. CUDA 컨텍스트, 라이브러리의
# 작업 공간, 텐서마다 512바이트 단위로 올림, 비었지만 조각난 블록[2], 그리고 파라미터만큼 큰 `foreach` 옵티마이저의
# 버퍼[3]입니다.
#
# ## 머릿속의 그림
#
# 널리 쓰이는 비유가 둘 있습니다. 이사와 돈입니다. 비유마다 무엇을 예측하는지 물어봅시다.
#
# ```mermaid
# flowchart LR
#   H["짐이 너무 많다"] --> A["누적<br>작은 차로 여러 번"]
#   H --> M["혼합 정밀도<br>압축 포장"]
#   H --> C["체크포인팅<br>일부만 보관, 나머지는 다시"]
#   H --> S["샤딩<br>분해해서 여러 곳에"]
# ```
#
# ```mermaid
# flowchart LR
#   B["현금이 모자란다"] --> A["누적<br>할부"]
#   B --> M["혼합 정밀도<br>동전 대신 지폐"]
#   B --> C["체크포인팅<br>영수증 일부만 두고 나머지는 재발급"]
#   B --> S["샤딩<br>자산을 여러 은행에"]
# ```
# %%
def analogy_row(name):
    memory = change(matrix[name]["peak_bytes"], plain["peak_bytes"])
    plan = next(p for p in everything if p.techniques == (name,))
    flops = plan.cost["flops"] / everything[0].cost["flops"]
    sent = plan.cost["sent"] / everything[0].cost["sent"]
    error = t(".bits") if errors[name] == 0 else f"{errors[name]:.0e}"
    names = [t(f".technique.{name}"), t(f".analogy.{name}")]
    return [*names, memory, f"×{flops:.2f}", f"×{sent:.1f}", error]


# %%
keys = ("technique", "analogy", "total", "cost.flops", "cost.sent", "apart")
analogies = ("accumulate", "mixed", "checkpoint", "zero3")
assert max(errors[name] for name in analogies if name != "mixed") < 1e-4 < errors["mixed"]
Table([t(f".{key}") for key in keys], map(analogy_row, analogies))
# %% [markdown] lang="en"
# Several trips, or instalments: right, the same load (FLOPs), and nothing is lost but rounding. Boxes
# fetched, receipts reissued: right, bit for bit, though boxes are *made* again, not fetched (fetching is
# offload, [lesson 12](12_sharding_offload.ipynb)). Furniture in parts: right, with all the carrying.
# Vacuum-packing and notes for coins mislead: what is packed comes out as it was and a note is worth its
# coins, bf16 is rounded; packing takes time, 16 bits save it (by datasheets [1]; not measured
# here); and the states do not shrink.
# %% [markdown] lang="ko" en="f28ca84b"
# 여러 번 나르기나 할부는 맞습니다. 나르는 짐(FLOPs)은 같고 반올림 말고는 잃는 것이 없습니다. 상자를 다시 가져오거나
# 영수증을 재발급받는 것도 비트까지 맞지만, 상자는 가져오는 것이 아니라 *다시 만드는* 것입니다(가져오는 것은
# [레슨 12](12_sharding_offload.ipynb)의 오프로드입니다). 가구를 분해해 나눠 두기도 맞고, 그만큼 나르는 일이
# 늘어납니다. 압축 포장과 지폐는 오해를 부릅니다. 압축은 풀면 그대로이고 지폐는 동전과 값이 같지만, bf16은 반올림을
# 남깁니다. 포장에는 시간이 들지만 16비트는 시간을 아끼고(데이터시트[1]의 값이며 여기서 재지 않았습니다), 상태는 줄지
# 않습니다.
# %%
exact = dict(exact=errors["accumulate"], again=errors["checkpoint"], sharded=errors["zero3"])
claim("D9", **exact, lossy=errors["mixed"])


# %% [markdown] lang="en"
# ## Exercises
#
# **1. `13.states`** (3 minutes). Bytes a parameter of all model states in one rank: `way` is
# `"float32"` or `"mixed"` (16-bit parameters and gradients, 12 bytes of state), AdamW, ZeRO `stage` 0 to
# 3 over `ranks` ranks.
# %% [markdown] lang="ko" en="331bacb8"
# ## 연습 문제
#
# **1. `13.states`** (3분). 랭크 하나의 모델 상태 전체가 파라미터당 몇 바이트인지 돌려주세요. `way`는
# `"float32"`이거나 `"mixed"`(16비트 파라미터와 그래디언트, 상태 12바이트)이고, AdamW, `ranks`개 랭크에 ZeRO
# `stage` 0~3입니다.
# %% exercise="13.states"
def bytes_a_parameter(way, stage, ranks):
    raise NotImplementedError


# %%
check("13.states")


# %% [markdown] lang="en"
# **2. `13.batch`** (10 minutes). The largest micro-batch that fits. `need(n)` measures the bytes of a step
# with `n` sequences; it grows with `n`, but not in proportion. Return the largest `n` with `need(n) <=
# memory`, 0 if there is none, with at most 25 calls.
# %% [markdown] lang="ko" en="0fcc16bf"
# **2. `13.batch`** (10분). 들어가는 가장 큰 마이크로배치를 찾으세요. `need(n)`은 시퀀스가 `n`개일 때 한 스텝의
# 바이트를 잽니다. `n`이 커지면 커지지만 비례하지는 않습니다. `need(n) <= memory`인 가장 큰 `n`을 돌려주세요. 없으면
# 0이고, 호출은 25번까지입니다.
# %% exercise="13.batch"
def largest(need, memory):
    raise NotImplementedError


# %%
check("13.batch")


# %% [markdown] lang="en"
# **3. `13.order`** (20 minutes). Your own search. `plans` is a list of `(techniques, peak, seconds)`, where
# `techniques` is a tuple of names. Let the limit fall from very large to the smallest peak: which set is
# the fastest that fits? Return the list of their `techniques`, in this order, each once. Of equally fast
# sets the one with the smaller peak counts, and then the one with fewer techniques.
# %% [markdown] lang="ko" en="dd3ca5a7"
# **3. `13.order`** (20분). 직접 탐색해 보세요. `plans`는 `(techniques, peak, seconds)`의 리스트이고,
# `techniques`는 이름의 튜플입니다. 한도를 아주 큰 값에서 가장 작은 최대 메모리까지 낮추면 그때마다 들어가는 가장 빠른
# 조합이 있습니다. 그 `techniques`를 차례로, 한 번씩만 담은 리스트를 돌려주세요. 시간이 같으면 메모리가 작은 것, 그것도
# 같으면 기법이 적은 것을 고릅니다.
# %% exercise="13.order"
def best_sets(plans):
    raise NotImplementedError


# %%
check("13.order")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# Bytes of tensors are the same. `dlcourse bench gpu` measures GPT-2 Large against `torch.cuda` peaks, with
# its tokens per second; no GPU run of this lesson is recorded yet, so nothing here says how fast anything
# is.
# %% [markdown] lang="ko" en="f57bc250"
# ## GPU 클러스터에서는
#
# 텐서의 바이트는 그대로입니다. `dlcourse bench gpu`가 GPT-2 Large를 `torch.cuda`의 최대 메모리와 견주고 초당 토큰
# 수를 잽니다. 이 레슨의 GPU 실행 기록은 아직 없으므로, 여기서는 무엇이 얼마나 빠른지 말하지 않습니다.
# %% [markdown] lang="en"
# ## In five lines
#
# 1. States are 16 bytes a parameter with AdamW, mixed precision or not; activations go with the tokens.
# 2. No moment of a usual step looks like 25, 25, 35, 15.
# 3. Accumulation never shrinks gradients; master weights make the state larger.
# 4. ZeRO-1 is free once there are two ranks; what comes next depends on prices.
# 5. Count tensors by formula, then leave room for what a GPU adds.
#
# Sources: [1] [NVIDIA A100 datasheet](https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf).
# [2] [PyTorch: CUDA semantics, memory management](https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management).
# [3] [torch.optim.AdamW, foreach](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html).
# %% [markdown] lang="ko" en="fd64feb3"
# ## 다섯 줄 요약
#
# 1. AdamW의 상태는 혼합 정밀도든 아니든 파라미터당 16바이트이고, 활성화값은 토큰 수를 따라갑니다.
# 2. 보통의 학습 스텝에 25, 25, 35, 15처럼 보이는 순간은 없습니다.
# 3. 누적은 그래디언트를 줄이지 않고, 마스터 가중치는 상태를 늘립니다.
# 4. 랭크가 둘만 되어도 ZeRO-1은 공짜입니다. 그다음 순서는 가격이 정합니다.
# 5. 텐서는 공식으로 세고, GPU가 더하는 만큼 여유를 남기세요.
#
# 출처: [1] [NVIDIA A100 데이터시트](https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf).
# [2] [PyTorch: CUDA semantics, 메모리 관리](https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management).
# [3] [torch.optim.AdamW, foreach](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html).
