# %% [markdown] lang="en" form="core"
# # 11 Checkpointing: must forward write everything down?
#
# In [lesson 06](06_zero.ipynb) parameters, gradients and optimizer state were divided over ranks, and
# one thing stayed whole in each: **activations**, what forward stores because backward will read it.
# Twice the sequences, twice the activations. In a large model they are often the largest item.
#
# Backward reads them in reverse order, long after they were made. Could we throw them away, and make
# them again just before they are read? What does that cost, and do the gradients stay the same?
#
# You will build this, predict its memory to the byte, and test a popular promise:
# 30 to 70% less memory for 20 to 50% more compute.
#
# Time: reading 18 min + exercises 43 min.
# %% [markdown] lang="ko" en="226f4d6d"
# # 11 활성화 체크포인팅: 순전파는 모든 것을 적어 두어야 할까?
#
# [레슨 06](06_zero.ipynb)에서 파라미터, 그래디언트, 옵티마이저 상태는 랭크끼리 나누었지만, 랭크마다 통째로 남은 것이
# 하나 있습니다. 역전파에서 읽으려고 순전파가 저장해 두는 **활성화값**(activation)입니다. 시퀀스가 두 배면
# 활성화값도 두 배입니다. 큰 모델에서는 가장 큰 항목일 때가 많습니다.
#
# 역전파는 활성화값을 만들고 한참 지난 뒤에, 만든 순서와 반대로 읽습니다. 그러면 버렸다가 읽기 직전에 다시 만들면
# 어떨까요? 비용은 얼마이고, 그래디언트는 그대로일까요?
#
# 그렇게 하는 코드를 직접 쓰고, 메모리를 바이트 단위로 예측합니다. 그리고 "계산을 20-50% 더 하면 메모리가 30-70%
# 줄어든다"는 널리 알려진 말이 맞는지 확인합니다.
#
# 시간: 읽기 18분 + 연습 43분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 2
device = "auto"
# %% [markdown] lang="en"
# Above: as always. Below: with **checkpoints**, which keep the inputs of the layers alone. A filled
# box is stored. (The checkpoints that a training run writes to disk share the name, nothing else.)
#
# ```mermaid
# flowchart LR
#   A["layer 0<br>■■■■"] --> B["layer 1<br>■■■■"] --> C["layer 2<br>■■■■"] --> L["loss"]
#   D["layer 0<br>■□□□"] --> E["layer 1<br>■□□□"] --> F["layer 2<br>■□□□"] --> M["loss"]
#   M -- "backward: forward of 2 again, ■■■■, then its backward" --> F
# ```
# %% [markdown] lang="ko" en="65004cef"
# 위는 보통 방식이고, 아래는 층의 입력만 **활성화 체크포인트**(activation checkpoint)로 남기는 방식입니다. ■가
# 저장한 것입니다. 이 레슨에서 체크포인트는 모두 이것입니다. 학습 상태를 디스크에 저장하는 체크포인트와는 이름만
# 같습니다.
#
# ```mermaid
# flowchart LR
#   A["층 0<br>■■■■"] --> B["층 1<br>■■■■"] --> C["층 2<br>■■■■"] --> L["손실"]
#   D["층 0<br>■□□□"] --> E["층 1<br>■□□□"] --> F["층 2<br>■□□□"] --> M["손실"]
#   M -- "역전파: 층 2의 순전파를<br>다시 해서 ■■■■,<br>이어서 층 2의 역전파" --> F
# ```
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.figures.checkpointing import figures_of_d3, memory_and_flops, show_chain
from dlcourse.figures.checkpointing import show_equal, show_gpt, show_in_ranks, show_large
from dlcourse.figures.checkpointing import show_layer, show_placements, show_random
from dlcourse.figures.checkpointing import show_scores, show_total, show_ways

lesson(lang=lang, name="11_checkpointing")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# First: what does one layer of our GPT store? Go through its operators and ask what each one's
# backward reads. Norms, matrix products and GELU read their inputs, attention its q, k and v. That
# makes 16 values for each token and channel (there are 64 channels), and 8 for each token (means and
# scales of norms, one value for each of 4 heads), 4 bytes each.
#
# **Predict** the bytes for 4 sequences of 64 tokens.
# %% [markdown] lang="ko" en="084de002"
# 먼저, 우리 GPT의 층 하나는 무엇을 저장할까요? 연산자를 하나씩 짚으며 그 역전파가 무엇을 읽는지 따져 보면 됩니다.
# 정규화, 행렬 곱, GELU는 자기 입력을, 어텐션은 q, k, v를 읽습니다. 모두 세면 토큰마다 폭(64)의 16배에 8개(정규화의
# 평균과 배율, 헤드 4개에 하나씩)를 더한 만큼이고, 값 하나는 4바이트입니다.
#
# 토큰 64개짜리 시퀀스 4개라면 몇 바이트인지 **예측해 보세요.**
# %%
predict("11.layer")
# %% hidden=true
# %%ranks --fast
import gc

import numpy as np
from dlcourse.corpus import Corpus
from dlcourse.measure import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.training.checkpointing.checkpoint import checkpoint
from dlcourse.training.checkpointing.segments import PRODUCTS, checkpoint_blocks, segmented
from dlcourse.training.checkpointing.segments import early_stop, reentrant, selective

batch = Corpus().batch(0, rank=rank, world_size=world_size, micro_batch=4, block=64)
batch = [half.to(device) for half in batch]
# %% hidden=true
# %%ranks --fast
def stored(n_layer):
    gpt = GPT(GPTConfig(n_layer=n_layer, n_embd=64, block_size=64)).to(device)
    with Recorder(rank, world_size) as recorder:
        loss = gpt(*batch)
    return recorder.record["memory"]["end"]["activations"]


one_layer = stored(3) - stored(2)
# %%
compare("11.layer", ranks["one_layer"][0])
show_layer(ranks["one_layer"][0])
# %% [markdown] lang="en"
# The right column is the formula that everybody quotes, $sbh(34 + 5as/h)$ bytes [1], for $b$ sequences
# of $s$ tokens, width $h$ and $a$ heads. The operators are the same, and three things differ. It counts
# 2 bytes a value where we store 4. It adds dropout masks. And it keeps all attention scores, the
# $5as/h$; torch's fused attention, which our GPT uses, never stores them. So do not copy a formula:
# derive yours.
#
# Now a whole step, with 12 layers. Memory over time has the shape of a mountain:
# %% [markdown] lang="ko" en="8c80f1fa"
# 오른쪽 열은 누구나 인용하는 공식 $sbh(34 + 5as/h)$바이트입니다[1]. $b$는 시퀀스, $s$는 시퀀스의 토큰, $h$는
# 폭, $a$는 헤드의 수입니다. 연산자는 같고 다른 점은 셋입니다. 우리는 값 하나를 4바이트로 저장하지만 공식은
# 2바이트로 셉니다. 공식은 드롭아웃 마스크를 더합니다. 그리고 어텐션 점수를 모두 저장하는데, $5as/h$가 그 몫입니다.
# 우리 GPT가 쓰는 torch의 퓨즈드 어텐션(fused attention)은 점수를 저장하지 않습니다. 공식은 베끼지 말고 자기 모델에서
# 유도해야 합니다.
#
# 이제 12층 모델로 한 스텝을 돌려 봅니다. 시간에 따른 메모리가 산 모양입니다.
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
# Up during forward, down during backward. Now the idea in a few lines. The forward of a `Function` runs
# without autograd, so nothing is stored but what we save: the input. In backward the layer runs a
# second time, now with autograd watching, and a small backward runs inside the large one.
#
# Folded below is the whole checkpoint of `dlcourse/training/checkpointing`, with what comes later in
# this lesson: random numbers put back, and changes in place refused.
# %% [markdown] lang="ko" en="87b95153"
# 순전파에서 오르고 역전파에서 내려갑니다. 이제 몇 줄로 체크포인트를 만듭니다. `Function`의 순전파는 autograd 없이
# 실행되므로 우리가 저장하는 입력 말고는 아무것도 남지 않습니다. 역전파에서는 층을 autograd가 지켜보는 가운데 한 번
# 더 실행하고, 큰 역전파 안에서 작은 역전파를 돌립니다.
#
# 그 아래에는 `dlcourse/training/checkpointing`의 전체 코드를 접어 두었습니다. 뒤에서 다룰 두 가지, 난수를 되돌리는
# 일과 제자리 변경을 거부하는 일도 들어 있습니다.
# %%
# %%ranks
class Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer, x):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.layer(x)
        torch.autograd.backward(y, grad)
        return None, x.grad
# %% hidden=true source="dlcourse.training.checkpointing.checkpoint:checkpoint,Checkpoint"

# %% [markdown] lang="en"
# **Predict** two numbers for a checkpoint around each of the 12 layers. The peak of activations: the 12
# inputs that are stored, one layer that has come alive again, and what its backward holds (here as much
# as 6 inputs). And the price: how many percent more FLOPs? (A backward costs about two forwards.)
# %% [markdown] lang="ko" en="9b8bc0bd"
# 층 12개에 하나씩 체크포인트를 두면 어떻게 될지 두 가지를 **예측해 보세요.** 하나는 활성화값의 최대 메모리입니다.
# 저장해 둔 입력 12개에, 되살아난 층 하나와 그 역전파가 쓰는 것(여기서는 입력 6개만큼)을 더하면 됩니다. 또 하나는
# 비용입니다. FLOPs는 몇 % 늘까요? (역전파의 계산량은 순전파의 두 배쯤입니다.)
# %%
predict("11.peak")
predict("11.flops")
# %%
# %%ranks --as light
gpt = checkpoint_blocks(GPT(config).to(device), [1] * 12, Again.apply)
got = backward(gpt)
# %% hidden=true
# %%ranks --fast
same = all(map(np.array_equal, got, want))
del gpt, got


def with_checkpoints(segments, how=None):
    gpt = GPT(config).to(device)
    return checkpoint_blocks(gpt, segments, how or checkpoint)


def measure(segments, how=None):
    gpt = with_checkpoints(segments, how)
    gc.collect()
    with Recorder(rank, world_size) as recorder:
        grads = backward(gpt)
    record = recorder.record
    assert all(map(np.array_equal, grads, want)), segments
    return record["flops"], record["memory"]["peaks"]["activations"]
# %%
light.memory.over_time()
# %%
compare("11.peak", light.memory.peaks("activations")[0])
compare("11.flops", 100 * (light.throughput.flops / plain.throughput.flops - 1))
show_equal(plain, light, ranks["same"])
# %% [markdown] lang="en"
# The gradients are equal **bit for bit**: the second forward does the same operations on the same
# numbers, so no tolerance is needed. The mountain is gone; each tooth of the saw is one layer that
# comes alive. Gradients grow while activations fall.
#
# And torch? Its `checkpoint` has two kinds:
# %% [markdown] lang="ko" en="cba38917"
# 그래디언트가 **비트까지** 같습니다. 두 번째 순전파가 같은 숫자로 같은 연산을 하므로 허용 오차가 필요 없습니다. 산은
# 사라지고, 되살아나는 층마다 톱니가 하나씩 생깁니다. 활성화값이 줄어드는 동안 그래디언트는 늘어납니다.
#
# torch는 어떨까요? torch의 `checkpoint`에는 두 종류가 있습니다.
# %%
# %%ranks --fast
each = [1] * 12
ways = {
    "none": measure([]),
    "ours": measure(each),
    "reentrant": measure(each, reentrant),
    "early_stop": measure(each, early_stop),
    "selective": measure(each, selective(*PRODUCTS)),
}
# %%
show_ways(ranks["ways"][0])
# %% [markdown] lang="en"
# Ours is `use_reentrant=True`: a backward inside a backward, which is what reentrant means. The newer
# kind (`False`) saves 29% of the recomputation: its second forward stops at the last value that backward
# reads, and nobody reads the result of the layer's last product, which makes up 29% of the layer's FLOPs.
#
# The last row is **selective** checkpointing: torch asks for each operator of the second forward
# whether its result was kept. Here products and attention keep theirs, so only norms and GELU run again,
# at hardly any FLOPs (the table counts products and attention).
#
# With one recomputation the price in FLOPs is bounded: a forward is at most a third of a step.
# %% [markdown] lang="ko" en="4b10be0a"
# 우리 것은 역전파 안에서 역전파를 돌리는 재진입(reentrant) 방식으로, `use_reentrant=True`와 같습니다. 새 방식
# (`False`)은 재계산을 29% 아낍니다. 역전파가 읽는 마지막 값까지만 두 번째 순전파를 하기 때문입니다. 층의 마지막 행렬
# 곱은 층 FLOPs의 29%를 차지하지만 그 결과를 읽는 곳이 없습니다.
#
# 마지막 줄은 **선택적 체크포인팅**(selective checkpointing)입니다. torch는 두 번째 순전파의 연산자마다 결과를 남겨
# 두었는지 확인합니다. 여기서는 행렬 곱과 어텐션의 결과를 남겼으므로 정규화와 GELU만 다시 하고, FLOPs는 거의 들지
# 않습니다(표는 행렬 곱과 어텐션만 셉니다).
#
# 한 번만 다시 계산한다면 FLOPs가 느는 데에도 한계가 있습니다. 순전파는 많아야 한 스텝의 3분의 1입니다.
# %% [markdown] lang="en"
# ## Every k layers, and the famous root
#
# Twelve inputs are stored. There are fewer, $n/k$, if a checkpoint covers $k$ layers, but then $k$
# layers come alive at once. Which $k$ needs the least memory? First a chain of $n = 36$ equal layers, each of
# which stores as much as its input. **Predict** the best $k$.
# %% [markdown] lang="ko" en="6c42a82e"
# ## k층마다, 그리고 유명한 제곱근
#
# 입력 12개를 저장했습니다. 체크포인트 하나로 $k$층을 묶으면 입력은 $n/k$개로 줄지만, 그 대신 $k$층이 한꺼번에
# 되살아납니다. $k$가 얼마일 때 메모리가 가장 적을까요? 먼저 똑같은 층을 $n = 36$개 이은 사슬을 봅시다. 층마다 자기
# 입력만큼을 저장합니다. 가장 좋은 $k$를 **예측해 보세요.**
# %%
predict("11.k")
# %% hidden=true
# %%ranks --fast
def chain_peak(k, n=36):
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(n)]
    model = nn.Sequential(*segmented(layers, [k] * (n // k), checkpoint)).to(device)
    x = torch.randn(1024, 64, device=device, requires_grad=True)
    with Recorder(rank, world_size) as recorder:
        model(x).sum().backward()
    return recorder.record["memory"]["peaks"]["activations"] / x.nbytes


chain = {k: chain_peak(k) for k in (1, 3, 6, 12, 36)}
# %%
chain = ranks["chain"][0]
compare("11.k", min(chain, key=chain.get))
show_chain(chain)
# %% [markdown] lang="en"
# That is the famous answer, $k = \sqrt n$ [2]. (Backward's own gradients add 2 everywhere.) Now our GPT with
# its 12 layers: $\sqrt{12}$ is about 3. But one of its layers stores 16 times as much as its input.
# **Predict** again: which $k$ is best?
# %% [markdown] lang="ko" en="e2fb0056"
# 이것이 유명한 답 $k = \sqrt n$입니다[2]. ($k$가 얼마이든 역전파가 쓰는 그래디언트가 2를 더합니다.) 이번에는 12층짜리
# 우리 GPT입니다. $\sqrt{12}$는 3쯤 됩니다. 하지만 GPT의 층 하나는 자기 입력의 16배를 저장합니다. 어떤 $k$가 가장
# 좋을지 다시 **예측해 보세요.**
# %%
predict("11.gpt")
# %% hidden=true
# %%ranks --fast
groups = {k: measure([k] * (12 // k)) for k in (1, 2, 3, 6, 12)}
# %%
groups = ranks["groups"][0]
compare("11.gpt", min(groups, key=lambda k: groups[k][1]))
show_gpt(groups)
# %% [markdown] lang="en"
# In general $k = \sqrt{n \cdot \text{input} / \text{layer}}$, here $\sqrt{12/16}$: layer by layer.
#
# How much is checkpointed is a choice, too. Move both sliders: layers in a segment, and the share of layers that
# are covered. The formula draws our GPT and GPT-2 large (36 layers, 8 sequences of 1,024 tokens). What does
# covering half of the layers buy, and at what price?
# %% [markdown] lang="ko" en="af6ece58"
# 일반식은 $k = \sqrt{n \cdot \text{입력} / \text{층}}$이고, 여기서는 $\sqrt{12/16}$이므로 층마다 하나씩입니다.
#
# 전체 층 가운데 얼마를 체크포인트로 묶을지도 고를 수 있습니다. 슬라이더 두 개를 움직여 보세요. 구간 하나의 층 수와,
# 체크포인트로 묶는 층의 비율입니다. 우리 GPT와 GPT-2 large(36층, 토큰 1,024개짜리 시퀀스 8개)를 공식으로 그립니다.
# 층을 절반만 묶으면 메모리는 얼마나 줄고 계산은 얼마나 늘까요?
# %%
explore(memory_and_flops, layers_in_a_segment=[1, 2, 3, 6, 12], covered=[0, 25, 50, 75, 100])
# %% [markdown] lang="en"
# One layer at a time, memory falls almost in proportion to the price: covering half of the layers saves about
# half as much as covering all, for half of the additional FLOPs. Long segments are another matter: 12 at a time,
# covering all of our GPT needs *more* than covering half. In GPT-2 large segments of 2 to 6 end a little below
# single layers: its peak is at the loss, so fewer stored inputs help. Checkpoint as many layers as you must, and
# not one more.
#
# ## 30 to 70% of memory for 20 to 50% more compute?
#
# Of *which* memory? Now a step with AdamW, with parameters, gradients and optimizer state counted, too, for
# few tokens and for many:
# %% [markdown] lang="ko" en="ad138819"
# 하나씩 묶으면 메모리는 늘어난 계산에 거의 비례해서 줄어듭니다. 층을 절반만 묶으면 아끼는 메모리도 추가 FLOPs도 모두
# 묶을 때의 절반쯤입니다. 구간이 길면 다릅니다. 우리 GPT를 12개씩 묶을 때는 모두 묶는 쪽이 절반만 묶는 쪽보다 메모리를
# *더* 씁니다. GPT-2 large는 2~6개씩 묶을 때 하나씩보다 조금 적게 씁니다. 손실을 계산할 때가 최대라서 저장한 입력이
# 적을수록 유리하기 때문입니다. 꼭 필요한 만큼만 묶고 한 층도 더 묶지 마세요.
#
# ## 계산을 20-50% 더 하면 메모리가 30-70% 줄까?
#
# *어떤* 메모리일까요? 이번에는 AdamW까지 넣고 파라미터, 그래디언트, 옵티마이저 상태까지 모두 셉니다. 토큰이 적을 때와
# 많을 때를 재 봅니다.
# %% hidden=true
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


totals = {s: (total_peak(s, []), total_peak(s, each)) for s in (1, 16)}
# %%
show_total(ranks["totals"][0])
# %% [markdown] lang="en"
# Checkpoints save activations alone: with few tokens these are 31% of all memory, and 6% of it is saved; with
# many they are 88%, and 73% is saved. With few tokens the peak only moves to the end of backward, where nearly
# all gradients are there: the states do not shrink.
#
# ## The second forward must repeat the first
#
# Dropout draws random numbers. What if the second forward draws others? Run a GPT with dropout three
# times: without checkpoints, with the random state put back, and without putting it back.
# %% [markdown] lang="ko" en="ec490aae"
# 체크포인트는 활성화값만 아낍니다. 토큰이 적으면 활성화값이 전체 메모리의 31%라서 6%를, 토큰이 많으면 88%라서 73%를
# 아꼈습니다. 토큰이 적을 때는 최대가 되는 때가 역전파의 끝으로 옮겨 갈 뿐입니다. 그때는 그래디언트가 거의 다 모여
# 있고, 상태는 줄지 않습니다.
#
# ## 두 번째 순전파는 첫 번째와 같아야 한다
#
# 드롭아웃은 난수를 뽑습니다. 두 번째 순전파가 다른 난수를 뽑으면 어떻게 될까요? 드롭아웃이 있는 GPT를 세 번 돌려
# 봅니다. 한 번은 체크포인트 없이, 한 번은 난수 상태를 되돌리면서, 한 번은 되돌리지 않고 돌립니다.
# %% hidden=true
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
# %%
# %%ranks --fast
(loss0, g0), (loss1, g1) = with_dropout([]), with_dropout(each)
loss2, g2 = with_dropout(each, keep=False)
losses = [loss0, loss1, loss2]
errors = [((g - g0).norm() / g0.norm()).item() for g in (g0, g1, g2)]
# %%
show_random(ranks["losses"][0], ranks["errors"][0])
# %% [markdown] lang="en"
# The last line is what goes wrong without any error: the loss is right, as it comes from the first
# forward, and the gradients are those of another network. Torch puts the state back by default
# (`preserve_rng_state=True`).
#
# What cannot be put back is a change **in place**. Here is a module that halves its own input:
# %% [markdown] lang="ko" en="db1f5a10"
# 마지막 줄이 오류 없이 잘못되는 경우입니다. 손실은 첫 순전파에서 나오므로 맞지만, 그래디언트는 다른 신경망의
# 것입니다. torch도 기본으로 난수 상태를 되돌립니다(`preserve_rng_state=True`).
#
# 되돌릴 수 없는 것은 **제자리**(in-place) 변경입니다. 자기 입력을 절반으로 줄이는 모듈을 보겠습니다.
# %%
# %%ranks --fails "changes input 0 in place"
class Halve(nn.Module):
    def forward(self, x):
        x *= 0.5
        return x.tanh()


x = torch.ones(3, device=device, requires_grad=True)
checkpoint(Halve(), x * 1)
# %% [markdown] lang="en"
# The second forward would halve it once more. Torch counts the changes of each tensor, its version. Our
# checkpoint compares the versions of its inputs before and after, and refuses.
#
# ## In ranks
#
# Under DDP each rank checkpoints its own copy, and nothing more is sent. The gradients must be those of
# DDP without checkpoints, bit for bit. One process adds up the sequences in another order, so there
# rounding may differ.
# %% [markdown] lang="ko" en="4e967644"
# 두 번째 순전파에서는 한 번 더 절반이 됩니다. torch는 텐서가 바뀐 횟수를 버전(version)으로 셉니다. 우리 체크포인트는
# 입력의 버전이 순전파 앞뒤로 다르면 거부합니다.
#
# ## 랭크에서
#
# DDP에서는 랭크마다 자기 복제본에 체크포인트를 두며, 더 보내는 것은 없습니다. 그래디언트는 체크포인트 없는 DDP와
# 비트까지 같아야 합니다. 단일 프로세스는 시퀀스를 더하는 순서가 다르므로 반올림 오차만큼 다를 수 있습니다.
# %% hidden=true
# %%ranks --fast
from torch.nn.parallel import DistributedDataParallel


def in_ranks(segments, how=None, **options):
    gpt = DistributedDataParallel(with_checkpoints(segments, how), **options)
    with Recorder(rank, world_size) as recorder:
        for _ in range(2):
            gpt.zero_grad()
            grads = backward(gpt)
    return grads, sum(event["bytes"] for event in recorder.record["comm"])
# %%
# %%ranks --fast
(ddp, sent), (kept, sent_kept) = in_ranks([]), in_ranks(each)
as_ddp = sent == sent_kept and all(map(np.array_equal, ddp, kept))

alone = GPT(config).to(device)
whole = Corpus().batch(0, micro_batch=4 * world_size, block=64)
alone(*[half.to(device) for half in whole]).backward()
# %% hidden=true
# %%ranks --fast
theirs = [p.grad.cpu().numpy() for p in alone.parameters()]
apart = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(kept, theirs))
del alone, theirs, ddp, kept, g0, g1, g2
# %%
show_in_ranks(ranks["as_ddp"], ranks["apart"])
# %% [markdown] lang="en"
# What is left of the popular promise?
# %% [markdown] lang="ko" en="d033a0fb"
# 널리 알려진 말은 얼마나 맞을까요?
# %%
claim("D3", **figures_of_d3(ranks["ways"][0], ranks["totals"][0]))
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("11.kept")` helps step by step; `solution("11.kept")`
# shows one answer.
#
# **1. `11.kept`** (3 minutes). Bytes that our GPT stores between forward and backward: `layers` layers
# with width `width`, `tokens` tokens, float32, a checkpoint every `k` layers (the last may cover fewer;
# `k=0`: none). Count 16 values a layer for each token and channel, and leave out the rest.
# %% [markdown] lang="ko" en="5f94c71e"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("11.kept")`는 한 단계씩 도와주고, `solution("11.kept")`은 답
# 하나를 보여 줍니다.
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
# **2. `11.place`** (10 minutes). A placement is a list: the layers of each segment, from the first layer
# on; layers left over store everything. `[1] * 6` checkpoints the first six one by one, `[3, 3]` the
# first six in two segments. Take a chain of `n` layers, each of which stores `cost` times its input,
# and return the placement that needs least. Yours is put into a real chain and measured; the target is
# 10% above the best there is with equal segments.
# %% [markdown] lang="ko" en="4b8c917d"
# **2. `11.place`** (10분). 어디를 묶을지는 리스트로 적습니다. 첫 층부터 구간마다 층이 몇 개인지 적고, 남은 층은
# 체크포인트 없이 활성화값을 모두 저장합니다. `[1] * 6`은 앞의 여섯 층을 하나씩, `[3, 3]`은 앞의 여섯 층을 두
# 구간으로 묶습니다. 층 `n`개짜리 사슬이 있고, 층마다 입력의 `cost`배를 저장합니다. 메모리를 가장 적게 쓰는
# 리스트를 돌려주세요. 그대로 진짜 사슬을 묶어 측정합니다. 목표는 길이가 같은 구간으로 나눌 때 나오는 최솟값의
# 110% 이하입니다.
# %% exercise="11.place"
# %%ranks
def place(n, cost):
    raise NotImplementedError
# %%
check("11.place")
# %% [markdown] lang="en"
# **3. `11.policy`** (10 minutes). A policy for torch's `create_selective_checkpoint_contexts`, as in the
# last row of the table of kinds: for each operator of a layer, say `MUST_SAVE` or `PREFER_RECOMPUTE`
# (`PRODUCTS` lists the costly ones). Targets, with a checkpoint around each layer of our GPT: at most
# 12% more FLOPs and at most half of the activations.
# %% [markdown] lang="ko" en="9d97eeb3"
# **3. `11.policy`** (10분). 앞의 표 마지막 줄처럼, torch의 `create_selective_checkpoint_contexts`에 줄 정책을 쓰세요.
# 층의 연산자마다 `MUST_SAVE`나 `PREFER_RECOMPUTE`를 돌려줍니다(비싼 연산자는 `PRODUCTS`에 있습니다). 우리 GPT의 층마다
# 체크포인트를 둘 때, 목표는 FLOPs 증가 12% 이하, 활성화값 절반 이하입니다.
# %% exercise="11.policy"
# %%ranks
from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    raise NotImplementedError
# %%
check("11.policy")
# %% [markdown] lang="en"
# **4. `11.function`** (20 minutes). `Again` forgets one thing. Write `run_again(function, x)`, a
# checkpoint of your own for a function with one input: it stores `x` alone, gives the gradients of
# `function(x)` bit for bit **with dropout inside**, and does not disturb the random numbers that come
# after backward.
# %% [markdown] lang="ko" en="b7c481f4"
# **4. `11.function`** (20분). `Again`이 빠뜨린 것이 하나 있습니다. 입력이 하나인 함수의 체크포인트
# `run_again(function, x)`를 직접 만드세요. `x`만 저장하고, **안에 드롭아웃이 있어도** `function(x)`와 비트까지 같은
# 그래디언트를 내야 합니다. 역전파 뒤에 뽑는 난수도 달라지면 안 됩니다.
# %% exercise="11.function"
# %%ranks
def run_again(function, x):
    raise NotImplementedError
# %%
check("11.function")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# There values take 2 bytes, matrix products are fast, and norms and GELU are bound by bandwidth: to run
# them again costs time, though hardly any FLOPs. The FLOPs here are exact; the time they take on a
# GPU is not shown, and no GPU run of this lesson is recorded.
#
# Published, for a model with 530B parameters on A100 GPUs and selective recomputation: 56.0% of the
# GPUs' FLOPs went into what the model needs, and 57.0% with recomputation counted [1]. Hardly anything
# is computed twice. The paper saves 70% of GPT-3's activations by not keeping attention scores. Its
# formula says why: bytes a layer in units of $sbh$, with the scores and without:
# %% [markdown] lang="ko" en="1785063f"
# ## GPU 클러스터에서는
#
# GPU에서는 값 하나가 2바이트이고 행렬 곱이 빠릅니다. 정규화와 GELU는 메모리 대역폭에 묶이므로 다시 하면 FLOPs는 거의
# 들지 않아도 시간이 듭니다. 여기서 FLOPs는 정확하지만 GPU에서 걸리는 시간은 알 수 없고, 이 레슨의 GPU 실행 기록도
# 없습니다.
#
# 발표된 값을 봅시다. A100 GPU에서 파라미터 5,300억 개짜리 모델을 선택적 재계산으로 학습하니, 모델에 필요한 FLOPs 기준
# 이용률이 56.0%, 재계산까지 센 이용률이 57.0%였습니다[1]. 두 번 계산하는 것이 거의 없다는 뜻입니다. 같은 논문은 어텐션
# 점수를 저장하지 않아 GPT-3의 활성화값을 70% 아꼈습니다. 논문의 공식으로 층 하나의 바이트를 $sbh$ 단위로 구하면
# 이렇습니다.
# %% tags=["nbval-check-output"]
show_scores()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Store inputs, run forward again in backward: the same gradients, bit for bit.
# 2. Derive your own formula, count the loss and backward's own work, and it is exact.
# 3. One recomputation costs at most a third of a step's FLOPs; torch's newer kind pays 23% here.
# 4. The root of $n$ is for layers that store as much as their input; ours store 16 times that: one at a time.
# 5. The second forward must repeat the first: random state put back, nothing changed in place.
#
# Layers that do not fit even so can go to another device: lesson 12.
#
# Sources: [1] [Korthikanti et al., 2022](https://arxiv.org/abs/2205.05198).
# [2] [Chen et al., 2016](https://arxiv.org/abs/1604.06174).
# [torch.utils.checkpoint](https://docs.pytorch.org/docs/stable/checkpoint.html).
# %% [markdown] lang="ko" en="5437b27a"
# ## 다섯 줄 요약
#
# 1. 입력만 저장하고 역전파에서 순전파를 다시 합니다. 그래디언트는 비트까지 같습니다.
# 2. 공식은 직접 유도하세요. 손실과 역전파가 쓰는 것까지 세면 정확합니다.
# 3. 한 번 다시 계산하면 FLOPs는 많아야 스텝의 3분의 1이 늘고, torch의 새 방식은 여기서 23%입니다.
# 4. $\sqrt n$은 자기 입력만큼을 저장하는 층의 규칙입니다. 입력의 16배를 저장하는 우리 층은 하나씩 묶습니다.
# 5. 두 번째 순전파는 첫 번째와 같아야 합니다. 난수 상태를 되돌리고, 제자리 변경은 하지 않습니다.
#
# 그래도 들어가지 않는 층은 다른 장치로 보낼 수 있습니다. 레슨 12에서 합니다.
#
# 출처: [1] [Korthikanti 외, 2022](https://arxiv.org/abs/2205.05198).
# [2] [Chen 외, 2016](https://arxiv.org/abs/1604.06174).
# [torch.utils.checkpoint](https://docs.pytorch.org/docs/stable/checkpoint.html).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Everything below runs on its own once the cells above have run.
# %% [markdown] lang="ko" en="feb3decd"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 실행했다면 아래는 어느 것이나 바로 실행할 수 있습니다.
# %% [markdown] lang="en"
# ### Your own placement
#
# Change `mine`, layers in each segment, and run both cells again. Where do you land?
# %% [markdown] lang="ko" en="dd87ce16"
# ### 나만의 구간
#
# 구간마다 층이 몇 개인지 적은 `mine`을 바꾸고 두 셀을 다시 실행해 보세요. 그림의 어디쯤에 찍히나요?
# %%
# %%ranks --fast
mine = [1, 1, 2, 3]
own = measure(mine)
first = {m: measured for m, measured in zip((0, 4, 8), map(measure, ([], [1] * 4, [1] * 8)))}
# %%
show_placements(ranks["mine"][0], ranks["own"][0], ranks["first"][0], groups, ranks["ways"][0])
# %% [markdown] lang="en"
# ### Another change in place
#
# A batch norm's running mean moves with each forward. Torch's checkpoint lets it pass, and counts one
# batch as two. Ours refuses:
# %% [markdown] lang="ko" en="c22c0df5"
# ### 또 하나의 제자리 변경
#
# 배치 정규화의 이동 평균은 순전파를 할 때마다 바뀝니다. torch의 체크포인트는 이를 막지 않아서 배치 하나를 두 번
# 셉니다. 우리 것은 거부합니다.
# %%
# %%ranks --fast
norm = nn.BatchNorm1d(4).to(device)
x = torch.randn(8, 4, device=device, requires_grad=True)
early_stop(norm, x).sum().backward()
counted = norm.num_batches_tracked.item()
# %%
ranks["counted"]
# %%
# %%ranks --fails "leave that module outside"
checkpoint(norm, x)
# %% [markdown] lang="en"
# ### DDP that looks for unused parameters
#
# Somebody adds `find_unused_parameters=True`, for a model with branches. DDP now walks the graph to see
# which parameters will get a gradient, and marks the others as ready. A reentrant checkpoint is one node
# in that graph; its parameters are nowhere to be seen:
# %% [markdown] lang="ko" en="4b41ac4b"
# ### 쓰지 않는 파라미터를 찾는 DDP
#
# 모델에 분기가 있으면 `find_unused_parameters=True`를 켭니다. 그러면 DDP는 그래프를 훑어 그래디언트를
# 받을 파라미터를 찾고, 나머지는 준비되었다고 표시합니다. 그런데 재진입 방식 체크포인트는 그래프에서 노드 하나일 뿐이라
# 그 안의 파라미터가 보이지 않습니다.
# %%
# %%ranks --fails "mark a variable ready only once"
in_ranks([1] * 12, find_unused_parameters=True)
# %%
# %%ranks --fast
unused = {"find_unused_parameters": True}
new_kind, _ = in_ranks([1] * 12, early_stop, **unused)
as_new = all(map(np.array_equal, new_kind, in_ranks([], **unused)[0]))
# %%
ranks["as_new"]
# %% [markdown] lang="en"
# "Marked ready twice" means: first as unused, then by the backward inside. With `use_reentrant=False`
# the parameters stay visible, and the gradients are those of DDP (`True` in each rank); prefer it. (A
# layer that two reentrant checkpoints share fails in the same way. With `static_graph=True` DDP counts
# instead, and both work.)
#
# ### A large model without its memory
#
# GPT-2 large, 8 sequences of 1,024 tokens, on tensors that have shapes and no numbers: bytes are exact,
# and no laptop needs 30 GiB.
# %% [markdown] lang="ko" en="34b715ec"
# 두 번 표시했다는 것은, 처음에는 쓰이지 않는 파라미터라서, 다음에는 안쪽 역전파가 끝나서 표시했다는 뜻입니다.
# `use_reentrant=False`는 파라미터를 숨기지 않으므로 그래디언트가 DDP와 같습니다(랭크마다 `True`). 이쪽을 쓰세요.
# (재진입 방식 체크포인트 둘이 층 하나를 함께 써도 똑같이 실패합니다. `static_graph=True`를 켜면 DDP가 횟수를 세어
# 두므로 둘 다 됩니다.)
#
# ### 메모리 없이 돌려 보는 큰 모델
#
# GPT-2 large에 토큰 1,024개짜리 시퀀스 8개를, 모양만 있고 숫자는 없는 텐서로 돌립니다. 바이트는 정확하고, 노트북에
# 30 GiB가 없어도 됩니다.
# %% hidden=true
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
show_large(ranks["large"][0])
# %% [markdown] lang="en"
# With checkpoints the peak is at the loss: most of what is left are logits, 51,200 for each token, three
# times. DeepSpeed and Megatron also divide checkpoints over tensor-parallel ranks, or move them to the
# CPU ([lesson 12](12_sharding_offload.ipynb)).
# %% [markdown] lang="ko" en="9ad8f0c5"
# 체크포인트를 두면 손실을 계산할 때가 최대입니다. 남은 것의 대부분은 토큰마다 51,200개인 로짓이고, 세 벌이 있습니다.
# DeepSpeed와 Megatron은 체크포인트를 텐서 병렬화의 랭크끼리 나누거나 CPU로 옮기기도 합니다([레슨
# 12](12_sharding_offload.ipynb)).
