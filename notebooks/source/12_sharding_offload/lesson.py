# %% [markdown] lang="en" form="core"
# # 12 Sharding and offload: a model that no device can hold
#
# A model has 100 layers and takes 6 GB. You have two GPUs with 4 GB each, and a CPU. The
# recipe: 33 layers here, 33 there, 34 on the CPU, 2 GB on each. It even runs.
#
# Does it also *train* there? What do devices do while they wait for each other? And why not keep in the
# CPU's memory what a GPU does not need right now?
#
# You will cut a model over devices and move its optimizer to the CPU's memory (the **host**). What then
# crosses a link in each step, what does it cost, what can be hidden?
#
# Time: reading 18 min + exercises 43 min.
# %% [markdown] lang="ko" en="ff3fe722"
# # 12 샤딩과 오프로드: 어느 장치에도 들어가지 않는 모델
#
# 층이 100개이고 6 GB인 모델이 있습니다. 가진 것은 4 GB짜리 GPU 두 개와 CPU입니다. 흔히 이렇게들 합니다. 33개
# 층은 여기, 33개는 저기, 34개는 CPU에 두면 2 GB씩입니다. 실제로 돌아가기도 합니다.
#
# 그런데 그렇게 나누고 *학습*도 할 수 있을까요? 서로를 기다리는 동안 장치들은 무엇을 할까요? GPU에 지금 당장 필요 없는 것은
# CPU 메모리에 두면 되지 않을까요?
#
# 모델을 장치에 나누고, 옵티마이저를 CPU 쪽 메모리(**호스트**, host)로 옮깁니다. 스텝마다 무엇이 링크를 건너고,
# 얼마가 들고, 무엇을 계산과 겹칠 수 있을까요?
#
# 시간: 읽기 18분 + 연습 43분.
# %% tags=["parameters"] hidden=true
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
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore, hint, lesson, predict
from dlcourse import quiz, solution
from dlcourse.figures.sharding_offload import BATCH, CONFIG, divided, figures_of_d4, show_devices
from dlcourse.figures.sharding_offload import show_first, show_full, show_host_memory, show_limits
from dlcourse.figures.sharding_offload import show_libraries, show_load, show_memory, show_needs
from dlcourse.figures.sharding_offload import show_overlap, show_relay, show_same, show_traffic
from dlcourse.figures.sharding_offload import show_unified, step_over_link, times_more
from dlcourse.formulas.devices import at_peak, check_devices, check_limits, device_needs
from dlcourse.parallel.pipeline_simulation import Gantt

lesson(lang=lang, name="12_sharding_offload")
check_devices(num_ranks)
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# Our 100 layers are small: 7,152 parameters each ($12h^2 + 10h$ with $h$ = 24). Training in float32
# with Adam keeps a parameter, its gradient and two moments, and a step counter (4 bytes) for each of a
# layer's 13 tensors.
#
# **Predict** the bytes of parameters, gradients and state in device 1 of three: 33 layers.
# %% [markdown] lang="ko" en="ee0365ca"
# 우리 층 100개는 작습니다. 층마다 파라미터가 7,152개입니다($h$ = 24일 때 $12h^2 + 10h$). float32와 Adam으로
# 학습하면 파라미터마다 값, 그래디언트, 모멘트 두 개를, 텐서(층마다 13개)마다 스텝 수(4바이트)를 들고 있습니다.
#
# 장치 셋 가운데 장치 1에는 층이 33개입니다. 파라미터, 그래디언트, 옵티마이저 상태가 몇 바이트일지 **예측해 보세요.**
# %%
predict("12.states")
# %% [markdown] lang="en"
# This is all that a step needs: receive, compute, send, and the same way back. `Stage` has this rank's
# layers. A received tensor is a leaf with `requires_grad`, so its `.grad` after backward is what the
# device before waits for. (Folded: the course's class, which does the same.)
# %% [markdown] lang="ko" en="5bf90040"
# 스텝에 필요한 일은 이것뿐입니다. 받고, 계산하고, 보내고, 거꾸로 한 번 더 합니다. `Stage`에는 이 랭크의 층이
# 있습니다. 받은 텐서는 `requires_grad`를 켠 리프(leaf)이므로, 역전파가 끝나면 그 `.grad`가 바로 앞 장치가 기다리는
# 값입니다. (접어 둔 것은 같은 일을 하는 이 과정의 클래스입니다.)
# %%
# %%ranks
def relay_step(stage, x, targets):
    if rank > 0:
        irecv(x, rank - 1).wait()
        x.requires_grad_()
    y = stage(x, targets) if stage.is_last else stage(x)
    grad = None
    if not stage.is_last:
        isend(y.detach(), rank + 1).wait()
        grad = torch.empty_like(y)
        irecv(grad, rank + 1).wait()
    y.backward(grad)
    if rank > 0:
        isend(x.grad, rank - 1).wait()
    return y.detach()
# %% hidden=true source="dlcourse.training.sharding_offload.layers_over_devices:LayersOverRanks"

# %% hidden=true
# %%ranks --fast
import gc

from dlcourse.collectives.p2p import irecv, isend
from dlcourse.corpus import Corpus
from dlcourse.figures.sharding_offload import divided
from dlcourse.formulas.devices import layer_ranges
from dlcourse.measure import Recorder, live_bytes, mark_step
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline_stages import Stage
from dlcourse.training.sharding_offload import timed_steps
from dlcourse.training.sharding_offload.optimizer_offload import OptimizerOffload
from dlcourse.training.sharding_offload.parameter_offload import ParameterOffload
from dlcourse.training.sharding_offload.rank_as_host import RankHost, serve
# %% hidden=true
# %%ranks --fast
config = GPTConfig(n_layer=100, n_head=2, n_embd=24, block_size=32)
layers = layer_ranges(100, divided(100, world_size))[rank]
corpus = Corpus(limit=100_000)


def batch(step):
    return [half.to(device) for half in corpus.batch(step, micro_batch=2, block=32)]


def take_step(stage, optimizer, step):
    gc.collect()
    optimizer.zero_grad()
    tokens, targets = batch(step)
    x = torch.empty(2, 32, 24, device=device) if rank else tokens
    loss = relay_step(stage, x, targets)
    optimizer.step()
    return loss.mean().item()
# %%
# %%ranks --fast
stage = Stage(GPT(config).to(device), layers)
optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
losses = [take_step(stage, optimizer, 0)]
# %%
# %%ranks --as naive
losses.append(take_step(stage, optimizer, 1))
# %%
kept = naive.memory.ranks[1]["end"]
compare("12.states", sum(kept[name] for name in ("parameters", "gradients", "optimizer_state")))
show_needs(naive)
# %% [markdown] lang="en"
# These are the highest moments: forward is over, and activations are all there. Gradients are not; they
# come as activations go, so the two peaks never meet, and adding them up would be wrong. The recipe's
# 2 GB are the first colour alone. And devices are not equal: embeddings are at one end, norm,
# head and loss at the other.
#
# So ask *before* building whether it fits. Each device has a limit of its own; here is one that the
# undivided model would break:
# %% [markdown] lang="ko" en="15d4edaa"
# 메모리가 가장 높은 순간을 그린 것입니다. 순전파가 끝나 활성화값이 모두 있을 때입니다. 그래디언트는 활성화값이 사라지는 동안 생기므로 둘의
# 최댓값은 만나지 않고, 더하면 틀립니다. 처음에 말한 2 GB는 첫 번째 색만 센 것입니다. 장치들도 같지 않습니다.
# 한쪽 끝에는 임베딩이, 다른 끝에는 정규화, 출력층, 손실이 있습니다.
#
# 그러니 만들기 *전에* 들어가는지 물어보아야 합니다. 장치마다 자기 한도가 있습니다. 다음은 나누지 않은 모델로는 지킬 수
# 없는 한도입니다.
# %%
needs = device_needs(CONFIG, divided(100, num_ranks), **BATCH)
limit = int(1.05 * max(sum(at_peak(need).values()) for need in needs))
with expect_failure("give it fewer layers"):
    check_limits(device_needs(CONFIG, [100], **BATCH), [limit])
check_limits(needs, [limit] * num_ranks)
show_limits(naive, limit)
# %% [markdown] lang="en"
# The message names what is too large and what to change, before anything is built. Divided, it fits.
#
# Is it still the same training? One process does the same operations on the same numbers, so we ask for
# equality bit for bit:
# %% [markdown] lang="ko" en="7e87fd95"
# 만들기도 전에 무엇이 넘치고 무엇을 바꾸면 되는지 알려 줍니다. 나누면 들어갑니다.
#
# 그런데 여전히 같은 학습일까요? 단일 프로세스도 같은 숫자로 같은 연산을 하므로 비트까지 같아야 합니다.
# %% hidden=true
# %%ranks --fast
def train_alone(steps):
    alone = GPT(config).to(device)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = alone(*batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(alone.named_parameters())


want, named = train_alone(2)
same = all(torch.equal(p, named[name]) for name, p in stage.named_parameters())
named = None
# %%
show_same(ranks["same"], ranks["want"][-1][-1], ranks["losses"][-1][-1])
# %% [markdown] lang="en"
# ## One works at a time
#
# Nothing is copied, nothing averaged. The price is time. Before it computes, a device needs what the
# one before has made. **Predict**: what percentage of the time do three devices wait, if all take the
# same time?
#
# Three ranks on two cores cannot show that, so times are imposed: a device's layers take 50 ms
# forward and 100 ms backward, a message 5 ms and 1 µs a byte. Messages and their order stay real.
# %% [markdown] lang="ko" en="f7df0ec2"
# ## 한 번에 하나만 일한다
#
# 복사하는 것도 평균 내는 것도 없습니다. 비용은 시간입니다. 장치는 앞 장치의 결과가 있어야 계산할 수 있습니다. 모두
# 같은 시간이 걸린다면 장치 셋은 시간의 몇 %를 기다릴지 **예측해 보세요.**
#
# 코어 두 개를 나눠 쓰는 랭크 셋으로는 볼 수 없으니 시간을 정해 줍니다. 장치의 층들은 순전파에 50 ms, 역전파에 100 ms가 걸리고
# 메시지에는 5 ms와 바이트마다 1 µs가 듭니다. 메시지와 그 순서는 진짜입니다.
# %%
predict("12.idle")
# %% hidden=true
# %%ranks --fast
from dlcourse.figures.sharding_offload import BACKWARD, BANDWIDTH, FORWARD, LATENCY, SLOWER

short = GPTConfig(n_layer=2 * world_size, n_head=2, n_embd=24, block_size=32)
on_cpu = lambda step: corpus.batch(step, micro_batch=2, block=32)
line = {"latency": LATENCY, "bandwidth": BANDWIDTH, "forward": FORWARD, "backward": BACKWARD}
equal = timed_steps.relay_spans(short, [2] * world_size, on_cpu, **line)
uneven = timed_steps.relay_spans(short, [2] * world_size, on_cpu, **line, slower=SLOWER)
whole = {"forward": world_size * FORWARD, "backward": world_size * BACKWARD}
seconds = timed_steps.step_alone(short, on_cpu, **whole) if rank == 0 else None
# %%
equal, uneven = ranks["equal"][0], ranks["uneven"][0]
compare("12.idle", 100 * Gantt(equal).idle_over_total)
show_relay(ranks["seconds"][0], equal, uneven)
# %% [markdown] lang="en"
# Bars never overlap, and cannot. It is [lesson 05](05_pipeline_parallel.ipynb)'s pipeline with a single
# micro-batch: $p$ devices are idle $(p-1)/(m+p-1)$ of the time, for $m = 1$. This placement buys
# *memory*, never speed. With one slow device, such as the CPU, all wait for that one. What would help
# is in the last panel: micro-batches.
#
# Now the claim's own size: 6 GB in float32, one sequence of 1,024 tokens. Device 1 runs forward and
# backward on tensors with shapes and no numbers, so its bytes are exact. The other bars are predicted.
# %% [markdown] lang="ko" en="c88b5636"
# 막대는 겹치지 않으며, 겹칠 수도 없습니다. [레슨 05](05_pipeline_parallel.ipynb)의 파이프라인에서 마이크로배치가
# 하나인 경우로, 장치 $p$개의 유휴 비율 $(p-1)/(m+p-1)$에 $m = 1$을 넣은 것입니다. 이렇게 나누어 얻는 것은
# *메모리*이지 속도가 아닙니다. CPU처럼 느린 장치가 끼면 모두 그 장치를 기다립니다. 도움이 되는 것은 마지막 그림의
# 마이크로배치입니다.
#
# 이제 주장에 나온 크기 그대로, float32로 6 GB, 토큰 1,024개짜리 시퀀스 하나입니다. 장치 1이 모양만 있고 숫자는 없는 텐서로
# 순전파와 역전파를 하므로 그 바이트는 정확합니다. 나머지 막대는 예측입니다.
# %% hidden=true
# %%ranks --fast
from torch._subclasses.fake_tensor import FakeTensorMode


def full_size():
    big = GPTConfig(n_layer=100, n_head=16, n_embd=1120, block_size=1024)
    with FakeTensorMode():
        part = Stage(GPT(big), layers)
        tokens = torch.zeros(1, 1024, dtype=torch.long)
        x = tokens if part.is_first else torch.zeros(1, 1024, 1120, requires_grad=True)
        with Recorder(rank, world_size) as recorder:
            y = part(x, tokens) if part.is_last else part(x)
            y.backward(None if part.is_last else torch.ones_like(y))
    return recorder.record["memory"]


full = full_size() if rank == 1 else None
full = full and {"peaks": full["peaks"], "at_peak": full["at_peak"]}
# %%
full = ranks["full"][1]
show_full(full, num_ranks)
# %%
claim("D4", **figures_of_d4(full, 100 * Gantt(equal).idle_over_total))
# %% [markdown] lang="en"
# ## Out of the way: the optimizer's state
#
# So the recipe's layers run on GPUs of 4 GB, and do not train there. Half of the states is Adam's, touched
# once a step. **Offload** it: it and a **master copy** of the parameters live in the host's memory.
# Gradients go out, the host takes Adam's step, parameters come back.
#
# On a CPU, device and host have one memory, and copies would show nothing. So the last rank is
# the host, with a ledger of its own, and messages stand for PCIe, the link between GPU and CPU. The
# model: 8 layers of width 64, 433,280 parameters in float32.
#
# **Predict** the bytes that go out in a step. As many come back.
# %% [markdown] lang="ko" en="69fdc5e2"
# ## 자리 비우기: 옵티마이저 상태
#
# 4 GB짜리 GPU에서 그 층들은 돌기는 해도 학습은 못 합니다. 상태의 절반은 Adam의 것이고, 한 스텝에 한 번만 건드립니다.
# 그러니 **오프로드**(offload)합니다. 옵티마이저 상태와 파라미터의 복사본(마스터 가중치)을 호스트 메모리에 둡니다. 그래디언트가 나가고, 호스트가 Adam 스텝을 실행하고, 파라미터가 돌아옵니다.
#
# CPU에서는 장치와 호스트의 메모리가 하나라서 복사해도 달라지는 것이 보이지 않습니다. 그래서 마지막 랭크가 자기 장부(ledger)를 가진
# 호스트가 되고, 메시지가 GPU와 CPU를 잇는 PCIe를 대신합니다. 모델은 폭 64인 층 8개, float32 파라미터 433,280개입니다.
#
# 한 스텝에 나가는 바이트를 **예측해 보세요.** 돌아오는 것도 그만큼입니다.
# %%
predict("12.moved")
# %%
# %%ranks
def device_step(model, host):
    for p in model.parameters():
        isend(p.grad, host).wait()
        p.grad = None
    for p in model.parameters():
        irecv(p.data, host).wait()


def host_step(masters, adam, device):
    for p in masters:
        p.grad = torch.empty_like(p)
        irecv(p.grad, device).wait()
    adam.step()
    for p in masters:
        isend(p.data, device).wait()
# %% hidden=true source="dlcourse.training.sharding_offload.optimizer_offload:OptimizerOffload"

# %% hidden=true source="dlcourse.training.sharding_offload.rank_as_host:serve"

# %%
# %%ranks --as first
small = GPTConfig(n_layer=8, n_head=2, n_embd=64, block_size=32)
if rank == 0:
    model = GPT(small).to(device)
    model(*batch(0)).backward()
    device_step(model, world_size - 1)
elif rank == world_size - 1:
    masters = list(GPT(small).parameters())
    host_step(masters, torch.optim.AdamW(masters, lr=1e-3), 0)
# %% hidden=true
# %%ranks --fast
plain = GPT(small).to(device)
adam = torch.optim.AdamW(plain.parameters(), lr=1e-3)
plain(*batch(0)).backward()
adam.step()
held_by = model.parameters() if rank == 0 else masters if rank == world_size - 1 else []
as_adam = all(torch.equal(p.cpu(), q.cpu()) for p, q in zip(held_by, plain.parameters()))
# %%
sent = [rank["wire_bytes"] for rank in first.comm.ranks]
compare("12.moved", sent[0])
show_first({"out": sent[0], "back": sent[-1]}, ranks["as_adam"])
# %% [markdown] lang="en"
# The right step, and slow: the device waits for everything. But the last layers' gradients are ready
# when backward has hardly begun. The class folded above sends them from a hook while backward goes on,
# and the host updates one block while the next one travels.
#
# Times imposed: 10 ms forward and 20 ms backward for each of 8 blocks, a link of 10 MB/s each way
# (some 20 ms a block), 10 ms for the host's update of a block. **Predict**: how many times as fast is a step?
# %% [markdown] lang="ko" en="88641ef6"
# 결과는 맞지만 느립니다. 장치가 모든 것을 기다립니다. 그런데 마지막 층들의 그래디언트는 역전파가 막 시작했을 때 이미
# 나와 있습니다. 위에 접어 둔 클래스는 역전파 도중에 훅(hook)으로 그래디언트를 보내고, 다음 블록이 오는 동안 호스트는 앞 블록을
# 갱신합니다.
#
# 시간을 정해 줍니다. 블록 8개가 저마다 순전파 10 ms, 역전파 20 ms이고, 링크는 한 방향에 10 MB/s(블록에 20 ms쯤), 호스트의
# 갱신은 블록마다 10 ms입니다. 스텝이 몇 배 빨라질지 **예측해 보세요.**
# %%
predict("12.overlap")
# %% hidden=true
# %%ranks --fast
from dlcourse.formulas.offload import OffloadJob

model = masters = plain = adam = held_by = None
job = OffloadJob()
timed = {
    "late": timed_steps.offload_steps(small, on_cpu, job, overlap=False),
    "soon": timed_steps.offload_steps(small, on_cpu, job, overlap=True),
}
# %% hidden=true
device_times, host_times = {}, {}
for way, steps in ranks["timed"][0].items():
    device_times[way] = min(steps, key=lambda at: at[-1] - at[0])
    begin, *_, end = device_times[way]
    host_times[way] = [s for s in ranks["timed"][-1][way] if begin < s[1] < end]
late, soon = (at[-1] - at[0] for at in device_times.values())
# %%
compare("12.overlap", late / soon)
show_overlap(device_times, host_times)
# %% [markdown] lang="en"
# In the lower panel the host updates the last blocks while the first ones are still in backward; only the
# tail stays in sight. A block's trip takes no longer than its backward; a slower link would show.
#
# So bandwidth decides, and *what* crosses. The slider has three ways to train 6.4 billion parameters in 16
# bits, by formula (8,192 tokens, device 100 TFLOP/s, host 10). On the host are the optimizer state alone,
# the parameters as well (fetched twice a step), or a quarter of the layers. PCIe 3.0, 4.0 and 5.0 with 16
# lanes give about 16, 32 and 64 GB/s each way. When does the link stop mattering?
# %% [markdown] lang="ko" en="7706e555"
# 아래쪽 그림에서는 앞쪽 블록이 아직 역전파하는 동안 호스트가 뒤쪽 블록을 갱신해서, 끝부분만 드러납니다. 블록이 오가는 시간이
# 그 블록의 역전파보다 길지 않아서 역전파와 겹쳐 가려졌습니다. 링크가 더 느리면 드러납니다.
#
# 그러니 결과는 대역폭과 *무엇이* 오가느냐에 달려 있습니다. 슬라이더는 파라미터 64억 개를 16비트로 학습하는 세 방법을 공식으로
# 그립니다(토큰 8,192개, 장치 100 TFLOP/s, 호스트 10 TFLOP/s). 호스트에는 옵티마이저 상태만 두거나, 파라미터까지
# 두거나(한 스텝에 두 번 가져옵니다), 층의 4분의 1을 둡니다. 16레인 PCIe 3.0, 4.0, 5.0은 한 방향에 16, 32, 64 GB/s쯤입니다.
# 링크는 언제부터 상관없어질까요?
# %%
explore(
    step_over_link,
    on_host=["optimizer", "parameters", "layers"],
    link_gb=[4, 8, 16, 32, 64, 450],
    overlap=["no", "yes"],
)
# %% [markdown] lang="en"
# Layers on the host move next to nothing, and a faster link does not help them: a host *computes* slowly.
# Offload leaves the computing where it is fast; with overlap the link hardly matters from 16 GB/s on, and
# without it always. And memory? Here are both, and no offload:
# %% [markdown] lang="ko" en="e23d00f1"
# 층을 호스트에 두면 오가는 것은 거의 없지만, 링크가 빨라져도 나아지지 않습니다. 호스트는 *계산*이 느리기 때문입니다. 오프로드는
# 계산을 빠른 곳에 남깁니다. 중첩하면 16 GB/s부터는 링크가 거의 문제 되지 않지만, 중첩하지 않으면 늘 문제가 됩니다. 메모리는 어떨까요?
# 두 가지 오프로드를 오프로드하지 않은 경우와 비교해 봅시다.
# %% hidden=true
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
# %% hidden=true
# %%ranks --fast
def plain(steps=2):
    if rank == 0:
        model = GPT(small).to(device)
        return steps_of(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps)


def offloaded(kind, overlap, steps=2):
    if rank == world_size - 1:
        serve(0, steps=steps, parameters=kind is ParameterOffload)
    elif rank == 0:
        model = GPT(small).to(device)
        offload = kind(model, RankHost(world_size - 1), overlap=overlap)
        losses = steps_of(model, offload, steps)
        return losses, (offload.out_bytes // steps, offload.back_bytes // steps)
# %% hidden=true
# %%ranks --fast
def peak_of(function, *args):
    gc.collect()
    before = live_bytes()
    with Recorder(rank, world_size) as recorder:
        result = function(*args)
    memory = recorder.record["memory"]
    at_peak = {name: max(0, memory["at_peak"][name] - before[name]) for name in before}
    return at_peak, result, memory["peaks"]["gradients"] - before["gradients"]


undivided = peak_of(plain)
# %% hidden=true
# %%ranks --fast
runs = {
    "late": peak_of(offloaded, OptimizerOffload, False),
    "soon": peak_of(offloaded, OptimizerOffload, True),
    "parameters": peak_of(offloaded, ParameterOffload, True),
}
# %% hidden=true
undivided, of_device, of_host = ranks["undivided"][0], ranks["runs"][0], ranks["runs"][-1]
on_device = {"plain": undivided[0]} | {k: of_device[k][0] for k in ("soon", "parameters")}
on_host = {k: of_host[k][0] for k in ("soon", "parameters")}
losses = {"plain": undivided[1]} | {key: run[1][0] for key, run in of_device.items()}
# %%
show_memory(on_device, on_host, losses)
# %% [markdown] lang="en"
# Losses are equal bit for bit in all of them. What is gone from the device is in the host: 12 bytes for each
# parameter, and 4 or more for what travels. Offload does not shrink memory, it moves it.
#
# The real library: FSDP2 shards over ranks *and* offloads (`CPUOffloadPolicy`; DeepSpeed says
# `offload_optimizer` and `offload_param`). The same model, the same batch in each rank, one step; the
# loss of the second batch tells whether it was the same step.
# %% [markdown] lang="ko" en="af826514"
# 모든 방법의 손실이 비트까지 같습니다. 장치에서 사라진 것은 호스트에 있습니다. 호스트는 파라미터마다 12바이트를
# 들고 있고, 오가는 값을 둘 자리가 4바이트 이상 더 필요합니다. 오프로드는 메모리를 줄이지 않고 옮길 뿐입니다.
#
# 실제 라이브러리를 봅시다. FSDP2는 랭크끼리 샤딩하면서 오프로드도 합니다(`CPUOffloadPolicy`. DeepSpeed에서는
# `offload_optimizer`와 `offload_param`). 같은 모델, 모든 랭크에 같은 배치로 한 스텝을 돌립니다. 두 번째 배치의 손실을
# 보면 같은 스텝이었는지 알 수 있습니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.peers.offload import offload_with_fsdp2


def fsdp2(offload):
    model, optimizer = offload_with_fsdp2(GPT(small).to(device), offload=offload)
    return steps_of(model, optimizer, 2)


peers = [(losses[1], sizes) for sizes, losses, _ in (peak_of(fsdp2, o) for o in (False, True))]
# %%
ours = losses["soon"][1], on_device["soon"]
show_libraries((losses["plain"][1], on_device["plain"]), ours, ranks["peers"][0])
# %% [markdown] lang="en"
# The same loss up to rounding (FSDP2 averages gradients over ranks; $10^{-4}$ is allowed). FSDP2 divides
# the states by the ranks, not the activations. On a CPU its policy saves nothing on top: both memories
# are one.
# %% [markdown] lang="ko" en="2ce4510f"
# 손실은 반올림 오차 안에서 같습니다(FSDP2는 그래디언트를 랭크끼리 평균 내므로 $10^{-4}$까지 허용합니다). FSDP2는 상태를 랭크 수로
# 나누고, 활성화값은 나누지 않습니다. CPU에서는 정책을 켜도 더 아끼는 것이 없습니다. 메모리가 하나이기 때문입니다.
# %% [markdown] lang="en"
# ## Exercises
#
# **1. `12.moved`** (3 minutes). Bytes out and back in a step, in 16 bits. The model has `parameters`
# parameters, `blocks` of them in its blocks. What is offloaded, `what`, is "optimizer" or "parameters";
# parameters outside the blocks stay on the device, and are updated by the host, too. Return both numbers.
# %% [markdown] lang="ko" en="507cd070"
# ## 연습 문제
#
# **1. `12.moved`** (3분). 16비트일 때 한 스텝에 나가고 돌아오는 바이트를 둘 다 돌려주세요. 파라미터는 `parameters`개,
# 그 가운데 `blocks`개가 블록에 있습니다. 무엇을 오프로드하는지가 `what`이며, "optimizer"나 "parameters"입니다. 블록 밖의
# 파라미터는 언제나 장치에 남고, 갱신은 호스트가 합니다.
# %% exercise="12.moved"
def moved(parameters, blocks, what):
    raise NotImplementedError
# %%
check("12.moved")
# %% [markdown] lang="en"
# **2. `12.relay`** (10 minutes). The targets never leave rank 0. So `x` goes from rank 0 through all
# ranks' `layer`, in order, and the last rank's result `y` **back to rank 0**, which computes the loss
# `y.square().mean()`. Return the loss in rank 0, 0.0 elsewhere; gradients as in one process. All tensors
# between ranks have the shape of `x`. Send what is needed, and no byte more.
# %% [markdown] lang="ko" en="5f801e15"
# **2. `12.relay`** (10분). 타깃은 랭크 0을 떠나지 않습니다. 그래서 랭크 0의 `x`가 모든 랭크의 `layer`를 차례로 지난 뒤,
# 마지막 랭크의 결과 `y`가 **랭크 0으로 돌아와** 거기서 손실 `y.square().mean()`을 계산합니다. 랭크 0은 손실을, 나머지는
# 0.0을 돌려줍니다. 그래디언트는 단일 프로세스와 같아야 합니다. 랭크 사이의 텐서는 모두 `x`와 모양이 같습니다. 필요한 것만 빠짐없이
# 보내세요.
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
# There copies to and from *pinned* memory run beside computing, in streams of their own, and Adam on the CPU may
# become the slowest part. No GPU run of this lesson is recorded. Published, on V100 GPUs:
#
# - ZeRO-Offload trains 10 billion parameters on one GPU at 40 TFLOP/s. Without it PyTorch reaches
#   30 TFLOP/s with 1.4 billion, the most that fit [1].
# - ZeRO-Infinity (parameters on CPU and NVMe) keeps over 25 PFLOP/s on 512 GPUs, 40% of their peak [2].
#
# ZeRO comes first: each rank offloads its shard only, over its own link. For 7 billion parameters (12 bytes
# each, and 2 that travel):
# %% [markdown] lang="ko" en="c45699d6"
# ## GPU 클러스터에서는
#
# GPU에서는 *고정된*(pinned) 메모리와 주고받는 복사가 별도의 스트림에서 계산과 나란히 진행되고, CPU의 Adam이 가장 느린 부분이 되기도
# 합니다. 이 레슨의 GPU 실행 기록은 없습니다. V100 GPU에서 발표된 값은 이렇습니다.
#
# - ZeRO-Offload는 GPU 하나에서 파라미터 100억 개를 40 TFLOP/s로 학습합니다. 오프로드가 없으면 PyTorch는 들어가는 최대인
#   14억 개에서 30 TFLOP/s입니다[1].
# - ZeRO-Infinity(파라미터를 CPU와 NVMe에)는 GPU 512개에서 25 PFLOP/s 이상, 최고 성능의 40%를 유지합니다[2].
#
# ZeRO가 먼저입니다. 랭크마다 자기 샤드만 자기 링크로 오프로드합니다. 파라미터 70억 개(12바이트씩에, 오가는 2바이트)라면
# 다음과 같습니다.
# %% tags=["nbval-check-output"]
show_host_memory()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Layers over devices: the same numbers bit for bit, and only activations travel.
# 2. It is a pipeline of one micro-batch: memory is bought, speed is not; a slow device slows all.
# 3. "2 GB each" counts parameters; the highest moment adds optimizer state and activations.
# 4. Offload moves memory: gradients out, parameters back, and the host takes Adam's step.
# 5. What crosses the link hides behind backward if the link is fast enough for it.
#
# Sources: [1] [Ren et al., ZeRO-Offload, 2021](https://arxiv.org/abs/2101.06840).
# [2] [Rajbhandari et al., ZeRO-Infinity, 2021](https://arxiv.org/abs/2104.07857).
# [3] [The safetensors format](https://github.com/huggingface/safetensors).
# %% [markdown] lang="ko" en="0370e172"
# ## 다섯 줄 요약
#
# 1. 층을 장치에 나눠도 숫자는 비트까지 같고, 오가는 것은 활성화값뿐입니다.
# 2. 마이크로배치가 하나뿐인 파이프라인입니다. 메모리는 얻지만 속도는 얻지 못하고, 느린 장치 하나를 모두 기다립니다.
# 3. "2 GB씩"은 파라미터만 센 것입니다. 가장 높은 순간에는 옵티마이저 상태와 활성화값이 더해집니다.
# 4. 오프로드는 메모리를 옮깁니다. 그래디언트가 나가고 파라미터가 돌아오며, Adam 스텝은 호스트가 실행합니다.
# 5. 링크가 충분히 빠르면 오가는 시간은 역전파와 겹쳐 드러나지 않습니다.
#
# 출처: [1] [Ren 외, ZeRO-Offload, 2021](https://arxiv.org/abs/2101.06840).
# [2] [Rajbhandari 외, ZeRO-Infinity, 2021](https://arxiv.org/abs/2104.07857).
# [3] [safetensors 형식](https://github.com/huggingface/safetensors).
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
# ### One process, several devices
#
# Where a process reaches all devices, no messages are needed: `x.to(device)` between layers, and
# autograd brings the gradient back. This takes the machine's GPUs, if there are any, then the CPU.
# %% [markdown] lang="ko" en="f7f494e0"
# ### 프로세스 하나, 장치 여러 개
#
# 한 프로세스가 모든 장치를 쓸 수 있다면 메시지가 필요 없습니다. 층 사이에서 `x.to(device)`를 하면 그래디언트는 autograd가
# 되돌려 줍니다. 이 컴퓨터의 GPU를 먼저 쓰고, 모자라는 자리는 CPU로 채웁니다.
# %% hidden=true source="dlcourse.training.sharding_offload.layers_over_devices:LayersOverDevices"

# %%
# %%ranks --fast
from dlcourse.training.sharding_offload.layers_over_devices import LayersOverDevices

in_one = None
if rank == 0:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = [*gpus, *["cpu"] * world_size][:world_size]
    tokens, targets = corpus.batch(0, micro_batch=2, block=32)
    in_one = {"devices": devices, "whole": GPT(config)(tokens, targets).item()}
    loss = LayersOverDevices(GPT(config), divided(100, world_size), devices)(tokens, targets)
    loss.backward()
    in_one["loss"] = loss.item()
# %%
show_devices(ranks["in_one"][0])
# %% [markdown] lang="en"
# ### What leaves when
#
# With parameters on the host a block is fetched just before it computes, and dropped after. It is stage 3
# of ZeRO ([lesson 06](06_zero.ipynb)) with the host in place of the other ranks. The last column shows what
# overlap does for memory: gradients that leave at once never all meet.
# %% [markdown] lang="ko" en="2518d11c"
# ### 무엇이 언제 떠나는가
#
# 파라미터까지 호스트에 두면 블록을 계산하기 직전에 가져오고, 끝나면 버립니다. 다른 랭크 대신 호스트에서 가져온다는 점만 다를 뿐 ZeRO
# 3단계([레슨 06](06_zero.ipynb))입니다. 마지막 열은 중첩하면 메모리가 어떻게 달라지는지 보여 줍니다. 만들자마자 떠나는 그래디언트는 한꺼번에
# 모이지 않습니다.
# %% hidden=true source="dlcourse.training.sharding_offload.parameter_offload:ParameterOffload"

# %%
show_traffic({key: (*run[1][1], run[2]) for key, run in of_device.items()})
# %% [markdown] lang="en"
# ### A host that is full
#
# The host is a memory with a limit, too. The same sentence in both ranks, before anything has moved:
# %% [markdown] lang="ko" en="a26eab4b"
# ### 호스트가 꽉 차면
#
# 호스트도 한도가 있는 메모리입니다. 아무것도 옮기기 전에 두 랭크가 같은 오류를 냅니다.
# %%
# %%ranks --fails "leave the state on the device"
if rank == world_size - 1:
    serve(0, steps=1, memory=1_000_000)
elif rank == 0:
    OptimizerOffload(GPT(small).to(device), RankHost(world_size - 1))
# %% [markdown] lang="en"
# ### One memory: does it help?
#
# On a Mac, and on some servers, CPU and GPU share one memory: **unified memory**. This CPU is the
# extreme case. `LocalHost` is for GPUs: pinned memory, which a GPU reaches without the CPU's help, and
# a thread and a stream for each direction. It has not run on a GPU. Run it here, where both memories are
# one:
# %% [markdown] lang="ko" en="f1ff8307"
# ### 메모리가 하나라면?
#
# 맥과 일부 서버는 CPU와 GPU가 메모리를 함께 씁니다. **통합 메모리**(unified memory)입니다. 이 CPU가 그 극단입니다.
# `LocalHost`는 GPU를 위한 것으로, GPU가 CPU의 도움 없이 읽고 쓰는 고정된(pinned) 메모리와 방향마다 스레드,
# 스트림을 하나씩 씁니다. GPU에서는 돌려 보지 않았습니다. 두 메모리가 하나인 이곳에서 돌려 봅니다.
# %% hidden=true source="dlcourse.training.sharding_offload.local_host:LocalHost"

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
show_unified(ranks["one_memory"][0])
# %% [markdown] lang="en"
# Nothing is saved: the master copy and the buffer come on top. (Measured between steps, when neither has
# gradients.) Where memory is one, do not offload: there is nowhere to go.
#
# ### Loading what fits nowhere
#
# `GPT(config)` draws all weights, then a file replaces them: each rank needs the whole model, twice.
# The **meta device** builds shapes without numbers, and a **safetensors** file [3] tells in its header
# where each tensor lies. So a rank reads its own layers, straight into place. **Predict** how many
# times less memory that takes at its peak, with three ranks.
# %% [markdown] lang="ko" en="18f3a5c0"
# 아끼는 것이 없습니다. 마스터 가중치와 버퍼가 더해질 뿐입니다. (스텝 사이에 재었으므로 양쪽 다 그래디언트가
# 없습니다.) 메모리가 하나라면 옮겨 갈 곳이 없으니 오프로드하지 마세요.
#
# ### 통째로는 들어가지 않는 모델 읽기
#
# `GPT(config)`가 가중치를 모두 난수로 채우고 나면 파일의 값이 그것을 덮어씁니다. 랭크마다 모델 전체가 두 벌 필요합니다. **메타
# 장치**(meta device)는 숫자 없이 모양만 만들고, **safetensors** 파일[3]은 텐서가 어디에 있는지 헤더에 적어 둡니다.
# 그래서 랭크는 자기 층만 읽어 제자리에 넣습니다. 랭크가 셋일 때 최대 메모리가 몇 배 줄지 **예측해 보세요.**
# %%
predict("12.load")
# %% hidden=true source="dlcourse.training.sharding_offload.sharded_files:File,load_module"

# %% hidden=true
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
        part = Stage(GPT(config), layers)
    load_module(part, folder, device)
    return part


(whole, a, _), (own, b, _) = peak_of(load_whole), peak_of(load_own)
other = b.state_dict()
same = all(torch.equal(tensor.to(device), other[name]) for name, tensor in a.state_dict().items())
# %%
compare("12.load", times_more(ranks["whole"], ranks["own"]))
show_load(ranks["whole"], ranks["own"], ranks["same"])
# %% [markdown] lang="en"
# The format is so simple that 60 lines write and read it; the package `safetensors` does the same. With
# a pickle (`torch.save`) `mmap=True` avoids reading all of it, too.
# %% [markdown] lang="ko" en="dfc2d8b5"
# 형식이 아주 단순해서 60줄이면 쓰고 읽습니다. `safetensors` 패키지도 같은 일을 합니다. 피클(`torch.save`)이라도
# `mmap=True`를 주면 다 읽지 않습니다.
