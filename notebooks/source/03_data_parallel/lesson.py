# %% [markdown] lang="en" form="core"
# # 03 Data parallelism: the same model, sooner
#
# Say that training takes nine days on one GPU, and seven more stand idle beside it. You want the
# same model at the end, only sooner.
#
# So what exactly should each of the eight do? What must they tell each other, and how many bytes is
# that? Is the result really the *same* model, and how much sooner does it come?
#
# You will build what PyTorch's DDP does in a few lines. You need the all-reduce of
# [lesson 01](01_collectives.ipynb).
#
# Time: reading 20 min + exercises 46 min.
# %% [markdown] lang="ko" en="4bb2ee6d"
# # 03 데이터 병렬화(data parallelism): 같은 모델을 더 빨리
#
# GPU 한 개로 학습하면 9일이 걸리는데, 옆에 GPU 일곱 개가 놀고 있다고 합시다. 똑같은 모델을 더 빨리 얻고
# 싶습니다.
#
# 그렇다면 여덟 개는 각각 무슨 일을 해야 할까요? 서로 무엇을 몇 바이트나 주고받아야 할까요? 그렇게 얻은 모델은
# 정말 *같은* 모델이고, 얼마나 빨라질까요?
#
# PyTorch DDP가 하는 일을 몇 줄로 만들어 봅니다. [레슨 01](01_collectives.ipynb)의 올리듀스(all-reduce)를 알면
# 됩니다.
#
# 시간: 읽기 20분 + 연습 46분.
# %% tags=["parameters"] hidden=true
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
# 그래디언트(gradient)를 모아 평균을 냅니다. 그다음 모두 똑같이 파라미터를 갱신합니다.
#
# ```mermaid
# flowchart LR
#   B[배치 하나] --> R0[랭크 0: 복제본, 0번 부분] & R1[랭크 1: 복제본, 1번 부분]
#   B --> R2[랭크 2: 복제본, 2번 부분] & R3[랭크 3: 복제본, 3번 부분]
#   R0 & R1 & R2 & R3 --> M((그래디언트의<br>평균))
#   M --> S[모든 복제본이<br>같은 스텝]
# ```
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, show
from dlcourse import solution
from dlcourse.figures.data_parallel import overlap_of_buckets, show_buckets, show_cluster
from dlcourse.figures.data_parallel import show_equal, show_imposed, show_no_sync
from dlcourse.figures.data_parallel import show_peers, show_scaling, show_steps, show_uneven

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
# %% hidden=true
# %%ranks --fast
import gc
import time

from dlcourse.collectives.imposed_time import imposed_link, takes
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus
from dlcourse.formulas.overlap import Job
from dlcourse.models.gpt import GPT
from dlcourse.parallel.data import BucketedDataParallel, NaiveDataParallel
from dlcourse.parallel.data import OverlappedDataParallel, train
from dlcourse.parallel.replicas import broadcast_module, loss_weight, replica_drift
from dlcourse.peers import ddp
from dlcourse.training import loop

corpus = Corpus()
batch = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=2)
batch = [half.to(device) for half in batch]
# %%
# %%ranks
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
# 첫 스텝을 시작하기 전에 무엇이 갖춰져 있어야 할까요? 모든 복제본이 비트 하나까지 같아야 합니다. 그래서 랭크
# 0이 자기 파라미터를 모두에게 보냅니다. `replica_drift`는 랭크끼리 가장 크게 벌어진 차이입니다.
# %%
# %%ranks
drift_before = replica_drift(model)
broadcast_module(model)
drift_before, replica_drift(model)
# %% [markdown] lang="en"
# From now on equal gradients keep the copies equal. Each step needs the mean of all gradients in
# every rank. These lines are data parallelism; the line that matters is `dist.all_reduce`, where the
# ranks meet. Folded below: the same as a module, which also knows frozen and unused parameters.
# %% [markdown] lang="ko" en="70c37e9c"
# 이제 그래디언트만 같으면 복제본은 계속 같습니다. 그래서 스텝마다 모든 랭크가 전체 그래디언트의 평균을 가져야
# 합니다. 아래 몇 줄이 데이터 병렬화의 전부이고, 핵심은 랭크들이 만나는 `dist.all_reduce`입니다. 접어 둔 셀은 고정된
# 파라미터와 쓰이지 않은 파라미터까지 다루는 모듈입니다.
# %%
# %%ranks
class Naive(nn.Module):
    process_group, world_size = None, dist.get_world_size()

    def __init__(self, module):
        super().__init__()
        self.module = module
        broadcast_module(module)

    def forward(self, *batch):
        return self.module(*batch)

    def sync_gradients(self):
        for parameter in self.module.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.world_size
# %% hidden=true source="dlcourse.parallel.data:NaiveDataParallel"

# %% [markdown] lang="en"
# **Predict.** The model has 873,728 parameters of 4 bytes. How many bytes does each of four ranks
# send in one step? (Think of lesson 01: what does an all-reduce of $S$ bytes over $p$ ranks send?)
#
# `train` is an ordinary loop: forward, backward, `model.sync_gradients()`, `optimizer.step()`. Linux
# counts the bytes of each TCP connection, so one more exchange is measured between two readings.
# %% [markdown] lang="ko" en="dffb2bd1"
# **예측해 보세요.** 파라미터는 873,728개, 하나에 4바이트입니다. 랭크 네 개는 한 스텝에 저마다 몇 바이트를
# 보낼까요? (레슨 01을 떠올려 보세요. 랭크 $p$개에서 $S$바이트를 올리듀스하면 얼마를 보냈나요?)
#
# `train`은 평범한 반복문입니다. 순전파, 역전파, `model.sync_gradients()`, `optimizer.step()` 순서입니다. 리눅스는
# TCP 연결마다 바이트를 세므로, 교환을 한 번 더 하면서 앞뒤로 값을 읽습니다.
# %%
predict("03.bytes")
# %%
# %%ranks --as naive
model = Naive(GPT(seed=rank).to(device))
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
[round(loss, 3) for loss in losses]
# %% hidden=true
# %%ranks --fast
before = wire_counters()
model.sync_gradients()
buffers = 2 * (world_size - 1) / world_size * sum(p.nbytes for p in model.parameters())
sent = wire_counters()[0] - before[0] if before else buffers
# %%
compare("03.bytes", sum(ranks["sent"]) / num_ranks)
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
# %% hidden=true
# %%ranks --fast
def compare_with_one_process():
    model = Naive(GPT(seed=rank).to(device))
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
show_equal(ranks["apart"], ranks["drift"])
# %% [markdown] lang="en"
# So, but for rounding, it is the same model, and all ranks hold it bit for bit.
#
# ## When does communication hide?
#
# But is it *faster*? In `Naive`, communication starts only when backward is over. Yet backward runs from
# the last layer to the first, so the *last* layer's gradient is ready long before. PyTorch calls a
# **hook**, a function of ours, whenever a gradient is complete. So why wait?
# %% [markdown] lang="ko" en="18b81b0f"
# 반올림 오차를 빼면 같은 모델이고, 랭크끼리는 비트까지 똑같습니다.
#
# ## 통신은 언제 숨을까?
#
# 그런데 *빠르기도* 할까요? `Naive`의 통신은 역전파가 다 끝나야 시작됩니다. 하지만 역전파는 마지막 층에서 첫 층으로
# 가므로 *마지막* 층의 그래디언트는 훨씬 전에 준비됩니다. 그래디언트 하나가 완성될 때마다 PyTorch가 우리가 걸어 둔
# 함수, 곧 **훅**(hook)을 불러 줍니다. 기다릴 이유가 있을까요?
# %%
# %%ranks
class Hooked(Naive):
    def __init__(self, module):
        super().__init__(module)
        self.works = []
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self.send)

    def send(self, parameter):
        parameter.grad /= self.world_size
        self.works.append(dist.all_reduce(parameter.grad, async_op=True))

    def sync_gradients(self):
        for work in self.works:
            work.wait()
        self.works = []
# %% [markdown] lang="en"
# One thing is still wasteful: 57 all-reduces, one for each parameter; most are tiny, and each costs
# the latencies of all its messages. So neighbouring gradients go into one flat **bucket**, and a
# bucket leaves as soon as it is full. A gradient becomes a *view* into its bucket, so the sum arrives
# where it is needed. Both ideas together are `OverlappedDataParallel`, folded below. All three train
# the GPT:
# %% [markdown] lang="ko" en="9a46b499"
# 아직 낭비가 남아 있습니다. 올리듀스를 파라미터마다 한 번씩, 57번 합니다. 대부분 아주 작은데, 할 때마다
# 지연 시간(latency)이 듭니다. 그래서 이웃한 그래디언트를 1차원 버퍼 하나, 곧 **버킷**(bucket)에 이어 담고,
# 버킷이 차는 대로 보냅니다. 그래디언트는 버킷의 *뷰*(view)가 되므로 합은 필요한 자리에 바로 도착합니다. 두
# 방법을 합친 것이 아래에 접어 둔 `OverlappedDataParallel`입니다. 셋 모두로 GPT를 학습합니다.
# %% hidden=true source="dlcourse.parallel.data:BucketedDataParallel,OverlappedDataParallel"

# %% hidden=true
# %%ranks --as hooked
model = Hooked(GPT(seed=rank).to(device))
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %% hidden=true
# %%ranks --as overlapped
model = OverlappedDataParallel(GPT(seed=rank).to(device), first_bucket_mb=0.25, bucket_cap_mb=0.5)
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %%
show_steps({"Naive": naive, "Hooked": hooked, "Overlapped": overlapped})
# %% [markdown] lang="en"
# The order of events is what was wanted: messages now leave *under* backward. Do not trust the
# lengths of the bars. Here four ranks share a few cores, which compute *and* send, so hiding gains
# next to nothing; a step that is shorter has fewer messages, or was lucky.
#
# So impose the times. Eight layers take 10 ms forward and 20 ms backward each, and each has 12.5 kB
# of gradients; every rank has a card that sends 1 MB/s and needs 2 ms a message. Processes, messages
# and their order stay real.
# %% [markdown] lang="ko" en="86404826"
# 순서는 바라던 대로입니다. 메시지가 역전파가 *끝나기 전에* 떠납니다. 하지만 막대의 길이는 믿지 마세요.
# 여기서는 랭크 네 개가 코어 몇 개를 나눠 쓰며 계산도 하고 *보내기도* 해서, 숨겨도 얻는 것이 거의 없습니다.
# 짧은 스텝은 메시지 수가 적거나 운이 좋았던 것입니다.
#
# 그래서 시간을 정해 줍니다. 층 여덟 개가 저마다 순전파 10 ms, 역전파 20 ms이고 그래디언트는 12.5 kB입니다.
# 랭크마다 1초에 1 MB를 보내며 메시지에 2 ms가 드는 카드가 있습니다. 프로세스와 메시지, 그 순서는
# 진짜입니다.
# %% hidden=true
# %%ranks --fast
job = Job()


def layers(share=1.0):
    times = {"forward": share * job.forward, "backward": share * job.backward}
    each = (nn.Linear(job.width, job.width, bias=False) for _ in range(job.layers))
    return nn.Sequential(*(takes(layer, **times) for layer in each))


def in_buckets(count, share=1.0, wrap=OverlappedDataParallel):
    mb = count * job.layer_bytes / 2**20
    return wrap(layers(share), first_bucket_mb=mb, bucket_cap_mb=mb)
# %% hidden=true
# %%ranks --fast
def times_of(model, turns=3):
    found = []
    for _ in range(turns):
        model.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        loss = model(torch.ones(2, job.width)).sum()
        forward = time.perf_counter() - start
        loss.backward()
        backward = time.perf_counter() - start
        getattr(model, "sync_gradients", lambda: None)()
        found.append((forward, backward, time.perf_counter() - start))
    return min(found, key=lambda times: times[-1])
# %% hidden=true
# %%ranks --fast
def timed(models, turns=3):
    with imposed_link(latency=job.latency, bandwidth=job.bandwidth):
        return {name: times_of(model, turns) for name, model in models.items()}


sizes = timed({count: in_buckets(count) for count in (1, 2, 4, 8)})
after = {"Naive": Naive(layers()), "Hooked": Hooked(layers())}
after["Bucketed"] = in_buckets(8, wrap=BucketedDataParallel)
parts = {**timed(after), "Overlapped": sizes[2]}
# %%
show_imposed(ranks["parts"][0])
# %% [markdown] lang="en"
# An all-reduce of four ranks is six messages in a row: 12 ms of latency. `Naive` pays that eight times, and
# hides nothing. `Hooked` hides over half of the messages' time. `Bucketed` pays it once, after
# backward. `Overlapped`, with two layers a bucket, pays it four times and hides over half.
#
# The table has three sizes: one layer a bucket (`Hooked`), two, and all eight, but those without
# hiding. **Predict** the best number of layers in a bucket: 1, 2, 4 or 8? Is four better than two?
# %% [markdown] lang="ko" en="3bf9ac41"
# 랭크 네 개가 올리듀스하면 메시지 여섯 번이 차례로 이어져 지연 시간만 12 ms가 듭니다. `Naive`에는 이것이
# 여덟 번 들고 아무것도 숨기지 못합니다. `Hooked`는 통신 시간의 절반 넘게 숨깁니다. `Bucketed`에는 한 번만
# 들지만 역전파가 끝난 뒤입니다. 버킷마다 층 두 개를 담은 `Overlapped`에는 네 번 들고 절반 넘게 숨깁니다.
#
# 표에는 버킷에 층 한 개(`Hooked`), 두 개, 여덟 개(`Bucketed`, 숨기지 않음)가 있습니다. 네 개면 두 개보다
# 빠를까요? 1, 2, 4, 8 가운데 가장 빠른 것을 **예측해 보세요.**
# %%
predict("03.bucket")
# %%
slowest = {n: max(times[n][-1] for times in ranks["sizes"]) for n in (1, 2, 4, 8)}
compare("03.bucket", min(slowest, key=slowest.get))
show_buckets(slowest, num_ranks)
# %% [markdown] lang="en"
# Left, latencies add up. Right, one bucket holds everything and is full only when backward is over, so
# nothing is hidden. The sliders show why, by formula: a bucket leaves when its last
# gradient is there and the bucket before it is through. What happens to the best size when a
# message costs 10 ms? And 0?
# %% [markdown] lang="ko" en="914e317c"
# 왼쪽에서는 지연 시간이 쌓입니다. 오른쪽에서는 버킷 하나에 모두 담겨 역전파가 끝나야 차므로 아무것도 숨지 않습니다. 왜
# 그런지는 슬라이더가 공식으로 보여 줍니다. 버킷은 마지막 그래디언트가 나오고 앞 버킷이 다 도착해야 떠납니다. 메시지에
# 10 ms가 들면 가장 좋은 크기는 어떻게 될까요? 0 ms라면요?
# %%
explore(overlap_of_buckets, layers_in_a_bucket=[1, 2, 3, 4, 6, 8], latency_ms=[0, 1, 2, 5, 10])
# %% [markdown] lang="en"
# ## Four ranks against one
#
# How much sooner does it come? There are two ways to ask. **Strong scaling**: the same batch is
# divided, so that each rank computes a quarter. **Weak scaling**: each rank gets a batch as large as
# the one rank had. **Predict** the first, with the times above and two layers a bucket: how many
# times as fast are four ranks with a quarter of the batch each?
# %% [markdown] lang="ko" en="4cdf1290"
# ## 랭크 하나 대 넷
#
# 얼마나 빨라질까요? 묻는 방법은 둘입니다. **강한 확장**(strong scaling)은 같은 배치를 나누어 랭크마다 4분의
# 1만 계산합니다. **약한 확장**(weak scaling)은 랭크 하나가 쓰던 크기의 배치를 랭크마다 줍니다. 먼저 강한
# 확장을 **예측해 보세요.** 시간이 위와 같고 버킷에 층을 두 개씩 담을 때, 배치를 4분의 1씩 맡은 랭크 네 개는
# 하나보다 몇 배 빠를까요?
# %%
predict("03.strong")
# %% hidden=true
# %%ranks --fast
alone = timed({"one": layers()})["one"][-1]
with_more = timed({"all": layers(world_size)}, turns=1)["all"][-1]
strong = timed({"quarter": in_buckets(2, 1 / world_size)})["quarter"][-1]
# %%
alone, with_more, strong = (max(ranks[name]) for name in ("alone", "with_more", "strong"))
compare("03.strong", alone / strong)
show_scaling(alone, with_more, strong, slowest[2], num_ranks)
# %% [markdown] lang="en"
# The same batch divided by four gains almost nothing here: the bytes do not depend on the batch, and
# a short backward hides little. With four times the batch, four ranks read it about three times as
# fast as one. Data parallelism wants enough computing for each byte: large batches, and a fast
# network. At that efficiency, about 75%, eight GPUs would need a day and a half for the nine days.
#
# ## Breaking it on purpose
#
# With gradient accumulation a step has several micro-batches, and only the last backward should
# send. What if you forget to say so?
# %% [markdown] lang="ko" en="36199332"
# 같은 배치를 넷으로 나누면 얻는 것이 거의 없습니다. 바이트는 배치와 상관없고, 짧아진 역전파는 많이 숨기지
# 못합니다. 네 배 큰 배치라면 랭크 넷이 하나보다 세 배쯤 빨리 읽습니다. 데이터 병렬화가 이득을 보려면
# 바이트에 견줘 계산이 넉넉해야 합니다. 곧 큰 배치와 빠른 네트워크입니다. 그 효율(약 75%)이라면 GPU 한 개로
# 9일 걸릴 학습이 여덟 개로 하루 반이면 끝납니다.
#
# ## 일부러 망가뜨리기
#
# 그래디언트 누적(gradient accumulation)에서는 한 스텝에 마이크로배치(micro-batch)가 여러 개이고,
# 마지막 역전파에서만 보내면 됩니다. 깜빡 잊고 그렇게 알려 주지 않으면 어떻게 될까요?
# %%
# %%ranks --fails "backward ran twice"
def forgetful():
    model = OverlappedDataParallel(GPT().to(device))
    for tokens, targets in zip(*batch, strict=True):
        model(tokens[None], targets[None]).backward()


forgetful()
# %% [markdown] lang="en"
# Ours refuses, and says what to do. DDP says nothing and sends twice. In both, the **forward**
# decides whether the backward that follows sends. So `no_sync()` must be around the forward as well.
# Here are two micro-batches in DDP, with different parts of them inside `no_sync()`:
# %% [markdown] lang="ko" en="ff6348cd"
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
# %% hidden=true
cases = {"both": ([0], [0]), "backward_only": ([], [0]), "last_forward": ([0, 1], [0])}
whole = naive.comm.ranks[0]["ops"]["all_reduce"]["bytes"] / steps
sent, drifts = {}, {}
for name, quiet in cases.items():
    ranks.cell(f"trial = accumulate{quiet}")
    sent[name] = ranks.last.comm.ranks[0]["ops"].get("all_reduce", {"bytes": 0})["bytes"] / whole
    ranks.cell("trial_drift = replica_drift(trial); del trial", record=False)
    drifts[name] = ranks["trial_drift"][0]
# %%
show_no_sync(sent, drifts)
# %% [markdown] lang="en"
# Row 2: the result is right, and twice the bytes are sent. Row 3: **nothing** is sent, every rank
# steps by its own gradient, and the copies are no longer copies. In a real job you would see no
# error, only a loss that ends a little too high. `replica_drift` finds it with two all-reduces of all
# parameters in float64, four steps' worth of bytes: call it now and then.
#
# A second quiet trap: **unequal batches**. One rank has a single value, 4; another has 2, 2, 2. The mean of
# the means is 3, the mean of all four is 2.5. Here rank $r$ gets $r + 1$ sequences; `loss_weight` counts
# every token the same:
# %% [markdown] lang="ko" en="20a3121b"
# 둘째 줄은 결과는 맞지만 바이트를 두 배로 보냅니다. 셋째 줄은 **아무것도** 보내지 않습니다. 랭크마다 자기
# 그래디언트로 갱신하므로 복제본이 서로 달라집니다. 실제 작업이라면 오류 없이 손실만 조금 높게 끝날
# 것입니다. `replica_drift`는 파라미터 전체를 float64로 두 번 올리듀스해 이를 찾아냅니다. 네 스텝만큼의
# 바이트가 드니 가끔 부르세요.
#
# 오류 없이 지나가는 함정이 하나 더 있습니다. **크기가 다른 배치**입니다. 한 랭크에 4 하나, 다른 랭크에 2,
# 2, 2가 있으면 평균의 평균은 3이지만 네 값의 평균은 2.5입니다. 여기서는 랭크 $r$에 시퀀스를 $r + 1$개
# 줍니다. `loss_weight`는 모든 토큰을 똑같이 셉니다.
# %% hidden=true
# %%ranks --fast
def gradient(model, tokens, targets, weight=1.0):
    (model(tokens.to(device), targets.to(device)) * weight).backward()
    getattr(model, "sync_gradients", lambda: None)()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


counts = [r + 1 for r in range(world_size)]
rows = [half.split(counts) for half in corpus.batch(0, micro_batch=sum(counts))]
mine = [half[rank] for half in rows]
# %% hidden=true
# %%ranks --fast
weight = loss_weight(mine[1].numel(), device=device)
wanted = gradient(GPT().to(device), *map(torch.cat, rows))
means = gradient(Naive(GPT().to(device)), *mine)
weighted = gradient(Naive(GPT().to(device)), *mine, weight)
plain, weighted = (((g - wanted).norm() / wanted.norm()).item() for g in (means, weighted))
# %%
show_uneven(ranks["plain"], ranks["weighted"])
# %% [markdown] lang="en"
# ## Beside the real library
#
# `DistributedDataParallel` is what you use at work: buckets and hooks too, written in C++. Same
# model, same data, same table.
# %% [markdown] lang="ko" en="a573f909"
# ## 실제 라이브러리와 나란히
#
# 실무에서는 `DistributedDataParallel`을 씁니다. 똑같이 버킷과 훅으로 되어 있고 C++로 쓰였습니다. 같은
# 모델, 같은 데이터로 재서 표 하나에 놓습니다.
# %% hidden=true
# %%ranks --as theirs
model = GPT(seed=rank).to(device)
gc.collect()
their_losses = ddp.train(model, corpus, steps=steps, batch_size=2 * world_size)["losses"]
# %% hidden=true
# %%ranks --as ours
model = OverlappedDataParallel(GPT(seed=rank).to(device))
gc.collect()
our_losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %% hidden=true
# %%ranks --fast
def race(turns=6):
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
race = [max(times) for times in zip(*ranks["race_seconds"], strict=True)]
losses = [ranks["our_losses"][0], ranks["their_losses"][0]]
show_peers({"OverlappedDataParallel": ours, "DDP": theirs}, losses, race)
# %% [markdown] lang="en"
# Same loss, same bytes, same memory: you have read what DDP does. By default it keeps gradients
# *beside* its buckets, not as views (`gradient_as_bucket_view`), but the peak comes at the end of the
# forward, before there are any gradients, so here it makes no difference. (Both columns also count
# what earlier cells left in the ranks: `Hooked`'s model and gradients, and two flat gradients.) Times
# on a laptop are noisy.
#
# Every rank keeps *all* parameters and *all* optimizer state, the same numbers in each. That waste
# is lesson 06. How much of the usual sentence about data parallelism holds?
# %% [markdown] lang="ko" en="fee3d199"
# 손실도, 바이트도, 메모리도 같습니다. DDP가 하는 일을 다 읽은 셈입니다. DDP의 기본값은 그래디언트를 뷰로
# 두지 않고 버킷과 *따로* 둡니다(`gradient_as_bucket_view`). 다만 메모리는 그래디언트가 아직 없는 순전파
# 끝에서 가장 많아 여기서는 차이가 없습니다. (두 열 모두 앞 셀이 랭크에 남긴 것, 곧 `Hooked`의 모델과 그래디언트, 이어 붙인
# 그래디언트 두 개까지 셉니다.) 시간은 들쭉날쭉합니다.
#
# 랭크마다 *모든* 파라미터와 *모든* 옵티마이저 상태(optimizer state)를 똑같이 들고 있습니다. 이 낭비는 레슨
# 06에서 다룹니다. 데이터 병렬화를 설명하는 흔한 문장은 얼마나 맞을까요?
# %% hidden=true
b1 = {"drift": max(ranks["drift"]), "apart": 100 * max(ranks["apart"]) / 1e-3}
b1 |= {"start": ranks["drift_before"][0], "unsynced": drifts["last_forward"]}
b1 |= {"uneven": 100 * max(ranks["plain"])}
# %%
claim("B1", **b1)
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
# **3. `03.overlap`** (15분). `Overlap`은 한 번 만들고, 스텝마다 순전파, 역전파, `finish()`를 차례로
# 부릅니다. `buckets`에는 파라미터의 리스트가 역전파가 끝내는 순서대로 들어 있습니다. 버킷이 차면 훅에서
# 올리듀스를 시작하되 기다리지는 마세요. `finish()` 뒤에는 모든 `.grad`가 평균이어야 합니다. 목표는 바이트의
# 60% 이상이 역전파가 끝나기 전에 떠나는 것입니다. 걸린 시간이 아니라 일어난 순서로 판정하므로 컴퓨터가
# 바빠도 상관없습니다.
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
# | bucket | 2 of 8 layers | DDP: 25 MiB, the first 1 MiB [3] |
#
# NCCL makes a ring for each card, so each card carries an eighth of the bytes [4]. Published, not run
# here: in DDP on NCCL, overlap gave ResNet a speedup of 38.0% and BERT of 35.2% over sending after
# backward [5]; going from 8 to 256 GPUs kept about 90% of the efficiency (weak scaling, ResNet-50) [6].
# Derived, for 7 billion bf16 gradients:
# %% [markdown] lang="ko" en="a1ca5417"
# ## GPU 클러스터에서는
#
# | | 여기 | DGX H100 클러스터 |
# |---|---|---|
# | 백엔드 | Gloo, TCP | NCCL |
# | 노드 안 | 루프백 | NVLink, 방향마다 450 GB/s [1] |
# | 노드 사이 | – | GPU마다 400 Gb/s 카드 하나: 50 GB/s [2] |
# | 버킷 | 8층 중 2층 | DDP: 25 MiB, 처음은 1 MiB [3] |
#
# NCCL의 링은 카드마다 하나여서 카드 하나가 8분의 1을 나릅니다[4]. 발표된 값으로는, NCCL을 쓴 DDP에서 중첩(overlap)하면
# 역전파 뒤에 보낼 때보다 ResNet이 38.0%, BERT가 35.2% 빨랐고[5], GPU를 8개에서 256개로 늘려도 ResNet-50의 효율이 90%쯤
# 남았습니다[6]. bf16 그래디언트 70억 개는 계산하면 이렇습니다.
# %% tags=["nbval-check-output"]
show_cluster()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Equal start, equal steps: broadcast once, then average every gradient.
# 2. A rank sends $2\frac{p-1}{p}$ times the gradients: under twice, however many ranks there are.
# 3. Buckets save latencies; hooks hide communication behind backward. Too small and too large both lose.
# 4. Ranks that drift raise no error: check, and mind `no_sync()` and unequal batches.
# 5. Every rank still holds everything. Lesson 06 (ZeRO) starts from that waste.
#
# Sources: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 900 GB/s both ways.
# [2] [DGX H100 guide](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [PyTorch DDP](https://docs.pytorch.org/docs/stable/notes/ddp.html) and its source.
# [4] [NCCL 2.4](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/).
# [5] [Li et al., 2020](https://arxiv.org/abs/2006.15704).
# [6] [Goyal et al., 2017](https://arxiv.org/abs/1706.02677).
# %% [markdown] lang="ko" en="51cf228b"
# ## 다섯 줄 요약
#
# 1. 같은 모델에서 출발합니다. 한 번 브로드캐스트하고, 스텝마다 그래디언트를 평균 냅니다.
# 2. 랭크마다 그래디언트의 $2\frac{p-1}{p}$배를 보냅니다. 랭크가 몇 개든 두 배 미만입니다.
# 3. 버킷은 지연 시간을 줄이고, 훅은 통신을 역전파와 겹칩니다. 버킷이 너무 작거나 크면 느립니다.
# 4. 랭크가 어긋나도 오류는 없습니다. 가끔 확인하고, `no_sync()`와 크기가 다른 배치를 조심하세요.
# 5. 랭크마다 여전히 모든 것이 있습니다. 레슨 06(ZeRO)은 이 낭비에서 시작합니다.
#
# 출처: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/), 양방향 합계 900 GB/s.
# [2] [DGX H100 안내서](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [PyTorch DDP](https://docs.pytorch.org/docs/stable/notes/ddp.html)와 소스 코드.
# [4] [NCCL 2.4](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/).
# [5] [Li 외, 2020](https://arxiv.org/abs/2006.15704).
# [6] [Goyal 외, 2017](https://arxiv.org/abs/1706.02677).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Everything below runs on its own once the cells above have run.
#
# ### One bucket, and the two checks
#
# A bucket's buffer and its views, the largest difference between ranks, and the weight of a rank's loss:
# %% [markdown] lang="ko" en="d7c1d691"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 실행했다면 아래는 어느 것이나 바로 실행할 수 있습니다.
#
# ### 버킷 하나, 그리고 검사 두 가지
#
# 버킷의 버퍼와 뷰, 랭크끼리의 가장 큰 차이, 랭크의 손실에 곱하는 가중치입니다.
# %%
show("dlcourse.parallel.data_buckets:Bucket")
# %%
show("dlcourse.parallel.replicas:replica_drift")
# %%
show("dlcourse.parallel.replicas:loss_weight")
# %% [markdown] lang="en"
# ### What the naive class sends
#
# Bytes of all five steps by collective, in theory (`all_gather` collected the losses). The counter below
# the title is the whole machine's, so what other programs send is in it:
# %% [markdown] lang="ko" en="caacd273"
# ### naive 클래스가 보내는 것
#
# 다섯 스텝 동안 집합 통신마다 보낸 바이트의 이론값입니다(`all_gather`는 손실을 모은 것입니다). 제목 아래의 측정값은 컴퓨터
# 전체를 센 것이라 다른 프로그램이 보낸 것도 들어갑니다.
# %%
naive.comm.figure()
