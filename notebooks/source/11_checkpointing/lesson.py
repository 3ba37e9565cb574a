# %% [markdown] lang="en"
# # 11 Checkpointing: must forward write everything down?
#
# In [lesson 06](06_zero.ipynb) parameters, gradients and optimizer state were divided over ranks,
# and one thing stayed whole in each: **activations**, what forward stores because backward will read
# it. Twice the sequences, twice the activations. On a large model they are the largest item by far.
#
# Backward reads them in reverse order, long after they were made. Could we throw them away, and make
# them again just before they are read? What does that cost, and do the gradients stay the same?
#
# You will write the checkpoint that does it, predict its memory to the byte, and find out which of
# the popular numbers and rules hold. 30 to 40 minutes.
# %% [markdown] lang="ko" en="31d73c09"
# # 11 체크포인팅: 순전파는 모든 것을 적어 두어야 할까?
#
# [레슨 06](06_zero.ipynb)에서 파라미터, 그래디언트, 옵티마이저 상태는 랭크끼리 나누었지만, 랭크마다 통째로 남은 것이
# 하나 있습니다. 역전파에서 읽으려고 순전파가 저장해 두는 **활성화값**(activation)입니다. 시퀀스가 두 배면
# 활성화값도 두 배입니다. 큰 모델에서는 단연 가장 큰 항목입니다.
#
# 역전파는 활성화값을 만든 지 한참 뒤에, 거꾸로 읽습니다. 그러면 버렸다가 읽기 직전에 다시 만들면 어떨까요? 비용은
# 얼마이고, 그래디언트는 그대로일까요?
#
# 그 일을 하는 체크포인트를 직접 만들고, 메모리를 바이트 단위로 예측하고, 널리 알려진 숫자와 규칙이 맞는지
# 확인합니다. 30~40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 2
device = "auto"
# %% [markdown] lang="en"
# Above: as always. Below: with **checkpoints**, the inputs of the layers. A filled box is stored:
#
# ```mermaid
# flowchart LR
#   A["layer 0<br>■■■■"] --> B["layer 1<br>■■■■"] --> C["layer 2<br>■■■■"] --> L["loss"]
#   D["layer 0<br>■□□□"] --> E["layer 1<br>■□□□"] --> F["layer 2<br>■□□□"] --> M["loss"]
#   M -- "backward: forward of 2 again, ■■■■, then its backward" --> F
# ```
# %% [markdown] lang="ko" en="8edccbf0"
# 위는 보통 방식이고, 아래는 층의 입력만 **체크포인트**(checkpoint)로 남기는 방식입니다. ■가 저장한 것입니다.
#
# ```mermaid
# flowchart LR
#   A["층 0<br>■■■■"] --> B["층 1<br>■■■■"] --> C["층 2<br>■■■■"] --> L["손실"]
#   D["층 0<br>■□□□"] --> E["층 1<br>■□□□"] --> F["층 2<br>■□□□"] --> M["손실"]
#   M -- "역전파: 층 2의 순전파를 다시 해서 ■■■■, 이어서 층 2의 역전파" --> F
# ```
# %%
from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, show, solution
from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.figures.memory_vs_recompute import memory_vs_recompute_figure
from dlcourse.words.units import human_bytes
from dlcourse.formulas import activations as formula
from dlcourse.formulas.checkpoint_segments import best_length, every
from dlcourse.formulas.flops import step_flops
from dlcourse.formulas.sizes import MODELS, GPTConfig

lesson(lang=lang, name="11_checkpointing")
ranks = Ranks(num_ranks, device=device)
n = 12
config, batch = GPTConfig(n_layer=n, n_embd=64, block_size=64), dict(micro_batch=4, block=64)
# %% [markdown] lang="en"
# First: what does one layer of our GPT store? Go through its operators and ask what each one's
# backward reads. A matrix product reads its input, a GELU its input, attention its q, k and v. That
# makes 16 values for each token and channel ($h$ = 64 channels), and 8 for each token (means and
# scales of norms, one value for each of 4 heads), 4 bytes each.
#
# **Predict** the bytes for 4 sequences of 64 tokens.
# %% [markdown] lang="ko" en="7c94582f"
# 먼저, 우리 GPT의 층 하나는 무엇을 저장할까요? 연산자를 하나씩 짚으며 그 역전파가 무엇을 읽는지 물어보면 됩니다.
# 행렬 곱은 자기 입력을, GELU도 자기 입력을, 어텐션은 q, k, v를 읽습니다. 모두 세면 토큰마다 폭($h$ = 64)의 16배만큼의
# 값, 그리고 토큰마다 8개(정규화의 평균과 배율, 헤드 4개에 하나씩)이고, 값 하나는 4바이트입니다.
#
# 토큰 64개짜리 시퀀스 4개라면 몇 바이트인지 **예측해 보세요.**
# %%
predict("11.layer", ..., formula=formula.layer_bytes(config, **batch), unit="bytes")
# %%
# %%ranks --fast
import gc

import numpy as np
from dlcourse.measure import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.corpus import Corpus
from dlcourse.training.checkpointing.segments import PRODUCTS, checkpoint_blocks, segmented
from dlcourse.training.checkpointing.segments import early_stop, reentrant, selective

batch = Corpus().batch(0, rank=rank, world_size=world_size, micro_batch=4, block=64)
batch = [half.to(device) for half in batch]


def stored(n_layer):
    gpt = GPT(GPTConfig(n_layer=n_layer, n_embd=64, block_size=64)).to(device)
    with Recorder(rank, world_size) as recorder:
        loss = gpt(*batch)
    return recorder.record["memory"]["end"]["activations"]


one_layer = stored(3) - stored(2)
# %%
compare("11.layer", ranks["one_layer"][0])
ours = formula.layer_terms(config, **batch)
quoted = formula.quoted_terms(config, **batch)
rows = [[name, f"{ours[name]:,}", f"{quoted[name]:,.0f}"] for name in ours]
rows.append([t(".sum"), f"{sum(ours.values()):,}", f"{sum(quoted.values()):,.0f}"])
Table([t(".operator"), t(".ours"), t(".quoted")], rows)
# %% [markdown] lang="en"
# The right column is the formula that everybody quotes, $sbh(34 + 5as/h)$ bytes [1], for $b$
# sequences of $s$ tokens, width $h$ and $a$ heads. Same operators, three differences: it counts 2
# bytes a value where we store 4, it adds dropout masks (1 byte), and it keeps all attention scores,
# the $5as/h$. Fused attention never writes them down, and keeps one number for each row. So do not
# copy the formula: derive yours.
#
# Now a whole step, with 12 layers. Look at the shape of the mountain:
# %% [markdown] lang="ko" en="084551eb"
# 오른쪽 열은 누구나 인용하는 공식 $sbh(34 + 5as/h)$바이트입니다[1]. $b$는 시퀀스, $s$는 시퀀스의 토큰, $h$는
# 폭, $a$는 헤드의 수입니다. 연산자는 같고 다른 점은 셋입니다. 우리는 값 하나를 4바이트로 저장하지만 공식은
# 2바이트로 셉니다. 공식은 드롭아웃 마스크(1바이트)를 더합니다. 그리고 어텐션 점수를 모두 저장하는데, 그것이
# $5as/h$입니다. 퓨즈드 어텐션(fused attention)은 점수를 적어 두지 않고 한 행마다 숫자 하나만 남깁니다. 그러니
# 공식은 베끼지 말고 자기 모델에서 유도해야 합니다.
#
# 이제 12층 모델로 한 스텝을 돌려 봅니다. 산의 모양을 보세요.
# %%
# %%ranks --as plain
config = GPTConfig(n_layer=12, n_embd=64, block_size=64)


def backward(gpt):
    gpt(*batch).backward()
    return [p.grad.cpu().numpy().copy() for p in gpt.parameters()]


want = backward(GPT(config).to(device))
# %%
plain.memory.over_time()
# %% [markdown] lang="en"
# Up during forward, down during backward. Here is the checkpoint. Forward of a `Function` runs
# without autograd, so nothing is stored but what we save: the inputs. In backward, `function` runs a
# second time, now with autograd watching, and a small backward runs inside the large one.
#
# `Surroundings` and `refuse_changes` wait for later in this lesson.
# %% [markdown] lang="ko" en="0f16ab02"
# 순전파에서 오르고 역전파에서 내려갑니다. 이제 체크포인트입니다. `Function`의 순전파는 autograd 없이 실행되므로
# 우리가 저장하는 것, 곧 입력 말고는 아무것도 남지 않습니다. 역전파에서는 `function`을 autograd가 지켜보는 가운데
# 한 번 더 실행하고, 큰 역전파 안에서 작은 역전파를 돌립니다.
#
# `Surroundings`와 `refuse_changes`는 이 레슨 뒤쪽에서 다룹니다.
# %% source="dlcourse.training.checkpointing.checkpoint:Checkpoint,checkpoint"
# %% [markdown] lang="en"
# **Predict** two numbers for a checkpoint around each of the 12 layers. The peak of activations: 12
# inputs, one layer that is being recomputed, and what its backward holds (here as much as 6 inputs).
# And the price: how many percent more FLOPs? (Backward costs twice a forward.)
# %% [markdown] lang="ko" en="abbeddbe"
# 층 12개에 하나씩 체크포인트를 두면 어떻게 될지 두 가지를 **예측해 보세요.** 활성화값의 최대 메모리는 입력 12개에,
# 다시 계산하는 층 하나와 그 역전파가 들고 있는 것(여기서는 입력 6개만큼)을 더한 값입니다. 그리고 비용입니다.
# FLOPs가 몇 % 늘까요? (역전파는 순전파의 두 배가 듭니다.)
# %%
layer_by_layer = every(n, 1)
peak = formula.activation_peak(config, **batch, segments=layer_by_layer)
base = step_flops(config, **batch)
predict("11.peak", ..., formula=peak, unit="bytes")
more = 100 * (step_flops(config, **batch, segments=layer_by_layer) / base - 1)
predict("11.flops", ..., formula=more, unit="%")
# %%
# %%ranks --as light
def with_checkpoints(segments, how=None):
    gpt = GPT(config).to(device)
    return checkpoint_blocks(gpt, segments, how or checkpoint)


got = backward(with_checkpoints([1] * 12))
same = all(map(np.array_equal, got, want))
# %%
light_peak, plain_peak = (run.memory.peaks("activations")[0] for run in (light, plain))
flops = [run.throughput.ranks[0]["flops"] for run in (plain, light)]
compare("11.peak", light_peak)
compare("11.flops", 100 * (flops[1] / flops[0] - 1))
assert all(ranks["same"])
assert abs(light_peak / peak - 1) < 0.05
light.memory.over_time()
# %% [markdown] lang="en"
# The gradients are equal **bit for bit**: the second forward does the same operations on the same
# numbers, so no tolerance is needed. The mountain is gone; each tooth of the saw is one layer that
# comes alive. What is left on top belongs to gradients, which grow as activations fall. FLOPs grow by
# a little less than a third: the head does not run again, and attention's backward costs 2.5 forwards.
#
# And torch? `torch.utils.checkpoint.checkpoint` has two kinds:
# %% [markdown] lang="ko" en="991d485f"
# 그래디언트가 **비트까지** 같습니다. 두 번째 순전파가 같은 숫자로 같은 연산을 하므로 허용 오차가 필요 없습니다. 산은
# 사라지고, 되살아나는 층마다 톱니가 하나씩 생깁니다. 활성화값이 줄어드는 동안 늘어나는 것은 그래디언트입니다.
# FLOPs는 3분의 1보다 조금 적게 늘었습니다. 출력층은 다시 하지 않고, 어텐션은 역전파가 순전파의 2.5배이기 때문입니다.
#
# torch는 어떨까요? `torch.utils.checkpoint.checkpoint`에는 두 종류가 있습니다.
# %%
# %%ranks --fast
def measure(segments, how=None):
    gpt = with_checkpoints(segments, how)
    gc.collect()
    with Recorder(rank, world_size) as recorder:
        grads = backward(gpt)
    record = recorder.record
    equal = all(map(np.array_equal, grads, want))
    return record["memory"]["peaks"]["activations"], record["flops"], equal


# %%
def measured(segments, how="None"):
    ranks.cell(f"found = measure({segments}, {how})", record=False)
    size, flops, equal = ranks["found"][0]
    assert equal
    return 100 * (flops / base - 1), size


ways = {"none": ([], "None"), "ours": (layer_by_layer, "None")}
ways |= {name: (layer_by_layer, name) for name in ("reentrant", "early_stop")}
at = {name: measured(*way) for name, way in ways.items()}
rows = [[t(f".how.{name}"), human_bytes(b), f"{x:.1f}%"] for name, (x, b) in at.items()]
Table([t(f".{key}") for key in ("how", "peak", "flops")], rows)
# %% [markdown] lang="en"
# Ours is `use_reentrant=True`: a backward inside a backward, which is what reentrant means. The newer
# kind saves 29% of the recomputation. Its second forward stops at the last value that backward reads,
# and nobody reads the result of the layer's last product, which makes up those 29%.
#
# So even the full price is bounded. One more forward is at most a third of a step. "50% more
# compute" is out of reach.
# %% [markdown] lang="ko" en="b58c3120"
# 우리 것은 역전파 안에서 역전파를 돌리는 재진입(reentrant) 방식으로, `use_reentrant=True`와 같습니다. 새로운
# 쪽은 재계산을 29% 아낍니다. 두 번째 순전파를, 역전파가 읽을 마지막 값에서 멈추기 때문입니다. 층의 마지막 행렬 곱의
# 결과는 아무도 읽지 않는데, 그 곱이 층 FLOPs의 29%입니다.
#
# 그러니 비용에는 한계가 있습니다. 순전파 한 번은 많아야 한 스텝의 3분의 1입니다. "계산이 50% 늘어난다"는 일은
# 일어날 수 없습니다.
# %% [markdown] lang="en"
# ## Every k layers, and the famous root
#
# Twelve inputs are stored. Fewer, if a checkpoint covers $k$ layers: $n/k$ inputs, but then $k$ layers
# come alive at once. The famous answer is $k = \sqrt n$ [2]. First where it was meant: a chain of 36
# equal layers that store one value each. **Predict** the best $k$.
# %% [markdown] lang="ko" en="b8d18bb4"
# ## k층마다, 그리고 유명한 제곱근
#
# 입력 12개를 저장했습니다. 체크포인트 하나로 $k$층을 묶으면 입력은 $n/k$개로 줄지만, 그 대신 $k$층이 한꺼번에
# 되살아납니다. 유명한 답은 $k = \sqrt n$입니다[2]. 먼저 이 답이 나온 곳, 값을 하나씩 저장하는 똑같은 층 36개짜리
# 사슬에서 가장 좋은 $k$를 **예측해 보세요.**
# %%
predict("11.k", ..., formula=best_length(36, layer=1, boundary=1))
# %%
# %%ranks --fast
def chain_peak(k, n=36):
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(n)]
    sizes = [k] * (n // k)
    model = nn.Sequential(*segmented(layers, sizes, checkpoint)).to(device)
    x = torch.randn(1024, 64, device=device, requires_grad=True)
    with Recorder(rank, world_size) as recorder:
        model(x).sum().backward()
    return recorder.record["memory"]["peaks"]["activations"] / x.nbytes


chain = [chain_peak(k) for k in (1, 3, 6, 12, 36)]
# %%
lengths, chain = [1, 3, 6, 12, 36], ranks["chain"][0]
best = lengths[chain.index(min(chain))]
compare("11.k", best)
curves = {
    t(".predicted"): [36 / k + k + 2 for k in lengths],
    t(".measured"): chain,
}
sweep_figure(
    lengths,
    curves,
    x_title=t(".axis.segment"),
    y_title=t(".axis.values"),
    title=t(".chain", best=best),
)
# %% [markdown] lang="en"
# The root holds (backward's own gradients add 2 everywhere). Now our GPT, with 12 layers: $\sqrt{12}$ is about 3. But one of its layers stores 16
# times as much as its input. **Predict** again: which $k$ is best?
# %% [markdown] lang="ko" en="f317ed9c"
# 제곱근이 맞습니다(역전파가 쓰는 그래디언트가 어디서나 2를 더합니다). 이번에는 12층짜리 우리 GPT입니다. $\sqrt{12}$는 3쯤 됩니다. 하지만 GPT의 층 하나는 자기
# 입력의 16배를 저장합니다. 어떤 $k$가 가장 좋을지 다시 **예측해 보세요.**
# %%
stream = formula.stream_bytes(config, **batch)
best_k = best_length(n, layer=formula.layer_bytes(config, **batch), boundary=stream)
predict("11.gpt", ..., formula=best_k)
# %%
ks = [1, 2, 3, 6, 12]
groups = {k: measured(every(n, k)) for k in ks}
sizes = [groups[k][1] for k in ks]
compare("11.gpt", ks[sizes.index(min(sizes))])
expected = [formula.activation_peak(config, **batch, segments=every(n, k)) for k in ks]
assert all(abs(a / b - 1) < 0.05 for a, b in zip(sizes, expected, strict=True))
sweep_figure(
    ks,
    {t(".predicted"): expected, t(".measured"): sizes},
    x_title=t(".axis.segment"),
    y_title=t(".peak"),
    y_unit="bytes",
    title=t(".gpt", root=3, ratio=sizes[2] / sizes[0]),
)
# %% [markdown] lang="en"
# In general $k = \sqrt{n \cdot \text{input} / \text{layer}}$, here $\sqrt{12/16}$: layer by layer.
# Grouping our layers two by two pays from 33 layers on: $n/2 + 32$ against $n + 16$.
#
# ## Your own placement
#
# A placement is a list: layers in each segment, from the first layer on; layers left over store
# everything. `[1] * 6` checkpoints the first half. Change `mine` and run again: where do you land?
# %% [markdown] lang="ko" en="eb57c043"
# 일반식은 $k = \sqrt{n \cdot \text{입력} / \text{층}}$이고, 여기서는 $\sqrt{12/16}$이므로 층마다 하나씩입니다.
# 우리 층은 33개부터 둘씩 묶어야 이득입니다($n/2 + 32$와 $n + 16$을 견줘 보세요).
#
# ## 나만의 구간
#
# 어디를 묶을지는 리스트로 적습니다. 첫 층부터 구간마다 층이 몇 개인지 적고, 남은 층은 모두 저장합니다.
# `[1] * 6`은 앞 절반만 체크포인트로 묶습니다. `mine`을 바꿔 가며 다시 실행해 보세요. 그림의 어디쯤에 찍히나요?
# %%
mine = [1, 1, 2, 3]
# %%
def forecast(segments):
    x = 100 * (step_flops(config, **batch, segments=segments) / base - 1)
    return x, formula.activation_peak(config, **batch, segments=segments)


first, grouped = t(".family.first"), t(".family.every")
lines = {first: [forecast([1] * m) for m in range(n + 1)], grouped: [forecast(every(n, k)) for k in ks]}
dots = {first: [measured([1] * m) for m in (0, 4, 8)], grouped: list(groups.values())}
dots[t(".how.early_stop")] = [at["early_stop"]]
# %%
yours = measured(mine)
assert abs(yours[1] / forecast(mine)[1] - 1) < 0.05
less = 100 * (1 - at["ours"][1] / at["none"][1])
title = t(".trade", more=at["ours"][0], less=less)
memory_vs_recompute_figure(lines, dots, title=title, mine=yours)
# %% [markdown] lang="en"
# ## Operator by operator
#
# A GELU costs next to nothing. Why run products again as well? **Selective** checkpointing keeps the results
# of chosen operators. Torch asks for each operator of the second forward whether its result was kept.
# Here we keep the products and attention, so norms and GELU are all that runs again.
# %% [markdown] lang="ko" en="e8417a8c"
# ## 연산자마다 따로
#
# GELU는 다시 해도 거저나 다름없습니다. 행렬 곱까지 다시 할 까닭이 있을까요? **선택적 체크포인팅**(selective checkpointing)은 고른
# 연산자의 결과를 남겨 둡니다. torch는 두 번째 순전파에서 연산자마다 결과를 남겨 두었는지 확인합니다. 여기서는
# 행렬 곱과 어텐션의 결과를 남기므로 다시 하는 것은 정규화와 GELU뿐입니다.
# %%
show("dlcourse.training.checkpointing.segments:selective")
# %%
at["selective"] = measured(layer_by_layer, "selective(*PRODUCTS)")
assert at["selective"][0] == 0
assert abs(at["selective"][1] / formula.selective_peak(config, **batch) - 1) < 0.05
rows = [[t(f".how.{name}"), human_bytes(b), f"{x:.1f}%"] for name, (x, b) in at.items()]
Table([t(f".{key}") for key in ("how", "peak", "flops")], rows)
# %% [markdown] lang="en"
# 29% less for activations, at no FLOPs that count. The paper's selective recomputation [1]
# throws attention scores away, for 70% less on GPT-3 at 2.7% more FLOPs. Fused attention does that
# already inside its kernel, which is why our column above had no $5as/h$ to save.
#
# ## The second forward must be the first one
#
# Dropout draws random numbers. What if the second forward draws others?
# %% [markdown] lang="ko" en="f56167ac"
# 셀 만한 FLOPs는 하나도 쓰지 않고 활성화값이 29% 줄어듭니다. 논문의 선택적 재계산[1]은 어텐션
# 점수를 버려서 GPT-3에서 FLOPs 2.7%로 70%를 아꼈습니다. 퓨즈드 어텐션은 커널 안에서 이미 그렇게 합니다. 그래서
# 앞의 표에서 우리 열에는 아낄 $5as/h$가 없었습니다.
#
# ## 두 번째 순전파는 첫 번째와 같아야 한다
#
# 드롭아웃은 난수를 뽑습니다. 두 번째 순전파가 다른 난수를 뽑으면 어떻게 될까요?
# %%
show("dlcourse.training.checkpointing.checkpoint:Surroundings")
# %%
# %%ranks --fast
def with_dropout(segments, keep=True):
    gpt = GPT(config).to(device)
    for block in gpt.blocks:
        block.mlp = nn.Sequential(block.mlp, nn.Dropout(0.1))
    how = lambda layers, x: checkpoint(layers, x, keep_random_state=keep)
    checkpoint_blocks(gpt, segments, how)
    torch.manual_seed(0)
    loss = gpt(*batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in gpt.parameters()])


(loss0, g0), (loss1, g1), (loss2, g2) = (
    with_dropout([]), with_dropout([1] * 12), with_dropout([1] * 12, keep=False))
errors = [((g - g0).norm() / g0.norm()).item() for g in (g0, g1, g2)]
losses = [loss0, loss1, loss2]
# %%
names = [t(f".random.{key}") for key in ("none", "kept", "lost")]
losses, errors = ranks["losses"][0], ranks["errors"][0]
assert losses[0] == losses[1] == losses[2]
assert errors[1] == 0 and errors[2] > 0.01
rows = [[*row[:1], f"{row[1]:.6f}", f"{row[2]:.1%}"] for row in zip(names, losses, errors, strict=True)]
Table([t(f".{key}") for key in ("random", "loss", "error")], rows)
# %% [markdown] lang="en"
# The last line is what goes wrong without any error: the loss is right, as it comes from the first
# forward, and the gradients are those of another network. Torch keeps the state by default
# (`preserve_rng_state=True`).
#
# What cannot be put back is a change **in place**. Watch two of them. First a module that halves its
# input:
# %% [markdown] lang="ko" en="6cc3550a"
# 마지막 줄이 오류 없이 잘못되는 경우입니다. 손실은 첫 순전파에서 나오므로 맞지만, 그래디언트는 다른 신경망의
# 것입니다. torch도 기본으로 난수 상태를 되돌립니다(`preserve_rng_state=True`).
#
# 되돌릴 수 없는 것은 **제자리**(in-place) 변경입니다. 두 가지를 보겠습니다. 먼저 자기 입력을 절반으로 줄이는
# 모듈입니다.
# %%
# %%ranks --fails "changes input 0 in place"
class Halve(nn.Module):
    def forward(self, x):
        x *= 0.5
        return x.tanh()


x = torch.ones(3, device=device, requires_grad=True)
checkpoint(Halve(), x * 1)
# %% [markdown] lang="en"
# The second is a batch norm, whose running mean moves with each forward. Torch lets it pass, and
# counts one batch as two. Ours refuses:
# %% [markdown] lang="ko" en="6f5e1586"
# 두 번째는 배치 정규화입니다. 순전파를 할 때마다 이동 평균이 바뀝니다. torch는 말없이 지나가며 배치 하나를 두 번
# 셉니다. 우리 것은 거부합니다.
# %%
# %%ranks --fast
norm = nn.BatchNorm1d(4).to(device)
x = torch.randn(8, 4, device=device, requires_grad=True)
early_stop(norm, x).sum().backward()
counted = norm.num_batches_tracked.item()
# %%
assert set(ranks["counted"]) == {2}
ranks["counted"]
# %%
# %%ranks --fails "leave that module outside"
checkpoint(norm, x)
# %% [markdown] lang="en"
# ## In ranks
#
# Under DDP each rank checkpoints its own copy, and nothing more is sent. Gradients must be those of
# DDP without checkpoints, bit for bit, and one process's up to rounding: it adds up the sequences in
# another order, which moves float32 by less than $10^{-6}$ of a gradient's size; we allow $10^{-5}$.
# %% [markdown] lang="ko" en="90cf75b0"
# ## 랭크에서
#
# DDP에서는 랭크마다 자기 복제본에 체크포인트를 두며, 더 보내는 것은 없습니다. 그래디언트는 체크포인트 없는 DDP와
# 비트까지 같아야 합니다. 단일 프로세스와는 반올림만큼 다를 수 있습니다. 시퀀스를 더하는 순서가 달라 float32에서는
# 그래디언트 크기의 $10^{-6}$이 안 되는 차이가 나므로 $10^{-5}$까지 허용합니다.
# %%
# %%ranks --fast
from torch.nn.parallel import DistributedDataParallel


def in_ranks(segments, how=None, **options):
    gpt = DistributedDataParallel(with_checkpoints(segments, how), **options)
    with Recorder(rank, world_size) as recorder:
        for _ in range(2):
            gpt.zero_grad()
            grads = backward(gpt)
    return grads, sum(event["bytes"] for event in recorder.record["comm"])


(ddp, sent0), (kept, sent1) = in_ranks([]), in_ranks([1] * 12)
whole = Corpus().batch(0, micro_batch=4 * world_size, block=64)
alone = GPT(config).to(device)
alone(*[half.to(device) for half in whole]).backward()
theirs = [p.grad.cpu().numpy() for p in alone.parameters()]
apart = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(kept, theirs))
as_ddp = sent0 == sent1 and all(map(np.array_equal, ddp, kept))
# %%
assert all(ranks["as_ddp"]) and max(ranks["apart"]) < 1e-5
print(f"{max(ranks['apart']):.1e}")
# %% [markdown] lang="en"
# Then somebody adds `find_unused_parameters=True`, for a model with branches. DDP now walks the graph
# to see which parameters will get a gradient, and marks the others as ready. A reentrant checkpoint is
# one node in that graph; its parameters are nowhere to be seen:
# %% [markdown] lang="ko" en="aaea2f08"
# 그러다 누군가 분기가 있는 모델 때문에 `find_unused_parameters=True`를 켭니다. 그러면 DDP는 그래프를 훑어
# 그래디언트를 받을 파라미터를 찾고, 나머지는 준비되었다고 표시합니다. 그런데 재진입 방식 체크포인트는 그래프에서 노드
# 하나일 뿐이라 그 안의 파라미터가 보이지 않습니다.
# %%
# %%ranks --fails "mark a variable ready only once"
in_ranks([1] * 12, find_unused_parameters=True)
# %%
# %%ranks --fast
unused = {"find_unused_parameters": True}
new_kind, _ = in_ranks([1] * 12, early_stop, **unused)
as_new = all(map(np.array_equal, new_kind, in_ranks([], **unused)[0]))
# %%
assert all(ranks["as_new"])
# %% [markdown] lang="en"
# "Marked ready twice" means: first as unused, then by the backward inside. `use_reentrant=False` keeps
# the parameters visible; prefer it. (A layer that two reentrant checkpoints share fails in the same
# way. With `static_graph=True` DDP counts instead, and both work.)
#
# ## 30 to 70% of memory for 20 to 50% more compute?
#
# Of *which* memory? Now a step with AdamW, its parameters, gradients and state, for many tokens and
# for few:
# %% [markdown] lang="ko" en="c4570967"
# 두 번 준비되었다는 말은, 처음에는 쓰이지 않는 것으로, 다음에는 안쪽 역전파가 표시했다는 뜻입니다.
# `use_reentrant=False`는 파라미터를 숨기지 않으므로 이쪽을 쓰세요. (재진입 방식 체크포인트 둘이 층 하나를 함께
# 써도 똑같이 실패합니다. `static_graph=True`를 켜면 DDP가 횟수를 세어 두므로 둘 다 됩니다.)
#
# ## 계산을 20~50% 더 하면 메모리가 30~70% 줄까?
#
# *어떤* 메모리일까요? 이번에는 AdamW까지 넣어, 파라미터와 그래디언트, 옵티마이저 상태를 모두 가진 스텝을 토큰이
# 많을 때와 적을 때 재 봅니다.
# %%
# %%ranks --fast
def total_peak(sequences, segments):
    gpt = with_checkpoints(segments)
    optimizer = torch.optim.AdamW(gpt.parameters())
    tokens = torch.zeros(sequences, 64, dtype=torch.long, device=device)

    def step():
        gpt(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()
    with Recorder(rank, world_size) as recorder:
        step()
    return recorder.record["memory"]["at_peak"]


alone = theirs = g0 = g1 = g2 = None
totals = {s: (total_peak(s, []), total_peak(s, [1] * 12)) for s in (1, 16)}
# %%
rows, saved = {}, {}
for sequences, pair in ranks["totals"][0].items():
    name = t(".small", tokens=64 * int(sequences))
    for key, peaks in zip(("none", "ours"), pair, strict=True):
        rows[t(f".large.{key}", name=name)] = peaks
    saved[int(sequences)] = 100 * (1 - sum(pair[1].values()) / sum(pair[0].values()))
title = t(".total", few=saved[1], many=saved[16])
memory_by_category_figure(rows, title=title)
# %% [markdown] lang="en"
# With few tokens the peak only moves to the end of backward, where gradients are all there. And
# GPT-2 Large, 8 sequences of 1,024 tokens, on tensors that have shapes and no numbers: bytes are
# exact, and no laptop needs 30 GiB. With checkpoints its peak is at the loss: most of what is left are
# logits, 51,200 for each token, three times.
# %% [markdown] lang="ko" en="e27b7b73"
# 토큰이 적으면 최대가 그래디언트가 다 모인 역전파의 끝으로 옮겨 갈 뿐입니다. GPT-2 Large도 해 봅니다. 토큰 1,024개짜리 시퀀스 8개를, 모양만 있고 숫자는 없는 텐서로 돌립니다. 바이트는
# 정확하면서 노트북에 30 GiB가 있을 필요는 없습니다. 체크포인트를 두면 최대 메모리가 손실 계산에서 나옵니다. 남은 것의
# 대부분은 토큰마다 51,200개인 로짓이고, 그것이 세 벌 있습니다.
# %%
# %%ranks --fast
from torch._subclasses.fake_tensor import FakeTensorMode

from dlcourse.formulas.sizes import MODELS


def full_model(segments):
    with FakeTensorMode(allow_non_fake_inputs=True):
        gpt = GPT(MODELS["gpt2-large"])
        checkpoint_blocks(gpt, segments, checkpoint)
        tokens = torch.zeros(8, 1024, dtype=torch.long)
        with Recorder(0, 1) as recorder:
            gpt(tokens, tokens).backward()
    return recorder.record["memory"]["at_peak"]


large = [full_model(segments) for segments in ([], [1] * 36)] if rank == 0 else None
# %%
large = ranks["large"][0]
plain_peak, light_peak = (peaks["activations"] for peaks in large)
eight = dict(micro_batch=8, block=1024)
for segments, size in (([], plain_peak), ([1] * 36, light_peak)):
    expected = formula.activation_peak(MODELS["gpt2-large"], **eight, segments=segments)
    assert abs(size / expected - 1) < 0.05
names = [t(f".large.{key}", name="GPT-2 Large") for key in ("none", "ours")]
found = {"plain": human_bytes(plain_peak), "light": human_bytes(light_peak)}
title = t(".large.title", **found)
memory_by_category_figure(dict(zip(names, large, strict=True)), title=title)
# %%
claim("D3", few=saved[1], many=saved[16], reentrant=at["ours"][0], early_stop=at["early_stop"][0])
# %% [markdown] lang="en"
# ## Exercises
#
# **1. `11.kept`** (3 minutes). Bytes that our GPT stores between forward and backward: `layers` layers
# with width `width`, `tokens` tokens, float32, a checkpoint every `k` layers (the last may cover fewer;
# `k=0`: none). Count 16 values a layer for each token and channel, and leave out the rest.
# %% [markdown] lang="ko" en="afadef1b"
# ## 연습 문제
#
# **1. `11.kept`** (3분). 우리 GPT가 순전파와 역전파 사이에 저장하는 바이트 수를 돌려주세요. 층 `layers`개, 폭
# `width`, 토큰 `tokens`개, float32이고, 체크포인트는 `k`층마다 둡니다(마지막 구간은 짧을 수 있고, `k=0`이면
# 없음). 층 하나는 토큰마다 폭의 16배만큼의 값으로 세고, 나머지는 뺍니다.
# %% exercise="11.kept"
def bytes_kept(layers, width, tokens, k):
    raise NotImplementedError


# %%
check("11.kept")
# %% [markdown] lang="en"
# **2. `11.place`** (10 minutes). A chain of `n` layers, each of which stores `cost` times its input.
# Return a placement (a list, as `mine`) that needs least. Your placement is put into a real chain and
# measured; the target is 10% above the best there is with equal segments.
# %% [markdown] lang="ko" en="ff830d77"
# **2. `11.place`** (10분). 층 `n`개짜리 사슬이 있고, 층마다 입력의 `cost`배를 저장합니다. 메모리를 가장 적게 쓰는
# 구간의 리스트를 돌려주세요(`mine`과 같은 형식). 그대로 진짜 사슬을 묶어 측정합니다. 목표는 같은 길이로 나눌 때의
# 최솟값보다 10% 많은 데까지입니다.
# %% exercise="11.place"
# %%ranks
def place(n, cost):
    raise NotImplementedError


# %%
check("11.place")
# %% [markdown] lang="en"
# **3. `11.policy`** (10 minutes). A policy for torch's `create_selective_checkpoint_contexts`: for each
# operator of a layer, say `MUST_SAVE` or `PREFER_RECOMPUTE` (`PRODUCTS` has the costly ones). Targets, with a checkpoint around each
# layer of our GPT: at most 12% more FLOPs and at most half of the activations.
# %% [markdown] lang="ko" en="15bb3a46"
# **3. `11.policy`** (10분). torch의 `create_selective_checkpoint_contexts`에 줄 정책을 쓰세요. 층의 연산자마다
# `MUST_SAVE`나 `PREFER_RECOMPUTE`를 돌려줍니다(비싼 연산자는 `PRODUCTS`에 있습니다). 우리 GPT의 층마다 체크포인트를 둘 때, 목표는 FLOPs 증가 12% 이하,
# 활성화값 절반 이하입니다.
# %% exercise="11.policy"
# %%ranks
from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    raise NotImplementedError


# %%
check("11.policy")
# %% [markdown] lang="en"
# **4. `11.function`** (20 minutes). Your own checkpoint of a function with one input:
# `run_again(function, x)`. It stores `x` alone, gives the gradients of `function(x)` bit for bit, with
# dropout inside, and does not disturb the random numbers that come after backward.
# %% [markdown] lang="ko" en="eee36631"
# **4. `11.function`** (20분). 입력이 하나인 함수의 체크포인트 `run_again(function, x)`를 직접 만드세요. `x`만
# 저장하고, 안에 드롭아웃이 있어도 `function(x)`와 비트까지 같은 그래디언트를 내야 합니다. 역전파 뒤에 뽑는 난수도
# 달라지면 안 됩니다.
# %% exercise="11.function"
# %%ranks
def run_again(function, x):
    raise NotImplementedError


# %%
check("11.function")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# What changes: values take 2 bytes, matrix products are fast, and norms and GELU are bound by
# bandwidth, so recomputing them costs time though no FLOPs that count. FLOPs are exact here; the time
# they take is not shown, and no GPU run of this lesson is recorded yet.
#
# Where GPT-3's published 70% come from: bytes a layer, in $sbh$, with the scores and without (derived
# from the formula):
# %% [markdown] lang="ko" en="9139789c"
# ## GPU 클러스터에서는
#
# 달라지는 것이 있습니다. 값 하나가 2바이트이고, 행렬 곱은 빠르며, 정규화와 GELU는 대역폭에 매여 있어 FLOPs는
# 거의 없어도 시간이 듭니다. 여기서 FLOPs는 정확하지만 걸리는 시간은 알 수 없고, 이 레슨의 GPU 실행 기록도 아직
# 없습니다.
#
# GPT-3에서 발표된 70%가 어디에서 나왔는지 봅시다. 층 하나의 바이트를 $sbh$ 단위로, 점수를 저장할 때와 버릴 때
# 각각 공식으로 유도합니다.
# %% tags=["nbval-check-output"]
gpt3 = GPTConfig(n_layer=96, n_head=96, n_embd=12288)
all_kept = sum(formula.quoted_terms(gpt3, micro_batch=1, block=2048).values()) / (2048 * 12288)
no_scores = all_kept - 5 * 96 * 2048 / 12288
all_kept, no_scores, f"{1 - no_scores / all_kept:.0%}"
# %% [markdown] lang="en"
# Published: with selective recomputation a 530B model used 56.0% of the GPUs' FLOPs for what the model
# needs (MFU), and 57.0% with recomputation counted (HFU) [1]: hardly anything is computed twice. DeepSpeed
# and Megatron also divide checkpoints over tensor-parallel ranks, or move them to the CPU
# ([lesson 12](12_sharding_offload.ipynb)).
# %% [markdown] lang="ko" en="6b4913c5"
# 발표된 값을 봅시다. 모델에 필요한 FLOPs 기준 이용률(MFU)과 재계산까지 센 이용률(HFU)이 530B 모델에서 56.0%와
# 57.0%였습니다[1]. 선택적 재계산으로는 두 번 계산하는 것이 거의 없다는 뜻입니다. DeepSpeed와 Megatron은 체크포인트를
# 텐서 병렬화의 랭크끼리 나누거나 CPU로 옮기기도 합니다([레슨 12](12_sharding_offload.ipynb)).
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Store inputs, run forward again in backward: the same gradients, bit for bit.
# 2. Derive your own formula, count the loss and backward's own work, and it is exact.
# 3. The price is at most a third of a step; torch's newer kind stops early and pays less than a quarter.
# 4. The root of $n$ is for layers that store one value; transformer layers go one by one.
# 5. The second forward must be the first: random state put back, nothing changed in place.
#
# Sources: [1] [Korthikanti et al., 2022](https://arxiv.org/abs/2205.05198).
# [2] [Chen et al., 2016](https://arxiv.org/abs/1604.06174).
# [3] [torch.utils.checkpoint](https://docs.pytorch.org/docs/stable/checkpoint.html).
# %% [markdown] lang="ko" en="826c7914"
# ## 다섯 줄 요약
#
# 1. 입력만 저장하고 역전파에서 순전파를 다시 합니다. 그래디언트는 비트까지 같습니다.
# 2. 공식은 직접 유도하세요. 손실과 역전파가 쓰는 것까지 세면 정확합니다.
# 3. 비용은 많아야 한 스텝의 3분의 1입니다. torch의 새 방식은 일찍 멈추므로 4분의 1이 안 됩니다.
# 4. $\sqrt n$은 값을 하나씩 저장하는 층의 규칙입니다. 트랜스포머 층은 하나씩 묶습니다.
# 5. 두 번째 순전파는 첫 번째와 같아야 합니다. 난수 상태를 되돌리고, 제자리 변경은 하지 않습니다.
#
# 출처: [1] [Korthikanti 외, 2022](https://arxiv.org/abs/2205.05198).
# [2] [Chen 외, 2016](https://arxiv.org/abs/1604.06174).
# [3] [torch.utils.checkpoint](https://docs.pytorch.org/docs/stable/checkpoint.html).
