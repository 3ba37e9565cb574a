# %% [markdown] lang="en"
# # 03 Data parallelism: the same model, sooner
#
# Say that training takes nine days on one GPU, and seven more stand idle beside it. You want the
# same model at the end, only sooner.
#
# So what exactly should each of the eight do? What must they tell each other, how often, and how
# many bytes is that? And is the result really the *same* model?
#
# You will answer with numbers from this machine, and on the way build what PyTorch's DDP does, in
# three small classes. You need the all-reduce of [lesson 01](01_collectives.ipynb). 30 to 40
# minutes.
# %% [markdown] lang="ko" en="91c0db53"
# # 03 데이터 병렬화(data parallelism): 같은 모델을 더 빨리
#
# GPU 한 개로 학습하면 9일이 걸리는데, 옆에 GPU 일곱 개가 놀고 있다고 합시다. 똑같은 모델을 더 빨리 얻고
# 싶습니다.
#
# 그렇다면 여덟 개는 각각 무슨 일을 해야 할까요? 서로 무엇을, 얼마나 자주, 몇 바이트나 주고받아야 할까요?
# 그렇게 얻은 모델은 정말 *같은* 모델일까요?
#
# 이 컴퓨터에서 직접 잰 숫자로 답합니다. 그러면서 PyTorch DDP가 하는 일을 작은 클래스 세 개로 만들어
# 봅니다. [레슨 01](01_collectives.ipynb)의 올리듀스(all-reduce)를 알면 됩니다. 30~40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% [markdown] lang="en"
# The plan: everybody gets a **copy** of the model and a **part** of the batch. After backward, the
# gradients meet and are averaged. Then everybody takes the same optimizer step.
#
# ```mermaid
# flowchart LR
#   B[one batch] --> R0[rank 0: copy, part 0] & R1[rank 1: copy, part 1]
#   B --> R2[rank 2: copy, part 2] & R3[rank 3: copy, part 3]
#   R0 & R1 & R2 & R3 --> M((mean of the<br>gradients))
#   M --> S[same step in<br>all copies]
# ```
# %% [markdown] lang="ko" en="aece91f6"
# 계획은 이렇습니다. 랭크(rank)마다 모델의 **복제본**과 배치의 **한 부분**을 갖습니다. 역전파가 끝나면
# 그래디언트(gradient)를 모아 평균을 냅니다. 그다음 모두 똑같이 파라미터를 고칩니다.
#
# ```mermaid
# flowchart LR
#   B[배치 하나] --> R0[랭크 0: 복제본, 0번 부분] & R1[랭크 1: 복제본, 1번 부분]
#   B --> R2[랭크 2: 복제본, 2번 부분] & R3[랭크 3: 복제본, 3번 부분]
#   R0 & R1 & R2 & R3 --> M((그래디언트의<br>평균))
#   M --> S[모든 복제본이<br>같은 스텝]
# ```
# %%
from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, quiz, show, solution
from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.run import timeline_figure
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import human_bytes

lesson(lang=lang, name="03_data_parallel")
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}")
# %% [markdown] lang="en"
# Let us start carelessly. Each rank makes a GPT of its own, from a random seed of its own, and
# takes its own part of the batch: two sequences of 128 bytes. The text is real: the source code of
# Python's standard library.
# %% [markdown] lang="ko" en="e5f9c8cf"
# 일부러 허술하게 시작해 보겠습니다. 랭크마다 서로 다른 시드로 GPT를 만들고, 배치에서 자기 몫을
# 가져옵니다. 128바이트짜리 시퀀스 두 개이고, 내용은 파이썬 표준 라이브러리의 소스 코드입니다.
# %%
# %%ranks
from dlcourse.models.gpt import GPT
from dlcourse.corpus import Corpus

corpus = Corpus()
batch = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=2)
batch = [half.to(device) for half in batch]
model = GPT(seed=rank).to(device)
loss = model(*batch).item()
text = bytes(batch[0][0, :36].tolist()).decode(errors="replace")
text, round(loss, 4)
# %% [markdown] lang="en"
# The losses differ, for two reasons. The texts differ: that is the plan. But the *models* differ
# too, and the mean of the gradients of different models means nothing.
#
# What must be true before the first step? All copies must be equal, to the last bit. So rank 0
# sends its parameters to everybody. `replica_drift` is the largest difference between any two
# ranks.
# %% [markdown] lang="ko" en="f0f058cf"
# 손실이 서로 다른 이유는 둘입니다. 읽은 글이 다른 것은 계획대로입니다. 그런데 *모델*도 다릅니다. 서로
# 다른 모델의 그래디언트를 평균 내 봐야 아무 의미가 없습니다.
#
# 첫 스텝을 시작하기 전에 무엇이 갖춰져 있어야 할까요? 모든 복제본이 비트 하나까지 같아야 합니다. 그래서 랭크 0이
# 자기 파라미터를 모두에게 보냅니다. `replica_drift`는 랭크끼리 가장 크게 벌어진 차이입니다.
# %%
# %%ranks
from dlcourse.parallel.replicas import broadcast_module, replica_drift

model = GPT(seed=rank).to(device)
drift_before = replica_drift(model)
broadcast_module(model)
drift_after = replica_drift(model)
num_parameters = model.num_parameters()
drift_before, drift_after
# %% [markdown] lang="en"
# From now on equal gradients keep the copies equal. So each step needs the mean of all gradients
# in every rank: one all-reduce, then a division.
#
# **Predict.** The model has about 873 thousand parameters of 4 bytes. How many bytes does each rank
# send in one step? (Lesson 01: an all-reduce of $S$ bytes over $p$ ranks sends
# $2\frac{p-1}{p}S$.) Write your number in place of `...`.
# %% [markdown] lang="ko" en="4f6fc431"
# 이제 그래디언트만 같으면 복제본은 계속 같습니다. 그래서 스텝마다 모든 랭크가 전체 그래디언트의 평균을
# 가져야 합니다. 올리듀스 한 번, 그리고 나눗셈입니다.
#
# **예측해 보세요.** 파라미터는 약 87만 3천 개, 하나에 4바이트입니다. 랭크 하나는 한 스텝에 몇 바이트를
# 보낼까요? (레슨 01: 랭크 $p$개에서 $S$바이트를 올리듀스하면 $2\frac{p-1}{p}S$를 보냅니다.) `...` 자리에
# 숫자를 적어 보세요.
# %%
parameter_bytes = 4 * ranks["num_parameters"][0]
to_send = 2 * (num_ranks - 1) / num_ranks * parameter_bytes
predict("03.bytes", ..., formula=to_send, unit="bytes")
# %% [markdown] lang="en"
# Here is the first of the three classes, whole. The line that matters is `dist.all_reduce`: there
# the ranks meet. (`broadcast_buffers` is for models with BatchNorm and the like; a GPT has nothing to
# send there.) You can change the class and run the cell again.
# %% [markdown] lang="ko" en="5d3608e9"
# 세 클래스 가운데 첫 번째의 코드 전체입니다. 핵심은 `dist.all_reduce` 한 줄입니다. 랭크들은 여기서
# 만납니다. (`broadcast_buffers`는 BatchNorm 같은 층이 있는 모델을 위한 것이고, GPT에는 보낼 버퍼가
# 없습니다.) 코드를 고쳐서 다시 실행해 봐도 됩니다.
# %% source="dlcourse.parallel.data:NaiveDataParallel"
# %%
# %%ranks
model = NaiveDataParallel(GPT(seed=rank).to(device))
replica_drift(model)
# %% [markdown] lang="en"
# Different seeds, and yet a drift of 0: the constructor has sent rank 0's model around. Now train.
# `train` is an ordinary loop: forward, backward, `model.sync_gradients()`, `optimizer.step()`.
# %% [markdown] lang="ko" en="83421e11"
# 시드가 다른데도 차이는 0입니다. 생성자가 랭크 0의 모델을 모두에게 보냈기 때문입니다. 이제 학습합니다.
# `train`은 평범한 반복문입니다. 순전파, 역전파, `model.sync_gradients()`, `optimizer.step()` 순서입니다.
# %%
# %%ranks --as naive
from dlcourse.parallel.data import train

losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
[round(loss, 3) for loss in losses]
# %%
naive.comm.figure()
# %% [markdown] lang="en"
# The bar shows what theory says for the buffers of all five steps (`all_gather` collected the
# losses). What really leaves a process in *one* step? Linux counts the bytes of each TCP connection;
# the subtitle comes from there. One step's exchange once more, between two readings:
# %% [markdown] lang="ko" en="6d26fc4f"
# 막대는 다섯 스텝에 쓴 버퍼로 계산한 이론값입니다(`all_gather`는 손실을 모은 것입니다). *한* 스텝에
# 프로세스에서 실제로 나가는 것은 얼마일까요? 리눅스는 TCP 연결마다 바이트를 셉니다. 제목 아래 측정값도
# 여기에서 왔습니다. 한 스텝의 교환을 한 번 더 하면서 앞뒤로 값을 읽어 봅니다.
# %%
# %%ranks --fast
from dlcourse.collectives.tcp_counters import wire_counters

before = wire_counters()
model.sync_gradients()
sent = wire_counters()[0] - before[0] if before else None
# %%
sent = [count for count in ranks["sent"] if count is not None] or [to_send]
compare("03.bytes", sum(sent) / len(sent))
assert naive.comm.ranks[0]["ops"]["all_reduce"]["bytes"] == steps * parameter_bytes
# %% [markdown] lang="en"
# The formula holds. The small rest is headers that Gloo puts in front of each message, as many
# bytes for a tiny message as for a large one. Remember that.
#
# But is it the same training? The same steps once more, and beside them one process that reads the
# whole batch alone.
# %% [markdown] lang="ko" en="33236c39"
# 공식이 맞았습니다. 조금 남는 것은 Gloo가 메시지마다 앞에 붙이는 헤더이고, 작은 메시지에도 큰 메시지와 똑같이
# 붙습니다. 기억해 두세요.
#
# 그런데 정말 같은 학습일까요? 같은 스텝을 한 번 더 하고, 배치 전체를 혼자 읽는 단일 프로세스와 견줘 봅니다.
# %%
# %%ranks --fast
from dlcourse.training import loop


def compare_with_one_process():
    model = NaiveDataParallel(GPT(seed=rank).to(device))
    train(model, corpus, steps=steps, batch_size=2 * world_size)
    drift = replica_drift(model)
    if rank > 0:
        return 0.0, drift
    alone = GPT(seed=0).to(device)
    loop.train(alone, corpus, steps=steps, batch_size=2 * world_size)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs), drift


apart, drift = compare_with_one_process()
# %%
lr = 1e-3
print(t(".apart", apart=f"{max(ranks['apart']):.1e}", allowed=f"{0.05 * lr:.0e}"))
print(t(".apart.why", lr=f"{lr:.0e}"))
assert max(ranks["apart"]) <= 0.05 * lr
assert ranks["drift"] == [0.0] * num_ranks
# %% [markdown] lang="en"
# So it is the same model, and all ranks hold it bit for bit. But is it *faster*? Look at one step
# of the naive class before you read on. Above: each rank's own work. Below: communication. Where is
# time lost?
# %% [markdown] lang="ko" en="663c6cbd"
# 같은 모델이고, 랭크끼리는 비트까지 똑같습니다. 그런데 *빠르기도* 할까요? 더 읽기 전에 naive 클래스의 한
# 스텝을 들여다보세요. 위쪽은 랭크가 하는 계산, 아래쪽은 통신입니다. 시간은 어디에서 새고 있을까요?
# %%
def show_step(run, name):
    hidden = f"{run.timeline.hidden_fraction:.0%}"
    figure = timeline_figure(run.timeline.data(), steps=steps - 1)
    return figure.update_layout(title_text=t(".timeline", name=name, hidden=hidden))


show_step(naive, "NaiveDataParallel")
# %% [markdown] lang="en"
# Two things hurt. Communication starts only when backward is over, and meanwhile nobody computes.
# And there are 57 messages, one a parameter, each of which costs a latency; most are tiny.
#
# First the messages. Put neighbouring gradients into one flat **bucket** and send that. A gradient
# becomes a *view* into its bucket, so the sum arrives where it is needed. First one bucket, then the
# class that fills and sends them:
# %% [markdown] lang="ko" en="062c6860"
# 문제는 둘입니다. 통신은 역전파가 다 끝나야 시작되고, 그동안 아무도 계산하지 않습니다. 게다가 메시지가
# 파라미터마다 하나씩 57개입니다. 대부분 아주 작은데, 하나하나 지연 시간(latency)을 치릅니다.
#
# 메시지부터 줄여 봅시다. 이웃한 그래디언트를 평평한 **버킷**(bucket) 하나에 담아 한꺼번에 보냅니다.
# 그래디언트는 버킷의 *뷰*(view)가 되므로, 합은 필요한 자리에 바로 도착합니다. 먼저 버킷 하나를 보고,
# 이어서 버킷을 채워 보내는 클래스를 봅니다.
# %%
show("dlcourse.parallel.data_buckets:Bucket")
# %% source="dlcourse.parallel.data:BucketedDataParallel"
# %%
# %%ranks
model = BucketedDataParallel(GPT(seed=rank).to(device), first_bucket_mb=0.25, bucket_cap_mb=0.5)
[bucket.buffer.nbytes for bucket in model.buckets]
# %%
# %%ranks --as bucketed
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %% [markdown] lang="en"
# Seven messages in place of 57. Now the gap. Backward runs from the last layer to the first, so the
# *last* layer's gradient is ready long before backward ends. Why wait? Send a bucket as soon as it
# is full, while backward goes on with the next layers. PyTorch helps: it calls a **hook**, a
# function of ours, whenever a gradient is complete.
#
# ```mermaid
# flowchart LR
#   A[backward<br>block 3] --> B[backward<br>block 2] --> C[backward<br>block 1] --> D[…]
#   A -. bucket 0 .-> X([all-reduce])
#   B -. bucket 1 .-> Y([all-reduce])
#   C -. bucket 2 .-> Z([all-reduce])
# ```
# %% [markdown] lang="ko" en="43559d5c"
# 57개가 7개로 줄었습니다. 이제 빈틈을 메울 차례입니다. 역전파는 마지막 층에서 첫 층으로 갑니다. 그래서
# *마지막* 층의 그래디언트는 역전파가 끝나기 한참 전에 준비됩니다. 기다릴 이유가 있을까요? 버킷이 차는 대로
# 보내고, 역전파는 다음 층을 계속 계산하면 됩니다. 그래디언트 하나가 완성될 때마다 PyTorch가 우리가 걸어
# 둔 함수, 곧 **훅**(hook)을 불러 줍니다.
#
# ```mermaid
# flowchart LR
#   A[역전파<br>블록 3] --> B[역전파<br>블록 2] --> C[역전파<br>블록 1] --> D[…]
#   A -. 버킷 0 .-> X([올리듀스])
#   B -. 버킷 1 .-> Y([올리듀스])
#   C -. 버킷 2 .-> Z([올리듀스])
# ```
# %% source="dlcourse.parallel.data:OverlappedDataParallel"
# %%
# %%ranks
model = OverlappedDataParallel(GPT(seed=rank).to(device), first_bucket_mb=0.25, bucket_cap_mb=0.5)
# %%
# %%ranks --as overlapped
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %%
show_step(overlapped, "OverlappedDataParallel")
# %% [markdown] lang="en"
# Communication now lies *under* backward. The share of time that is hidden depends on the machine
# and its load. The order of events does not: how many messages left before backward had ended?
# %% [markdown] lang="ko" en="35d7b6cd"
# 통신이 역전파 *아래로* 들어갔습니다. 숨은 시간의 비율은 컴퓨터의 상태에 따라 달라집니다. 하지만 사건의
# 순서는 달라지지 않습니다. 역전파가 끝나기 전에 떠난 메시지는 몇 개일까요?
# %%
def messages(run):
    lane, sent, early = run.timeline.ranks[0], 0, 0
    calls = [c["start_s"] for c in run.comm.calls if (c["rank"], c["op"]) == (0, "all_reduce")]
    for start, end in lane["steps"]:
        backward = max(b for a, b, kind, _ in lane["spans"] if kind == "backward" and a < end)
        sent += sum(start <= call < end for call in calls)
        early += sum(start <= call < backward for call in calls)
    return sent // steps, early // steps


# %%
runs = {"Naive": naive, "Bucketed": bucketed, "Overlapped": overlapped}
rows = [[name, *messages(run), f"{run.timeline.hidden_fraction:.0%}"] for name, run in runs.items()]
head = ("implementation", "messages", "early", "hidden")
assert [early for _, _, early, _ in rows] == [0, 0, rows[2][1]]
Table([t(f".{key}") for key in head], rows)
# %% [markdown] lang="en"
# Overlapped sends every message from a hook, so even the last one leaves early. The few percent that
# Bucketed hides lie under copying into the next bucket.
#
# How large should a bucket be? With buckets of $b$ bytes there are $S/b$ messages, each with a
# latency $\alpha$. And the last bucket leaves with the last gradient: no computation remains that
# could hide its time $\beta b$ ($\beta$: seconds a byte). The sum $\frac{S}{b}\alpha + \beta b$ is least at $b = \sqrt{S\alpha/\beta}$.
#
# **Predict** the best size in bytes. For the formula, $\alpha$ and $\beta$ are measured first.
# %% [markdown] lang="ko" en="7c610bc1"
# Overlapped는 모두 훅에서 보내므로 마지막 메시지까지 역전파가 끝나기 전에 떠납니다. Bucketed가 숨긴 몇
# %는 다음 버킷에 복사하는 동안입니다.
#
# 버킷은 얼마나 커야 할까요? 버킷이 $b$바이트면 메시지는 $S/b$개이고, 하나하나 지연 시간 $\alpha$를
# 치릅니다. 한편 마지막 버킷은 마지막 그래디언트와 함께 떠나서 그 뒤에 남은 계산이 없으므로, 보내는 시간
# $\beta b$를 숨길 수 없습니다($\beta$는 1바이트를 보내는 시간). 합 $\frac{S}{b}\alpha + \beta b$는
# $b = \sqrt{S\alpha/\beta}$일 때 가장 작습니다.
#
# 가장 좋은 버킷 크기를 바이트로 **예측해 보세요.** 공식에 넣을 $\alpha$와 $\beta$를 먼저 잽니다.
# %%
# %%ranks --fast
from dlcourse.collectives.benchmark import measure

sizes = [4, 4 * num_parameters]
short, whole = measure(["torch_all_reduce"], sizes, repeats=8, device=device)
latency, whole = short["seconds"], whole["seconds"]
# %%
alpha = ranks["latency"][0]
beta = (ranks["whole"][0] - alpha) / parameter_bytes
best_size = (parameter_bytes * alpha / max(beta, 1e-12)) ** 0.5
predict("03.bucket", ..., formula=best_size, unit="bytes")
# %%
# %%ranks --fast
import time


def sweep(caps, turns=5):
    seconds = {cap: [] for cap in caps}
    gpt = [OverlappedDataParallel(GPT().to(device), first_bucket_mb=c, bucket_cap_mb=c) for c in caps]
    for cap, model in list(zip(caps, gpt, strict=True)) * turns:
        model.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        model(*batch).backward()
        model.sync_gradients()
        seconds[cap].append(time.perf_counter() - start)
    return [min(times[1:]) for times in seconds.values()]


# %%
caps = [0.05, 0.2, 0.5, 1, 4]
ranks.cell(f"step_seconds = sweep({caps})", record=False)
slowest = [max(times) for times in zip(*ranks["step_seconds"], strict=True)]
best = caps[slowest.index(min(slowest))]
compare("03.bucket", best * 2**20)
sweep_figure(
    [cap * 2**20 for cap in caps],
    {"OverlappedDataParallel": slowest},
    x_title=t(".axis.bucket"),
    y_title=t(".axis.step"),
    **{"x_unit": "bytes", "y_unit": "seconds", "log_x": True, "best": "min"},
)
# %% [markdown] lang="en"
# Left: many messages, latency dominates. Right: 4 MiB holds the whole model, so everything leaves at
# the end and nothing is hidden. In between, the order changes from run to run.
#
# Two reasons why your best point may lie elsewhere. The machine is noisy: do not trust the third
# digit. And here the same cores compute *and* send, so hiding gains little, and even the right end
# may win; the formula knows nothing of that.
# %% [markdown] lang="ko" en="c0df97f5"
# 왼쪽 끝은 메시지가 많아 지연 시간이 지배합니다. 오른쪽 끝의 4 MiB에는 모델 전체가 들어가므로, 모두 맨
# 끝에 떠나고 아무것도 숨지 않습니다. 그 사이의 순위는 잴 때마다 바뀝니다.
#
# 가장 좋은 점이 예측과 다를 수 있는 이유는 둘입니다. 우선 잰 시간이 들쭉날쭉합니다. 끝자리까지 믿지는
# 마세요. 그리고 여기서는 같은 코어가 계산도 하고 *보내기도* 하므로 숨겨서 얻는 것이 적고, 오른쪽 끝이 이길
# 수도 있습니다. 공식은 그런 사정을 모릅니다.
# %% [markdown] lang="en"
# ## Breaking it on purpose
#
# With gradient accumulation a step has several micro-batches, and only the last backward should
# send. What if you forget to say so?
# %% [markdown] lang="ko" en="c7a1dbf6"
# ## 일부러 망가뜨리기
#
# 그래디언트 누적(gradient accumulation)에서는 한 스텝에 마이크로배치(micro-batch)가 여러 개이고,
# 마지막 역전파에서만 보내면 됩니다. 그렇게 하라고 알려 주는 것을 잊으면 어떻게 될까요?
# %%
# %%ranks --fails "backward ran twice"
def forgetful():
    model = OverlappedDataParallel(GPT().to(device))
    for tokens, targets in zip(*batch, strict=True):
        model(tokens[None], targets[None]).backward()


forgetful()
# %% [markdown] lang="en"
# Ours refuses, and says what to do. DDP says nothing and sends twice. In both, the **forward** decides whether the
# backward that follows sends. So `no_sync()` must be around the forward as well. Here are two
# micro-batches in DDP, with more or less of them inside:
# %% [markdown] lang="ko" en="21bb7963"
# 우리 클래스는 거부하고, 어떻게 하라고 알려 줍니다. DDP는 아무 말 없이 두 번 보냅니다. 둘 다 뒤따르는 역전파에서
# 보낼지 말지를 **순전파**에서 정합니다. 그래서 `no_sync()`는 순전파까지 감싸야 합니다. DDP에서 마이크로배치 두
# 개를 놓고, 무엇을 안에 넣느냐에 따라 어떻게 되는지 보겠습니다.
# %%
# %%ranks
from contextlib import nullcontext

from torch.nn.parallel import DistributedDataParallel


def accumulate(quiet_forwards, quiet_backwards):
    ddp = DistributedDataParallel(GPT().to(device))
    for i, (tokens, targets) in enumerate(zip(*batch, strict=True)):
        with ddp.no_sync() if i in quiet_forwards else nullcontext():
            loss = ddp(tokens[None], targets[None]) / 2
        with ddp.no_sync() if i in quiet_backwards else nullcontext():
            loss.backward()
    torch.optim.SGD(ddp.parameters(), lr=0.1).step()
    return ddp


# %%
cases = {"both": ([0], [0]), "backward_only": ([], [0]), "last_forward": ([0, 1], [0])}
rows = []
for name, quiet in cases.items():
    ranks.cell(f"trial = accumulate{quiet}")
    sent = ranks.last.comm.ranks[0]["ops"].get("all_reduce", {"bytes": 0})["bytes"]
    ranks.cell("trial_drift = replica_drift(trial); del trial", record=False)
    unsynced = ranks["trial_drift"][0]
    rows.append([t(f".no_sync.{name}"), f"{sent / parameter_bytes:g} ×", unsynced])
assert [row[1] for row in rows] == ["1 ×", "2 ×", "0 ×"]
assert rows[0][2] == rows[1][2] == 0 < rows[2][2]
Table([t(f".no_sync{key}") for key in ("", ".sent", ".drift")], rows)
# %% [markdown] lang="en"
# Row 2: the result is right, and twice the bytes are sent. Row 3: **nothing** is sent, every rank
# steps by its own gradient, and the copies are no longer copies. In a real job you would see no
# error, no warning, only a loss that ends a little too high.
#
# The check that finds it costs two all-reduces. Call it every few hundred steps:
# %% [markdown] lang="ko" en="5a98ba67"
# 둘째 줄은 결과는 맞지만 바이트를 두 배로 보냅니다. 셋째 줄은 **아무것도** 보내지 않습니다. 랭크마다 자기
# 그래디언트로 나아가니 복제본은 더 이상 복제본이 아닙니다. 실제 작업이라면 오류도 경고도 없이 손실만 조금
# 높게 끝날 것입니다.
#
# 이런 일을 찾아내는 검사는 올리듀스 두 번이면 됩니다. 수백 스텝마다 한 번씩 부르세요.
# %%
show("dlcourse.parallel.replicas:replica_drift")
# %% [markdown] lang="en"
# A second quiet trap: **unequal batches**. One rank has a single value, 4. Another has three: 2, 2,
# 2. The mean of the means is 3; the mean of all four is 2.5. Here rank $r$ gets $r + 1$ sequences.
# `loss_weight` counts every token the same:
# %% [markdown] lang="ko" en="c14add1c"
# 조용한 함정이 하나 더 있습니다. **크기가 다른 배치**입니다. 한 랭크에는 값이 4 하나, 다른 랭크에는 2, 2,
# 2 셋이 있다고 합시다. 평균의 평균은 3이지만, 네 값의 평균은 2.5입니다. 여기서는 랭크 $r$에 시퀀스를
# $r + 1$개 줍니다. `loss_weight`는 모든 토큰을 똑같이 셉니다.
# %%
show("dlcourse.parallel.replicas:loss_weight")
# %%
# %%ranks --fast
from dlcourse.parallel.replicas import loss_weight


def gradient(model, tokens, targets, weight=1.0):
    (model(tokens.to(device), targets.to(device)) * weight).backward()
    getattr(model, "sync_gradients", lambda: None)()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


counts = [r + 1 for r in range(world_size)]
rows = [half.split(counts) for half in corpus.batch(0, micro_batch=sum(counts))]
mine = [half[rank] for half in rows]
# %%
# %%ranks --fast
def uneven():
    weight = loss_weight(mine[1].numel(), device=device)
    wanted = gradient(GPT().to(device), *map(torch.cat, rows))
    plain = gradient(NaiveDataParallel(GPT().to(device)), *mine)
    weighted = gradient(NaiveDataParallel(GPT().to(device)), *mine, weight)
    return [((g - wanted).norm() / wanted.norm()).item() for g in (plain, weighted)]


plain, weighted = uneven()
# %%
plain, weighted = max(ranks["plain"]), max(ranks["weighted"])
print(t(".uneven", plain=f"{plain:.1%}", weighted=f"{weighted:.0e}"))
assert weighted < 1e-5 < plain
# %% [markdown] lang="en"
# ## Beside the real library
#
# `DistributedDataParallel` is what you use at work: buckets and hooks too, written in C++. Same
# model, same data, same table. In the first of these cells DDP trains, in the second our class.
# %% [markdown] lang="ko" en="8c614aab"
# ## 실제 라이브러리와 나란히
#
# 실무에서는 `DistributedDataParallel`을 씁니다. 똑같이 버킷과 훅으로 되어 있고 C++로 쓰였습니다. 같은
# 모델, 같은 데이터로 재서 표 하나에 놓습니다. 첫 셀에서는 DDP가, 둘째 셀에서는 우리 클래스가 학습합니다.
# %%
# %%ranks --as theirs
import gc

from dlcourse.peers import ddp

model = GPT(seed=rank).to(device)
gc.collect()
their_losses = ddp.train(model, corpus, steps=steps, batch_size=2 * world_size)["losses"]
# %%
# %%ranks --as ours
model = OverlappedDataParallel(GPT(seed=rank).to(device))
gc.collect()
our_losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %%
our_losses, their_losses = ranks["our_losses"][0], ranks["their_losses"][0]
assert max(abs(a - b) for a, b in zip(our_losses, their_losses, strict=True)) < 1e-4
# %%
# %%ranks --fast
def race(turns=8):
    racers = [wrap(GPT().to(device)) for wrap in (OverlappedDataParallel, DistributedDataParallel)]
    seconds = [[], []]
    for turn in range(2 * turns):
        model = racers[turn % 2]
        model.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        model(*batch).backward()
        getattr(model, "sync_gradients", lambda: None)()
        seconds[turn % 2].append(time.perf_counter() - start)
    return [min(times[2:]) for times in seconds]


race_seconds = race()
# %%
def column(run, losses, seconds):
    peak = run.memory.ranks[0]["at_peak"]
    buckets = peak["gradients"] + peak["communication"] + peak["other"]
    kept = [peak["parameters"], buckets, peak["optimizer_state"], peak["activations"]]
    sent = run.comm.ranks[0]["ops"]["all_reduce"]["bytes"] / steps
    sizes = [human_bytes(size) for size in (sent, sum(peak.values()), *kept)]
    return [f"{losses[-1]:.5f}", f"{seconds:.2f}", *sizes]


# %%
our_s, their_s = (max(times) for times in zip(*ranks["race_seconds"], strict=True))
keys = ("loss", "time", "bytes", "peak", "parameters", "buckets", "optimizer_state", "activations")
columns = [column(ours, our_losses, our_s / their_s), column(theirs, their_losses, 1)]
rows = zip([t(f".peer.{key}") for key in keys], *columns, strict=True)
Table([t(".peer.quantity"), "OverlappedDataParallel", "DDP"], rows)
# %% [markdown] lang="en"
# Same loss, same bytes, same memory: you have read what DDP does. By default it keeps gradients
# *beside* its buckets, not as views (`gradient_as_bucket_view`); the peak comes at the end of the
# forward, before there are any. Times on a laptop are noisy; run the race a few times.
#
# Every rank keeps *all* parameters and *all* optimizer state, the same numbers in each. That waste
# is lesson 06: `ZeroRedundancyOptimizer` and FSDP wait there. Horovod does this job as well; its
# last release (0.28.1, 2023) must be compiled, so it waits for lesson 15.
# %% [markdown] lang="ko" en="82e787b6"
# 손실도, 바이트도, 메모리도 같습니다. DDP가 하는 일을 다 읽은 셈입니다. DDP의 기본값은 그래디언트를 뷰로
# 두지 않고 버킷과 *따로* 둡니다(`gradient_as_bucket_view`). 다만 메모리는 그래디언트가 아직 없는 순전파
# 끝에서 가장 많아 여기서는 차이가 없습니다. 시간은 들쭉날쭉하니 몇 번 더 실행해 보세요.
#
# 랭크마다 *모든* 파라미터와 *모든* 옵티마이저 상태(optimizer state)를 똑같이 들고 있습니다. 이 낭비는 레슨
# 06에서 다룹니다. `ZeroRedundancyOptimizer`와 FSDP도 거기에서 봅니다. Horovod도 같은 일을 하지만 마지막
# 버전(0.28.1, 2023년)을 직접 컴파일해야 하므로 레슨 15로 미룹니다.
# %% [markdown] lang="en"
# Data parallelism is usually described by one sentence. How much of it holds?
# %% [markdown] lang="ko" en="1d4c561e"
# 데이터 병렬화는 보통 한 문장으로 설명합니다. 그 문장은 얼마나 맞을까요?
# %%
claim(
    "B1",
    drift=max(ranks["drift"]),
    apart=100 * max(ranks["apart"]) / lr,
    start=ranks["drift_before"][0],
    unsynced=unsynced,
    uneven=100 * plain,
)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("03.mean")` helps step by step;
# `solution("03.mean")` shows one answer.
#
# **1. `03.mean`** (3 minutes). Each rank has a vector `x` with a different number of values, perhaps
# none. Return the mean of all values of all ranks, with one all-reduce of two numbers.
# %% [markdown] lang="ko" en="83112da6"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("03.mean")`은 한 단계씩 도와주고,
# `solution("03.mean")`은 답 하나를 보여 줍니다.
#
# **1. `03.mean`** (3분). 랭크마다 벡터 `x`가 있고, 값의 개수는 서로 다르며 하나도 없을 수도 있습니다. 모든
# 랭크의 모든 값의 평균을 돌려주세요. 숫자 두 개를 올리듀스 한 번으로 보내면 됩니다.
# %% exercise="03.mean"
# %%ranks
def mean_over_ranks(x):
    raise NotImplementedError


# %%
check("03.mean")
# %% [markdown] lang="en"
# **2. `03.buckets`** (8 minutes). `sizes` holds the bytes of each parameter, in the order of the
# forward. Return the buckets as lists of positions in `sizes`, in the order in which backward
# finishes them. No bucket over `cap` bytes (one parameter larger than that goes alone), and as few
# buckets as this order allows: `assign([10, 20, 30, 40, 50], 60)` is `[[4], [3], [2, 1, 0]]`.
# Unlike here, DDP closes a bucket only *after* it has reached its cap.
# %% [markdown] lang="ko" en="5ec19f35"
# **2. `03.buckets`** (8분). `sizes`에는 순전파 순서로 각 파라미터의 바이트 수가 들어 있습니다. 버킷마다
# `sizes`의 위치를 리스트에 담아, 역전파가 끝내는 순서대로 돌려주세요. 어느 버킷도 `cap`바이트를 넘으면 안
# 되고(그보다 큰 파라미터는 혼자 들어갑니다), 그 순서를 지키면서 버킷 수가 가장 적어야 합니다. 예를 들어
# `assign([10, 20, 30, 40, 50], 60)`은 `[[4], [3], [2, 1, 0]]`입니다. DDP는 이와 달리 제한에 *이른 뒤에야*
# 버킷을 닫습니다.
# %% exercise="03.buckets"
# %%ranks
def assign(sizes, cap):
    raise NotImplementedError


# %%
check("03.buckets")
# %% [markdown] lang="en"
# **3. `03.overlap`** (15 minutes). `Overlap` is made once; every step then runs forward, backward and
# `finish()`. `buckets` are lists of parameters, in the order in which backward finishes them. Start
# each bucket's all-reduce from hooks, without waiting; after `finish()` every `.grad` is the mean.
# Target: at least 60% of the bytes leave before backward has ended. The order of events is judged,
# not the time, so a busy machine does not matter.
# %% [markdown] lang="ko" en="dd1360f1"
# **3. `03.overlap`** (15분). `Overlap`은 한 번 만들고, 스텝마다 순전파, 역전파, `finish()`를 차례로 부릅니다.
# `buckets`에는 파라미터의 리스트가 역전파가 끝내는 순서대로 들어 있습니다. 버킷이 차면 훅에서 올리듀스를
# 시작하되 기다리지는 마세요. `finish()` 뒤에는 모든 `.grad`가 평균이어야 합니다. 목표는 바이트의 60% 이상이
# 역전파가 끝나기 전에 떠나는 것입니다. 시간이 아니라 사건의 순서로 판정하므로 컴퓨터가 바빠도 상관없습니다.
# %% exercise="03.overlap"
# %%ranks
class Overlap:
    def __init__(self, module, buckets):
        raise NotImplementedError

    def finish(self):
        raise NotImplementedError


# %%
check("03.overlap")
# %% [markdown] lang="en"
# **4. `03.find_the_bug`** (20 minutes). The loop below runs, its loss falls, and its ranks drift.
# There are **three** bugs in it. Mend it so that it equals one process that trains on all rows: when
# gradients are large, when ranks have different numbers of rows, and when one rank's loss rises
# while the others' fall.
# %% [markdown] lang="ko" en="e38e6d69"
# **4. `03.find_the_bug`** (20분). 아래 반복문은 잘 돌고 손실도 줄어들지만 랭크끼리 어긋납니다. 버그가 **세 개**
# 있습니다. 모든 행을 혼자 학습한 단일 프로세스와 같아지도록 고치세요. 그래디언트가 클 때도, 랭크마다 행 수가
# 다를 때도, 한 랭크의 손실만 오를 때도 같아야 합니다.
# %% exercise="03.find_the_bug"
# %%ranks
def train_ranks(model, batches, lr):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
        optimizer.step()
        scheduler.step(loss.item())


# %%
check("03.find_the_bug")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# | | here | DGX H100 cluster |
# |---|---|---|
# | backend | Gloo, TCP | NCCL |
# | inside a node | loopback | NVLink, 450 GB/s each way [1] |
# | between nodes | – | one 400 Gb/s card a GPU: 50 GB/s [2] |
# | bucket | the curve above | DDP: 25 MiB, the first 1 MiB [3] |
#
# The network is 9 times slower, so sum inside nodes first: each GPU then sends an eighth over its
# card. NCCL's trees keep latency low [4]. GPUs compute while cards move bytes: overlap gains more. The DDP paper reports near-linear scaling to 256 GPUs [5].
#
# No GPU run is recorded yet. Derived only: seconds for the gradients of 7 billion bf16 parameters on
# 8 GPUs; on 64, all by network; on 64, nodes first.
# %% [markdown] lang="ko" en="786abc01"
# ## GPU 클러스터에서는
#
# | | 여기 | DGX H100 클러스터 |
# |---|---|---|
# | 백엔드 | Gloo, TCP | NCCL |
# | 노드 안 | 루프백 | NVLink, 방향마다 450 GB/s [1] |
# | 노드 사이 | – | GPU마다 400 Gb/s 카드: 50 GB/s [2] |
# | 버킷 | 위 그래프 | DDP: 25 MiB, 첫 버킷 1 MiB [3] |
#
# 네트워크가 9배 느려서 노드 안에서 먼저 더합니다. 그러면 GPU마다 1/8만 카드로 내보냅니다. NCCL의 트리는
# 지연 시간을 줄입니다[4]. 통신 중에도 GPU는 계산하므로 중첩(overlap)이 더 이롭습니다. DDP 논문은
# GPU 256개까지 거의 선형이라고 합니다[5].
#
# GPU 실행 기록이 없어 계산만 합니다. bf16 파라미터 70억 개라면 GPU 8개, 네트워크만 쓰는 64개, 노드
# 안부터 더하는 64개에서 몇 초일까요?
# %% tags=["nbval-check-output"]
def all_reduce_seconds(size, gpus, speed):
    return wire_bytes("all_reduce", size, gpus) / speed


node, flat = all_reduce_seconds(14e9, 8, 450e9), all_reduce_seconds(14e9, 64, 50e9)
nested = node + all_reduce_seconds(14e9 / 8, 8, 50e9)
{"8": f"{node:.3f} s", "64 flat": f"{flat:.3f} s", "64 nested": f"{nested:.3f} s"}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Equal start, equal steps: broadcast once, then average every gradient.
# 2. A rank sends $2\frac{p-1}{p}$ times the gradients, however many ranks there are.
# 3. Buckets save latencies; hooks hide communication behind backward.
# 4. Ranks that drift raise no error: check, and mind `no_sync()` and unequal batches.
# 5. Every rank still holds everything. Lesson 06 (ZeRO) starts from that waste.
#
# Sources: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 900 GB/s both ways.
# [2] [DGX H100 guide](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [PyTorch DDP](https://docs.pytorch.org/docs/stable/notes/ddp.html) and its source.
# [4] [NCCL 2.4](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/).
# [5] [Li et al., VLDB 2020](https://arxiv.org/abs/2006.15704).
# %% [markdown] lang="ko" en="52df0272"
# ## 다섯 줄 요약
#
# 1. 같은 모델에서 출발해 같은 스텝을 밟습니다. 한 번 브로드캐스트하고, 스텝마다 그래디언트를 평균 냅니다.
# 2. 랭크가 몇 개든 하나가 보내는 양은 그래디언트의 $2\frac{p-1}{p}$배입니다.
# 3. 버킷은 지연 시간을 줄이고, 훅은 통신을 역전파 뒤에 숨깁니다.
# 4. 랭크가 어긋나도 오류는 나지 않습니다. 직접 확인하고, `no_sync()`와 크기가 다른 배치를 조심하세요.
# 5. 랭크마다 여전히 모든 것을 들고 있습니다. 레슨 06(ZeRO)은 이 낭비에서 시작합니다.
#
# 출처: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 양방향 합계 900 GB/s.
# [2] [DGX H100 안내서](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [PyTorch DDP](https://docs.pytorch.org/docs/stable/notes/ddp.html)와 그 소스 코드.
# [4] [NCCL 2.4](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/).
# [5] [Li 외, VLDB 2020](https://arxiv.org/abs/2006.15704).
# %%
quiz()
