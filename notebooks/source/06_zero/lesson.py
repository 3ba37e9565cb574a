# %% [markdown] lang="en" form="core"
# # 06 ZeRO: why keep the same bytes four times?
#
# In [lesson 03](03_data_parallel.ipynb) every rank had a copy of everything. With 16-bit training
# and Adam, a model of 7.5 billion parameters takes 120 GB for that [1], and your GPUs have 80 GB each.
# A second GPU does not help, nor does a hundredth: each runs out of memory in the same way.
#
# Yet the copies are equal, byte for byte. What does a rank really need, and when? What does it cost to
# fetch the rest?
#
# Twenty lines make ZeRO's first stage. In the memory ledger, a count of each tensor's bytes, copies
# vanish, and you test "4, 8 and N times less".
#
# Time: reading 18 min + exercises 43 min.
# %% [markdown] lang="ko" en="0a63f1fe"
# # 06 ZeRO: 같은 바이트를 왜 네 번 들고 있을까?
#
# [레슨 03](03_data_parallel.ipynb)에서는 랭크마다 모든 것의 복제본을 들고 있었습니다. 16비트 학습에 Adam을
# 쓰면 파라미터 75억 개짜리 모델에 120 GB가 필요한데[1], GPU 메모리는 80 GB입니다. GPU를 두 개로, 백 개로
# 늘려도 소용없습니다. 저마다 똑같이 메모리가 모자랍니다.
#
# 그런데 복제본은 바이트 하나까지 똑같습니다. 랭크에 정말 필요한 것은 무엇이고, 언제 필요할까요? 나머지를
# 가져오는 데는 얼마가 들까요?
#
# ZeRO의 1단계를 스무 줄로 만들고, 메모리 장부(ledger, 텐서마다 바이트를 센 기록)에서 복제본이 사라지는 것을 보고,
# "4분의 1, 8분의 1, N분의 1"이라는 말이 맞는지 확인합니다.
#
# 시간: 읽기 18분 + 연습 43분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
# %% [markdown] lang="en"
# The plan, for 4 ranks. A filled box is a whole copy, a quarter is this rank's **shard**:
#
# ```mermaid
# flowchart LR
#   D["data parallel<br>parameters ■<br>gradients ■<br>optimizer state ■"]
#   D --> S1["stage 1<br>parameters ■<br>gradients ■<br>optimizer state ¼"]
#   S1 --> S2["stage 2<br>parameters ■<br>gradients ¼<br>optimizer state ¼"]
#   S2 --> S3["stage 3<br>parameters ¼<br>gradients ¼<br>optimizer state ¼"]
# ```
# %% [markdown] lang="ko" en="c2f849a7"
# 랭크 네 개일 때의 계획입니다. ■는 전체 복제본, ¼은 그 랭크가 맡은 **샤드**(shard)입니다.
#
# ```mermaid
# flowchart LR
#   D["데이터 병렬화<br>파라미터 ■<br>그래디언트 ■<br>옵티마이저 상태 ■"]
#   D --> S1["1단계<br>파라미터 ■<br>그래디언트 ■<br>옵티마이저 상태 ¼"]
#   S1 --> S2["2단계<br>파라미터 ■<br>그래디언트 ¼<br>옵티마이저 상태 ¼"]
#   S2 --> S3["3단계<br>파라미터 ¼<br>그래디언트 ¼<br>옵티마이저 상태 ¼"]
# ```
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore, hint, lesson
from dlcourse import predict, quiz, scale, solution
from dlcourse.figures.zero import MODELS, PRECISIONS, check_ranks, figures_of_c3, fits_on_a_card
from dlcourse.figures.zero import kept_bytes, model_sizes, own_share, peak_ratio, show_gathers
from dlcourse.figures.zero import show_libraries, show_mesh, show_one_of_many, show_own
from dlcourse.figures.zero import show_peaks, show_published, show_resumed, show_sent
from dlcourse.figures.zero import show_small, show_stages, show_timeline, times_less

lesson(lang=lang, name="06_zero")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device=device, preload="dlcourse.peers.shared_libraries")
# %% [markdown] lang="en"
# First the bill. In mixed precision a parameter is kept in bfloat16 (2 bytes), and so is its
# gradient (2). Adam keeps three float32 numbers (12): two moments, and a **master** copy of the
# parameter, because a small step on a 16-bit number is rounded away.
#
# **Predict.** How many bytes does each rank keep between two steps of data parallelism, for our GPT of
# 873,728 parameters?
# %% [markdown] lang="ko" en="a1af8a41"
# 먼저 계산서입니다. 혼합 정밀도(mixed precision)에서는 파라미터를 bfloat16(2바이트)으로 두고, 그래디언트도
# 2바이트입니다. Adam은 float32 숫자를 세 개(12바이트) 둡니다. 모멘트 두 개, 그리고 **마스터 가중치**(master
# weights)입니다. 16비트 숫자에 작은 갱신량을 더하면 반올림되어 사라지기 때문입니다.
#
# **예측해 보세요.** 파라미터 873,728개인 우리 GPT를 데이터 병렬화로 학습하면 랭크 하나가 스텝과 스텝 사이에 몇
# 바이트를 들고 있을까요?
# %%
predict("06.whole")
# %% hidden=true
# %%ranks --fast
import gc

from dlcourse.collectives.buffers import views_like
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus
from dlcourse.figures.zero import STEPS
from dlcourse.measure import Recorder, live_bytes
from dlcourse.models.gpt import GPT
from dlcourse.parallel import data
from dlcourse.parallel.data import BucketedDataParallel, NaiveDataParallel
from dlcourse.parallel.zero import train
from dlcourse.training import loop
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW
# %% hidden=true
# %%ranks --as whole
corpus = Corpus()
batch = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=1, block=16)
batch = [half.to(device) for half in batch]
model = NaiveDataParallel(GPT(seed=rank).to(device, torch.bfloat16))
optimizer = MasterAdamW(model.parameters())
model(*batch).backward()
model.sync_gradients()
optimizer.step()
# %%
compare("06.whole", kept_bytes(whole))
# %% [markdown] lang="en"
# ## Each rank updates its own slice
#
# Three quarters of it is optimizer state, and all ranks keep the *same* one, to update the *same*
# parameters by the *same* amount. So divide the work: each rank updates a part of the parameters, and
# keeps state for that part alone.
#
# Which part? Not layer by layer, as layers differ in size. ZeRO puts the parameters into one row and
# cuts the row into equal shards, wherever the cut falls:
# %% [markdown] lang="ko" en="bd5c605b"
# ## 랭크마다 한 조각씩 갱신하기
#
# 4분의 3이 옵티마이저 상태(optimizer state)입니다. 모든 랭크가 *똑같은* 상태로 *똑같은* 파라미터를 *똑같이*
# 갱신합니다. 그러니 일을 나눕시다. 랭크마다 파라미터의 일부만 갱신하고, 그 부분의 상태만 들고 있으면 됩니다.
#
# 어떤 부분을 맡을까요? 층은 크기가 제각각이라 층 단위로는 고르게 나뉘지 않습니다. ZeRO는 파라미터를 한 줄로
# 늘어놓고, 층 한가운데라도 상관없이 똑같은 길이로 자릅니다.
# %%
# %%ranks --fast
class Row:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        row = torch.cat([p.detach().flatten() for p in self.parameters])
        n = -(-len(row) // world_size)  # rounded up: the rest is padding
        self.all = F.pad(row, (0, n * world_size - len(row)))
        self.mine = nn.Parameter(self.all.view(world_size, n)[rank])
        for p, view in zip(self.parameters, views_like(self.all, self.parameters)):
            p.data = view
# %% [markdown] lang="en"
# The model's parameters are now views into the row (`views_like` makes them, in their old shapes), and so is
# this rank's shard, `mine`; the optimizer is given nothing else. Lesson 03's all-reduce has two halves: a
# reduce-scatter and an all-gather. Stage 1 puts the optimizer's step *between* them:
#
# ```mermaid
# flowchart LR
#   G["whole gradients<br>of my batch"] -- reduce-scatter --> P["my part of<br>the mean"]
#   P -- optimizer step --> N["my part of the<br>new parameters"] -- all-gather --> A["all new<br>parameters"]
# ```
# %% [markdown] lang="ko" en="2f1a540d"
# 이제 모델의 파라미터는 모두 그 줄의 뷰이고(원래 모양대로 `views_like`가 만듭니다), 이 랭크의 샤드 `mine`도 뷰입니다.
# 옵티마이저에는 `mine`만 줍니다. 레슨 03의 올리듀스는 두 반쪽, 곧 리듀스스캐터와 올게더로 되어 있습니다. 1단계는 그
# *사이에* 옵티마이저 스텝을 끼워 넣습니다.
#
# ```mermaid
# flowchart LR
#   G["내 배치의<br>전체 그래디언트"] -- 리듀스스캐터 --> P["평균에서<br>내 몫"]
#   P -- 옵티마이저 스텝 --> N["새 파라미터에서<br>내 몫"] -- 올게더 --> A["새 파라미터<br>전체"]
# ```
# %%
# %%ranks --fast
def step(row, optimizer):
    grads = torch.zeros_like(row.all)
    for p, place in zip(row.parameters, views_like(grads, row.parameters)):
        place.copy_(p.grad)
    row.mine.grad = torch.empty_like(row.mine)
    dist.reduce_scatter_single(row.mine.grad, grads / world_size)
    optimizer.step()
    dist.all_gather_single(row.all, row.mine.detach())
# %% hidden=true
# %%ranks --fast
model = optimizer = None
gpt, alone = GPT(seed=0).to(device), GPT(seed=0).to(device)
row = Row(gpt.parameters())
adamw, one = (torch.optim.AdamW(p, lr=1e-3) for p in ([row.mine], alone.parameters()))
# %% hidden=true
# %%ranks --fast
for s in range(5):
    parts = corpus.batch(s, rank=rank, world_size=world_size, micro_batch=2, block=64)
    gpt(*(half.to(device) for half in parts)).backward()
    step(row, adamw)
    gpt.zero_grad()
    together = corpus.batch(s, micro_batch=2 * world_size, block=64)
    alone(*(half.to(device) for half in together)).backward()
    one.step()
    one.zero_grad()
pairs = zip(gpt.parameters(), alone.parameters())
own_apart = max((a - b).abs().max().item() for a, b in pairs)
del gpt, alone, row, adamw, one, pairs
# %%
show_own(ranks["own_apart"])
# %% [markdown] lang="en"
# The same training, with a quarter of the state in each rank. Folded below are the course's row and its
# stage 1, which sends block by block and refuses what would go wrong in silence. It is used like this
# (`MasterAdamW` is AdamW with master copies):
# %% [markdown] lang="ko" en="8d20925e"
# 랭크마다 상태의 4분의 1만 두고도 같은 학습입니다. 아래에 이 과정의 한 줄과 1단계 클래스를 접어 두었습니다. 블록마다
# 메시지를 보내고, 오류 없이 틀릴 만한 일은 거부합니다. 쓰는 법은 이렇습니다(`MasterAdamW`는 마스터 가중치를 두는
# AdamW입니다).
# %% hidden=true source="dlcourse.parallel.zero_flat_parameters:FlatParameters"

# %% hidden=true source="dlcourse.parallel.zero:ZeRO1"

# %%
# %%ranks --fast
def mixed_step(wrapper):
    model = wrapper(GPT(seed=rank).to(device), dtype=torch.bfloat16)
    optimizer = MasterAdamW(model.shards)
    model(*batch).backward()
    model.sync_gradients()  # reduce-scatter
    optimizer.step()
    model.sync_parameters()  # all-gather
    return model, optimizer
# %% [markdown] lang="en"
# **Predict** how many bytes stage 1 leaves in each of 4 ranks, in mixed precision.
# %% [markdown] lang="ko" en="6c2a6c79"
# 혼합 정밀도에서 1단계를 쓰면 랭크 4개에 저마다 몇 바이트가 남을지 **예측해 보세요.**
# %%
predict("06.stage1")
# %% hidden=true
# %%ranks --as one
gc.collect()
model, optimizer = mixed_step(ZeRO1)
# %%
compare("06.stage1", kept_bytes(one))
# %% [markdown] lang="en"
# ## Stages 2 and 3
#
# **Stage 2.** After the reduce-scatter a rank needs its part of the gradients alone. So why wait until
# backward is over? As soon as a block's gradients are complete: send them, keep a part, free the rest.
# The price: with gradient accumulation *each* micro-batch must send, because nobody has room to add up
# whole gradients.
#
# **Stage 3** divides the parameters, too. A rank cannot compute with a quarter of a matrix. So a block's
# parameters are gathered just before it computes, and freed right after; in backward once more. While
# one block computes, the next is on its way (**prefetch**).
# %% [markdown] lang="ko" en="539fd752"
# ## 2단계와 3단계
#
# **2단계.** 리듀스스캐터가 끝나면 그래디언트도 자기 몫만 있으면 됩니다. 역전파가 끝날 때까지 기다리지 않고, 블록 하나의
# 그래디언트가 다 모이는 대로 보내고 자기 몫만 남깁니다. 대신 그래디언트 누적(gradient accumulation)을 하면
# 마이크로배치마다 *매번* 보내야 합니다. 전체 그래디언트를 더해 둘 자리가 아무에게도 없기 때문입니다.
#
# **3단계**는 파라미터도 나눕니다. 행렬의 4분의 1로는 계산할 수 없으므로, 블록의 파라미터를 계산하기 직전에 모았다가
# 끝나면 바로 놓아줍니다. 역전파에서 한 번 더 모읍니다. 블록 하나가 계산하는 동안 다음 블록이 오고
# 있습니다(**프리페치**, prefetch).
# %% hidden=true source="dlcourse.parallel.zero2:ZeRO2"

# %% hidden=true source="dlcourse.parallel.zero3:ShardedUnit,ZeRO3"

# %% hidden=true
# %%ranks --as two
model = optimizer = None
gc.collect()
model, optimizer = mixed_step(ZeRO2)
# %% hidden=true
# %%ranks --as three
model = optimizer = None
gc.collect()
model, optimizer = mixed_step(ZeRO3)
# %%
show_stages(whole, one, two, three)
# %% [markdown] lang="en"
# Now the bill for communication. In stage 3 a **unit**, a block or what the blocks leave over, is
# gathered twice in a step, and its gradients leave once.
#
# **Predict** what each of 4 ranks sends in a step, as a multiple of the model's size. An all-reduce of the
# gradients would be 1.5. Stage 1? Stage 3?
# %% [markdown] lang="ko" en="e18b81f2"
# 이번에는 통신의 계산서입니다. 3단계에서는 **유닛**(unit, 블록 하나 또는 블록에 속하지 않은 나머지)을 스텝마다 두 번
# 모으고, 그래디언트는 한 번 내보냅니다.
#
# 랭크 4개가 저마다 한 스텝에 모델 크기의 몇 배를 보낼지 **예측해 보세요.** 그래디언트를 올리듀스하면 1.5배입니다.
# 1단계는 몇 배일까요? 3단계는요?
# %%
predict("06.sent1")
predict("06.sent3")
# %% hidden=true
# %%ranks --fast
model = optimizer = None
gc.collect()


def bytes_of_a_step(wrapper):
    model = wrapper(GPT(seed=rank).to(device))
    counts = [wire_counters()]
    model(*batch).backward()
    model.sync_gradients()
    counts.append(wire_counters())
    torch.optim.AdamW(model.shards).step()
    model.sync_parameters()
    counts.append(wire_counters())
    return [after[0] - counts[0][0] for after in counts[1:]] if counts[0] else []
# %% hidden=true
# %%ranks --fast
copies = BucketedDataParallel(GPT(seed=rank).to(device))
copies(*batch).backward()
before = wire_counters()
copies.sync_gradients()
sent = {"all_reduce": [wire_counters()[0] - before[0]] if before else []}
copies = None
sent |= {f"stage{n}": bytes_of_a_step(s) for n, s in enumerate((ZeRO1, ZeRO2, ZeRO3), 1)}
# %%
sizes = model_sizes(ranks["sent"])
compare("06.sent1", sizes[1])
compare("06.sent3", sizes[3])
show_sent(ranks["sent"])
# %% [markdown] lang="en"
# Stages 1 and 2 send what data parallelism's all-reduce sends, 1.5; stage 3 half as much again, for the
# second gathering. (The course has its own reduce-scatter: Gloo's is an all-reduce inside, and sends
# twice as much.)
#
# Two popular sentences are about this. For the second, count when all-gathers start, in ours and in
# FSDP2:
# %% [markdown] lang="ko" en="e72c4555"
# 1, 2단계는 데이터 병렬화의 올리듀스만큼, 곧 1.5배를 보냅니다. 3단계는 한 번 더 모으느라 그 절반을 더 보냅니다. (이 과정의
# 리듀스스캐터는 직접 만든 것입니다. Gloo의 리듀스스캐터는 속이 올리듀스라서 두 배를 보냅니다.)
#
# 여기에 대해 흔히 하는 말이 둘 있습니다. 두 번째는 우리 코드와 FSDP2에서 올게더가 언제 시작하는지 세어 확인합니다.
# %% hidden=true
# %%ranks --as steps_of_three
gc.collect()
model = ZeRO3(GPT(seed=rank).to(device))
losses = train(model, corpus, steps=STEPS, batch_size=2 * world_size)
# %% hidden=true
# %%ranks --as fsdp2
from dlcourse.peers import zero as peers

model = None
gc.collect()
peer = peers.train(GPT().to(device), corpus, "FSDP2", steps=STEPS, batch_size=2 * world_size)
# %%
claim("C2", own_share=own_share(ranks["sent"]))
claim("C3", **figures_of_c3(steps_of_three, fsdp2))
show_gathers(steps_of_three, fsdp2)
# %% [markdown] lang="en"
# A *unit* is gathered, not a layer: four blocks of six matrices each, and what they leave over. And
# backward gathers, too.
#
# ## Breaking it on purpose
#
# Between its uses a parameter is not there. What happens if you look at it?
# %% [markdown] lang="ko" en="609f8b2c"
# 모으는 것은 층이 아니라 *유닛*입니다. 행렬이 여섯 개씩 든 블록 넷, 그리고 나머지입니다. 역전파에서도 모읍니다.
#
# ## 일부러 망가뜨리기
#
# 쓰지 않는 동안 파라미터는 그 자리에 없습니다. 그때 들여다보면 어떻게 될까요?
# %%
# %%ranks --fast
model = ZeRO3(GPT(seed=rank).to(device))
weight = model.module.blocks[0].mlp.up.weight
freed = weight.norm().item()
with model.gathered():
    gathered = weight.norm().item()
tuple(weight.shape), freed, round(gathered, 3)
# %% hidden=true
assert all(value != value for value in ranks["freed"])  # NaN
assert all(value == value for value in ranks["gathered"])
# %% [markdown] lang="en"
# The shape is there, the numbers are not: NaN, because we made it so. The bare memory would be a crash,
# or another tensor's numbers. `gathered()` collects all parameters in *all* ranks (FSDP2: `unshard()`,
# DeepSpeed: `GatheredParameters`).
#
# All ranks: that is the second trap. Somebody evaluates on rank 0 only, as with DDP:
# %% [markdown] lang="ko" en="f4128e36"
# 모양은 있는데 숫자가 없습니다. NaN은 우리가 일부러 채운 값입니다. 빈 메모리를 그대로 읽으면
# 프로그램이 죽거나 다른 텐서의 숫자가 나옵니다. `gathered()`는 *모든* 랭크에서 파라미터를 모읍니다(FSDP2는
# `unshard()`, DeepSpeed는 `GatheredParameters`).
#
# 모든 랭크라는 점이 두 번째 함정입니다. DDP에서 하던 대로 랭크 0에서만 평가해 봅시다.
# %%
# %%ranks --fails "never reached"
if rank == 0:
    with torch.no_grad():
        print(model(*batch).item())
# %% [markdown] lang="en"
# With DDP this was fine: rank 0 had everything. In stage 3 **every forward is a collective**. The message
# names the all-gather, who waits, and who never came. Let all ranks evaluate, each its part.
#
# ## 4 times, 8 times, N times less?
#
# That is what people say of stages 1, 2 and 3. With $N$ ranks a parameter takes $4 + 12/N$, $2 + 14/N$
# and $16/N$ bytes, where data parallelism takes 16. Move the sliders: from how many ranks on does which
# stage fit on a card? And what does plain float32 (4 + 4 + 8 bytes) change?
# %% [markdown] lang="ko" en="e20ef25f"
# DDP라면 괜찮았습니다. 랭크 0이 모두 갖고 있었으니까요. 3단계에서는 **모든 순전파가 집합 통신**입니다. 메시지에
# 어떤 올게더인지, 누가 기다리는지, 누가 오지 않았는지가 나옵니다. 평가도 모든 랭크가 나누어 해야 합니다.
#
# ## 4분의 1, 8분의 1, N분의 1?
#
# 1, 2, 3단계를 두고 흔히 하는 말입니다. 랭크가 $N$개면 파라미터 하나에 $4 + 12/N$, $2 + 14/N$, $16/N$바이트가 들고,
# 데이터 병렬화는 16바이트가 듭니다. 슬라이더를 움직여 보세요. 랭크가 몇 개부터 어느 단계가 카드에 들어가나요?
# float32만 쓰면(4 + 4 + 8바이트) 무엇이 달라지나요?
# %%
explore(fits_on_a_card, model=MODELS, ranks=[1, 2, 4, 8, 16, 64, 256, 1024], precision=PRECISIONS)
# %% [markdown] lang="en"
# 4 and 8 are limits for $N \to \infty$, and only of mixed precision; in float32 the limits are 2 and 4. So
# 70B never fits by stages 1 and 2, however many ranks there are. Only N is exact. (Mind the units: 120 GB
# are $120 \cdot 10^9$ bytes, or 111.8 GiB.)
#
# All this counts **model states**: parameters, gradients, optimizer state. **Predict** the *peak*: 4 ranks,
# float32, 256 tokens in each. How many times less does stage 3 need than data parallelism?
# %% [markdown] lang="ko" en="c2d21c66"
# 4와 8은 $N \to \infty$일 때의 극한이고, 그것도 혼합 정밀도에서만 그렇습니다. float32에서는 극한이 2와 4입니다. 그래서
# 70B는 랭크가 아무리 많아도 1, 2단계로는 들어가지 않습니다. N만 정확합니다. (단위를 조심하세요. 120 GB는
# $120 \cdot 10^9$바이트이고, GiB로는 111.8입니다.)
#
# 이것은 **모델 상태**, 곧 파라미터와 그래디언트와 옵티마이저 상태만 센 것입니다. *최대 메모리*를 **예측해 보세요.**
# 랭크 4개, float32, 랭크마다 토큰 256개일 때 3단계는 데이터 병렬화보다 몇 배 적게 쓸까요?
# %%
predict("06.peak")
# %% hidden=true
# %%ranks --fast
model = None


def peak_of(wrapper, batch_size=2 * world_size, block=128):
    live_bytes()
    with Recorder(rank, world_size) as recorder:
        model = wrapper(GPT(seed=rank).to(device))
        train_all = data.train if wrapper is NaiveDataParallel else train
        train_all(model, corpus, steps=2, batch_size=batch_size, block=block)
    return recorder.record["memory"]["at_peak"]


peaks = [peak_of(wrapper) for wrapper in (NaiveDataParallel, ZeRO1, ZeRO2, ZeRO3)]
# %%
compare("06.peak", peak_ratio(ranks["peaks"][0]))
show_peaks(ranks["peaks"][0])
# %% [markdown] lang="en"
# Most of what stage 3 leaves is **activations**. No stage divides them: that takes a smaller batch,
# checkpointing ([lesson 11](11_checkpointing.ipynb)), or tensor parallelism. And stage 1 has *more*
# gradients than data parallelism here: its row of gradients stays through `zero_grad`, which frees separate
# gradients, so that they come back one by one.
#
# A higher stage can even need more in all. Take the whole small model as one unit, and 16 tokens a rank, so
# that activations do not hide it. Which stage needs least?
# %% [markdown] lang="ko" en="a71fb97c"
# 3단계에 남은 것은 대부분 **활성화값**입니다. 어느 단계도 이것을 나누지 않습니다. 배치를 줄이거나, 활성화
# 체크포인팅([레슨 11](11_checkpointing.ipynb))이나 텐서 병렬화를 써야 합니다. 그리고 1단계는 그래디언트가 데이터
# 병렬화보다 오히려 *많습니다*. 그래디언트를 담는 한 줄이 `zero_grad` 뒤에도, 스텝이 바뀌어도 남기 때문입니다. 따로 있는
# 그래디언트라면 해제되었다가 역전파에서 하나씩 다시 생깁니다.
#
# 단계를 올리면 메모리가 오히려 더 들 수도 있습니다. 이 작은 모델을 유닛 하나로 두고 랭크마다 토큰을 16개만 줍니다. 가장
# 적게 쓰는 것은 몇 단계일까요?
# %% hidden=true
# %%ranks --fast
def one_unit(stage):
    return lambda module: stage(module, units=[])


small = [peak_of(one_unit(stage), world_size, 16) for stage in (ZeRO1, ZeRO2, ZeRO3)]
# %%
show_small(ranks["small"][0])
# %% [markdown] lang="en"
# Stage 1! One unit is gathered at once, and all its gradients wait for one message, beside the buffer
# that they are copied to. With 4 blocks as units, the two that are here (one computing, one coming) are
# half of the model; with 80 they are little. Such buffers weigh much in a small model alone.
# %% [markdown] lang="ko" en="64fbe5c7"
# 1단계입니다! 유닛이 하나면 한꺼번에 다 모으고, 그래디언트도 모두 모였다가 메시지 하나로 나갑니다. 옮겨 담을 버퍼도
# 그 옆에 있어야 합니다. 블록 4개를 유닛으로 두어도 와 있는 두 개(계산 중인 것과 오는 중인 것)가 모델의 절반이지만,
# 80개면 얼마 되지 않습니다. 이런 버퍼는 작은 모델에서만 큰 몫을 차지합니다.
# %%
_, first, second, third = times_less(whole, one, two, three)
claim("B4", at_4=first)
claim("B5", at_4=second)
claim("B6", at_4=third, peak=peak_ratio(ranks["peaks"][0]))
# %% [markdown] lang="en"
# ## Beside the real libraries, and one process
#
# Same model, same data. torch has stage 1 (`ZeroRedundancyOptimizer`) and stage 3 (FSDP2's
# `fully_shard`); DeepSpeed has all three, if it is installed here.
# %% [markdown] lang="ko" en="204899d8"
# ## 실제 라이브러리, 단일 프로세스와 나란히
#
# 모델도 데이터도 같습니다. torch에는 1단계(`ZeroRedundancyOptimizer`)와 3단계(FSDP2의 `fully_shard`)가 있고,
# DeepSpeed에는 세 단계가 모두 있습니다(설치되어 있다면).
# %% hidden=true
# %%ranks --fast
from contextlib import nullcontext

from dlcourse.peers.comparison import compare_steps

stages = {"ZeRO1": ZeRO1, "ZeRO2": ZeRO2, "ZeRO3": ZeRO3}
job = {"steps": 5, "batch_size": 2 * world_size, "block": 64}
half = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=2, block=64)
half = [part.to(device) for part in half]


def apart_from(alone, wrapper):
    model = wrapper(GPT(seed=rank).to(device))
    train(model, corpus, **job)
    with getattr(model, "gathered", nullcontext)():
        pairs = zip(model.module.parameters(), alone.parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)


alone = GPT(seed=0).to(device)
wanted = loop.train(alone, corpus, **job)
apart = {name: apart_from(alone, stage) for name, stage in stages.items()}
# %% hidden=true
# %%ranks --fast
def stepping(name):
    gpt = GPT(seed=0).to(device)
    if name not in stages:
        step = peers.training_step(gpt, name, micro_batch=2)
        return lambda: step(*half)
    model = stages[name](gpt)
    optimizer = torch.optim.AdamW(model.shards)

    def step():
        loss = model(*half)
        loss.backward()
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()
        return loss.detach()

    return step
# %% hidden=true
# %%ranks --fast
alone, stage_of = None, {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3} | peers.STAGE_OF
installed = [*stages, *peers.installed()]
absent = [name for name in stage_of if name not in installed]
reference, libraries = stepping("FSDP2"), {}
for name in sorted(installed, key=stage_of.get):
    gc.collect()
    libraries[name] = compare_steps(lambda name=name: stepping(name), reference)
reference = None
# %%
found = ranks["libraries"]
by_name = {name: [of[name] for of in found] for name in found[0]}
show_libraries(by_name, ranks["absent"][0], ranks["apart"])
# %% [markdown] lang="en"
# Same loss everywhere. FSDP2 sends more here, since over Gloo its reduce-scatter is an all-reduce; with
# NCCL it sends what ours sends, or less: it keeps the outermost unit from forward to backward.
# `ZeroRedundancyOptimizer` all-reduces whole gradients, then sends the new parameters; it cuts between
# parameters, so ranks are uneven.
# %% [markdown] lang="ko" en="ab347d88"
# 손실은 모두 같습니다. FSDP2는 더 많이 보냅니다. Gloo의 리듀스스캐터가 속에서 올리듀스를 하기 때문입니다. NCCL이라면
# 우리와 같거나 더 적습니다. 가장 바깥 유닛을 순전파에서 역전파까지 그대로 두기 때문입니다.
# `ZeroRedundancyOptimizer`는 그래디언트 전체를 올리듀스한 뒤 새 파라미터를 또 보냅니다. 파라미터 단위로 나누므로
# 랭크마다 고르지도 않습니다.
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("06.bytes")` helps step by step; `solution("06.bytes")`
# shows one answer.
#
# **1. `06.bytes`** (3 minutes). Bytes that a rank keeps, mixed precision, stages 0 to 3.
# %% [markdown] lang="ko" en="958fc876"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("06.bytes")`는 한 단계씩 도와주고, `solution("06.bytes")`은 답
# 하나를 보여 줍니다.
#
# **1. `06.bytes`** (3분). 혼합 정밀도에서 0~3단계의 랭크 하나가 들고 있는 바이트 수를 돌려주세요.
# %% exercise="06.bytes"
def bytes_per_rank(num_parameters, ranks, stage):
    raise NotImplementedError
# %%
check("06.bytes")
# %% [markdown] lang="en"
# **2. `06.owners`** (10 minutes). A weight looks wrong after a step: which rank updated it? `sizes` has the
# number of elements of each parameter, in the row's order. Return a list with one entry for each rank, its
# pieces from left to right: `(parameter, start, stop)`, where start and stop count elements *in that
# parameter*. Leave empty pieces and padding out.
# %% [markdown] lang="ko" en="a4803c6d"
# **2. `06.owners`** (10분). 스텝 뒤에 어떤 가중치가 이상합니다. 어느 랭크가 갱신했을까요? `sizes`는 파라미터마다
# 원소가 몇 개인지 줄에 놓인 순서대로 적은 것입니다. 랭크마다 하나씩, 그 랭크의 조각을 왼쪽부터 담은 리스트를
# 돌려주세요. 조각은 `(파라미터, 시작, 끝)`이고 시작과 끝은 *그 파라미터 안에서* 센 원소 번호입니다. 빈 조각과 패딩은
# 뺍니다.
# %% exercise="06.owners"
def owners(sizes, ranks):
    raise NotImplementedError
# %%
check("06.owners")
# %% [markdown] lang="en"
# **3. `06.cut`** (10 minutes). `cut` puts tensors into one row and returns this rank's shard of it: of equal
# length in all ranks, padded by zeros, in a memory of its own. `join` gives the tensors of these shapes
# back, from all ranks' shards, and sends as little as can be.
# %% [markdown] lang="ko" en="29e54471"
# **3. `06.cut`** (10분). `cut`은 텐서들을 한 줄로 이어 이 랭크의 샤드를 돌려줍니다. 모든 랭크에서 길이가 같고,
# 모자라면 0으로 채우며, 자기만의 메모리여야 합니다. `join`은 모든 랭크의 샤드에서 주어진 모양의 텐서들을
# 되살리되, 가장 적은 바이트만 보내야 합니다.
# %% exercise="06.cut"
# %%ranks
def cut(tensors):
    raise NotImplementedError


def join(shard, shapes):
    raise NotImplementedError
# %%
check("06.cut")
# %% [markdown] lang="en"
# **4. `06.peak`** (20 minutes). Stage 3 of one matrix: `linear(x, shard)` returns `x @ weight.T`, where the
# flat `weight` is cut into the ranks' shards, and has `x.shape[-1]` columns. Backward leaves in
# `shard.grad` this rank's part of the mean gradient. Twelve such layers train in a row. Targets: after
# forward no gathered weight is left, and at the peak there are at most six layers' worth of memory above
# shards and gradients. (Gathering inside autograd keeps all twelve.)
# %% [markdown] lang="ko" en="4f584707"
# **4. `06.peak`** (20분). 행렬 하나짜리 3단계입니다. `linear(x, shard)`는 `x @ weight.T`를 돌려줍니다. 한 줄로
# 편 `weight`가 랭크들의 샤드로 나뉘어 있고, 열은 `x.shape[-1]`개입니다. 역전파가 끝나면 `shard.grad`에 평균
# 그래디언트의 자기 몫이 있어야 합니다. 이런 층 12개를 이어서 학습합니다. 목표는 두 가지입니다. 순전파가 끝나면 모은
# 가중치가 남아 있지 않고, 최대 메모리는 샤드와 그래디언트 외에 층 6개분 이하입니다(autograd 안에서 모으면 12개가 다
# 남습니다).
# %% exercise="06.peak"
# %%ranks
def linear(x, shard):
    raise NotImplementedError
# %%
check("06.peak")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# With NCCL, reduce-scatter is a real one. All-gathers run in a stream of their own, so they hide behind
# matrix products if a block computes long enough. Between nodes the network is slower, so people also
# shard inside a node and copy between nodes (HSDP). No GPU run of this lesson is recorded.
#
# Published: FSDP, that is stage 3, on H100 GPUs with 80 GB [2]. MFU is the share of a GPU's peak FLOPs that
# goes into what the model needs.
# %% [markdown] lang="ko" en="1ebd52af"
# ## GPU 클러스터에서는
#
# NCCL의 리듀스스캐터는 진짜 리듀스스캐터입니다. 올게더는 별도의 스트림에서 실행되므로, 블록의 계산이 충분히 길면 행렬
# 곱 뒤에 숨습니다. 노드 사이는 네트워크가 느려서, 노드 안에서는 샤딩하고 노드 사이에는 복제본을 두기도
# 합니다(HSDP). 이 레슨의 GPU 실행 기록은 없습니다.
#
# 발표된 값을 봅시다. 80 GB H100 GPU에서 FSDP, 곧 3단계로 학습한 것입니다[2]. MFU는 GPU의 최대 FLOPs 가운데 모델에 필요한
# 계산에 쓴 비율입니다.
# %% tags=["nbval-check-output"]
show_published()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Equal copies are waste: cut one flat row, let each rank update its part.
# 2. Stage 1 divides optimizer state, stage 2 also gradients; without accumulation both send an all-reduce's bytes.
# 3. Stage 3 also divides parameters, for half as many bytes again; every forward is a collective.
# 4. 4 and 8 times are limits, of 16-bit training, over infinitely many ranks; N times is exact.
# 5. Activations and buffers stay: measure the peak, not the formula.
#
# Sources: [1] [Rajbhandari et al., SC 2020](https://arxiv.org/abs/1910.02054).
# [2] [llm-foundry](https://github.com/mosaicml/llm-foundry/tree/main/scripts/train/benchmarking).
# [Zhao et al., PyTorch FSDP, VLDB 2023](https://arxiv.org/abs/2304.11277).
# %% [markdown] lang="ko" en="4b062510"
# ## 다섯 줄 요약
#
# 1. 똑같은 복제본은 낭비입니다. 한 줄로 펴서 자르고, 랭크마다 자기 몫만 갱신합니다.
# 2. 1단계는 옵티마이저 상태를, 2단계는 그래디언트까지 나눕니다. 누적하지 않으면 둘 다 올리듀스만큼 보냅니다.
# 3. 3단계는 파라미터까지 나누는 대신 절반을 더 보냅니다. 모든 순전파가 집합 통신이 됩니다.
# 4. 4분의 1과 8분의 1은 16비트 학습에서 랭크가 한없이 많을 때의 극한입니다. N분의 1은 정확합니다.
# 5. 활성화값과 버퍼는 그대로입니다. 공식이 아니라 최대 메모리를 재세요.
#
# 출처: [1] [Rajbhandari 외, SC 2020](https://arxiv.org/abs/1910.02054).
# [2] [llm-foundry](https://github.com/mosaicml/llm-foundry/tree/main/scripts/train/benchmarking).
# [Zhao 외, PyTorch FSDP, VLDB 2023](https://arxiv.org/abs/2304.11277).
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
# ### Stage 3 at work
#
# Where is the communication in a step, and what does the rank do meanwhile?
# %% [markdown] lang="ko" en="986586c8"
# ### 3단계가 일하는 모습
#
# 한 스텝에서 통신은 어디에 있고, 그동안 랭크는 무엇을 하고 있을까요?
# %%
show_timeline(steps_of_three)
# %% [markdown] lang="en"
# Messages start while a block computes; the title says how much of their time that hides. Here computing and
# sending share the same cores, so hiding gains little.
#
# ### What DeepSpeed does by default
#
# DeepSpeed has its thresholds off in the table above. By default, parameters under 100,000 elements are
# never divided, and a billion may stay gathered ([its
# configuration](https://www.deepspeed.ai/docs/config-json/)): in a small model that is all of them, so stage 3
# can need more than stage 1. It also clips gradients to 1.0 unless told otherwise, which changes the losses. Its stage 3 keeps shards
# outside of `nn.Parameter`, so the ledger counts gathered weights elsewhere.
# %% [markdown] lang="ko" en="013f8a19"
# 블록이 계산하는 동안 메시지가 출발하고, 그 시간이 얼마나 숨는지는 제목에 나옵니다. 여기서는 계산과 통신이 같은 코어를
# 나눠 쓰므로 숨겨도 이득이 적습니다.
#
# ### DeepSpeed의 기본 설정
#
# 위의 표에서 DeepSpeed는 임계값을 껐습니다. 기본 설정에서는 원소 10만 개 미만인 파라미터를 나누지 않고, 10억 개까지는
# 모은 채로 둡니다([설정 문서](https://www.deepspeed.ai/docs/config-json/)). 작은 모델이라면 전부이므로 3단계가 1단계보다
# 더 쓸 수도 있습니다. 그래디언트도 1.0으로 클리핑하므로, 끄지 않으면 손실이 달라집니다. 3단계의 샤드는 `nn.Parameter` 밖에
# 있어서, 모은 가중치가 표의 다른 항목에 들어갑니다.
# %% [markdown] lang="en"
# ### Four ranks save, two load
#
# A checkpoint on disk is in shards, too: each rank writes its own. To load them over fewer ranks, the shards
# are put side by side, the padding is cut off, and the row is cut anew.
# %% [markdown] lang="ko" en="16eecd81"
# ### 네 랭크가 저장하고 두 랭크가 읽기
#
# 디스크의 체크포인트 파일도 샤드로 되어 있습니다. 랭크마다 자기 것을 씁니다. 더 적은 랭크로 읽으려면 샤드를 이어
# 붙이고, 패딩을 버리고, 다시 자릅니다.
# %% hidden=true source="dlcourse.parallel.zero_checkpoint:load_checkpoint"

# %% hidden=true
import tempfile

folder = tempfile.TemporaryDirectory()
ranks.cell(f"path = {folder.name!r}")
# %%
# %%ranks --fast
from dlcourse.parallel.zero_checkpoint import layout_of, load_checkpoint, save_checkpoint


def new(**options):
    model = ZeRO3(GPT(seed=rank).to(device), **options)
    return model, torch.optim.AdamW(model.shards)


saved, optimizer = new()
train(saved, corpus, **job, optimizer=optimizer)
save_checkpoint(saved, optimizer, path)
by_all = train(saved, corpus, **job, optimizer=optimizer)
# %%
# %%ranks --fast
half_of = [r * 2 // world_size for r in range(world_size)]
halves = [[r for r in range(world_size) if half_of[r] == half] for half in (0, 1)]
groups = [dist.new_group(members) for members in halves]
loaded, optimizer = new(process_group=groups[half_of[rank]])
load_checkpoint(loaded, optimizer, path)
by_half = train(loaded, corpus, **job, optimizer=optimizer)
saved = loaded = optimizer = None
# %%
show_resumed(ranks["by_all"][0], ranks["by_half"][0])
# %% [markdown] lang="en"
# Each half of the ranks has gone on alone. A checkpoint that is of another model, or broke off, is refused
# where nothing has started yet: sizes are enough to tell.
# %% [markdown] lang="ko" en="06c13025"
# 랭크를 반으로 나누어 저마다 이어 갔습니다. 다른 모델의 체크포인트 파일이거나 쓰다 만 것이면, 아무것도 시작하기 전에
# 거부합니다. 크기만 봐도 알 수 있습니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.models.gpt import GPTConfig

with torch.device("meta"):
    wider = layout_of(GPT(GPTConfig(n_embd=256)))
# %%
from dlcourse.parallel.zero_checkpoint import check_checkpoint

with expect_failure("has shape"):
    check_checkpoint(folder.name, ranks["wider"][0])
# %% [markdown] lang="en"
# ### On one mesh
#
# Large runs combine what you have seen. Ranks form a grid: those of a row share each matrix
# ([lesson 04](04_tensor_parallel.ipynb)), those of a column hold the same part of it, read other sequences,
# and divide their states by ZeRO. It must still be the training of one process.
# %% [markdown] lang="ko" en="eaaf0b2d"
# ### 하나의 메시 위에서
#
# 큰 학습에서는 지금까지 본 것을 함께 씁니다. 랭크를 격자로 놓습니다. 같은 행의 랭크는 행렬을 나눠
# 갖고([레슨 04](04_tensor_parallel.ipynb)), 같은 열의 랭크는 같은 조각을 가지고 서로 다른 시퀀스를 읽으며 상태를
# ZeRO로 나눕니다. 그래도 단일 프로세스의 학습과 같아야 합니다.
# %%
# %%ranks --fast
from dlcourse.parallel.mesh import make_mesh
from dlcourse.parallel.tensor import tensor_parallel

tensor = 1 if world_size % 2 else 2
mesh = make_mesh(data=world_size // tensor, tensor=tensor)
model = tensor_parallel(GPT(seed=rank).to(device), mesh["tensor"])
model = ZeRO3(model, process_group=mesh.get_group("data"))
held_by = sum(shard.numel() for shard in model.shards)
losses = train(model, corpus, **job)
mesh_apart = (torch.tensor(losses) - torch.tensor(wanted)).abs().max().item()
model = None
# %%
show_mesh(ranks["mesh_apart"], ranks["held_by"])
# %% [markdown] lang="en"
# ### One rank of 1,024
#
# The classes of this lesson as one of 1,024 ranks: stage 3 over 128 copies of an 8-way tensor parallel 7B
# model, on tensors that have shapes and no numbers. Bytes are exact, times mean nothing. It is a first step:
# at its highest moment, before the optimizer's step, AdamW has no state yet.
# %% [markdown] lang="ko" en="866c66ca"
# ### 랭크 1,024개 가운데 하나
#
# 이 레슨의 클래스를 그대로 써서 랭크 1,024개 가운데 하나가 되어 봅니다. 텐서 병렬화 8로 자른 7B 모델을 복제본
# 128개에 3단계로 나누고, 모양만 있고 숫자는 없는 텐서로 돌립니다. 바이트는 정확하고 시간은 뜻이 없습니다. 첫
# 스텝이므로, 옵티마이저 스텝보다 먼저 오는 가장 높은 순간에는 아직 AdamW의 상태가 없습니다.
# %%
show_one_of_many(scale("06_zero", model="7b", world=1024))
