# %% [markdown] lang="en"
# # 12 Sharding and offload: a model that no device can hold
#
# A model has 100 layers and takes 6 GB. You have two GPUs with 4 GB each, and a CPU. The usual
# recipe: 33 layers here, 33 there, 34 on the CPU, 2 GB on each. It even runs.
#
# Does it also *train* there? What do devices do while they wait for each other? And if a GPU has
# too little memory, why not keep in the CPU's what it does not need right now?
#
# You will cut a model over devices, move its state to the CPU's memory (the **host**), count every
# byte, and load a model that fits nowhere as a whole. 30 to 40 minutes.
# %% [markdown] lang="ko" en="a58f91d3"
# # 12 샤딩과 오프로드: 어느 장치에도 들어가지 않는 모델
#
# 층이 100개이고 6 GB인 모델이 있습니다. 가진 것은 4 GB짜리 GPU 두 개와 CPU입니다. 흔히 이렇게들 합니다. 33개
# 층은 여기, 33개는 저기, 34개는 CPU에 두면 2 GB씩입니다. 실제로 돌아가기도 합니다.
#
# 그런데 그렇게 나누고 *학습*도 할 수 있을까요? 서로를 기다리는 동안 장치들은 무엇을 할까요? GPU 메모리가 모자란다면, 지금
# 당장 필요 없는 것은 CPU 메모리에 두면 되지 않을까요?
#
# 모델을 여러 장치에 나누고, 옵티마이저 상태를 CPU 쪽 메모리(**호스트**, host)로 옮기며 바이트를 하나하나 세고,
# 통째로는 어디에도 들어가지 않는 모델을 읽어 봅니다. 30~40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 3
device = "auto"
# %% [markdown] lang="en"
# Layers lie on devices in order. **Activations** travel to the next device, their gradients come back:
#
# ```mermaid
# flowchart LR
#   T["tokens"] --> A["device 0<br>layers 0-32"]
#   A -- "activations" --> B["device 1<br>layers 33-65"]
#   B -- "activations" --> C["device 2<br>layers 66-99"] --> L["loss"]
#   C -. "gradients" .-> B -. "gradients" .-> A
# ```
#
# Here each rank is a device with a memory of its own.
# %% [markdown] lang="ko" en="31dd0160"
# 층은 순서대로 장치에 놓입니다. **활성화값**(activation)이 다음 장치로 가고, 그 그래디언트가 되돌아옵니다.
#
# ```mermaid
# flowchart LR
#   T["토큰"] --> A["장치 0<br>층 0~32"]
#   A -- "활성화값" --> B["장치 1<br>층 33~65"]
#   B -- "활성화값" --> C["장치 2<br>층 66~99"] --> L["손실"]
#   C -. "그래디언트" .-> B -. "그래디언트" .-> A
# ```
#
# 이 레슨에서는 랭크 하나가 자기 메모리를 가진 장치 하나입니다.
# %%
from dlcourse import Ranks, check, claim, compare, expect_failure
from dlcourse import hint, lesson, predict, show, solution
from dlcourse.figures.gantt import gantt_figure
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import human_bytes, human_seconds
from dlcourse.parallel.pipeline_schedules import one_f_one_b
from dlcourse.parallel.pipeline_simulation import simulate
from dlcourse.formulas.devices import check_devices, check_limits, device_needs
from dlcourse.formulas.sizes import GPTConfig

lesson(lang=lang, name="12_sharding_offload")
check_devices(num_ranks)
ranks = Ranks(num_ranks, device=device)
w = num_ranks
# %%
n = 100
sizes = [n * (i + 1) // w - n * i // w for i in range(w)]
config = GPTConfig(n_layer=n, n_head=2, n_embd=24, block_size=32)
batch = dict(micro_batch=2, block=32)
sizes
# %% [markdown] lang="en"
# Our 100 layers are small: 7,152 parameters each ($12h^2 + 10h$ with $h$ = 24). Training in float32
# with Adam keeps a parameter, its gradient and two moments, and a step counter (4 bytes) for each of a
# layer's 13 tensors.
#
# **Predict** the bytes of parameters, gradients and state in device 1, which has layers only.
# %% [markdown] lang="ko" en="70559aa2"
# 우리 층 100개는 작습니다. 층마다 파라미터가 7,152개입니다($h$ = 24일 때 $12h^2 + 10h$). float32와 Adam으로
# 학습하면 파라미터마다 값, 그래디언트, 모멘트 두 개를, 텐서(층마다 13개)마다 스텝 수(4바이트)를 들고 있습니다.
#
# 층만 있는 장치 1에서 파라미터, 그래디언트, 옵티마이저 상태가 몇 바이트일지 **예측해 보세요.**
# %%
states = ("parameters", "gradients", "optimizer_state")
needs = device_needs(config, sizes, **batch)
predict("12.states", ..., formula=sum(needs[1][name] for name in states), unit="bytes")
# %% source="dlcourse.training.sharding_offload.layers_over_devices:LayersOverRanks"
# %% [markdown] lang="en"
# `irecv` and `isend`, each waited for, are all there is. A received tensor is a leaf with
# `requires_grad`, so its `.grad` after backward is what the device before waits for. Take steps:
# %% [markdown] lang="ko" en="1b305db2"
# `irecv`와 `isend`를 부르고 끝나기를 기다리는 것이 전부입니다. 받은 텐서는 `requires_grad`를 켠 리프(leaf)이므로,
# 역전파가 끝나면 그 `.grad`가 바로 앞 장치가 기다리는 값입니다. 스텝을 돌려 봅니다.
# %%
# %%ranks --fast
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.corpus import Corpus

config = GPTConfig(n_layer=100, n_head=2, n_embd=24, block_size=32)
n = config.n_layer
sizes = [n * (i + 1) // world_size - n * i // world_size for i in range(world_size)]
corpus = Corpus(limit=100_000)


def batch(step):
    return [half.to(device) for half in corpus.batch(step, micro_batch=2, block=32)]


# %%
# %%ranks --fast
def take_step(model, optimizer, step):
    optimizer.zero_grad()
    loss = model.step(*batch(step))
    optimizer.step()
    return loss.item()


model = LayersOverRanks(GPT(config).to(device), sizes)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = [take_step(model, optimizer, 0)]
# %%
# %%ranks --as naive
losses.append(take_step(model, optimizer, 1))
# %%
kept = [rank["end"] for rank in naive.memory.ranks]
compare("12.states", sum(kept[1][name] for name in states))
assert all(kept[r][name] == needs[r][name] for r in range(w) for name in states)
peaks = [rank["peaks"] for rank in naive.memory.ranks]
found = [sum(p[name] for name in ("activations", "communication")) for p in peaks]
assert all(abs(a / b["activations"] - 1) < 0.05 for a, b in zip(found, needs, strict=True))
share = 100 * needs[1]["parameters"] / sum(needs[1].values())
rows = {t(".device.layers", device=i, layers=k): needs[i] for i, k in enumerate(sizes)}
memory_by_category_figure(rows, title=t(".ledger", share=share))
# %% [markdown] lang="en"
# States were predicted to the byte, and the peak of activations within 5%. (Not all of it is there at
# one moment: gradients grow while activations go.) The recipe's 2 GB are the first colour alone. Devices
# are not equal, either: embeddings are at one end, norm, head and loss at the other.
#
# So ask *before* building whether it fits. Each device has a limit of its own; here is one that the
# whole model would break:
# %% [markdown] lang="ko" en="ba88d2e7"
# 상태는 바이트까지, 활성화값의 최대 메모리는 5% 안에서 맞았습니다. (이 모두가 한순간에 있지는 않습니다. 활성화값이
# 사라지는 동안 그래디언트가 생깁니다.) 처음에 말한 2 GB는 첫 번째 색만 센 것입니다. 장치들도 같지 않습니다. 한쪽 끝에는 임베딩이,
# 다른 끝에는 정규화, 출력층, 손실이 있습니다.
#
# 그러니 만들기 *전에* 들어가는지 물어보아야 합니다. 장치마다 자기 한도가 있습니다. 다음은 모델 전체로는 지킬 수 없는
# 한도입니다.
# %%
limit = int(1.05 * max(sum(need.values()) for need in needs))
with expect_failure("give it fewer layers"):
    check_limits(device_needs(config, [n], **batch), [limit])
check_limits(needs, [limit] * w)
assert all(rank["peak_bytes"] <= limit for rank in naive.memory.ranks)
wanted = [sum(need.values()) for need in needs]
found = [rank["peak_bytes"] for rank in naive.memory.ranks]
rows = [[i, *map(human_bytes, (limit, wanted[i], found[i]))] for i in range(w)]
header = [t(f".{key}") for key in ("limit", "needed", "measured")]
Table([t(".device", device=""), *header], rows)
# %% [markdown] lang="en"
# The limit is checked against the plan, and afterwards against each rank's ledger; a GPU enforces it
# by itself. And is it still the same training? One process does the same operations on the same
# numbers, so we ask for equality bit for bit.
# %% [markdown] lang="ko" en="2b282c5b"
# 한도는 먼저 계획과, 실행한 뒤에는 랭크마다 메모리 장부(ledger)와 견주었습니다. GPU라면 스스로 한도를 지킵니다. 그런데 여전히 같은
# 학습일까요? 단일 프로세스도 같은 숫자로 같은 연산을 하므로 비트까지 같아야 합니다.
# %%
# %%ranks --fast
def train_alone(config, steps):
    alone = GPT(config).to(device)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = alone(*batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, alone


# %%
# %%ranks --fast
def train_over_ranks(config, steps):
    divided = LayersOverRanks(GPT(config).to(device), sizes)
    optimizer = torch.optim.AdamW(divided.parameters(), lr=1e-3)
    return [take_step(divided, optimizer, step) for step in range(steps)], divided.stage


(want, alone), (got, part) = train_alone(config, 2), train_over_ranks(config, 2)
named = dict(alone.named_parameters())
same = all(torch.equal(p, named[name]) for name, p in part.named_parameters())
alone = part = named = None
# %%
assert all(ranks["same"]) and ranks["got"][-1] == ranks["want"][-1]
ranks["got"][-1]
# %% [markdown] lang="en"
# ## A pipeline of one
#
# Nothing is copied, nothing averaged. The price is time. Before it computes, a device needs what the
# one before has made. **Predict**: which percentage of the time does a device wait, if all take the
# same time?
# %% [markdown] lang="ko" en="a4b97dc7"
# ## 마이크로배치가 하나뿐인 파이프라인
#
# 복사하는 것도 평균 내는 것도 없습니다. 비용은 시간입니다. 장치는 앞 장치의 결과가 있어야 계산할 수 있습니다. 모두
# 같은 시간이 걸린다면 장치는 시간의 몇 %를 기다릴지 **예측해 보세요.**
# %%
from dlcourse.formulas.bubbles import idle_over_total

predict("12.idle", ..., formula=100 * idle_over_total(w, 1), unit="%")
# %%
# %%ranks --fast
take_step(model, optimizer, 2)
spans = [None] * world_size
dist.all_gather_object(spans, model.spans)
began = min(row[0][0] for row in spans)
spans = [[(a - began, b - began, what) for a, b, what in row] for row in spans]
# %%
from dlcourse.parallel.pipeline_simulation import Gantt

one = Gantt(ranks["spans"][0])
compare("12.idle", 100 * one.idle_over_total)
times = sorted(span for row in one.spans for span in row)
assert all(a[1] <= b[0] for a, b in zip(times, times[1:]))
unit = one.total / (3 * w)
many = simulate(one_f_one_b(w, 8), t_F=unit / 8, t_B=unit / 8, t_W=unit / 8)
panels = {t(".gantt.one"): one.spans, t(".gantt.many", m=8): many.spans}
gantt_figure(panels, title=t(".gantt", idle=f"{one.idle_over_total:.0%}"), seconds=True)
# %% [markdown] lang="en"
# Bars never overlap, and cannot: that is [lesson 05](05_pipeline_parallel.ipynb)'s pipeline with a
# single micro-batch. With $p$ devices it is idle $(p-1)/(m+p-1)$ of the time, for $m = 1$. (Gaps
# between bars are messages, which add a little.) Below, what 8 micro-batches would do, simulated. So
# this placement buys *memory*, never speed: three devices are no faster than one. With one slow
# device, such as the CPU, all wait for that one.
#
# Where a process reaches several devices, no messages are needed:
# %% [markdown] lang="ko" en="24183e28"
# 막대는 겹치지 않으며, 겹칠 수도 없습니다. [레슨 05](05_pipeline_parallel.ipynb)의 파이프라인에서 마이크로배치가
# 하나인 경우로, 장치 $p$개의 유휴 비율 $(p-1)/(m+p-1)$에 $m = 1$을 넣은 것입니다. (막대 사이의 틈은 메시지이고,
# 그만큼 예측보다 더 기다립니다.) 아래는 마이크로배치가 8개일 때의 시뮬레이션입니다. 이렇게 나누어 얻는 것은
# *메모리*뿐입니다. 장치 셋이 하나보다 빠르지 않고, CPU처럼 느린 장치가 끼면 모두 그 장치를 기다립니다.
#
# 한 프로세스가 여러 장치를 쓸 수 있다면 메시지도 필요 없습니다.
# %%
show("dlcourse.training.sharding_offload.layers_over_devices:LayersOverDevices")
# %%
# %%ranks --fast
from dlcourse.training.sharding_offload.layers_over_devices import LayersOverDevices

if rank == 0:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = [*gpus, *["cpu"] * world_size][:world_size]
    tokens, targets = corpus.batch(0, micro_batch=2, block=32)
    whole = GPT(config)(tokens, targets).item()
    loss = LayersOverDevices(GPT(config), sizes, devices)(tokens, targets)
    loss.backward()
    assert abs(loss.item() - whole) < 1e-4
    print(f"{devices}: {loss.item():.4f}, {whole:.4f}")
# %% [markdown] lang="en"
# It takes this machine's GPUs, if there are any, then the CPU. The loss is that of the whole model (up
# to 0.0001, for a GPU adds up in another order).
#
# Now the claim's own size: 100 layers, 6 GB in float32, a vocabulary of 256, one sequence of 1,024
# tokens. Device 1 does forward and backward on tensors with shapes and no numbers; bytes are exact.
# The rest comes from the formula, which has just been exact.
# %% [markdown] lang="ko" en="336054a3"
# 이 컴퓨터의 GPU를 먼저 쓰고, 모자라는 자리는 CPU로 채웁니다. 손실은 모델을 나누지 않았을 때와 같습니다. (GPU는
# 더하는 순서가 달라 0.0001까지 차이를 허용합니다.)
#
# 이제 주장에 나온 크기 그대로 해 봅니다. 100층, float32로 6 GB, 어휘 256개, 토큰 1,024개짜리 시퀀스 하나입니다.
# 장치 1이 모양만 있고 숫자는 없는 텐서로 순전파와 역전파를 합니다. 바이트는 정확합니다. 나머지는 방금 정확히 맞은
# 공식으로 계산합니다.
# %%
# %%ranks --fast
from dlcourse.measure import Recorder
from dlcourse.parallel.pipeline_stages import Stage
from torch._subclasses.fake_tensor import FakeTensorMode

big = GPTConfig(n_layer=100, n_head=16, n_embd=1120, block_size=1024)
layers = range(sum(sizes[:rank]), sum(sizes[: rank + 1]))
with torch.device("meta"):
    stage = Stage(GPT(big), layers)
# %%
# %%ranks --fast
def full_size(stage):
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {name: torch.empty(p.shape) for name, p in stage.state_dict().items()}
        stage.load_state_dict(state, assign=True)
        tokens = torch.zeros(1, 1024, dtype=torch.long)
        x = tokens if stage.is_first else torch.zeros(1, 1024, 1120, requires_grad=True)
        with Recorder(rank, world_size) as recorder:
            y = stage(x, tokens) if stage.is_last else stage(x)
            y.backward(None if stage.is_last else torch.ones_like(y))
    return recorder.record["memory"]["peaks"]


full = full_size(stage) if rank == 1 else None
# %%
big = GPTConfig(n_layer=100, n_head=16, n_embd=1120, block_size=1024)
big_needs, full = device_needs(big, sizes, micro_batch=1, block=1024), ranks["full"][1]
assert full["parameters"] == big_needs[1]["parameters"] == full["gradients"]
assert abs(full["activations"] / big_needs[1]["activations"] - 1) < 0.05
totals = [sum(need.values()) / 2**30 for need in big_needs]
rows = {t(".device.layers", device=i, layers=k): big_needs[i] for i, k in enumerate(sizes)}
each = big_needs[1]["parameters"] / 2**30
title = t(".full", each=each, low=min(totals), high=max(totals))
memory_by_category_figure(rows, title=title)
# %%
middle = big_needs[1]
kept_gb = sum(middle[name] for name in states) / 1e9
weights, peak = (full[name] / 1e9 for name in ("parameters", "activations"))
claim("D4", weights=weights, states=kept_gb, activations=peak, idle=100 * one.idle_over_total)
# %% [markdown] lang="en"
# ## Out of the way: the optimizer's state
#
# Half of those states is Adam's, and it is touched once a step. **Offload** it: state, and a master
# copy of the parameters, live in the host's memory. For each unit (a block, or what blocks leave over)
# gradients go out, the host takes Adam's step, parameters come back.
#
# **Predict**: bytes that go out in a step, with $P$ parameters in float32? As many come back.
# %% [markdown] lang="ko" en="a4ab9ef3"
# ## 비켜 두기: 옵티마이저 상태
#
# 상태의 절반은 Adam의 것이고, 한 스텝에 한 번만 건드립니다. 그러니 **오프로드**(offload)합니다. 옵티마이저 상태와
# 마스터 가중치를 호스트 메모리에 둡니다. 유닛(블록 하나, 또는 블록에 들지 않는 나머지)마다 그래디언트가
# 나가고, 호스트가 Adam 스텝을 실행하고, 파라미터가 돌아옵니다.
#
# float32 파라미터가 $P$개일 때 한 스텝에 나가는 바이트를 **예측해 보세요.** 돌아오는 것도 그만큼입니다.
# %%
ranks.cell("small = GPTConfig(n_layer=8, n_head=2, n_embd=64, block_size=32)", record=False)
ranks.cell("number = GPT(small).num_parameters()", record=False)
num_parameters = ranks["number"][0]
predict("12.moved", ..., formula=4 * num_parameters, unit="bytes")
# %% source="dlcourse.training.sharding_offload.optimizer_offload:OptimizerOffload"
# %% [markdown] lang="en"
# On a CPU the device's memory *is* the host's: copying from one to the other would show nothing. So
# here the last rank is the host, with a ledger of its own, and messages stand for PCIe. Rank 0 is the
# device; the others rest. First without overlap, then with: a hook sends each unit's gradients while
# backward goes on.
# %% [markdown] lang="ko" en="d537a555"
# CPU에서는 장치의 메모리가 *곧* 호스트의 메모리라서, 한쪽에서 다른 쪽으로 복사해도 보여 줄 것이 없습니다. 그래서
# 마지막 랭크가 자기 장부를 가진 호스트가 되고, 메시지가 PCIe를 대신합니다. 랭크 0이 장치이고 나머지는 쉽니다. 먼저
# 중첩 없이, 다음에는 중첩해서 돌립니다. 훅(hook)이 역전파 도중에 유닛의 그래디언트를 바로 보냅니다.
# %%
# %%ranks --fast
import gc

from dlcourse.measure import live_bytes, mark_step
from dlcourse.training.sharding_offload.rank_as_host import RankHost, serve
from dlcourse.training.sharding_offload.parameter_offload import ParameterOffload


def offloaded(kind, overlap, steps=2):
    if rank == world_size - 1:
        serve(0, steps=steps, parameters=kind is ParameterOffload)
    elif rank == 0:
        model = GPT(small).to(device)
        offload = kind(model, RankHost(world_size - 1), overlap=overlap)
        losses = steps_of(model, offload, steps)
        return losses, offload.out_bytes // steps, offload.back_bytes // steps


# %%
# %%ranks --fast
def steps_of(model, optimizer, steps):
    losses = []
    for step in range(steps):
        loss = model(*batch(step))
        losses.append(loss.item())
        loss.backward()
        del loss
        optimizer.step()
        model.zero_grad()
        mark_step()
    return losses


def plain(steps=2):
    if rank == 0:
        model = GPT(small).to(device)
        return steps_of(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps)


# %%
# %%ranks --as waiting
late = offloaded(OptimizerOffload, overlap=False)
# %%
# %%ranks --as overlapped
soon = offloaded(OptimizerOffload, overlap=True)
# %%
from dlcourse.formulas.activations import activation_peak

late, soon = ranks["late"][0], ranks["soon"][0]
compare("12.moved", soon[1])
assert late == soon and [*soon[1:]] == [4 * num_parameters] * 2
eight_layers = GPTConfig(n_layer=8, n_head=2, n_embd=64, block_size=32)
peak = activation_peak(eight_layers, **batch)
for run in (waiting, overlapped):
    assert abs(run.memory.peaks("activations")[0] / peak - 1) < 0.05
# %%
def timeline(run):
    of_device, of_host = (run.timeline.ranks[i]["spans"] for i in (0, -1))
    backward = [span[:2] for span in of_device if span[2] == "backward"]
    updates = [span[:2] for span in of_host if span[2] == "optimizer"]
    beside = sum(max(0, min(b, d) - max(a, c)) for a, b in updates for c, d in backward)
    share = beside / sum(b - a for a, b in updates)
    return run.timeline.figure().update_layout(title_text=t(".beside", share=f"{share:.0%}"))


timeline(waiting)
# %%
timeline(overlapped)
# %% [markdown] lang="en"
# The same losses, the same bytes. Above, the host (the last rank) begins when backward is over; below,
# it updates the last blocks while the first ones are still in backward. What that saves, in bytes and
# in time, comes further down. This is all that the host does:
# %% [markdown] lang="ko" en="f606436e"
# 손실도 바이트도 같습니다. 위에서는 호스트(마지막 랭크)가 역전파가 끝나야 시작하고, 아래에서는 앞쪽 블록이 아직
# 역전파하는 동안 뒤쪽 블록을 갱신합니다. 그 덕에 바이트와 시간을 얼마나 아끼는지는 조금 뒤에 봅니다. 호스트가 하는
# 일은 이것이 전부입니다.
# %%
show("dlcourse.training.sharding_offload.rank_as_host:serve")
# %% [markdown] lang="en"
# ## Parameters as well
#
# A block's parameters are needed twice a step: in forward and in backward. Between, they can live in
# the host. It is stage 3 of ZeRO ([lesson 06](06_zero.ipynb)) with the host in place of the other
# ranks: fetch the next block while this one computes.
# %% [markdown] lang="ko" en="842d34d2"
# ## 파라미터까지
#
# 블록의 파라미터는 한 스텝에 두 번, 순전파와 역전파에서 필요합니다. 그 사이에는 호스트에 두면 됩니다. 다른 랭크 대신
# 호스트에서 가져온다는 점만 다를 뿐 ZeRO 3단계([레슨 06](06_zero.ipynb))입니다. 이 블록을 계산하는 동안 다음 블록을
# 가져옵니다.
# %% source="dlcourse.training.sharding_offload.parameter_offload:ParameterOffload"
# %%
# %%ranks --fast
def peak_of(function, *args):
    before = live_bytes()
    with Recorder(rank, world_size) as recorder:
        result = function(*args)
    memory = recorder.record["memory"]
    at_peak = {name: max(0, memory["at_peak"][name] - before[name]) for name in before}
    return at_peak, result, memory["peaks"]["gradients"] - before["gradients"]


runs = {
    "plain": peak_of(plain),
    "late": peak_of(offloaded, OptimizerOffload, False),
    "soon": peak_of(offloaded, OptimizerOffload, True),
    "parameters_late": peak_of(offloaded, ParameterOffload, False),
    "parameters": peak_of(offloaded, ParameterOffload, True),
}
# %%
of_device, of_host = ranks["runs"][0], ranks["runs"][-1]
names = {
    "plain": t(".device.plain"),
    "late": t(".overlap.no"),
    "soon": t(".overlap.yes"),
    "parameters_late": t(".parameters.no"),
    "parameters": t(".parameters"),
}
rows = {names[key]: of_device[key][0] for key in names}
peak = {key: human_bytes(sum(of_device[key][0].values())) for key in names}
rows |= {t(".host", name=names[key]): of_host[key][0] for key in ("soon", "parameters")}
title = t(".share", plain=peak["plain"], optimizer=peak["soon"], parameters=peak["parameters"])
losses = [of_device[key][1][0] for key in names if key != "plain"]
assert all(found == of_device["plain"][1] for found in losses)
memory_by_category_figure(rows, title=title)
# %% [markdown] lang="en"
# Losses are equal bit for bit in all five. What is gone from the device is in the host: 12 bytes for
# each parameter, and 4 to 5 for what travels. Offload does not shrink memory, it moves it. Here the peak
# comes when activations are at their highest, before there are gradients; so overlap does not show. It
# does in the table's last column: gradients that leave at once never all meet. With parameters on the host a
# step fetches each block twice:
# %% [markdown] lang="ko" en="f4016cb4"
# 다섯 방법의 손실이 비트까지 같습니다. 장치에서 사라진 것은 호스트에 있습니다. 파라미터마다 12바이트에, 오가는 값
# 4~5바이트입니다. 오프로드는 메모리를 줄이지 않고 옮길 뿐입니다. 여기서는 활성화값이 가장 많고 그래디언트는 아직 없을
# 때가 최대라서 중첩의 효과가 보이지 않습니다. 아래 표의 마지막 열에서는 보입니다. 만들자마자 떠나는 그래디언트는 한꺼번에
# 모이지 않습니다. 파라미터까지 호스트에 두면 한 스텝에 블록을 두 번씩 가져옵니다.
# %%
header = [t(f".{key}") for key in ("way", "out", "back", "gradients")]
traffic = {key: [*of_device[key][1][1:], of_device[key][2]] for key in ("late", "soon", "parameters")}
assert traffic["soon"][0] == traffic["parameters"][0]
assert traffic["parameters"][1] > traffic["soon"][1]
assert traffic["late"][2] == 4 * num_parameters > 2 * traffic["soon"][2]
Table(header, [[names[key], *(f"{count:,}" for count in row)] for key, row in traffic.items()])
# %%
# %%ranks --fast
def nanoseconds_of_steps(kind, overlap):
    with Recorder(rank, world_size) as recorder:
        offloaded(kind, overlap, steps=6)
    return [step["end_ns"] - step["start_ns"] for step in recorder.record["steps"][1:]]


kinds = {"optimizer": OptimizerOffload, "parameters": ParameterOffload}
times = {key: [nanoseconds_of_steps(k, o) for o in (False, True)] for key, k in kinds.items()}
# %%
rows = []
for key, both in ranks["times"][0].items():
    off, on = (min(each) / 1e9 for each in both)
    rows.append([t(f".{key}"), *map(human_seconds, (off, on)), f"{on / off:.2f}×"])
header = [t(f".{key}") for key in ("way", "time.no", "time.yes", "time.ratio")]
Table(header, rows)
# %% [markdown] lang="en"
# Time is of this run, the shortest of five steps on rank 0. Expect a ratio near 1, on either side:
# here device, host and messages share the same cores, so little can go on at once. A GPU, its copy
# engines and the CPU are three; measure it there.
# %% [markdown] lang="ko" en="188fe7d0"
# 시간은 이번 실행에서 잰, 랭크 0의 다섯 스텝 가운데 가장 짧은 것입니다. 여기서는 장치와 호스트, 메시지가 같은 코어를
# 나눠 쓰므로 동시에 할 수 있는 일이 적어 비율이 1보다 조금 작거나 클 수 있습니다. GPU에서는 GPU와 복사 엔진, CPU가
# 따로 일하니 거기서 재 보세요.
# %% [markdown] lang="en"
# The host is a memory with a limit, too. What if it is full? The same sentence in both ranks, before
# anything has moved:
# %% [markdown] lang="ko" en="4e309705"
# 호스트도 한도가 있는 메모리입니다. 꽉 차 있으면 어떻게 될까요? 아무것도 옮기기 전에 두 랭크가 같은 오류를 냅니다.
# %%
# %%ranks --fails "leave the state on the device"
if rank == world_size - 1:
    serve(0, steps=1, memory=1_000_000)
elif rank == 0:
    OptimizerOffload(GPT(small).to(device), RankHost(world_size - 1))
# %% [markdown] lang="en"
# ## One memory: does it help?
#
# On a Mac, and on some servers, CPU and GPU share one memory: **unified memory**. This CPU is the
# extreme case. `LocalHost` is for GPUs: pinned memory, which a GPU reaches without the CPU's help, and
# a thread and a stream for each direction. Run it here, where both memories are one:
# %% [markdown] lang="ko" en="a5bdf6aa"
# ## 메모리가 하나라면?
#
# 맥과 일부 서버는 CPU와 GPU가 메모리를 함께 씁니다. **통합 메모리**(unified memory)입니다. 이 CPU가 그 극단입니다.
# `LocalHost`는 GPU를 위한 것으로, GPU가 CPU의 도움 없이 읽고 쓰는 고정된(pinned) 메모리와 방향마다 스레드,
# 스트림을 하나씩 씁니다. 두 메모리가 하나인 이곳에서 돌려 봅니다.
# %%
show("dlcourse.training.sharding_offload.local_host:LocalHost")
# %%
# %%ranks --fast
from dlcourse.training.sharding_offload.local_host import LocalHost


def kept_by(make):
    before = live_bytes()
    model = GPT(small).to(device)
    optimizer = make(model)
    steps_of(model, optimizer, 1)
    after = live_bytes()
    return {name: max(0, after[name] - before[name]) for name in after}


one_memory = [
    kept_by(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)),
    kept_by(lambda model: OptimizerOffload(model, LocalHost())),
]
# %%
labels = [t(".unified.no"), t(".unified.yes")]
rows = dict(zip(labels, ranks["one_memory"][0], strict=True))
kept_plain, kept_unified = (sum(row.values()) for row in rows.values())
memory_by_category_figure(rows, title=t(".unified", ratio=kept_unified / kept_plain))
# %% [markdown] lang="en"
# Nothing is saved: the master copy and the buffer come on top. (Between steps, when there
# are no gradients in either.) Where memory is one, do not offload, as there is nowhere to go to.
#
# Where it is two, time is bytes over bandwidth. Measure yours on a GPU; put it here. For a model of 7
# billion parameters in 16 bits, out and back, at 10, 50 and 400 GB/s (examples, not figures of a product):
# %% [markdown] lang="ko" en="604ccb36"
# 아끼는 것이 없습니다. 마스터 가중치와 버퍼가 더해질 뿐입니다. (스텝 사이에 재었으므로 양쪽 다 그래디언트가
# 없습니다.) 메모리가 하나라면 옮겨 갈 곳이 없으니 오프로드하지 마세요.
#
# 둘이라면 시간은 바이트를 대역폭으로 나눈 값입니다. GPU에서 대역폭을 재어 넣어 보세요. 16비트로 파라미터 70억 개가 나갔다 돌아올 때,
# 초당 10, 50, 400 GB라면(제품의 수치가 아니라 예입니다) 다음과 같습니다.
# %% tags=["nbval-check-output"]
moved_bytes = 2 * 2 * 7e9
for rate in (10, 50, 400):
    print(t(".seconds", rate=rate, time=human_seconds(moved_bytes / (rate * 1e9))))
# %% [markdown] lang="en"
# ## Loading what fits nowhere
#
# `GPT(config)` draws all weights, then a file replaces them: each rank needs the whole model, twice.
# The **meta device** builds shapes without numbers, and a **safetensors** file tells in its header
# where each tensor lies. So a rank reads its own layers, straight into place. **Predict** how many
# times less memory that takes at its peak.
# %% [markdown] lang="ko" en="5e5a5d12"
# ## 통째로는 들어가지 않는 모델 읽기
#
# `GPT(config)`는 가중치를 모두 뽑고, 이어서 파일이 그것을 바꿉니다. 랭크마다 모델 전체가 두 벌 필요합니다. **메타
# 장치**(meta device)는 숫자 없이 모양만 만들고, **safetensors** 파일은 텐서가 어디에 있는지 머리글에 적어 둡니다.
# 그래서 랭크는 자기 층만 읽어 제자리에 넣습니다. 최대 메모리가 몇 분의 1로 줄지 **예측해 보세요.**
# %%
predict("12.load", ..., formula=2 * w, unit="×")
# %% source="dlcourse.training.sharding_offload.sharded_files:File,load_module"
# %%
# %%ranks --fast
import tempfile
from pathlib import Path

from dlcourse.training.sharding_offload.sharded_files import save_file, save_shards

place = tempfile.TemporaryDirectory() if rank == 0 else None
share = [place and place.name]
dist.broadcast_object_list(share)
folder = Path(share[0])
if rank == 0:
    names = list(GPT(config).state_dict())
    groups = [[name for name in names if not name.startswith("blocks.")]]
    groups += [[n for n in names if n.startswith(f"blocks.{i}.")] for i in range(100)]
    save_shards(GPT(config), folder, groups)
    save_file(GPT(config).state_dict(), folder / "whole.safetensors")
dist.barrier()
# %%
# %%ranks --fast
def load_whole():
    file, model = File(folder / "whole.safetensors"), GPT(config)
    model.load_state_dict({name: file.read(name) for name in file.header})
    return Stage(model, layers)


def load_own():
    with torch.device("meta"):
        stage = Stage(GPT(config), layers)
    load_module(stage, folder, device)
    return stage


(whole, a, _), (own, b, _) = peak_of(load_whole), peak_of(load_own)
other = b.state_dict()
same = all(torch.equal(tensor.to(device), other[name]) for name, tensor in a.state_dict().items())
# %%
whole, own = ([sum(rank.values()) for rank in ranks[name]] for name in ("whole", "own"))
compare("12.load", whole[1] / own[1])
assert all(ranks["same"]) and whole[1] / own[1] > 1.8 * w
rows = {t(".whole"): ranks["whole"][1], t(".apart"): ranks["own"][1]}
memory_by_category_figure(rows, title=t(".load", ratio=whole[1] / own[1]))
# %% [markdown] lang="en"
# A little over $2 \cdot 3$, as this rank has no embeddings. The format is so simple that 60 lines write and read it; the package `safetensors` does the same.
# With a pickle (`torch.save`) `mmap=True` avoids reading all of it, too.
#
# ## Beside the real library
#
# FSDP2 shards over ranks *and* offloads: `CPUOffloadPolicy`. The same model, the same batch in each
# rank, one step; the loss of the second batch tells whether it was the same step.
# %% [markdown] lang="ko" en="2434c171"
# $2 \cdot 3$배를 조금 넘는 것은 이 랭크에 임베딩이 없어서입니다. 형식이 아주 단순해서 60줄이면 쓰고 읽습니다. `safetensors` 패키지도 같은 일을 합니다. 피클(`torch.save`)이라도
# `mmap=True`를 주면 다 읽지 않습니다.
#
# ## 실제 라이브러리와 나란히
#
# FSDP2는 랭크끼리 샤딩하면서 오프로드도 합니다. `CPUOffloadPolicy`입니다. 같은 모델, 모든 랭크에 같은 배치로 한
# 스텝을 돌립니다. 두 번째 배치의 손실을 보면 같은 스텝이었는지 알 수 있습니다.
# %%
# %%ranks --fast
from dlcourse.peers.offload import offload_with_fsdp2


def fsdp2(offload):
    model, optimizer = offload_with_fsdp2(GPT(small).to(device), offload=offload)
    losses = steps_of(model, optimizer, 2)
    return losses, {str(p.to_local().device) for p in model.parameters()}


a = b = other = None
peers = [peak_of(fsdp2, offload) for offload in (False, True)]
# %%
ours = of_device["plain"][1]
rows = [[t(".alone"), f"{ours[1]:.6f}", human_bytes(sum(of_device["plain"][0].values()))]]
labels = "FSDP2", "FSDP2 + CPUOffloadPolicy"
for name, (size, (losses, _), _) in zip(labels, ranks["peers"][0], strict=True):
    assert abs(losses[1] - ours[1]) < 1e-4
    rows.append([name, f"{losses[1]:.6f}", human_bytes(sum(size.values()))])
Table([t(f".{key}") for key in ("libraries", "equal", "measured")], rows)
# %% [markdown] lang="en"
# The same loss up to rounding (gradients are averaged over ranks; we allow $10^{-4}$). On a CPU its
# policy saves nothing either: both memories are one. DeepSpeed calls it `offload_optimizer` and
# `offload_param`.
#
# ## Exercises
#
# **1. `12.moved`** (3 minutes). Bytes out and back in a step, in 16 bits. The model has `parameters`
# parameters, `blocks` of them in its blocks; the rest of it stays on the device. What is offloaded,
# `what`, is "optimizer" or "parameters". Return both numbers.
# %% [markdown] lang="ko" en="bfa440d0"
# 손실은 반올림만큼만 다릅니다(그래디언트를 랭크끼리 평균 내므로 $10^{-4}$까지 허용합니다). CPU에서는 이 정책도 아끼는
# 것이 없습니다. 메모리가 하나이기 때문입니다. DeepSpeed에서는 `offload_optimizer`와 `offload_param`입니다.
#
# ## 연습 문제
#
# **1. `12.moved`** (3분). 16비트일 때 한 스텝에 나가고 돌아오는 바이트를 둘 다 돌려주세요. 파라미터는 `parameters`개,
# 그 가운데 `blocks`개가 블록에 있고 나머지는 장치에 남습니다. 무엇을 오프로드하는지가 `what`이며, "optimizer"나
# "parameters"입니다.
# %% exercise="12.moved"
def moved(parameters, blocks, what):
    raise NotImplementedError


# %%
check("12.moved")
# %% [markdown] lang="en"
# **2. `12.relay`** (10 minutes). One step over ranks: rank 0's `x` goes through all ranks' `layer`, in
# order; the last result `y` gives the loss `y.square().mean()`. Return the loss in the last rank, 0.0
# elsewhere; gradients as in one process. All tensors between ranks have the shape of `x`. Send no
# byte more than needed.
# %% [markdown] lang="ko" en="ee7c2904"
# **2. `12.relay`** (10분). 랭크를 잇는 한 스텝입니다. 랭크 0의 `x`가 모든 랭크의 `layer`를 차례로 지나고, 마지막
# 결과 `y`의 손실은 `y.square().mean()`입니다. 마지막 랭크는 손실을, 나머지는 0.0을 돌려줍니다. 그래디언트는 단일
# 프로세스와 같아야 합니다. 랭크 사이의 텐서는 모두 `x`와 모양이 같습니다. 필요한 것만 보내세요.
# %% exercise="12.relay"
# %%ranks
def relay(layer, x):
    raise NotImplementedError


# %%
check("12.relay")
# %% [markdown] lang="en"
# **3. `12.leave`** (10 minutes). Gradients that leave during backward: `leave(model, put)` prepares a
# model so that each backward calls `put(parameter, gradient)` once for each parameter, and keeps no
# gradient. Target: never more than two of them alive.
# %% [markdown] lang="ko" en="939fb0f3"
# **3. `12.leave`** (10분). 역전파 도중에 떠나는 그래디언트입니다. `leave(model, put)`은 역전파할 때마다
# 파라미터마다 한 번씩 `put(parameter, gradient)`를 부르고 그래디언트는 남기지 않도록 모델을 준비합니다. 목표: 살아
# 있는 그래디언트가 두 개를 넘지 않아야 합니다.
# %% exercise="12.leave"
# %%ranks
def leave(model, put):
    raise NotImplementedError


# %%
check("12.leave")
# %% [markdown] lang="en"
# **4. `12.balance`** (20 minutes). Layers are not equal: `costs` are their bytes. Cut them, in order, into
# pieces for `devices` devices, each with one or more layers, so that the fullest device has as little
# as possible. Return the sizes, like `[33, 33, 34]`.
# %% [markdown] lang="ko" en="1d0103c5"
# **4. `12.balance`** (20분). 층은 서로 다릅니다. `costs`가 층마다의 바이트입니다. 순서를 지켜 `devices`개 장치에
# 하나 이상씩 나누되, 가장 많이 찬 장치가 되도록 적게 차게 하세요. `[33, 33, 34]`처럼 층의 개수를 돌려줍니다.
# %% exercise="12.balance"
def balance(costs, devices):
    raise NotImplementedError


# %%
check("12.balance")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# What changes: copies to pinned memory run beside computation, in streams of their own, and Adam on a
# CPU may become the slowest part. ZeRO comes first: each rank offloads its shard only, over its own
# PCIe link. No GPU run of this lesson is recorded yet, so no time is given; `LocalHost` has not run on
# a GPU.
#
# Derived: GB in the host for each of 1 to 64 ranks that share 7 billion parameters (12 bytes each, and
# 2 that travel):
# %% [markdown] lang="ko" en="75b68b68"
# ## GPU 클러스터에서는
#
# 달라지는 것이 있습니다. 고정된 메모리로의 복사는 별도의 스트림에서 계산과 나란히 진행되고, CPU의 Adam이 가장 느린
# 부분이 되기도 합니다. ZeRO가 먼저입니다. 랭크마다 자기 샤드만 자기 PCIe로 오프로드합니다. 이 레슨의 GPU 실행 기록은
# 아직 없어 시간은 적지 않으며, `LocalHost`는 GPU에서 돌려 보지 않았습니다.
#
# 파라미터 70억 개(12바이트씩에, 오가는 2바이트)를 랭크 1~64개가 나눌 때 랭크 하나가 호스트에서 쓰는 GB입니다.
# %% tags=["nbval-check-output"]
{ranks_: round(14 * 7e9 / ranks_ / 1e9, 1) for ranks_ in (1, 8, 64)}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Layers over devices: the same numbers bit for bit, only activations travel.
# 2. It is a pipeline of one: memory is bought, speed is not.
# 3. "2 GB each" counts parameters; training needs four times that, and activations.
# 4. Offload moves memory: gradients out, parameters back, hidden behind backward if overlapped.
# 5. Build on the meta device, read your own layers: no rank ever holds the whole model.
#
# Sources: [1] [Ren et al., ZeRO-Offload, 2021](https://arxiv.org/abs/2101.06840).
# [2] [Rajbhandari et al., ZeRO-Infinity, 2021](https://arxiv.org/abs/2104.07857).
# [3] [The safetensors format](https://github.com/huggingface/safetensors).
# %% [markdown] lang="ko" en="6f39f04c"
# ## 다섯 줄 요약
#
# 1. 층을 장치에 나눠도 숫자는 비트까지 같습니다. 오가는 것은 활성화값뿐입니다.
# 2. 마이크로배치가 하나뿐인 파이프라인입니다. 메모리는 얻지만 속도는 얻지 못합니다.
# 3. "2 GB씩"은 파라미터만 센 것입니다. 학습에는 그 네 배에 활성화값이 더 필요합니다.
# 4. 오프로드는 메모리를 옮깁니다. 그래디언트가 나가고 파라미터가 돌아오며, 중첩하면 역전파 뒤에 숨습니다.
# 5. 메타 장치에서 만들고 자기 층만 읽으면, 어느 랭크도 모델 전체를 들고 있지 않습니다.
#
# 출처: [1] [Ren 외, ZeRO-Offload, 2021](https://arxiv.org/abs/2101.06840).
# [2] [Rajbhandari 외, ZeRO-Infinity, 2021](https://arxiv.org/abs/2104.07857).
# [3] [safetensors 형식](https://github.com/huggingface/safetensors).
