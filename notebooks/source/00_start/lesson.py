# %% [markdown] lang="en"
# # Start here: what is a rank?
#
# Your training script uses one GPU. Now you get a machine with eight. You start the same script,
# and seven GPUs stay idle. What has to change?
#
# Not a flag, and not a bigger batch. The script is started **eight times**. Each of these
# processes is called a *rank*, and each has its own GPU. But then eight strangers train eight
# models. How do they come to train *one*?
#
# In this lesson four ranks run on your machine. You will see what they share (nothing), how they
# talk, and what this machine can show you.
# %% [markdown] lang="ko" en="bb65e963"
# # 시작하기: 랭크란 무엇일까요?
#
# 지금까지 쓰던 학습 스크립트는 GPU 한 개를 씁니다. 이제 GPU가 여덟 개인 서버를 받았습니다. 같은
# 스크립트를 실행하면 일곱 개는 놀고 있습니다. 무엇을 바꿔야 할까요?
#
# 옵션 하나나 더 큰 배치로는 안 됩니다. 스크립트를 **여덟 번 실행합니다.** 이렇게 뜬 프로세스
# 하나하나를 랭크(rank)라고 하고, 랭크마다 GPU를 하나씩 맡습니다. 그런데 이대로라면 서로 모르는
# 여덟 프로세스가 모델 여덟 개를 따로 학습할 뿐입니다. 어떻게 *하나*를 함께 학습할까요?
#
# 이 레슨에서는 랭크 네 개를 이 컴퓨터에서 직접 띄웁니다. 랭크끼리 무엇을 함께 쓰는지(아무것도
# 함께 쓰지 않습니다), 어떻게 주고받는지, 이 컴퓨터로 무엇을 볼 수 있는지 알아봅니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 4
device = "auto"
# %%
from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, record_metric, solution
from dlcourse.course.library_map import library_map
from dlcourse.figures.machine_table import machine_table
from dlcourse.figures.process_memory import process_memory_figure
from dlcourse.figures.strategies import (
    largest_difference,
    losses_by_strategy,
    optimizer_state_by_strategy,
)
from dlcourse.measure.process_memory import memory_together

lesson(lang=lang, name="00_start")
# %% [markdown] lang="en"
# ```mermaid
# flowchart TB
#   N["this notebook"] -- "cells" --> G
#   subgraph G["process group"]
#     direction LR
#     R0["rank 0<br/>its own Python<br/>its own x"]
#     R1["rank 1<br/>its own Python<br/>its own x"]
#     R2["rank 2<br/>its own Python<br/>its own x"]
#     R3["rank 3<br/>its own Python<br/>its own x"]
#     R0 <--> R1 <--> R2 <--> R3
#   end
# ```
# Four processes that know of each other: a *process group*. Memory is not shared. What one rank
# wants from another must be sent. The notebook only hands out cells.
# %% [markdown] lang="ko" en="5a87bf6f"
# ```mermaid
# flowchart TB
#   N["이 노트북"] -- "셀" --> G
#   subgraph G["프로세스 그룹"]
#     direction LR
#     R0["랭크 0<br/>자기 파이썬<br/>자기 x"]
#     R1["랭크 1<br/>자기 파이썬<br/>자기 x"]
#     R2["랭크 2<br/>자기 파이썬<br/>자기 x"]
#     R3["랭크 3<br/>자기 파이썬<br/>자기 x"]
#     R0 <--> R1 <--> R2 <--> R3
#   end
# ```
# 서로를 아는 프로세스 네 개, 이것이 프로세스 그룹(process group)입니다. 메모리는 나눠 쓰지
# 않습니다. 다른 랭크의 값이 필요하면 받아 와야 합니다. 노트북은 셀을 나눠 줄 뿐입니다.
# %%
ranks = Ranks(num_ranks, device=device)
ranks
# %% [markdown] lang="en"
# The box that appeared is the **panel**. It has a row for each rank: what the rank is doing, the
# tensors it holds, by kind, and the bytes that it gave to collectives (explained below). Point at
# the memory total for the size of the process. Keep an eye on it while cells run.
#
# `%%ranks` in the first line sends a cell to all ranks. Ready there: `rank`, `world_size` (the
# number of ranks), `device`, `torch`, `nn`, and `dist`, which is `torch.distributed`.
# %% [markdown] lang="ko" en="02464bb4"
# 방금 나타난 상자가 **패널**입니다. 랭크마다 한 줄씩, 지금 무엇을 하는지, 어떤 종류의 텐서를 얼마나
# 들고 있는지, 집합 통신(곧 설명합니다)에 몇 바이트를 넘겼는지 보여 줍니다. 메모리 숫자에 마우스를
# 올리면 프로세스 크기도 나옵니다. 셀이 실행되는 동안 지켜보세요.
#
# 첫 줄에 `%%ranks`를 쓰면 그 셀은 모든 랭크에서 실행됩니다. `rank`, `world_size`(랭크 수), `device`,
# `torch`, `nn`, `dist`(`torch.distributed`)는 랭크에 미리 준비되어 있습니다.
# %%
# %%ranks
rank, world_size
# %% [markdown] lang="en"
# The same cell, a different result in each rank: `rank` is the only difference between them. All
# else follows from it. Now each rank makes a variable.
# %% [markdown] lang="ko" en="e251b800"
# 같은 셀인데 랭크마다 결과가 다릅니다. 랭크끼리 처음부터 다른 것은 번호인 `rank`뿐이고, 나머지
# 차이는 모두 여기에서 나옵니다. 이제 랭크마다 변수를 하나씩 만듭니다.
# %%
# %%ranks
x = 10 * rank
x
# %%
# %%ranks 1
y = x + 1
y
# %% [markdown] lang="en"
# `%%ranks 1` ran in rank 1 alone (`%%ranks 0,2` takes two). It still knew `x` from the cell before:
# variables stay in their rank. `y` now exists in rank 1 and nowhere else.
#
# `ranks["x"]` brings a name's value from every rank into the notebook.
# %% [markdown] lang="ko" en="bb9550e9"
# `%%ranks 1`은 1번 랭크에서만 실행됩니다. 두 개를 고르려면 `%%ranks 0,2`처럼 씁니다. 앞 셀에서
# 만든 `x`를 그대로 쓸 수 있었습니다. 변수는 랭크 안에 계속 남습니다. 그리고 `y`는 1번 랭크에만 있습니다.
#
# `ranks["x"]`라고 쓰면 모든 랭크의 `x` 값을 노트북으로 가져옵니다.
# %% tags=["nbval-check-output"]
print(ranks["x"])
assert ranks["x"] == [10 * r for r in range(num_ranks)]
# %% [markdown] lang="en"
# No rank can look into another. To get the sum of all `x`, they must talk, and all of them at once:
# that is a *collective*. The most used one is `all_reduce`.
#
# ```mermaid
# flowchart LR
#   A0["rank 0: 0"] --> S(("all_reduce<br/>sum"))
#   A1["rank 1: 10"] --> S
#   A2["rank 2: 20"] --> S
#   A3["rank 3: 30"] --> S
#   S --> B0["rank 0: 60"]
#   S --> B1["rank 1: 60"]
#   S --> B2["rank 2: 60"]
#   S --> B3["rank 3: 60"]
# ```
# Every rank gives its tensor, every rank gets the sum. The tensor is **overwritten**.
# %% [markdown] lang="ko" en="02e614aa"
# 랭크는 다른 랭크의 변수를 들여다볼 수 없습니다. 모든 `x`의 합을 구하려면 모두가 함께 주고받아야
# 하고, 이것을 집합 통신(collective communication)이라고 합니다. 가장 많이 쓰는 것이
# 올리듀스(all-reduce)입니다.
#
# ```mermaid
# flowchart LR
#   A0["랭크 0: 0"] --> S(("all_reduce<br/>합"))
#   A1["랭크 1: 10"] --> S
#   A2["랭크 2: 20"] --> S
#   A3["랭크 3: 30"] --> S
#   S --> B0["랭크 0: 60"]
#   S --> B1["랭크 1: 60"]
#   S --> B2["랭크 2: 60"]
#   S --> B3["랭크 3: 60"]
# ```
# 모든 랭크가 자기 텐서를 내놓고, 모든 랭크가 합을 받습니다. 원래 텐서는 **합으로 덮어쓰입니다.**
# %% tags=["nbval-check-output"]
# %%ranks
total = torch.tensor(float(x), device=device)
dist.all_reduce(total)
total
# %%
assert [float(value) for value in ranks["total"]] == [float(sum(ranks["x"]))] * num_ranks
# %% [markdown] lang="en"
# Equal results are folded into one line. This single call is how strangers train one model: if the
# tensor is a gradient, every rank gets the same sum and takes the same step (lesson 03).
#
# **Predict.** A gradient of $2^{20}$ float32 numbers is 4 MiB in each rank. How many bytes does each
# rank *send* in one `all_reduce`? Put your number in place of `...`. Guess, it costs nothing.
# If you leave `...`, the formula's answer is taken.
# %% [markdown] lang="ko" en="8654c0d3"
# 결과가 같으면 한 줄로 접어서 보여 줍니다. 서로 모르던 프로세스들이 모델 하나를 함께 학습하는 것은
# 이 호출 덕분입니다. 텐서가 그래디언트라면 모두 같은 합을 받아 파라미터를 똑같이 갱신합니다(레슨 03).
#
# **예측해 보세요.** float32 숫자 $2^{20}$개짜리 그래디언트는 랭크마다 4MiB입니다. `all_reduce` 한
# 번에 랭크 하나는 몇 바이트를 *보낼까요*? `...` 자리에 숫자를 적으세요. 틀려도 괜찮습니다. `...`를
# 그대로 두면 공식의 답을 씁니다.
# %%
size = 4 * 2**20
formula = 2 * (num_ranks - 1) / num_ranks * size
predict("00.bytes", ..., formula=formula, unit="bytes")
# %%
# %%ranks --as run
from dlcourse.collectives.tcp_counters import wire_counters

gradient = torch.ones(2**20, device=device)
before = wire_counters()
dist.all_reduce(gradient)
after = wire_counters()
sent = after[0] - before[0] if before else 0
# %%
measured = max(ranks["sent"]) or run.comm.ranks[0]["wire_bytes"]
compare("00.bytes", measured)
assert 0.99 * formula <= measured <= 1.05 * formula
# %% [markdown] lang="en"
# Many guess 4 MiB ("I send mine once") or 12 MiB ("I send mine to the three others"). With four ranks
# it is 6 MiB: $2\,\frac{n-1}{n}\,S$ for $n$ ranks and $S$ bytes. Lesson 01 builds it, piece by piece.
#
# Measured is the operating system's count of bytes on this rank's connections. It is a little more than
# the formula, because every message carries a small header.
#
# `--as run` has kept what the cell measured in `run`, as numbers and as figures. The counter in the
# figure is the whole machine's, so it may show more: what other programs send is in it.
# %% [markdown] lang="ko" en="dcd1de54"
# "내 것을 한 번 보내니까 4MiB" 또는 "나머지 셋에게 보내니까 12MiB"라고 답하는 사람이 많습니다. 랭크가
# 네 개면 6MiB입니다. 랭크 $n$개, $S$바이트라면 $2\,\frac{n-1}{n}\,S$이고, 왜 그런지는 레슨 01에서 직접
# 만들어 봅니다.
#
# 측정값은 운영체제가 이 랭크의 연결마다 센 바이트입니다. 메시지마다 작은 헤더가 붙으므로 공식보다
# 조금 많습니다.
#
# `--as run`이라고 쓴 셀에서 잰 것은 `run`에 숫자와 그림으로 들어 있습니다. 그림에 나오는 카운터는 이 컴퓨터
# 전체를 셉니다. 다른 프로그램이 보낸 것도 들어가므로 값이 더 클 수 있습니다.
# %%
run.comm.figure()
# %% [markdown] lang="en"
# Now something goes wrong. Rank 1 got an empty part of the data, and divides by the number of its
# tokens. The others are fine. `--fails` says that this cell is meant to fail; read the message.
# %% [markdown] lang="ko" en="57e33a28"
# 이번에는 일부러 사고를 냅니다. 1번 랭크가 받은 데이터가 비어 있는데, 토큰 수로 나누려고 합니다. 나머지
# 랭크는 멀쩡합니다. `--fails`는 이 셀이 실패해야 정상이라는 표시입니다. 메시지를 읽어 보세요.
# %%
# %%ranks --fails "rank 1 raised ZeroDivisionError"
tokens = 0 if rank == 1 else 100 - rank
loss_per_token = 55 / tokens
# %% [markdown] lang="en"
# First line: which rank, and what. Then where each rank stood: the others finished. At the end the
# line of *your* cell. And the ranks live on, with their variables:
# %% [markdown] lang="ko" en="a3cd940b"
# 첫 줄은 어느 랭크에서 무슨 일이 났는지, 다음은 랭크마다 어디까지 갔는지입니다. 다른 랭크는 셀을
# 끝냈습니다. 마지막은 셀의 몇 번째 줄인지입니다. 그리고 랭크는 변수를 간직한 채 살아 있습니다.
# %%
# %%ranks
x, tokens
# %% [markdown] lang="en"
# No rank was waiting for rank 1 here. If the others had been inside an `all_reduce`, they would have
# waited for it without end. Lesson 01 makes that happen.
#
# **Predict.** Four Python processes, each with torch. `top` would show the resident size (RSS) of
# each; the next cell prints it. How many bytes do the four take together: four times one?
# %% [markdown] lang="ko" en="a7daec95"
# 여기에서는 1번 랭크를 기다리는 랭크가 없었습니다. 만약 다른 랭크가 `all_reduce` 안에 있었다면 끝없이
# 기다렸을 것입니다. 그 장면은 레슨 01에서 봅니다.
#
# **예측해 보세요.** torch를 띄운 파이썬 프로세스가 네 개입니다. `top`은 프로세스마다 상주 메모리(RSS)를
# 보여 주고, 다음 셀이 그 값을 찍습니다. 넷을 합치면 몇 바이트일까요? 하나의 네 배일까요?
# %%
# %%ranks
import psutil

resident = psutil.Process().memory_info().rss
f"{resident / 2**20:.0f} MiB"
# %%
one = max(ranks["resident"])
predict("00.memory", ..., formula=num_ranks * one, unit="bytes")
# %%
together = memory_together()
compare("00.memory", together)
record_metric("memory_ratio", together / one)
assert together < num_ranks * one
process_memory_figure(one, together, num_ranks)
# %% [markdown] lang="en"
# The simple formula is far off. On Linux the ranks are copies (forks) of one process that had
# imported torch already. Pages that nobody has written to exist once. RSS counts such a page in
# full in every rank; **PSS** divides it among those who use it, so PSS adds up. The panel shows PSS.
#
# This saves code, not tensors: what a rank computes is its own. On GPUs each rank also has its own
# CUDA context in memory.
# %% [markdown] lang="ko" en="051516e1"
# 단순한 공식은 크게 빗나갑니다. 리눅스에서 랭크는 torch를 이미 불러온 프로세스 하나를 복제(fork)한
# 것입니다. 아무도 고쳐 쓰지 않은 메모리 페이지는 실제로 하나뿐입니다. RSS는 그 페이지를 랭크마다 다
# 세고, **PSS**는 함께 쓰는 프로세스 수로 나누어 셉니다. 그래서 더해도 되는 값은 PSS이고, 패널도 PSS를
# 보여 줍니다.
#
# 아껴지는 것은 코드뿐입니다. 랭크가 만든 텐서는 저마다 따로 있습니다. GPU에서는 CUDA 컨텍스트도
# 랭크마다 따로 메모리를 씁니다.
# %% [markdown] lang="en"
# ## What this machine can show
# %% [markdown] lang="ko" en="62575274"
# ## 이 컴퓨터로 볼 수 있는 것
# %%
machine_table(ranks)
# %% [markdown] lang="en"
# On any machine the course shows for real: results, the order and number of collectives, bytes sent,
# memory by kind, what breaks and how.
#
# Without several GPUs it cannot show: how fast NVLink (links inside a server) or InfiniBand (a
# network between servers) are, NCCL (NVIDIA's library that does collectives between GPUs; here
# Gloo does them), and communication that runs beside GPU kernels. Times in these lessons compare
# two ways *on this machine*. Where GPU numbers matter, a lesson quotes a published measurement and
# names it.
# %% [markdown] lang="ko" en="228bb56b"
# 어느 컴퓨터에서나 진짜로 볼 수 있는 것: 계산 결과, 집합 통신의 순서와 횟수, 보낸 바이트, 종류별
# 메모리, 무엇이 어떻게 고장 나는지.
#
# GPU가 여러 개 없으면 볼 수 없는 것: NVLink(서버 안의 연결)와 InfiniBand(서버 사이의 네트워크)의
# 속도, GPU끼리 집합 통신을 하는 NVIDIA의 라이브러리 NCCL(여기에서는 Gloo가 합니다), GPU 계산과
# 동시에 진행되는 통신. 그래서 이 과정의 시간은 *이 컴퓨터에서* 두 방법을 비교하는 데만 씁니다. GPU에서
# 잰 값이 중요하면 발표된 측정값을 출처와 함께 인용합니다.
# %% [markdown] lang="en"
# ## Two questions, not one
#
# "Should we use DDP or MoE?" You will hear this. It cannot be answered: the two words answer
# different questions. DDP (`DistributedDataParallel`) copies the model to every rank and splits
# the batch; MoE (mixture of experts) is a kind of model.
#
# ```mermaid
# flowchart TB
#   J["one training job"] --> S["STRATEGY<br/>How is training spread over devices?"]
#   J --> A["ARCHITECTURE<br/>How is the model built?"]
#   S --> S1["data: split the batch<br/>tensor: cut each matrix<br/>pipeline: layers in stages<br/>ZeRO: nothing twice<br/>expert: split the experts"]
#   A --> A1["dense · MoE<br/>sparse · hybrid"]
#   S1 -.- L["libraries: DDP, FSDP,<br/>Megatron, DeepSpeed,<br/>Horovod"]
# ```
# Every job chooses from both sides. Are the sides independent? Let us run it.
# %% [markdown] lang="ko" en="5eea701c"
# ## 질문은 하나가 아니라 둘
#
# "DDP를 쓸까요, MoE를 쓸까요?" 자주 듣는 질문이지만 답할 수 없습니다. DDP(`DistributedDataParallel`)는
# 랭크마다 모델을 복제하고 배치를 나누는 방법이고, MoE(전문가 혼합)는 모델의 한 종류입니다. 서로 다른
# 질문의 답입니다.
#
# ```mermaid
# flowchart TB
#   J["학습 작업 하나"] --> S["전략<br/>학습을 여러 장치에 어떻게 나눌까?"]
#   J --> A["모델 구조<br/>모델을 어떻게 만들까?"]
#   S --> S1["데이터: 배치를 나눔<br/>텐서: 행렬을 자름<br/>파이프라인: 층을 나눔<br/>ZeRO: 중복해서 들지 않음<br/>전문가: 전문가를 나눠 맡음"]
#   A --> A1["밀집 · MoE<br/>희소(sparse)<br/>혼합(hybrid)"]
#   S1 -.- L["라이브러리: DDP, FSDP,<br/>Megatron, DeepSpeed,<br/>Horovod"]
# ```
# 학습할 때는 양쪽에서 하나씩 고릅니다. 두 쪽이 정말 서로 독립인지 실행해서 확인합시다.
# %% [markdown] lang="en"
# The architecture side. A *dense* layer is one MLP that every token goes through. A *mixture of
# experts* (MoE) has several MLPs, the experts, and a router that picks one for each token:
# %% [markdown] lang="ko" en="2b1411f5"
# 먼저 모델 구조 쪽입니다. 밀집(dense) 층은 모든 토큰이 지나가는 MLP 하나입니다. 전문가 혼합(MoE,
# mixture of experts)은 전문가(expert)라고 부르는 MLP를 여러 개 두고, 라우터(router)가 토큰마다 하나를
# 고릅니다.
# %% source="dlcourse.models.tiny:MoE"
# %% [markdown] lang="en"
# `TinyLM` is a one-layer language model with a dense layer or an MoE. Parameters in all, and how many
# of them one token uses:
# %% [markdown] lang="ko" en="98346297"
# `TinyLM`은 밀집 층이나 MoE를 넣은 한 층짜리 언어 모델입니다. 전체 파라미터 수와, 그중 토큰 하나가 쓰는
# 수를 봅시다.
# %% tags=["nbval-check-output"]
# %%ranks
from dlcourse.models.tiny import ARCHITECTURES, TinyLM

models = {name: TinyLM(name, moe=MoE) for name in ARCHITECTURES}
sizes = {name: (m.num_parameters(), m.num_active_parameters()) for name, m in models.items()}
sizes
# %% [markdown] lang="en"
# The MoE has twice the parameters, and a token uses nearly as many as before. That is the idea of
# MoE, and it says nothing about devices.
#
# The strategy side, in torch's own tools. Look for the word "expert" in this function: there is
# none. It does not ask how the model is built.
# %% [markdown] lang="ko" en="aba7796f"
# MoE의 파라미터는 두 배인데, 토큰 하나가 쓰는 수는 거의 그대로입니다. 이것이 MoE의 핵심이고, 장치
# 이야기는 한마디도 없습니다.
#
# 이제 전략 쪽입니다. 모두 torch에 들어 있는 도구입니다. 아래 함수에서 '전문가'를 찾아보세요. 없습니다.
# 모델을 어떻게 만들었는지 묻지 않습니다.
# %% source="dlcourse.peers.first_look:spread"
# %% [markdown] lang="en"
# Two architectures, five strategies, two training steps on real text each. `alone` is ordinary
# training without any sharing, the yardstick. With the data strategies each rank trains on its
# part of the same batch.
# %% [markdown] lang="ko" en="4625ac1d"
# 모델 구조 두 가지에 전략 다섯 가지, 모두 실제 글로 두 스텝씩 학습합니다. `alone`은 아무것도 나누지
# 않은 보통 학습으로, 비교의 기준입니다. 데이터 전략에서는 같은 배치를 랭크마다 한 몫씩 나눠 맡습니다.
# %%
# %%ranks --fast
from dlcourse.peers.first_look import STRATEGIES, train

results = {
    (name, strategy): train(TinyLM(name, moe=MoE), strategy, spread=spread, device=device)
    for name in ARCHITECTURES
    for strategy in STRATEGIES
}
# %%
results = ranks["results"][0]
gap = largest_difference(results)
assert gap < 1e-5
losses_by_strategy(results)
# %% [markdown] lang="en"
# Every pairing runs, and each column shows one loss: how the work is spread does not change what is
# learned. The last digit may differ. Adding the same float32 numbers in another order rounds
# differently, by about 1e-7 of the value at each addition. So we allow 1e-5, not zero.
#
# Sentences that people repeat about distributed training are *claims* in this course. Each has a
# number, and gets a verdict from what was run. Here is claim A1:
# %% [markdown] lang="ko" en="0788678b"
# 모든 조합이 실행되고, 같은 열의 손실은 모두 같습니다. 일을 어떻게 나누든 배우는 내용은 변하지
# 않습니다. 마지막 자리는 다를 수 있습니다. float32 숫자를 다른 순서로 더하면 한 번 더할 때마다 값의
# 1e-7쯤 반올림이 달라지기 때문입니다. 그래서 0이 아니라 1e-5까지 허용합니다.
#
# 이 과정은 분산 학습에 대해 흔히 하는 말에 번호를 붙여 *주장*이라고 부르고, 직접 실행한 결과로
# 판정합니다. 첫 번째가 주장 A1입니다.
# %%
claim("A1", pairs=len(results), gap=gap)
# %% [markdown] lang="en"
# Claim A2 names four architectures: dense, MoE, sparse, hybrid. Are these alternatives? *Sparse* means
# that a token uses only part of the model: an MoE does just that. *Hybrid* means two kinds of
# layers, such as attention and state-space layers: some of them may be MoE.
#
# So they are ingredients. A fair comparison also has to fix one thing: equal compute, or equal
# parameters. Lesson 07 does both.
# %% [markdown] lang="ko" en="68134936"
# 주장 A2는 밀집, MoE, 희소(sparse), 혼합(hybrid)을 나란히 놓습니다. 정말 하나를 고르는 문제일까요? 희소는
# 토큰이 모델의 일부만 쓴다는 뜻인데, MoE가 바로 그렇습니다. 혼합은 어텐션 층과 상태 공간 층처럼 두
# 종류의 층을 섞는다는 뜻이고, 그 안에 MoE 층이 들어가기도 합니다.
#
# 그러니 이들은 선택지라기보다 재료입니다. 공정하게 비교하려면 계산량이나 파라미터 수 중 하나를 같게
# 맞춰야 합니다. 레슨 07에서 둘 다 해 봅니다.
# %%
(dense, dense_active), (moe, moe_active) = ranks["sizes"][0].values()
claim("A2", parameters=moe / dense, active=moe_active / dense_active)
# %% [markdown] lang="en"
# ## "ZeRO is DeepSpeed only"?
#
# ZeRO means: ranks stop keeping the same thing many times. Stage 1 shares out the optimizer's state,
# stage 3 the parameters as well. Claim A4 says that only DeepSpeed has it. But two rows of the table
# above were called ZeRO, and DeepSpeed had no part in them.
#
# **Predict.** AdamW keeps two float32 numbers for each parameter: 8 bytes. Take the dense model,
# whose parameters you counted above. With stage 1, how many bytes of state are in the rank that
# holds most?
# %% [markdown] lang="ko" en="141942ae"
# ## "ZeRO는 DeepSpeed만 된다"?
#
# ZeRO는 같은 것을 랭크마다 중복해서 들고 있지 말자는 생각입니다. 1단계는 옵티마이저 상태(optimizer
# state)를 나누고, 3단계는 파라미터까지 나눕니다. 주장 A4는 DeepSpeed에만 있다고 합니다. 그런데 위
# 표의 두 줄이 ZeRO였고, DeepSpeed는 쓰지도 않았습니다.
#
# **예측해 보세요.** AdamW는 파라미터마다 float32 숫자 두 개, 즉 8바이트를 둡니다. 파라미터 수를 위에서
# 세어 본 밀집 모델에 1단계를 쓰면, 가장 많이 든 랭크에는 몇 바이트가 있을까요?
# %%
predict("00.zero", ..., formula=8 * dense / num_ranks, unit="bytes")
# %%
fullest = {
    strategy: max(of_rank["dense", strategy]["optimizer_state"] for of_rank in ranks["results"])
    for strategy in ("data", "zero1", "zero3")
}
compare("00.zero", fullest["zero1"])
# %%
share1, share3 = (fullest[name] / fullest["data"] for name in ("zero1", "zero3"))
assert share3 < 1.05 / num_ranks and 0.95 / num_ranks < share1 < 0.8
optimizer_state_by_strategy(fullest)
# %% [markdown] lang="en"
# Torch alone does it. Why is stage 1 above the prediction on four ranks? `ZeroRedundancyOptimizer`
# gives whole parameters to ranks, and two of ours, embedding and output, are large. `fully_shard`
# cuts every parameter into equal parts, so it meets the prediction; the few bytes more are AdamW's
# step counters.
#
# Tensor parallelism ran above, too. Is torch's pipeline there?
# %% [markdown] lang="ko" en="80e5ba5f"
# torch만으로 됩니다. 랭크가 네 개일 때 1단계는 왜 예측보다 클까요? `ZeroRedundancyOptimizer`는
# 파라미터를 통째로 랭크에 맡기는데, 임베딩과 출력층 두 개가 유난히 크기 때문입니다. `fully_shard`는
# 파라미터를 하나하나 똑같이 자르므로 예측과 맞습니다. 조금 더 나온 바이트는 AdamW의 스텝 카운터입니다.
#
# 텐서 병렬화도 위에서 돌았습니다. torch에 파이프라인도 있을까요?
# %% tags=["nbval-check-output"]
# %%ranks 0
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

[tool.__name__ for tool in (PipelineStage, Schedule1F1B, ScheduleGPipe)]
# %%
library_map()
# %% [markdown] lang="en"
# Claim A3 says what to compare DDP with: Megatron, DeepSpeed, FSDP, Horovod. Read the rows: DDP and
# Horovod do data parallelism and nothing else. Megatron-Core and DeepSpeed are toolboxes that
# contain it. So the list can be compared only strategy by strategy: DDP with DeepSpeed's stage 0,
# or FSDP with its stage 3. DDP and FSDP we have just trained side by side; the other libraries'
# boxes come from their documents (lesson 15 runs what installs here).
#
# DeepEP stands apart: it moves tokens for libraries that train (lesson 02). And Horovod's last
# release is from June 2023.
# %% [markdown] lang="ko" en="1b1248a7"
# 주장 A3는 DDP를 Megatron, DeepSpeed, FSDP, Horovod와 비교하라고 합니다. 표를 한 줄씩 읽어 보세요.
# DDP와 Horovod는 데이터 병렬화만 합니다. Megatron-Core와 DeepSpeed는 그것까지 담은 도구 상자입니다.
# 그러니 이 목록은 전략별로만 비교할 수 있습니다. DDP는 DeepSpeed 0단계와, FSDP는 3단계와 견주는
# 식입니다. DDP와 FSDP는 방금 나란히 학습해 보았습니다. 다른 라이브러리의 칸은 문서에서 확인한
# 것입니다(설치되는 것은 레슨 15에서 돌려 봅니다).
#
# DeepEP는 성격이 다릅니다. 학습 라이브러리를 위해 토큰을 날라 주는 통신 라이브러리입니다(레슨 02).
# Horovod의 마지막 릴리스는 2023년 6월입니다.
# %%
ddp_fsdp = max(
    abs(a - b)
    for name in ("dense", "moe")
    for a, b in zip(results[name, "data"]["losses"], results[name, "zero3"]["losses"])
)
claim("A3", same_loss=ddp_fsdp)
# %%
claim("A4", zero1=100 * share1, zero3=100 * share3)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the function, run the cell, then the check. It runs your code in four fresh ranks. Stuck?
# `hint("00.rank_sum")`, then `solution("00.rank_sum")`.
#
# **1. The sum of all ranks (3 minutes).** Every rank calls `rank_sum` with a number of its own. Return
# the sum over all ranks as a plain number, with one `all_reduce`.
# %% [markdown] lang="ko" en="b659d158"
# ## 연습 문제
#
# 함수를 채우고 셀을 실행한 다음 채점 셀을 실행하세요. 새로 띄운 랭크 네 개에서 여러분의 코드를
# 돌립니다. 막히면 `hint("00.rank_sum")`, 그래도 막히면 `solution("00.rank_sum")`을 실행하세요.
#
# **1. 모든 랭크의 합 (3분).** 모든 랭크가 저마다 다른 숫자로 `rank_sum`을 부릅니다. `all_reduce` 한 번으로
# 모든 랭크의 합을 구해 보통 숫자로 돌려주세요.
# %% exercise="00.rank_sum"
# %%ranks
def rank_sum(number):
    raise NotImplementedError


# %%
check("00.rank_sum")
# %% [markdown] lang="en"
# **2. Your own slice (8 minutes).** `n` items, any number of ranks, and `n` need not divide evenly.
# Return `(start, stop)` of this rank's items: all items are taken once, and sizes differ by one at
# most. `rank` and `world_size` are all you need.
# %% [markdown] lang="ko" en="0b1a4330"
# **2. 내 몫 (8분).** 항목이 `n`개이고, 랭크 수로 나누어떨어지지 않을 수 있습니다. 이 랭크가 맡을 범위
# `(start, stop)`을 돌려주세요. 빠지거나 겹치는 항목이 없어야 하고, 랭크마다 맡은 수는 하나까지만 차이
# 나야 합니다. `rank`와 `world_size`만 있으면 됩니다.
# %% exercise="00.own_slice"
# %%ranks
def own_slice(n):
    raise NotImplementedError


# %%
check("00.own_slice")
# %% [markdown] lang="en"
# **3. One mean (12 minutes).** Each rank has a tensor `values`, of a different length in each rank,
# perhaps empty. Return the mean of *all* values, as a plain number, in every rank. One collective,
# two numbers' worth of bytes. This trap has cost real training runs: see lesson 09.
# %% [markdown] lang="ko" en="fad7fd95"
# **3. 평균 하나 (12분).** 랭크마다 텐서 `values`가 있는데 길이가 서로 다르고 비어 있을 수도 있습니다.
# *모든* 값의 평균을 모든 랭크에서 보통 숫자로 돌려주세요. 집합 통신은 한 번, 보내는 양은 숫자 두
# 개만큼입니다. 실제 학습에서도 자주 빠지는 함정이며 레슨 09에서 다시 만납니다.
# %% exercise="00.mean_of_parts"
# %%ranks
def mean_of_parts(values):
    raise NotImplementedError


# %%
check("00.mean_of_parts")
# %% [markdown] lang="en"
# **4. The same everywhere? (20 minutes)** Replicas drift apart without any error message. Write the
# check that finds it: `True` if every element of `x` is equal in all ranks, else `False`. All ranks
# must give the same answer, `x` must stay as it was, and you may send no more than one `all_reduce`
# of `x` would. Useful: `dist.broadcast(tensor, src=0)`, which copies rank 0's tensor to all.
# %% [markdown] lang="ko" en="86c633a2"
# **4. 모두 같을까? (20분)** 복제본은 오류 메시지 없이 조금씩 어긋나기도 합니다. 그것을 찾는 함수를
# 만드세요. `x`의 원소가 모든 랭크에서 하나도 빠짐없이 같으면 `True`, 아니면 `False`입니다. 모든 랭크의
# 답이 같아야 하고, `x`는 그대로 두어야 하며, 보내는 양은 `x`를 `all_reduce`하는 양을 넘을 수 없습니다.
# 랭크 0의 텐서를 모두에게 복사하는 `dist.broadcast(tensor, src=0)`이 도움이 됩니다.
# %% exercise="00.same_everywhere"
# %%ranks
def same_everywhere(x):
    raise NotImplementedError


# %%
check("00.same_everywhere")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# `torchrun --nproc-per-node 8` starts the ranks, and a rank is still one process with one GPU. What
# changes is the road. Inside a server GPUs talk over NVLink, between servers over a network. One
# published measurement, on H800 GPUs, of the call that sends tokens to their experts (DeepEP's
# *dispatch*): 153 GB/s inside a server with 8 ranks, 43 GB/s over two servers with 16
# ([DeepEP](https://github.com/deepseek-ai/DeepEP)). So it matters which rank sits where, and the
# bytes that you count here become time there.
#
# `torchrun` tells each rank who it is through these variables. Your ranks have them too:
# %% [markdown] lang="ko" en="241d0ab6"
# ## GPU 클러스터에서는
#
# 랭크는 `torchrun --nproc-per-node 8`로 띄우고, 여전히 프로세스 하나가 GPU 하나를 맡습니다. 달라지는 것은
# 데이터가 다니는 길입니다. 서버 안에서는 NVLink로, 서버 사이에서는 네트워크로 주고받습니다. H800 GPU에서
# 토큰을 전문가에게 보내는 호출(DeepEP의 디스패치)을 잰 발표값을 보면, 한 서버의 랭크 8개는 153GB/s, 두
# 서버의 16개는 43GB/s입니다([DeepEP](https://github.com/deepseek-ai/DeepEP)). 그래서 어느 랭크가 어디에
# 있는지가 중요하고, 여기에서 센 바이트가 그곳에서는 시간이 됩니다.
#
# `torchrun`은 다음 환경 변수로 랭크에게 번호를 알려 줍니다. 지금 띄운 랭크에도 똑같이 있습니다.
# %%
# %%ranks
import os

{name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. A rank is a process with its own variables. Only its number tells it from the others.
# 2. Ranks share nothing. They talk in collectives, which all of them must call.
# 3. In an `all_reduce` of $S$ bytes each of $n$ ranks sends $2\frac{n-1}{n}S$.
# 4. Strategy (how training is spread) and architecture (how the model is built) are chosen apart.
# 5. ZeRO, tensor and pipeline parallelism are in torch itself.
#
# Next, lesson 01: the collectives, and what happens when one rank does not come.
#
# Sources: [ZeRO](https://arxiv.org/abs/1910.02054) · [Switch Transformers](https://arxiv.org/abs/2101.03961) ·
# [Jamba](https://arxiv.org/abs/2403.19887) · [Patarasu and Yuan](https://doi.org/10.1016/j.jpdc.2008.09.002)
# %% [markdown] lang="ko" en="901306d1"
# ## 다섯 줄 요약
#
# 1. 랭크는 자기 변수를 가진 프로세스입니다. 처음에 다른 것은 번호뿐입니다.
# 2. 랭크는 아무것도 나눠 쓰지 않습니다. 모두가 함께 부르는 집합 통신으로 주고받습니다.
# 3. $S$바이트를 올리듀스하면 랭크 $n$개가 각각 $2\frac{n-1}{n}S$를 보냅니다.
# 4. 전략(어떻게 나눌까)과 모델 구조(어떻게 만들까)는 따로 고릅니다.
# 5. ZeRO, 텐서 병렬화, 파이프라인 병렬화는 torch에도 있습니다.
#
# 다음은 레슨 01, 집합 통신입니다. 랭크 하나가 오지 않으면 어떻게 되는지도 봅니다.
#
# 출처: [ZeRO](https://arxiv.org/abs/1910.02054) · [Switch Transformers](https://arxiv.org/abs/2101.03961) ·
# [Jamba](https://arxiv.org/abs/2403.19887) · [Patarasu와 Yuan](https://doi.org/10.1016/j.jpdc.2008.09.002)
