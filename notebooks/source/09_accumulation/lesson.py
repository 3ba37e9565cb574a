# %% [markdown] lang="en" form="core"
# # 09 Gradient accumulation: a large batch in small pieces
#
# The recipe says: 64 sequences in a batch. Your GPU holds 16. What now?
#
# The usual advice: take four **micro-batches** of 16, add up their gradients, then step once. "It
# trains exactly like 64, needs the memory of 16, and is a little slower."
#
# Three promises. You will put each to the test, to the last bit, and then look for the cases in which
# it breaks without an error. You need [lesson 03](03_data_parallel.ipynb).
#
# Time: reading 20 min + exercises 33 min.
# %% [markdown] lang="ko" en="be39da33"
# # 09 그래디언트 누적(gradient accumulation): 큰 배치를 작게 나누어
#
# 따라 하려는 학습 설정에는 배치가 시퀀스 64개라고 적혀 있습니다. GPU에는 16개까지만 들어갑니다. 어떻게 할까요?
#
# 16개짜리 **마이크로배치**(micro-batch) 네 개의 그래디언트를 더해 두었다가 한 번만 갱신하라는 조언이
# 흔합니다. "64개일 때와 똑같이 학습되고, 메모리는 16개만큼만 쓰고, 조금 느릴 뿐"이라고 합니다.
#
# 약속은 세 가지입니다. 하나하나 마지막 비트까지 확인하고, 오류도 없이 깨지는 경우를 찾아봅니다.
# [레슨 03](03_data_parallel.ipynb)을 먼저 보세요.
#
# 시간: 읽기 20분 + 연습 33분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% [markdown] lang="en"
# Why should it work at all? The gradient of a mean is the mean of the gradients. And `backward()`
# does not overwrite `.grad`, it **adds** to it.
#
# ```mermaid
# flowchart LR
#   B[batch of 64] --> M1["1st: 16"] & M2["2nd: 16"] & M3["3rd: 16"] & M4["4th: 16"]
#   M1 & M2 & M3 & M4 --> G(("add to<br>.grad"))
#   G --> S[one optimizer step]
# ```
#
# Rank 0 starts alone. The others join in later, and then it matters who sends what, and when.
# %% [markdown] lang="ko" en="06edc237"
# 이 방법이 왜 통할까요? 평균의 그래디언트는 그래디언트의 평균이기 때문입니다. 그리고 `backward()`는 `.grad`를
# 덮어쓰지 않고 **더합니다**.
#
# ```mermaid
# flowchart LR
#   B[64개짜리 배치] --> M1["첫째: 16개"] & M2["둘째: 16개"] & M3["셋째: 16개"] & M4["넷째: 16개"]
#   M1 & M2 & M3 & M4 --> G((".grad에<br>더하기"))
#   G --> S[옵티마이저 스텝 한 번]
# ```
#
# 먼저 랭크(rank) 0 혼자 해 봅니다. 다른 랭크는 나중에 함께하는데, 그때는 누가 언제 보내는지도 중요해집니다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.figures.accumulation import check_ranks, figures_of_d1, memory_of_a_step
from dlcourse.figures.accumulation import show_all_reduces
from dlcourse.figures.accumulation import show_floor, show_large, show_layers, show_libraries
from dlcourse.figures.accumulation import show_no_sync, show_peaks, show_same, show_times
from dlcourse.figures.accumulation import show_uneven

lesson(lang=lang, name="09_accumulation")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}", record=False)
# %% [markdown] lang="en"
# The idea in a few lines. Each loss is divided by the number of parts, and `backward()` is called
# **inside** the loop, so a micro-batch's activations are gone before the next one starts.
#
# Folded below it is the whole code of `dlcourse/training/accumulation.py` (a click opens it): what it
# refuses, and what `sending` does with several ranks.
# %% [markdown] lang="ko" en="287fd9bb"
# 몇 줄이면 됩니다. 손실마다 조각 수로 나누고, `backward()`는 반복문 **안에서** 부릅니다. 그래서 마이크로배치
# 하나의 활성화값(activation)은 다음 것을 시작하기 전에 사라집니다.
#
# 그 아래에는 `dlcourse/training/accumulation.py`의 전체 코드를 접어 두었습니다. 누르면 펼쳐집니다. 무엇을
# 거부하는지, 랭크가 여러 개일 때 `sending`이 무엇을 하는지 볼 수 있습니다.
# %%
# %%ranks
def split(tokens, targets, accumulate):
    return list(zip(tokens.chunk(accumulate), targets.chunk(accumulate)))


def step(model, optimizer, batch, accumulate):
    optimizer.zero_grad()
    parts = split(*batch, accumulate=accumulate)
    for tokens, targets in parts:
        loss = model(tokens, targets) / len(parts)
        loss.backward()
    optimizer.step()
# %% hidden=true source="dlcourse.training.accumulation:split,sending,backward_equal"

# %% [markdown] lang="en"
# ## First promise: the memory of 16
#
# A GPT, Adam, and one step with all 64 at once, recorded. (A step before it makes Adam's state.) From
# here on `1 × 64` means one batch of 64, and `4 × 16` four micro-batches of 16.
# %% [markdown] lang="ko" en="68625de3"
# ## 첫 번째 약속: 메모리는 16개만큼
#
# GPT와 Adam으로 64개를 한꺼번에 넣고 한 스텝을 기록합니다. (Adam의 상태는 그 앞의 스텝에서 만들어 둡니다.)
# 이제부터 `1 × 64`는 64개짜리 배치 하나, `4 × 16`은 16개짜리 마이크로배치 네 개를 뜻합니다.
# %%
# %%ranks
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig

corpus = Corpus()
batch = [half.to(device) for half in corpus.batch(0, micro_batch=64, block=32)]
model = GPT().to(device)
adam = torch.optim.AdamW(model.parameters())
step(model, adam, batch, accumulate=8)
# %%
# %%ranks 0 --as whole
step(model, adam, batch, accumulate=1)
# %%
whole.memory.figure()
# %% [markdown] lang="en"
# Most of it is activations. **Predict** the peak with four micro-batches of 16, if the promise is true
# to the word.
#
# Type it with its unit, as in `50 MiB`, press Enter, then run on. The answer comes with the
# measurement.
# %% [markdown] lang="ko" en="4608c0a2"
# 대부분 활성화값입니다. 약속이 말 그대로 맞다면 16개짜리 마이크로배치 네 개로 나눌 때 최대 메모리(peak
# memory)는 얼마일지 **예측해 보세요.**
#
# 칸에 `50 MiB`처럼 단위까지 적고 Enter를 누른 다음 계속 실행하세요. 답은 측정한 다음에 나옵니다.
# %%
predict("09.peak")
# %% hidden=true
# %%ranks 0 --as small
step(model, adam, [half[:16] for half in batch], accumulate=1)
# %%
# %%ranks 0 --as parts
step(model, adam, batch, accumulate=4)
# %%
compare("09.peak", parts.memory.peak_bytes)
show_peaks(whole, small, parts)
# %% [markdown] lang="en"
# The activations are those of a single batch of 16 (`1 × 16`, run alongside). But there is a row
# more: **gradients**. With one batch the peak comes at the end of the forward, when there are none
# yet. With four, the sum so far lies in memory while the second forward runs.
#
# So it is the memory of 16 *plus one copy of the gradients*, and accumulation never makes that copy
# smaller. How far down can we go? Move the slider, by mouse or arrow keys: these are formulas, for
# our GPT and for GPT-2 large (774 million parameters, 1024 tokens a sequence).
# %% [markdown] lang="ko" en="c137faa2"
# 활성화값은 함께 돌려 본 16개짜리 배치 하나(`1 × 16`)와 같습니다. 그런데 한 줄이 더 생겼습니다.
# **그래디언트**입니다. 배치가 하나라면 메모리를 가장 많이 쓰는 순간은 순전파가 끝날 때이고, 그때는 아직
# 그래디언트가 없습니다. 네 개로 나누면 두 번째 순전파를 하는 동안 지금까지의 합이 메모리에 남아 있습니다.
#
# 그래서 16개만큼의 메모리에 *그래디언트 한 벌*이 더해지고, 이 한 벌은 누적으로 줄일 수 없습니다. 어디까지
# 줄어들까요? 마우스나 화살표 키로 슬라이더를 움직여 보세요. 우리 GPT와 GPT-2 large(파라미터 7억 7천만 개,
# 시퀀스당 토큰 1024개)를 공식으로 계산합니다.
# %%
explore(memory_of_a_step, micro_batches=[1, 2, 4, 8, 16, 32, 64])
# %% hidden=true
# %%ranks --fast
from dlcourse.measure import Recorder

counts = (1, 2, 4, 8)


def peak_of(count):
    with Recorder(0, 1) as recorder:
        step(model, adam, batch, accumulate=count)
    return recorder.record["memory"]["at_peak"]


peaks = {count: peak_of(count) for count in counts} if rank == 0 else None
# %%
show_floor(ranks["peaks"][0])
# %% [markdown] lang="en"
# Measured, it is the same: half the micro-batch, half the activations. What stays is a floor of
# parameters, gradients and Adam's state: 16 bytes a parameter, however small the pieces. Lessons 06
# and 12 shrink that floor.
#
# ## Second promise: a little slower
#
# The matrix products are the same, to the last multiplication. So time all of it in turns, in one run:
# %% [markdown] lang="ko" en="80da98b8"
# 재 보아도 같습니다. 마이크로배치가 반이면 활성화값도 반입니다. 그래도 남는 바닥이 있습니다. 파라미터,
# 그래디언트, Adam의 상태를 합쳐 파라미터 하나에 16바이트입니다. 아무리 잘게 나누어도 줄지 않습니다. 이 바닥을
# 낮추는 방법은 레슨 06과 12에서 다룹니다.
#
# ## 두 번째 약속: 조금 느릴 뿐
#
# 행렬곱의 계산량은 곱셈 하나까지 똑같습니다. 한 번의 실행 안에서 번갈아 가며 시간을 재 봅니다.
# %% hidden=true
# %%ranks --fast
import time


def race(turns=3):
    seconds = {count: [] for count in counts}
    for count in counts * turns:
        start = time.perf_counter()
        step(model, adam, batch, accumulate=count)
        seconds[count].append(time.perf_counter() - start)
    return {count: min(times) for count, times in seconds.items()}


seconds = race() if rank == 0 else None
# %%
show_times(ranks["seconds"][0], whole, parts)
# %% [markdown] lang="en"
# On a quiet machine with 2 cores, 4 × 16 took 1.1 times as long (recorded, see the claim below). A
# program that runs meanwhile moves these bars, either way. The smaller the pieces, the thinner the
# matrices, and every operator's fixed cost is paid once more for each piece: the ratio is the
# machine's, not the method's.
#
# ## Third promise: exactly the same
#
# A smaller GPT, trained both ways, with two optimizers and two number formats. How many parameters
# are equal **bit for bit** at the end?
# %% [markdown] lang="ko" en="751640a9"
# 다른 일을 하지 않는 2코어 컴퓨터에서는 4 × 16이 1.1배 걸렸습니다(기록된 값, 아래 주장 참고). 재는 동안 다른
# 프로그램이 돌면 막대가 길어지기도 짧아지기도 합니다. 조각이 작을수록 행렬이 얇아지고, 연산마다 드는 고정
# 비용을 조각 수만큼 치릅니다. 이 비율은 방법이 아니라 컴퓨터가 정합니다.
#
# ## 세 번째 약속: 똑같이 학습된다
#
# 더 작은 GPT를 두 방식으로 학습합니다. 옵티마이저도 둘, 숫자 형식도 둘입니다. 끝났을 때 **비트까지** 같은
# 파라미터는 얼마나 될까요?
# %% hidden=true
# %%ranks --fast
from dlcourse.training.accumulation import train

SMALL = GPTConfig(block_size=32, n_layer=2, n_embd=64)


def trained(optimizer, lr, dtype, accumulate):
    model = GPT(SMALL).to(device, dtype)
    optimizer = optimizer(model.parameters(), lr=lr)
    options = {"batch_size": 64, "block": 32, "optimizer": optimizer}
    train(model, corpus, steps=steps, accumulate=accumulate, **options)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
# %% hidden=true
# %%ranks --fast
def compare_both(optimizer, lr, dtype):
    whole, parts = (trained(optimizer, lr, dtype, count) for count in (1, 4))
    return (whole == parts).float().mean().item(), (whole - parts).abs().max().item(), lr


optimizers = {"SGD": (torch.optim.SGD, 0.1), "AdamW": (torch.optim.AdamW, 1e-3)}
wide = torch.float32 if device.type == "mps" else torch.float64
trials = {
    f"{name}, {str(dtype)[6:]}": compare_both(*optimizer, dtype)
    for name, optimizer in (optimizers if rank == 0 else {}).items()
    for dtype in (torch.float32, wide)
}
# %%
show_same(ranks["trials"][0], steps)
# %% [markdown] lang="en"
# Not bit for bit: the same numbers are added in another order. It is rounding and nothing else: in
# float64 the differences are smaller by eight or nine digits. Adam enlarges it, because it divides a
# gradient by its own size. Where the true gradient is almost zero, rounding is divided by rounding:
# so the last column is far larger for AdamW than for SGD.
#
# ## Where it is not the same
#
# "The gradient of a mean is the mean of the gradients" holds only where rows do not know of each
# other. Does a layer break that? Guess before you run it: layer norm, batch norm, dropout?
# %% [markdown] lang="ko" en="30fda685"
# 비트까지 같지는 않습니다. 같은 수를 다른 순서로 더하기 때문입니다. float64에서는 차이가 여덟아홉 자리
# 작아지므로 반올림 오차일 뿐입니다. Adam은 그래디언트를 자기 크기로 나누어 이 차이를 키웁니다. 진짜
# 그래디언트가 0에 가까우면 반올림 오차를 반올림 오차로 나누게 됩니다. 그래서 마지막 열은 AdamW가 SGD보다 훨씬
# 큽니다.
#
# ## 같지 않은 경우
#
# "평균의 그래디언트는 그래디언트의 평균"이라는 말은 행끼리 서로 상관없을 때만 맞습니다. 이것을 깨뜨리는 층이
# 있을까요? 층 정규화, 배치 정규화, 드롭아웃 가운데 어느 것일지 실행하기 전에 맞혀 보세요.
# %%
# %%ranks --fast
def gradient(layer, count, seed=0):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), layer(), nn.GELU()) for _ in range(2)]
    net = nn.Sequential(*blocks, nn.Linear(64, 1)).to(device)
    rows = torch.randn(64, 64, device=device)
    torch.manual_seed(seed)
    for x in rows.chunk(count):
        (F.mse_loss(net(x), x.sum(dim=1, keepdim=True)) / count).backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
# %% hidden=true
# %%ranks --fast
def off(got, want):
    return ((got - want).norm() / want.norm()).item()


layers = {
    "layer_norm": lambda: nn.LayerNorm(64),
    "batch_norm": lambda: nn.BatchNorm1d(64),
    "dropout": lambda: nn.Dropout(0.1),
}
layer_errors = {name: off(gradient(new, 4), gradient(new, 1)) for name, new in layers.items()}
new = layers["dropout"]
layer_errors["seed"] = off(gradient(new, 1, seed=1), gradient(new, 1))
# %%
show_layers(ranks["layer_errors"][0])
# %% [markdown] lang="en"
# **Batch norm** looks across the batch: statistics of 16 rows are not those of 64, and the loop
# cannot repair it. **Dropout** only draws its random numbers in another order: that is as far off as
# one batch with another seed (last row), another sample and no error.
#
# The third case concerns every language model. Texts differ in length, the rest is padding, and
# padding has no target. Take losses of 4 in a micro-batch with **one** target, and of 2, 2, 2 in one
# with three. **Predict** what dividing by the number of micro-batches gives. (The mean over all
# targets is 2.5.)
# %% [markdown] lang="ko" en="1d60244f"
# **배치 정규화**는 배치 전체를 봅니다. 16행의 통계는 64행의 통계와 다르고, 반복문에서 고칠 방법이 없습니다.
# **드롭아웃**은 난수를 뽑는 순서가 바뀔 뿐입니다. 차이가 배치 하나를 다른 시드로 돌릴 때(마지막 줄)와
# 비슷합니다. 표본이 다를 뿐 틀린 것은 아닙니다.
#
# 세 번째 경우는 모든 언어 모델에 해당합니다. 글마다 길이가 다르고, 남는 자리는 패딩(padding)으로 채우며, 패딩에는
# 타깃이 없습니다. 타깃이 **하나**인 마이크로배치의 손실은 4, 셋인 마이크로배치의 손실은 2, 2, 2라고 합시다.
# 마이크로배치 수로 나누면 얼마가 될지 **예측해 보세요.** (모든 타깃의 평균은 2.5입니다.)
# %%
predict("09.means")
# %% hidden=true
# %%ranks --fast
losses_of = [torch.tensor([4.0]), torch.tensor([2.0, 2.0, 2.0])]
mean_of_means = sum(losses.mean() / len(losses_of) for losses in losses_of).item()
assert torch.cat(losses_of).mean() == 2.5
# %%
compare("09.means", ranks["mean_of_means"])
# %% [markdown] lang="en"
# The cure: every micro-batch gives its *sum*, and all sums are divided by one number, counted
# **before** the first backward. Here it is, and then both ways on text of very unequal lengths:
# %% [markdown] lang="ko" en="283e4384"
# 고치는 방법은 이렇습니다. 마이크로배치마다 *합*을 내고, 모두 같은 수로 나눕니다. 그 수는 첫 역전파 **전에**
# 세어 두어야 합니다. 코드를 보고, 길이가 크게 다른 글로 두 방식을 비교해 봅니다.
# %%
# %%ranks
IGNORED = -100


def backward_by_targets(model, parts):
    num_targets = sum((targets != IGNORED).sum() for _, targets in parts)
    for tokens, targets in parts:
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
        (loss / num_targets).backward()
# %% hidden=true
# %%ranks --fast
tokens, targets = (half.to(device) for half in corpus.batch(0, micro_batch=8, block=32))
for row, length in enumerate((2, 3, 5, 4, 30, 32, 31, 32)):
    targets[row, length:] = IGNORED


def padded_gradient(backward, count):
    model = GPT(SMALL).to(device)
    backward(model, split(tokens, targets, accumulate=count))
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


want = padded_gradient(backward_equal, 1)
uneven = off(padded_gradient(backward_equal, 4), want)
by_targets = off(padded_gradient(backward_by_targets, 4), want)
# %%
show_uneven(ranks["uneven"][0], ranks["by_targets"][0])
# %% [markdown] lang="en"
# Nothing fails, nothing warns, and the gradient is off. This very mistake sat in widely used training
# libraries until October 2024 [1].
#
# ## In ranks: who sends, and when?
#
# Now data parallelism and accumulation together: the batch is cut by ranks, then each rank cuts its
# part. DDP sends a gradient as soon as backward has filled a bucket, but the first three sums are not
# finished. `no_sync()` holds them back.
#
# **Predict.** Four micro-batches in plain DDP, without `no_sync()`. How many times the size of
# the gradients does a rank hand to all-reduce in one step?
# %% [markdown] lang="ko" en="804e566d"
# 오류도 경고도 없는데 그래디언트는 틀립니다. 널리 쓰이는 학습 라이브러리에도 2024년 10월까지 바로 이 버그가
# 있었습니다[1].
#
# ## 랭크가 여러 개라면: 누가 언제 보낼까요?
#
# 이제 데이터 병렬화와 누적을 함께 씁니다. 배치를 먼저 랭크로 나누고, 랭크마다 자기 몫을 다시 나눕니다. DDP는
# 역전파가 버킷(bucket)을 채우는 대로 보내지만, 처음 세 번은 합이 아직 끝나지 않았습니다. `no_sync()`로 붙들어
# 둡니다.
#
# **예측해 보세요.** `no_sync()` 없이 보통의 DDP로 마이크로배치 네 개를 돌립니다. 랭크 하나가 한 스텝에
# 그래디언트 크기의 몇 배를 올리듀스(all-reduce)에 넘길까요?
# %%
predict("09.no_sync")
# %% hidden=true
# %%ranks --fast
from contextlib import nullcontext

from torch.nn.parallel import DistributedDataParallel

from dlcourse.parallel.data import OverlappedDataParallel
from dlcourse.parallel.replicas import replica_drift

share = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=4, block=32)
mine = split(*(half.to(device) for half in share), accumulate=4)


def times_sent(recorder, ddp):
    calls = [call for call in recorder.record["comm"] if call["op"] == "all_reduce"]
    return sum(call["bytes"] for call in calls) / (4 * ddp.module.num_parameters())
# %%
# %%ranks --fast
def one_step(quiet_forwards, quiet_backwards):
    ddp = DistributedDataParallel(GPT(SMALL).to(device))
    with Recorder(rank, world_size, ledger=False) as recorder:
        for i, (tokens, targets) in enumerate(mine):
            with ddp.no_sync() if i in quiet_forwards else nullcontext():
                loss = ddp(tokens, targets) / 4
            with ddp.no_sync() if i in quiet_backwards else nullcontext():
                loss.backward()
    torch.optim.SGD(ddp.parameters(), lr=0.1).step()
    return times_sent(recorder, ddp), replica_drift(ddp)
# %%
# %%ranks --fast
first, all_four = [0, 1, 2], [0, 1, 2, 3]
cases = {
    "none": one_step([], []),
    "backward": one_step([], first),
    "both": one_step(first, first),
    "all": one_step(all_four, first),
}
# %%
compare("09.no_sync", ranks["cases"][0]["none"][0])
show_no_sync(ranks["cases"][0], ranks=num_ranks)
# %% [markdown] lang="en"
# Rows 1 and 2 keep the ranks equal, but send four times as much. Row 2 is the common mistake:
# `no_sync()` around `backward()` alone does **nothing**, because DDP decides in the *forward* whether
# the backward that follows sends. Row 4 is the same rule from the other side: a last forward inside,
# and nobody sends. The ranks drift, without an error.
#
# Our class from lesson 03 follows the same rule, but refuses:
# %% [markdown] lang="ko" en="1de3e3b0"
# 1, 2행은 랭크끼리 같지만 네 배를 보냅니다. 2행은 흔한 실수입니다. `backward()`만 `no_sync()`로 감싸면 **아무
# 효과도 없습니다.** DDP는 이어지는 역전파에서 보낼지를 *순전파*에서 정하기 때문입니다. 4행도 같은 규칙
# 때문입니다. 마지막 순전파까지 안에 넣으면 아무도 보내지 않고, 랭크는 오류 없이 어긋납니다.
#
# 레슨 03의 클래스도 같은 규칙을 따르지만, 잘못 쓰면 거부합니다.
# %%
# %%ranks --fails "put forward and backward of all but"
def one_step_of_ours():
    ours = OverlappedDataParallel(GPT(SMALL).to(device))
    for tokens, targets in mine:
        loss = ours(tokens, targets) / 4
        with ours.no_sync():
            loss.backward()


one_step_of_ours()
# %% [markdown] lang="en"
# ## Beside the real library
#
# `train`, the loop of `dlcourse/training/accumulation.py`, does not care whose `no_sync()` it calls. The
# same job with our class, with torch's DDP, and in one process with all 64 sequences at once:
# %% [markdown] lang="ko" en="76ef99d0"
# ## 실제 라이브러리와 나란히
#
# `dlcourse/training/accumulation.py`의 반복문 `train`은 누구의 `no_sync()`를 부르든 똑같이 돌아갑니다. 같은
# 작업을 우리 클래스, torch의 DDP, 그리고 64개를 한꺼번에 읽는 단일 프로세스로 해 봅니다.
# %% hidden=true
# %%ranks --fast
alone = trained(*optimizers["AdamW"], torch.float32, 1) if rank == 0 else None


def apart_from_one(wrapper):
    model = wrapper(GPT(SMALL).to(device))
    train(model, corpus, steps=steps, batch_size=64, block=32, accumulate=4)
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return (flat - alone).abs().max().item() if rank == 0 else 0.0
# %%
# %%ranks --as ours
apart_ours = apart_from_one(OverlappedDataParallel)
# %%
# %%ranks --as ddp
apart_ddp = apart_from_one(DistributedDataParallel)
# %%
pair = {"OverlappedDataParallel": (ours, ranks["apart_ours"][0]), "DDP": (ddp, ranks["apart_ddp"][0])}
show_libraries(pair, steps=steps, lr=1e-3)
# %% [markdown] lang="en"
# One all-reduce of the gradients a step, and the training of one process. What is left of the claim?
# %% [markdown] lang="ko" en="34fdbcc1"
# 스텝마다 그래디언트를 한 번만 올리듀스하고, 단일 프로세스와 같은 학습을 합니다. 주장은 얼마나 맞을까요?
# %%
names = ("trials", "layer_errors", "uneven", "cases", "seconds")
measured = {name: ranks[name][0] for name in names}
claim("D1", **figures_of_d1(whole, small, parts, **measured))
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("09.accumulate")` helps step by step;
# `solution("09.accumulate")` shows one answer.
#
# **1. `09.accumulate`** (3 minutes). `parts` are micro-batches of equal size, `model(x, y)` is a mean
# loss. Leave the gradient of the whole batch in `.grad` and return its mean loss. Target: never more
# activations than those of one micro-batch.
# %% [markdown] lang="ko" en="451bbf2e"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("09.accumulate")`는 한 단계씩 도와주고,
# `solution("09.accumulate")`은 답 하나를 보여 줍니다.
#
# **1. `09.accumulate`** (3분). `parts`는 크기가 같은 마이크로배치들이고 `model(x, y)`는 평균 손실입니다. 배치
# 전체의 그래디언트를 `.grad`에 남기고 평균 손실을 돌려주세요. 목표: 활성화값은 언제나 마이크로배치 하나만큼만
# 있어야 합니다.
# %% exercise="09.accumulate"
# %%ranks
def accumulate(model, parts):
    raise NotImplementedError


# %%
check("09.accumulate")
# %% [markdown] lang="en"
# **2. `09.tokens`** (10 minutes). The micro-batches differ in size, and a target of -100 does not
# count; a micro-batch may have no target at all. `model(x)` returns logits, (rows, positions, 64).
# Leave the gradient of the mean over **all** targets in `.grad`, return that mean, and keep no more
# activations than those of one micro-batch.
# %% [markdown] lang="ko" en="bc239630"
# **2. `09.tokens`** (10분). 마이크로배치의 크기가 서로 다르고, 값이 -100인 타깃은 세지 않습니다. 타깃이 하나도
# 없는 마이크로배치도 있습니다. `model(x)`는 (행, 위치, 64) 모양의 로짓을 돌려줍니다. **모든** 타깃에 대한
# 평균의 그래디언트를 `.grad`에 남기고 그 평균을 돌려주세요. 활성화값은 마이크로배치 하나만큼만 있어야 합니다.
# %% exercise="09.tokens"
# %%ranks
def token_gradients(model, parts):
    raise NotImplementedError


# %%
check("09.tokens")
# %% [markdown] lang="en"
# **3. `09.ddp`** (20 minutes). One whole training step in DDP, over `parts` as in exercise 2 (called
# as `ddp(x)`). It must equal one process that has the micro-batches of **all** ranks in one batch,
# takes the mean over all their targets, clips the gradient's norm to 0.5, and steps. Ranks may have
# different numbers of targets, and of micro-batches.
#
# Targets: gradients are sent once, plus a few bytes; never more activations than those of one micro-batch. The
# loop below runs, but has several mistakes; the check stops at the first kind it finds.
# %% [markdown] lang="ko" en="440596da"
# **3. `09.ddp`** (20분). DDP로 한 스텝을 처음부터 끝까지 합니다. `parts`는 2번과 같고, 모델은 `ddp(x)`로
# 부릅니다. **모든** 랭크의 마이크로배치를 배치 하나에 모아, 전체 타깃의 평균을 내고, 그래디언트의 노름(norm)을
# 0.5로 클리핑하고, 갱신하는 단일 프로세스와 같아야 합니다. 랭크마다 타깃 수도, 마이크로배치 수도 다를 수
# 있습니다.
#
# 목표: 그래디언트는 한 번만 보내고, 더 보내도 몇 바이트까지입니다. 활성화값은 언제나 마이크로배치 하나만큼만
# 있어야 합니다. 아래 코드는 돌아가기는 하지만 잘못된 곳이 여럿입니다. 검사는 처음 걸린 곳에서 멈춥니다.
# %% exercise="09.ddp"
# %%ranks
from contextlib import nullcontext


def train_step(ddp, parts, optimizer):
    optimizer.zero_grad()
    for x, y in parts:
        loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten())
        with ddp.no_sync():
            (loss / len(parts)).backward()
        nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
    optimizer.step()


# %%
check("09.ddp")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# A GPU wants large matrices: with micro-batches too small it idles, and "a little slower" may become
# much slower (not measured here). So take the *largest* micro-batch that fits, then accumulate.
#
# And send once. Hugging Face timed rows 1, 2 and 3 of the `no_sync()` table on T4 GPUs, four batches
# of 16 a step [2]. Two machines: 2.00, 2.13 and 0.91 s a batch. One machine with two GPUs: 0.50, 0.50
# and 0.41 s.
#
# At scale, derived only: the GB of gradients for 7 billion 16-bit parameters, and the GB that each of
# 64 GPUs sends in a step of 8 micro-batches, without `no_sync()` and with it.
# %% [markdown] lang="ko" en="4f855f10"
# ## GPU 클러스터에서는
#
# GPU는 큰 행렬을 좋아합니다. 마이크로배치가 너무 작으면 GPU가 놀아서 "조금" 느린 정도가 아닐 수
# 있습니다(여기서는 재지 않았습니다). 그래서 메모리에 들어가는 *가장 큰* 마이크로배치를 고른 다음 누적합니다.
#
# 그리고 한 번만 보냅니다. Hugging Face가 `no_sync()` 표의 1, 2, 3행을 T4 GPU에서 16개씩 네 번 누적하며 재
# 보았습니다[2]. 컴퓨터 두 대에서는 배치당 2.00, 2.13, 0.91초, GPU 두 개짜리 컴퓨터 한 대에서는 0.50, 0.50,
# 0.41초입니다.
#
# 큰 규모는 계산만 합니다. 16비트 파라미터 70억 개의 그래디언트는 몇 GB일까요? GPU 64개가 마이크로배치 8개로
# 학습하면 하나가 스텝마다 몇 GB를 보낼까요? `no_sync()`가 없을 때와 있을 때입니다.
# %% tags=["nbval-check-output"]
gradients_gb = 2 * 7e9 / 1e9
once = 2 * 63 / 64 * gradients_gb
show_large(gradients=gradients_gb, without=8 * once, within=once)
# %% [markdown] lang="en"
# ## In five lines
#
# 1. `backward()` adds: divide each loss, call backward inside the loop, step once.
# 2. Activations shrink with the micro-batch. Parameters, Adam's state and *gradients* do not.
# 3. Equal up to rounding, which Adam enlarges; not where a layer looks across the batch.
# 4. Unequal targets: sums, divided by one count. A mean of means is a silent bug.
# 5. Under DDP: forward *and* backward of all but the last inside `no_sync()`.
#
# The floor that is left is 16 bytes a parameter. Do 16-bit numbers halve it? Lesson 10.
#
# Sources: [1] [Hugging Face, Fixing Gradient Accumulation, 2024](https://huggingface.co/blog/gradient_accumulation).
# [2] [Accelerate, Gradient synchronization](https://huggingface.co/docs/accelerate/concept_guides/gradient_synchronization).
# [DDP.no_sync](https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html),
# [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
# %% [markdown] lang="ko" en="2849698a"
# ## 다섯 줄 요약
#
# 1. `backward()`는 더합니다. 손실마다 나누고, 반복문 안에서 역전파하고, 갱신은 한 번만 합니다.
# 2. 활성화값은 마이크로배치와 함께 줄어듭니다. 파라미터, Adam의 상태, *그래디언트*는 줄지 않습니다.
# 3. 반올림 오차를 빼면 같고, 오차는 Adam이 키웁니다. 배치 전체를 보는 층에서는 다릅니다.
# 4. 타깃 수가 다르면 합을 내고 같은 수로 나눕니다. 평균의 평균은 오류 없이 틀립니다.
# 5. DDP에서는 마지막을 뺀 모든 순전파*와* 역전파를 `no_sync()` 안에 둡니다.
#
# 파라미터 하나에 16바이트라는 바닥이 남았습니다. 16비트 수를 쓰면 절반이 될까요? 레슨 10에서 봅니다.
#
# 출처: [1] [Hugging Face, Fixing Gradient Accumulation, 2024](https://huggingface.co/blog/gradient_accumulation).
# [2] [Accelerate, Gradient synchronization](https://huggingface.co/docs/accelerate/concept_guides/gradient_synchronization).
# [DDP.no_sync](https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html),
# [fully_shard](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
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
# ### When the number does not divide
#
# Four parts of a batch of 64 are easy. Five are refused, and the message says what would do:
# %% [markdown] lang="ko" en="a34729e3"
# ### 나누어떨어지지 않을 때
#
# 64개를 넷으로 나누는 것은 쉽습니다. 다섯으로는 나눌 수 없어서 거부하고, 무엇이 되는지 알려 줍니다.
# %%
# %%ranks 0 --fails "accumulate=5 does not divide"
split(*batch, accumulate=5)
# %% [markdown] lang="en"
# ### Targets counted over all ranks
#
# With several ranks, the one number to divide by counts the targets of *all* ranks. A model with
# `no_sync` lives in several ranks, so the whole function counts them together first, which sends 8
# bytes beside the gradients. Afterwards DDP takes a mean over ranks, and a weight puts that right. The
# function is folded below; this is what it sends:
# %% [markdown] lang="ko" en="6b113e65"
# ### 모든 랭크의 타깃을 함께 세기
#
# 랭크가 여러 개라면 같은 수로 나눈다는 말은 *모든* 랭크의 타깃 수로 나눈다는 뜻입니다. 모델에 `no_sync`가
# 있으면 랭크가 여러 개이므로, 전체 함수는 먼저 타깃을 함께 셉니다. 이때 그래디언트 말고도 8바이트를 보냅니다. 그
# 뒤에 DDP가 내는 랭크 평균은 가중치로 바로잡습니다. 함수는 아래에 접어 두었습니다. 실제로 보내는 양은
# 다음과 같습니다.
# %% hidden=true source="dlcourse.training.accumulation:backward_by_tokens"

# %%
# %%ranks --as counted
model_of_all = DistributedDataParallel(GPT(SMALL).to(device))
loss = backward_by_tokens(model_of_all, mine)
# %%
show_all_reduces(counted)
# %% [markdown] lang="en"
# ### FSDP2, and running averages
#
# In FSDP2 the switch is `set_requires_gradient_sync(False)`. Mind its price: unreduced gradients stay
# *whole* in every rank, where reduced ones would be a shard.
#
# Batch norm has a second difference: its running averages move four times in a step, each by the
# statistics of 16 rows.
# %% [markdown] lang="ko" en="cf16113d"
# ### FSDP2, 그리고 이동 평균
#
# FSDP2에서는 `set_requires_gradient_sync(False)`로 합니다. 대신 합치지 않은 그래디언트가 랭크마다 샤드가 아니라
# *통째로* 남습니다.
#
# 배치 정규화에는 차이가 하나 더 있습니다. 이동 평균이 한 스텝에 네 번, 한 번에 16행의 통계로 움직입니다.
