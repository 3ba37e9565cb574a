# %% [markdown] lang="en" form="core"
# # Start here: what is a rank?
#
# Your training script uses one GPU. Now you get a machine with eight. You start the same script,
# and seven GPUs stay idle. What has to change?
#
# Not a flag, and not a bigger batch. The script is started **eight times**. Each of these
# processes is called a *rank*, and each has its own GPU. But then eight strangers train eight
# models. How do they come to train *one*?
#
# In this lesson four ranks run on your machine, with or without a GPU. Two lines make them train one
# model. You will see which, and what they cost.
#
# Time: reading 17 min + exercises 34 min.
# %% [markdown] lang="ko" en="3c160ee4"
# # 시작하기: 랭크란 무엇일까요?
#
# 지금까지 쓰던 학습 스크립트는 GPU 한 개를 씁니다. 이제 GPU가 여덟 개인 서버를 받았습니다. 같은
# 스크립트를 실행하면 일곱 개는 놀고 있습니다. 무엇을 바꿔야 할까요?
#
# 옵션 하나를 켜거나 배치를 키운다고 될 일이 아닙니다. 스크립트를 **여덟 번 실행합니다.** 이렇게 뜬 프로세스
# 하나하나를 랭크(rank)라고 하고, 랭크마다 GPU를 하나씩 맡습니다. 그런데 이대로라면 서로 모르는 여덟
# 프로세스가 모델 여덟 개를 따로 학습할 뿐입니다. 어떻게 *하나*를 함께 학습할까요?
#
# 이 컴퓨터에 GPU가 없어도 됩니다. 랭크 네 개를 띄우고, 모델 하나를 함께 학습하게 하는 두 줄을 넣고, 그 비용을
# 잽니다.
#
# 시간: 읽기 17분 + 연습 34분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
# %% [markdown] lang="en"
# ```mermaid
# flowchart TB
#   N["this notebook"] -- "cells" --> G
#   subgraph G["process group"]
#     direction LR
#     R0["rank 0<br/>its own Python<br/>its own variables"]
#     R1["rank 1<br/>its own Python<br/>its own variables"]
#     R2["rank 2<br/>its own Python<br/>its own variables"]
#     R3["rank 3<br/>its own Python<br/>its own variables"]
#     R0 <--> R1 <--> R2 <--> R3
#   end
# ```
# Four processes that know of each other: a *process group*. Memory is not shared. What one rank
# wants from another must be sent. The notebook only hands out cells.
# %% [markdown] lang="ko" en="8ce6eaa3"
# ```mermaid
# flowchart TB
#   N["이 노트북"] -- "셀" --> G
#   subgraph G["프로세스 그룹"]
#     direction LR
#     R0["랭크 0<br/>자기 파이썬<br/>자기 변수"]
#     R1["랭크 1<br/>자기 파이썬<br/>자기 변수"]
#     R2["랭크 2<br/>자기 파이썬<br/>자기 변수"]
#     R3["랭크 3<br/>자기 파이썬<br/>자기 변수"]
#     R0 <--> R1 <--> R2 <--> R3
#   end
# ```
# 서로를 아는 프로세스 네 개, 이것이 프로세스 그룹(process group)입니다. 메모리는 나눠 쓰지
# 않습니다. 다른 랭크의 값이 필요하면 받아 와야 합니다. 노트북은 셀을 나눠 줄 뿐입니다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.figures.machine_table import machine_table
from dlcourse.figures.one_model import bytes_of_a_rank, show_memory, show_one_model, show_paths
from dlcourse.figures.one_model import work_and_bytes
from dlcourse.measure.process_memory import memory_together

lesson(lang=lang, name="00_start")
# %%
ranks = Ranks(num_ranks, device=device)
ranks
# %% [markdown] lang="en"
# The box that appeared is the **panel**. It has a row for each rank: what the rank is doing, the
# tensors it holds, and the bytes that it gave to others. Keep an eye on it while cells run.
#
# `%%ranks` in the first line sends a cell to all ranks. Ready there: `rank`, `world_size` (the number
# of ranks), `device`, `torch`, `nn`, `F` (`torch.nn.functional`), and `dist` (`torch.distributed`).
# %% [markdown] lang="ko" en="adc8806e"
# 방금 나타난 상자가 **패널**입니다. 랭크마다 한 줄씩, 지금 무엇을 하는지, 텐서를 얼마나 들고 있는지, 다른
# 랭크에 몇 바이트를 보냈는지 보여 줍니다. 셀이 실행되는 동안 지켜보세요.
#
# 첫 줄에 `%%ranks`를 쓰면 그 셀은 모든 랭크에서 실행됩니다. `rank`, `world_size`(랭크 수), `device`,
# `torch`, `nn`, `F`(`torch.nn.functional`), `dist`(`torch.distributed`)는 랭크에 미리 준비되어 있습니다.
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
a = 10 * rank
a
# %%
# %%ranks 1
b = a + 1
b
# %% [markdown] lang="en"
# `%%ranks 1` ran in rank 1 alone. It still knew `a` from the cell before: variables stay in their
# rank. `b` now exists in rank 1 and nowhere else.
#
# `ranks["a"]` brings the value of `a` from every rank into the notebook.
# %% [markdown] lang="ko" en="36a4e5cb"
# `%%ranks 1`은 랭크 1에서만 실행됩니다. 앞 셀에서 만든 `a`를 그대로 쓸 수 있었습니다. 변수는 랭크 안에
# 계속 남습니다. 그리고 `b`는 랭크 1에만 있습니다.
#
# `ranks["a"]`라고 쓰면 모든 랭크의 `a` 값을 노트북으로 가져옵니다.
# %% tags=["nbval-check-output"]
ranks["a"]
# %% [markdown] lang="en"
# No rank can look into another. To get the sum of all `a`, they must talk, and all of them at once:
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
# %% [markdown] lang="ko" en="7f1d6c20"
# 랭크는 다른 랭크의 변수를 들여다볼 수 없습니다. 모든 `a`의 합을 구하려면 모두가 함께 주고받아야
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
total = torch.tensor(float(a), device=device)
dist.all_reduce(total)
total
# %% [markdown] lang="en"
# Equal results are folded into one line. That is all you need to know about collectives today.
#
# ## Four strangers become one
#
# The smallest model there is: a line $y = w x$ with one parameter, $w$. Each rank has eight points
# of its own, and they disagree. The points of rank 0 lie on $y = x$, those of rank 1 on $y = 3x$; for ranks
# 2 and 3 it is $5x$ and $7x$. Below is a training loop as you know it, with two lines more.
# %% [markdown] lang="ko" en="65ce5a43"
# 결과가 같으면 한 줄로 접어서 보여 줍니다. 집합 통신은 오늘 이만큼만 알면 됩니다.
#
# ## 모르던 넷이 하나가 되기까지
#
# 모델은 더 줄일 수 없을 만큼 작습니다. 직선 $y = wx$이고, 파라미터는 $w$ 하나입니다. 랭크마다 점을 여덟
# 개씩 가지고 있는데 서로 맞지 않습니다. 랭크 0의 점은 $y = x$ 위에, 랭크 1의 점은 $y = 3x$ 위에 있고, 랭크
# 2와 3은 $5x$와 $7x$입니다. 이어지는 두 셀은 점을 만들고, 늘 보던 학습 코드에 두 줄을 더합니다.
# %%
# %%ranks
x = torch.linspace(0, 1, 8, device=device)
y = (2 * rank + 1) * x
# %%
# %%ranks
def train(x, y, together):
    w, path = torch.zeros((), device=device, requires_grad=True), [0.0]
    for _ in range(30):
        loss = ((w * x - y) ** 2).mean()
        loss.backward()
        if together:
            dist.all_reduce(w.grad)
            w.grad /= world_size
        w.data -= 0.5 * w.grad
        w.grad = None
        path.append(w.item())
    return path
# %% [markdown] lang="en"
# Without the two lines rank 0 learns $w = 1$, rank 1 learns $w = 3$, up to $w = 7$. With them, every
# rank takes the same step: along the *mean* of the four gradients.
#
# **Predict**: which $w$ do four ranks learn together? Type your number and press Enter. A wrong guess
# costs nothing, and you need not type at all.
# %% [markdown] lang="ko" en="a5b9d490"
# 두 줄이 없으면 랭크 0은 $w = 1$, 랭크 1은 $w = 3$, 마지막 랭크는 $w = 7$을 배웁니다. 두 줄이 있으면 모든 랭크가 네
# 그래디언트의 *평균*으로 $w$를 똑같이 갱신합니다.
#
# **예측해 보세요.** 랭크 네 개가 함께 배우는 $w$는 얼마일까요? 숫자를 적고 Enter를 누르세요. 틀려도 괜찮고, 적지
# 않고 넘어가도 됩니다.
# %%
predict("00.slope")
# %%
# %%ranks
alone = train(x, y, together=False)
together = train(x, y, together=True)
# %%
compare("00.slope", ranks["together"][0][-1])
# %%
show_paths(ranks["alone"], ranks["together"])
# %% [markdown] lang="en"
# Four coloured lines part ways: four models. The grey-blue one is what all ranks walk along together.
# All started at the same $w$ and took the same steps, so all still hold the same model.
#
# Is it the model that one process would have learned from all the points? And what does torch's own
# class for this do, `DistributedDataParallel`?
# %% [markdown] lang="ko" en="4e0ebf87"
# 색이 다른 네 선은 서로 멀어집니다. 모델이 네 개라는 뜻입니다. 회청색 선은 모든 랭크가 함께 간 길입니다. 같은
# $w$에서 출발해 똑같이 갱신했으니 모두 같은 모델을 가지고 있습니다.
#
# 점을 모두 모아 단일 프로세스로 학습해도 같은 모델이 될까요? 이 일을 하는 torch의
# `DistributedDataParallel`은 어떨까요?
# %% hidden=true
# %%ranks --fast
from torch.nn.parallel import DistributedDataParallel

line = nn.Linear(1, 1, bias=False).to(device)
nn.init.zeros_(line.weight)
ddp = DistributedDataParallel(line)
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.5)
for _ in range(30):
    optimizer.zero_grad()
    ((ddp(x[:, None]) - y[:, None]) ** 2).mean().backward()
    optimizer.step()
# %% hidden=true
# %%ranks --fast
all_x = x.repeat(world_size)
all_y = torch.cat([(2 * r + 1) * x for r in range(world_size)])
slopes = {
    "one": train(all_x, all_y, together=False)[-1],
    "ours": together[-1],
    "ddp": line.weight.item(),
}
# %%
show_one_model(ranks["slopes"])
# %% [markdown] lang="en"
# Three ways, one model. This is **data parallelism**: copy the model, share out the data, average the
# gradients. Torch's class does what our two lines do, and begins to send while
# backward still runs (lesson 03).
#
# ## What does it cost?
#
# A real gradient is larger than one number. Take $2^{20}$ numbers in float32: 4 MiB in each rank.
#
# **Predict**: how many bytes does each of four ranks *send* in one `all_reduce`?
# %% [markdown] lang="ko" en="0a807a51"
# 세 방법이 모두 같은 모델에 이릅니다. 이것이 **데이터 병렬화**(data parallelism)입니다. 모델을 복제하고, 데이터를
# 나눠 맡고, 그래디언트의 평균을 냅니다. torch의 클래스는 위의 두 줄이 하는 일을 하되, 역전파가 끝나기 전에 보내기 시작합니다(레슨
# 03).
#
# ## 비용은 얼마일까?
#
# 실제 그래디언트는 숫자 하나보다 훨씬 큽니다. float32 숫자 $2^{20}$개라면 랭크마다 4 MiB입니다.
#
# **예측해 보세요.** 랭크가 네 개일 때 `all_reduce` 한 번에 랭크 하나는 몇 바이트를 *보낼까요*?
# %%
predict("00.bytes")
# %% hidden=true
# %%ranks --fast
from contextlib import contextmanager

from dlcourse.collectives.tcp_counters import wire_counters


@contextmanager
def counting():
    counts, before = [], wire_counters()
    yield counts
    counts.append(wire_counters()[0] - before[0] if before else 0)
# %%
# %%ranks --as run
gradient = torch.ones(2**20, device=device)
with counting() as sent:
    dist.all_reduce(gradient)
# %%
compare("00.bytes", bytes_of_a_rank(run, ranks["sent"]))
# %% [markdown] lang="en"
# Measured is the operating system's count for this rank's connections, with small headers. Many guess
# 4 MiB ("I send mine once") or 12 MiB ("once to each of the three others"). An `all_reduce` is cleverer:
# $2\,\frac{n-1}{n}\,S$ for $n$ ranks and $S$ bytes. Lesson 01 builds it.
#
# Move the slider. What becomes of a rank's work as ranks are added, and what of the bytes it sends?
# %% [markdown] lang="ko" en="15572f64"
# 측정값은 운영체제가 이 랭크의 연결에서 센 바이트이고, 작은 헤더가 들어 있습니다. "내 것을 한 번"이라며 4 MiB, "나머지
# 셋에게 한 번씩"이라며 12 MiB라고 답하는 사람이 많습니다. 실제로는 더 영리하게 보내서, 랭크 $n$개와 $S$바이트라면
# $2\,\frac{n-1}{n}\,S$입니다. 레슨 01에서 직접 만듭니다.
#
# 슬라이더를 움직여 보세요. 랭크가 늘면 랭크 하나가 할 계산은 어떻게 되고, 보낼 바이트는 어떻게 될까요?
# %%
explore(work_and_bytes, ranks=[1, 2, 4, 8, 16, 32, 64])
# %% [markdown] lang="en"
# Work shrinks with every rank that joins. Bytes do not: they stay below twice the gradient, but they
# never get fewer. So the more ranks there are, the larger is the share of a step that goes into sending.
# Much of this course is about that.
#
# ## When a rank fails
#
# Now something goes wrong, on purpose. The last batch has one sequence too few: the last rank gets an
# empty part, and divides by its length. `--fails` says that this cell is meant to fail. Read the message.
# %% [markdown] lang="ko" en="df3c798a"
# 계산은 랭크가 늘 때마다 줄어듭니다. 바이트는 그래디언트의 두 배를 넘지 않지만 줄어들지도 않습니다. 그래서 랭크가
# 많아질수록 한 스텝에서 통신이 차지하는 몫이 커집니다. 이 과정의 많은 부분이 그 이야기입니다.
#
# ## 랭크 하나가 실패하면
#
# 이번에는 일부러 사고를 냅니다. 마지막 배치에 시퀀스가 하나 모자라서, 마지막 랭크가 받은 몫이 비어 있습니다. 그런데
# 그 길이로 나눕니다. `--fails`는 실패해야 정상인 셀이라는 표시입니다. 메시지를 읽어 보세요.
# %%
# %%ranks --fails "raised ZeroDivisionError"
sequences = list(range(world_size - 1))
mine = sequences[rank : rank + 1]
loss = sum(mine) / len(mine)
# %% [markdown] lang="en"
# The first line says which rank, and what. Then comes where each rank stood: the others have finished.
# At the end stands the line of *your* cell. And the ranks live on, with their variables:
# %% [markdown] lang="ko" en="f80ee516"
# 첫 줄은 어느 랭크에서 무슨 일이 났는지, 다음은 랭크마다 어디까지 갔는지입니다. 다른 랭크는 셀을
# 끝냈습니다. 마지막은 셀의 몇 번째 줄인지입니다. 그리고 랭크는 변수를 간직한 채 살아 있습니다.
# %%
# %%ranks
mine
# %% [markdown] lang="en"
# Nobody waited for the rank that failed. Had the others been inside an `all_reduce`, they would have
# waited for a rank that never comes. In a training job that can be 10 to 30 minutes without a word,
# until a time-out. Lesson 01 makes that happen, and shows how to find out who is missing.
#
# ## The map of the course
#
# ```mermaid
# flowchart TB
#   J["one training job"] --> C["How do ranks talk?<br/>01, 02"]
#   J --> S["STRATEGY<br/>How is training spread?<br/>03-06, 08"]
#   J --> A["ARCHITECTURE<br/>How is the model built?<br/>07"]
#   J --> M["MEMORY<br/>How does it fit into a GPU?<br/>09-13"]
#   C & S & A & M --> L["Which library,<br/>which way to spread?<br/>14, 15"]
# ```
# Strategy and architecture are two questions, though people often mix them up. "Shall we take data
# parallelism or a mixture of experts?" is like "by bus or in blue?".
# %% [markdown] lang="ko" en="e7067cf7"
# 실패한 랭크를 기다리는 랭크는 없었습니다. 만약 다른 랭크가 `all_reduce` 안에 있었다면 오지 않을 랭크를
# 기다렸을 것입니다. 실제 학습 작업이라면 제한 시간이 될 때까지 10분에서 30분을 아무 소식 없이 기다리기도
# 합니다. 레슨 01에서 그 장면을 보고, 누가 오지 않았는지 찾는 법을 배웁니다.
#
# ## 과정의 지도
#
# ```mermaid
# flowchart TB
#   J["학습 작업 하나"] --> C["랭크는 어떻게 주고받을까?<br/>01, 02"]
#   J --> S["전략<br/>학습을 어떻게 나눌까?<br/>03-06, 08"]
#   J --> A["모델 구조<br/>모델을 어떻게 만들까?<br/>07"]
#   J --> M["메모리<br/>GPU에 어떻게 담을까?<br/>09-13"]
#   C & S & A & M --> L["어떤 라이브러리와<br/>방식을 고를까?<br/>14, 15"]
# ```
# 전략과 모델 구조는 서로 다른 질문인데 자주 섞입니다. "데이터 병렬화를 쓸까요, 전문가 혼합을 쓸까요?"는 "버스로
# 갈까요, 파란색으로 할까요?"와 같습니다.
# %% [markdown] lang="en"
# Sentences that people repeat about distributed training are *claims* in this course. Each has a number,
# and a verdict from what was run. The first one is about this map. (Its libraries and MoE, the mixture of
# experts, come later; lesson 15 trains all pairings again.)
# %% [markdown] lang="ko" en="caae9a88"
# 이 과정은 분산 학습에 대해 흔히 하는 말에 번호를 붙여 *주장*이라고 부르고, 직접 실행한 결과로 판정합니다. 첫 번째가
# 이 지도에 대한 것입니다. (여기 나오는 라이브러리와 전문가 혼합(MoE)은 나중에 배웁니다. 레슨 15에서 모든 조합을 다시 학습합니다.)
# %%
claim("A1")
# %% [markdown] lang="en"
# ## What this machine can show
#
# On any machine the course shows for real: results, the order and number of collectives, bytes sent,
# memory by kind, what breaks and how. Without several GPUs it cannot show how fast their links are. Times
# compare two ways *on this machine*; where GPU numbers matter, a lesson quotes a published one.
# %% [markdown] lang="ko" en="e7e95089"
# ## 이 컴퓨터로 볼 수 있는 것
#
# 계산 결과, 집합 통신의 순서와 횟수, 보낸 바이트, 종류별 메모리, 무엇이 어떻게 고장 나는지는 어느 컴퓨터에서나
# 진짜로 볼 수 있습니다. GPU끼리의 연결이 얼마나 빠른지는 GPU가 여러 개여야 볼 수 있습니다. 시간은 *이 컴퓨터에서* 두
# 방법을 비교하는 데만 쓰고, GPU에서 잰 값이 중요하면 발표된 값을 인용합니다.
# %%
machine_table(ranks)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the function, run the cell, then the check. Stuck? `hint("00.be_the_ranks")`, then
# `solution("00.be_the_ranks")`.
#
# **1. Be the ranks (3 minutes).** Four ranks run these lines. Without running them: what is `x` in ranks
# 0, 1, 2 and 3 afterwards? Return a list of four numbers.
#
# ```python
# x = torch.tensor(rank + 1.0)
# total = x.clone()
# dist.all_reduce(total)
# if rank == 2:
#     total += 100
# x = total - x
# ```
# %% [markdown] lang="ko" en="28292ed9"
# ## 연습 문제
#
# 함수를 채우고 셀을 실행한 다음 채점 셀을 실행하세요. 막히면 `hint("00.be_the_ranks")`, 그래도 막히면
# `solution("00.be_the_ranks")`를 실행하세요.
#
# **1. 랭크가 되어 보기 (3분).** 랭크 네 개가 다음 코드를 실행합니다. 실행하지 말고 생각해 보세요. 끝난 뒤에 랭크 0, 1,
# 2, 3의 `x`는 얼마일까요? 숫자 네 개를 리스트로 돌려주세요.
#
# ```python
# x = torch.tensor(rank + 1.0)
# total = x.clone()
# dist.all_reduce(total)
# if rank == 2:
#     total += 100
# x = total - x
# ```
# %% exercise="00.be_the_ranks"
def x_in_ranks():
    raise NotImplementedError


# %%
check("00.be_the_ranks")
# %% [markdown] lang="en"
# **2. The sum of all ranks (3 minutes).** Every rank calls `rank_sum` with a number of its own. Return
# the sum over all ranks as a plain number, with one `all_reduce`. The check runs your code in four fresh
# ranks.
# %% [markdown] lang="ko" en="184bd77f"
# **2. 모든 랭크의 합 (3분).** 모든 랭크가 저마다 다른 숫자로 `rank_sum`을 부릅니다. `all_reduce` 한 번으로
# 모든 랭크의 합을 구해 보통 숫자로 돌려주세요. 새로 띄운 랭크 네 개에서 여러분의 코드를 채점합니다.
# %% exercise="00.rank_sum"
# %%ranks
def rank_sum(number):
    raise NotImplementedError


# %%
check("00.rank_sum")
# %% [markdown] lang="en"
# **3. Your own slice (8 minutes).** `n` items, any number of ranks, and `n` need not divide evenly.
# Return `(start, stop)` of this rank's items: all items are taken once, and sizes differ by one at
# most. `rank` and `world_size` are all you need.
# %% [markdown] lang="ko" en="a96c3f58"
# **3. 내 몫 (8분).** 항목이 `n`개이고, 랭크 수로 나누어떨어지지 않을 수 있습니다. 이 랭크가 맡을 범위
# `(start, stop)`을 돌려주세요. 빠지거나 겹치는 항목이 없어야 하고, 랭크마다 맡은 수는 하나까지만 차이
# 나야 합니다. `rank`와 `world_size`만 있으면 됩니다.
# %% exercise="00.own_slice"
# %%ranks
def own_slice(n):
    raise NotImplementedError


# %%
check("00.own_slice")
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
# changes is the road. Inside a DGX H100 server a GPU sends 450 GB/s to the others [1]. To other
# servers it has one network card of 50 GB/s [2], a ninth of that. The bytes that you count here become
# time there, and it matters which rank sits where.
#
# Failures become ordinary, too: in 54 days of Llama 3's training on 16,384 GPUs there were 419
# unexpected interruptions, one every three hours [3].
#
# `torchrun` tells each rank who it is (`RANK`; `LOCAL_RANK` within its server) and where all meet
# (`MASTER_ADDR`). Your ranks have these variables too:
# %% [markdown] lang="ko" en="d8982fa4"
# ## GPU 클러스터에서는
#
# 랭크는 `torchrun --nproc-per-node 8`로 띄우고, 여전히 프로세스 하나가 GPU 하나를 맡습니다. 달라지는 것은
# 데이터가 다니는 길입니다. DGX H100 서버 안에서는 GPU 하나가 다른 GPU에 450 GB/s로 보냅니다[1]. 다른 서버로 가는
# 네트워크 카드는 GPU마다 50 GB/s로[2] 9배 느립니다. 여기에서 센 바이트가 그곳에서는 시간이 되고, 어느 랭크가
# 어디에 있는지가 중요해집니다.
#
# 고장도 흔한 일이 됩니다. GPU 16,384개로 Llama 3를 학습하던 중의 54일 동안 예상하지 못한 중단이 419번, 세
# 시간에 한 번꼴로 있었습니다[3].
#
# `torchrun`은 환경 변수로 번호(`RANK`), 서버 안에서의 번호(`LOCAL_RANK`), 모일 주소(`MASTER_ADDR`)를 알려
# 줍니다. 지금 띄운 랭크에도 같은 변수가 있습니다.
# %%
# %%ranks
import os

{name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. A rank is a process with its own variables. Only its number tells it from the others.
# 2. Ranks share nothing. They talk in collectives, which all of them must call.
# 3. The same start and the mean of all gradients: four copies stay one model, that of one process.
# 4. In an `all_reduce` of $S$ bytes each of $n$ ranks sends $2\frac{n-1}{n}S$: never more than $2S$.
# 5. Strategy (how training is spread) and architecture (how the model is built) are two questions.
#
# Next, lesson 01: the collectives, and what happens when one rank does not come.
#
# Sources: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 900 GB/s both ways.
# [2] [DGX H100 guide](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783).
# %% [markdown] lang="ko" en="e5695970"
# ## 다섯 줄 요약
#
# 1. 랭크는 자기 변수를 가진 프로세스입니다. 처음에 다른 것은 번호뿐입니다.
# 2. 랭크는 아무것도 나눠 쓰지 않습니다. 모두가 함께 부르는 집합 통신으로 주고받습니다.
# 3. 같은 값에서 출발해 그래디언트의 평균을 쓰면 복제본 넷이 모델 하나로 남고, 단일 프로세스와 같습니다.
# 4. $S$바이트를 올리듀스하면 랭크 $n$개가 각각 $2\frac{n-1}{n}S$를 보냅니다. $2S$를 넘지 않습니다.
# 5. 전략(어떻게 나눌까)과 모델 구조(어떻게 만들까)는 서로 다른 질문입니다.
#
# 다음은 레슨 01, 집합 통신과 오지 않는 랭크입니다.
#
# 출처: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 양방향 합계 900 GB/s.
# [2] [DGX H100 안내서](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Run the cells above first.
# %% [markdown] lang="ko" en="0f4ee75a"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 먼저 실행하세요.
# %% [markdown] lang="en"
# ### Do four ranks take four times the memory?
#
# Four Python processes, each with torch. `top` shows the resident size (RSS) of each. **Predict**: how
# many times the memory of one do the four take together?
# %% [markdown] lang="ko" en="67331922"
# ### 랭크 네 개는 메모리도 네 배일까?
#
# torch를 띄운 파이썬 프로세스가 네 개입니다. `top`은 프로세스마다 상주 메모리(RSS)를 보여 줍니다. **예측해 보세요.**
# 넷을 합치면 하나의 몇 배일까요?
# %%
predict("00.memory")
# %%
# %%ranks --fast
import psutil

resident = psutil.Process().memory_info().rss
# %%
compare("00.memory", memory_together() / max(ranks["resident"]))
# %%
show_memory(ranks["resident"], memory_together())
# %% [markdown] lang="en"
# On Linux the ranks are copies (forks) of one process that had imported torch already. Pages that nobody
# has written to exist once. RSS counts such a page in full in every rank; **PSS** divides it among those
# who use it, so PSS adds up. The panel shows PSS.
#
# This saves code, not tensors: what a rank computes is its own. On GPUs each rank also has its own CUDA
# context in memory.
# %% [markdown] lang="ko" en="f6480f77"
# 리눅스에서 랭크는 torch를 이미 불러온 프로세스 하나를 복제(fork)한 것입니다. 아무도 고쳐 쓰지 않은 메모리 페이지는
# 실제로 하나뿐입니다. RSS는 그 페이지를 랭크마다 다 세고, **PSS**는 함께 쓰는 프로세스 수로 나누어 셉니다. 그래서
# 더해도 되는 값은 PSS이고, 패널도 PSS를 보여 줍니다.
#
# 아껴지는 것은 코드뿐입니다. 랭크가 만든 텐서는 저마다 따로 있습니다. GPU에서는 CUDA 컨텍스트도
# 랭크마다 따로 메모리를 씁니다.
# %% [markdown] lang="en"
# ### What a cell leaves behind
#
# `--as run` has kept what the cell with the gradient measured, as numbers and as figures. The counter in
# this figure is the whole machine's, so it may show more: what other programs send is in it.
# %% [markdown] lang="ko" en="a7e22b1b"
# ### 셀이 남긴 기록
#
# `--as run`이라고 쓴 셀에서 잰 것은 `run`에 숫자와 그림으로 들어 있습니다. 이 그림의 카운터는 컴퓨터 전체를
# 셉니다. 다른 프로그램이 보낸 것도 들어가므로 값이 더 클 수 있습니다.
# %%
run.comm.figure()
