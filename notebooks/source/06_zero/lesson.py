# %% [markdown] lang="en"
# # 06 ZeRO: why keep the same bytes four times?
#
# In [lesson 03](03_data_parallel.ipynb) every rank had a copy of everything. With 16-bit training
# and Adam, a model of 7.5 billion parameters takes 120 GB for that, and your GPUs have 80 GB each.
# A second GPU does not help, nor does a hundredth: each of them runs out of memory in the same way.
#
# Yet the copies are equal, byte for byte. Which of them does a rank really need, and when? What does
# it cost to fetch the rest?
#
# You will build the three stages of ZeRO, see each byte go in the ledger, and meet FSDP2 and
# DeepSpeed at the end. 30 to 40 minutes.
# %% [markdown] lang="ko" en="a76d75d0"
# # 06 ZeRO: 같은 바이트를 왜 네 번 들고 있을까?
#
# [레슨 03](03_data_parallel.ipynb)에서는 랭크마다 모든 것의 복제본을 들고 있었습니다. 16비트 학습에 Adam을
# 쓰면 파라미터 75억 개짜리 모델에 120 GB가 필요한데, GPU 메모리는 80 GB입니다. GPU를 두 개로, 백 개로
# 늘려도 소용없습니다. 저마다 똑같이 메모리가 모자랍니다.
#
# 그런데 복제본은 바이트 하나까지 똑같습니다. 랭크에 정말 필요한 것은 무엇이고, 언제 필요할까요? 나머지를
# 가져오는 데는 얼마가 들까요?
#
# ZeRO의 세 단계를 만들며 메모리 장부(ledger, 텐서마다 바이트를 센 기록)에서 바이트가 사라지는 것을 지켜보고, 끝으로 FSDP2, DeepSpeed와 견줍니다.
# 30~40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 4
device = "auto"
steps = 4
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
# %%
from dlcourse import Ranks, check, claim, compare, expect_failure, hint, lesson, predict
from dlcourse import quiz, show, solution
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.run import timeline_figure
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import human_bytes
from dlcourse.formulas.states import state_bytes
from dlcourse.formulas.traffic import zero_bytes

lesson(lang=lang, name="06_zero")
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}")
# %% [markdown] lang="en"
# First the bill. In mixed precision a parameter is kept in bfloat16 (2 bytes), and so is its
# gradient (2). Adam keeps three float32 numbers (12): two moments, and a **master** copy of the
# parameter, because a small step on a 16-bit number is rounded away.
#
# **Predict.** How many bytes does each rank keep between two steps, for our GPT of 873,728
# parameters? Write your number in place of `...`.
# %% [markdown] lang="ko" en="a3eccb53"
# 먼저 계산서입니다. 혼합 정밀도(mixed precision)에서는 파라미터를 bfloat16(2바이트)으로 두고, 그래디언트도
# 2바이트입니다. Adam은 float32 숫자를 세 개(12바이트) 둡니다. 모멘트 두 개, 그리고 **마스터 가중치**(master
# weights)입니다. 16비트 숫자에 작은 갱신량을 더하면 반올림되어 사라지기 때문입니다.
#
# **예측해 보세요.** 파라미터 873,728개인 우리 GPT라면 랭크 하나가 스텝과 스텝 사이에 몇 바이트를 들고
# 있을까요? `...` 자리에 숫자를 적어 보세요.
# %%
num_parameters = 873_728
predict("06.whole", ..., formula=(2 + 2 + 12) * num_parameters, unit="bytes")
# %%
# %%ranks --as whole
import gc

from dlcourse.models.gpt import GPT
from dlcourse.parallel.data import NaiveDataParallel
from dlcourse.corpus import Corpus
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW

corpus = Corpus()
batch = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=1, block=16)
batch = [half.to(device) for half in batch]
model = NaiveDataParallel(GPT(seed=rank).to(device, torch.bfloat16))
optimizer = MasterAdamW(model.parameters())
model(*batch).backward()
model.sync_gradients()
optimizer.step()
# %%
states = ("parameters", "gradients", "optimizer_state")


def kept(run):
    return {name: run.memory.ranks[0]["end"][name] for name in states}


ledger = {0: kept(whole)}
compare("06.whole", sum(ledger[0].values()))
# %% [markdown] lang="en"
# Three quarters of it is optimizer state, and all ranks keep the *same* one, to update the *same*
# parameters by the *same* amount. So divide the work: each rank updates a part of the parameters,
# and keeps state for that part alone.
#
# Which part? Not layer by layer, as layers differ in size. ZeRO puts the parameters into one flat
# row and cuts the row, wherever the cut falls:
# %% [markdown] lang="ko" en="aa80547b"
# 4분의 3이 옵티마이저 상태(optimizer state)입니다. 모든 랭크가 *똑같은* 상태로 *똑같은* 파라미터를 *똑같이*
# 갱신합니다. 그러니 일을 나눕시다. 랭크마다 파라미터의 일부만 갱신하고, 그 부분의 상태만 들고 있으면 됩니다.
#
# 어떤 부분을 맡을까요? 층은 크기가 제각각이라 층 단위로는 고르게 나뉘지 않습니다. ZeRO는 파라미터를 한 줄로
# 늘어놓고, 층 한가운데라도 상관없이 똑같은 길이로 자릅니다.
# %%
show("dlcourse.parallel.zero_flat_parameters:FlatParameters")
# %% [markdown] lang="en"
# `full` is the row, `shard` this rank's part of it. `start_gather` and `start_reduce` are the two
# halves of an all-reduce. Stage 1 puts the optimizer's step *between* the halves:
#
# ```mermaid
# flowchart LR
#   G["whole gradients<br>of my batch"] -- reduce-scatter --> P["my part of<br>the mean"]
#   P -- optimizer step --> N["my part of the<br>new parameters"] -- all-gather --> A["all new<br>parameters"]
# ```
# %% [markdown] lang="ko" en="215889a9"
# `full`이 그 줄이고 `shard`가 이 랭크의 몫입니다. `start_gather`와 `start_reduce`는 올리듀스를 반씩 나눈
# 것입니다. 1단계는 그 두 반쪽 *사이에* 옵티마이저의 스텝을 끼워 넣습니다.
#
# ```mermaid
# flowchart LR
#   G["내 배치의<br>전체 그래디언트"] -- 리듀스스캐터 --> P["평균에서<br>내 몫"]
#   P -- 옵티마이저 스텝 --> N["새 파라미터에서<br>내 몫"] -- 올게더 --> A["새 파라미터<br>전체"]
# ```
# %% source="dlcourse.parallel.zero:ZeRO1"
# %% [markdown] lang="en"
# **Predict** what stage 1 leaves in each rank. And how many bytes a rank sends in a step, in
# float32: more than lesson 03's all-reduce, or less?
# %% [markdown] lang="ko" en="a19d10c2"
# 1단계에서 랭크마다 몇 바이트가 남을지 **예측해 보세요.** float32로 학습할 때 한 스텝에 보내는 양도 맞혀
# 보세요. 레슨 03의 올리듀스보다 많을까요, 적을까요?
# %%
mixed = {"precision": "master", "world_size": num_ranks}
sizes = {n: state_bytes(num_parameters, **mixed, stage=n) for n in range(4)}
predict("06.stage1", ..., formula=sum(sizes[1].values()), unit="bytes")
to_send = zero_bytes(4 * num_parameters, world_size=num_ranks, stage=1)
predict("06.sent1", ..., formula=to_send, unit="bytes")
# %%
# %%ranks --as one
def mixed_step(wrapper):
    model = wrapper(GPT(seed=rank).to(device), dtype=torch.bfloat16)
    optimizer = MasterAdamW(model.shards)
    model(*batch).backward()
    model.sync_gradients()
    optimizer.step()
    model.sync_parameters()
    return model, optimizer


model = optimizer = None
gc.collect()
model, optimizer = mixed_step(ZeRO1)
# %%
ledger[1] = kept(one)
compare("06.stage1", sum(ledger[1].values()))
assert abs(sum(ledger[1].values()) / sum(sizes[1].values()) - 1) < 0.001
# %% [markdown] lang="en"
# The optimizer state is a quarter, to the byte (the small rest is padding). Now the bytes sent,
# counted by the process's own TCP connections, in a float32 step:
# %% [markdown] lang="ko" en="7051832a"
# 옵티마이저 상태가 바이트까지 딱 4분의 1입니다(조금 남는 것은 패딩입니다). 이번에는 float32 한 스텝에서 보낸
# 바이트를 이 프로세스의 TCP 연결에서 읽어 봅니다.
# %%
# %%ranks --fast
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.parallel.zero import train


def bytes_of_a_step(wrapper):
    model = wrapper(GPT(seed=rank).to(device))
    counts = [wire_counters()]
    model(*batch).backward()
    model.sync_gradients()
    counts.append(wire_counters())
    torch.optim.AdamW(model.shards).step()
    model.sync_parameters()
    counts.append(wire_counters())
    return [after[0] - counts[0][0] for after in counts[1:]] if counts[0] else [None, None]


sent1 = bytes_of_a_step(ZeRO1)
# %%
# %%ranks --fast
from dlcourse.parallel.data import BucketedDataParallel

copies = BucketedDataParallel(GPT(seed=rank).to(device))
copies(*batch).backward()
before = wire_counters()
copies.sync_gradients()
all_reduced = [wire_counters()[0] - before[0] if before else None]
copies = None
# %%
def mean(name, place=1):
    counts = [found[place] for found in ranks[name] if found[place] is not None]
    return sum(counts) / len(counts) if counts else None


compare("06.sent1", mean("sent1") or to_send)
half = (mean("sent1", 0) or to_send / 2) / (mean("all_reduced", 0) or to_send)
assert abs(half - 0.5) < 0.02
claim("C2", own_share=half)
# %% [markdown] lang="en"
# The reduce-scatter sent half of what lesson 03's all-reduce sends, the all-gather the other half:
# $2\frac{p-1}{p}$ times the 3.33 MiB of gradients. Not one byte more than data parallelism, and three quarters of the memory saved over many ranks.
# (Over Gloo only with our own reduce-scatter: Gloo's sends twice as much.)
#
# Stage 2. After the reduce-scatter a rank needs its part of the gradients alone. So why wait until
# backward is over? As soon as a block's gradients are complete: send them, keep a part, free the
# rest.
# %% [markdown] lang="ko" en="f943ee6e"
# 리듀스스캐터는 레슨 03의 올리듀스가 보내는 양의 절반을, 올게더는 나머지 절반을 보냅니다. 합치면 그래디언트
# 3.33 MiB의 $2\frac{p-1}{p}$배입니다. 그러니 데이터 병렬화보다 한 바이트도 더 보내지 않으면서, 랭크가 많으면 메모리의 4분의 3을 아낍니다(Gloo에서는 직접 만든
# 리듀스스캐터(reduce-scatter)를 써야 그렇습니다. Gloo의 것은 두 배를 보냅니다).
#
# 2단계로 갑시다. 리듀스스캐터가 끝나면 그래디언트도 자기 몫만 있으면 됩니다. 역전파가 끝날 때까지 기다릴
# 까닭이 없습니다. 블록 하나의 그래디언트가 다 모이는 대로 보내고, 자기 몫만 남기고 나머지는 놓아줍니다.
# %% source="dlcourse.parallel.zero2:ZeRO2"
# %%
# %%ranks --as two
model = optimizer = None
gc.collect()
model, optimizer = mixed_step(ZeRO2)
# %% [markdown] lang="en"
# The price: with gradient accumulation over several micro-batches *each* micro-batch must send, because nobody has room to add
# up whole gradients.
#
# Stage 3 divides what is left: the parameters. A rank cannot compute with a quarter of a matrix. So
# a block's parameters are gathered just before it computes, and freed right after; in backward once
# more. While a block computes, the next one is on its way (**prefetch**):
#
# ```mermaid
# flowchart LR
#   A["gather 0"] --> B["compute 0<br>gather 1"] --> C["free 0<br>compute 1<br>gather 2"] --> D["free 1<br>compute 2<br>…"]
# ```
# %% [markdown] lang="ko" en="f844ed4c"
# 대신 그래디언트 누적(gradient accumulation)을 하면 마이크로배치마다 *매번* 보내야 합니다. 전체 그래디언트를 더해 둘 자리가 아무에게도
# 없기 때문입니다.
#
# 3단계는 남은 것, 파라미터를 나눕니다. 행렬의 4분의 1로는 계산할 수 없습니다. 그래서 블록의 파라미터를 계산하기
# 직전에 모았다가 끝나면 바로 놓아줍니다. 역전파에서 한 번 더 모읍니다. 블록 하나가 계산하는 동안 다음 블록이
# 오고 있습니다(**프리페치**, prefetch).
#
# ```mermaid
# flowchart LR
#   A["0 모으기"] --> B["0 계산<br>1 모으기"] --> C["0 해제<br>1 계산<br>2 모으기"] --> D["1 해제<br>2 계산<br>…"]
# ```
# %% source="dlcourse.parallel.zero3:ShardedUnit,ZeRO3"
# %%
# %%ranks --as three
model = optimizer = None
gc.collect()
model, optimizer = mixed_step(ZeRO3)
# %% [markdown] lang="en"
# All stages at one glance, what the formulas say beside what the ledger counted between two steps:
# %% [markdown] lang="ko" en="14943ce8"
# 모든 단계를 한눈에 봅니다. 공식의 값과, 스텝과 스텝 사이에 장부가 센 값을 나란히 놓았습니다.
# %%
ledger |= {2: kept(two), 3: kept(three)}
rows = {}
for stage in range(4):
    rows[t(".predicted", stage=stage)] = sizes[stage]
    rows[t(".measured", stage=stage)] = ledger[stage]
each = [sum(ledger[n].values()) / num_parameters for n in range(4)]
for stage in range(4):
    assert abs(each[stage] * num_parameters / sum(sizes[stage].values()) - 1) < 0.001
found = {"ranks": num_ranks, "one": each[1], "two": each[2], "three": each[3]}
memory_by_category_figure(rows, title=t(".glance", **found))
# %% [markdown] lang="en"
# Now watch stage 3 at work, in float32 and with a larger batch. Where is the communication, and what
# does the rank do meanwhile?
# %% [markdown] lang="ko" en="081028bf"
# 이제 3단계가 일하는 모습을 float32와 더 큰 배치로 봅니다. 통신은 어디에 있고, 그동안 랭크는 무엇을 하고
# 있을까요?
# %%
# %%ranks --as steps_of_three
model = optimizer = None
model = ZeRO3(GPT(seed=rank).to(device))
losses = train(model, corpus, steps=steps, batch_size=2 * world_size)
# %%
hidden = f"{steps_of_three.timeline.hidden_fraction:.0%}"
figure = timeline_figure(steps_of_three.timeline.data(), steps=steps - 1)
figure.update_layout(title_text=t(".timeline", hidden=hidden))
# %% [markdown] lang="en"
# In each step every **unit** (what is gathered together: a block, or what the blocks leave over) is
# gathered twice, and its gradients leave once. Messages start while a block
# computes; the title says how much of their time that hides. Here computing and sending share the
# same cores, so hiding gains little. On a GPU it is what makes stage 3 bearable.
#
# So is there one all-gather before each layer's forward, as people say (claim C3)? Count, for ours
# and for FSDP2, by the moment at which they start:
# %% [markdown] lang="ko" en="77df7b42"
# 스텝마다 **유닛**(unit, 함께 모으는 것: 블록 하나 또는 블록 밖의 나머지)을 두 번씩 모으고 그래디언트는 한 번 내보냅니다. 메시지는 블록이 계산하는 동안 출발하고,
# 그 시간이 얼마나 숨는지는 제목에 나옵니다. 여기서는 계산과 통신이 같은 코어를 나눠 쓰므로 숨겨도 이득이
# 적지만, GPU에서는 이 덕분에 3단계를 쓸 만합니다.
#
# 흔히 말하듯 층마다 순전파 직전에 올게더(all-gather)를 한 번씩 할까요(주장 C3)? 우리 코드와 FSDP2에서 시작한
# 때를 기준으로 세어 봅니다.
# %%
# %%ranks --as fsdp2
from dlcourse.peers import zero as peers

gc.collect()
peer = peers.train(GPT().to(device), corpus, "FSDP2", steps=steps, batch_size=2 * world_size)
# %%
def gathers(run):
    lane, count = run.timeline.ranks[0], {"forward": 0, "backward": 0}
    first, last = lane["steps"][-1]
    spans = [span for span in lane["spans"] if span[2] == "backward" and first <= span[0] < last]
    turn = min(start for start, *_ in spans)
    for call in run.comm.calls:
        if call["rank"] == 0 and call["op"] == "all_gather" and first <= call["start_s"] < last:
            count["forward" if call["start_s"] < turn else "backward"] += 1
    return count["forward"], count["backward"]


counts = {"ZeRO3": gathers(steps_of_three), "FSDP2": gathers(fsdp2)}
rows = [[name, f"{forward} / {backward}"] for name, (forward, backward) in counts.items()]
Table([t("peers.library"), t(".gathers")], rows)
# %%
claim("C3", forward=counts["ZeRO3"][0], backward=counts["ZeRO3"][1], fsdp2=counts["FSDP2"][1])
# %% [markdown] lang="en"
# A *unit* is gathered, not a layer: one block of six matrices, or what the blocks leave over. And
# the claim forgets backward.
#
# ## Breaking it on purpose
#
# Between its uses a parameter is not there. What happens if you look at it?
# %% [markdown] lang="ko" en="8a0444e9"
# 모으는 것은 층이 아니라 *유닛*입니다. 행렬 여섯 개가 든 블록 하나, 또는 블록에 속하지 않은 나머지입니다.
# 그리고 이 주장은 역전파를 빠뜨렸습니다.
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
    whole = weight.norm().item()
tuple(weight.shape), freed, round(whole, 3)
# %%
assert all(value != value for value in ranks["freed"])  # NaN
assert all(value == value for value in ranks["whole"])
# %% [markdown] lang="en"
# The shape is there, the numbers are not: NaN, because we made it so. The bare memory would be a
# crash, or another tensor's numbers. `gathered()` collects all parameters in *all* ranks (FSDP2:
# `unshard()`, DeepSpeed: `GatheredParameters`).
#
# All ranks: that is the second trap. Somebody evaluates on rank 0 only, as with DDP:
# %% [markdown] lang="ko" en="31bdc192"
# 모양은 있는데 숫자가 없습니다. NaN이 나오는 것은 우리가 그렇게 만들었기 때문입니다. 빈 메모리를 그대로 읽으면
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
# With DDP this was fine: rank 0 had everything. In stage 3 **every forward is a collective**. The
# message names the all-gather, who waits, and who never came. Let all ranks evaluate, each its part.
#
# Now the bill for communication. **Predict** what a rank sends in a step of stage 3, in model sizes.
# %% [markdown] lang="ko" en="5f0cdf0b"
# DDP라면 괜찮았습니다. 랭크 0이 모두 갖고 있었으니까요. 3단계에서는 **모든 순전파가 집합 통신**입니다. 메시지에
# 어떤 올게더인지, 누가 기다리는지, 누가 오지 않았는지가 나옵니다. 평가도 모든 랭크가 나누어 해야 합니다.
#
# 이번에는 통신의 계산서입니다. 3단계에서 랭크 하나가 한 스텝에 모델 크기의 몇 배를 보낼지 **예측해 보세요.**
# %%
times = {n: zero_bytes(1, world_size=num_ranks, stage=n) for n in (1, 2, 3)}
predict("06.sent3", ..., formula=times[3], unit="×")
# %%
# %%ranks --fast
sent2, sent3 = bytes_of_a_step(ZeRO2), bytes_of_a_step(ZeRO3)
# %%
measured = {n: mean(f"sent{n}") for n in (1, 2, 3)}
sent = {n: times[n] if m is None else m / 4 / num_parameters for n, m in measured.items()}
compare("06.sent3", sent[3])
rows = [[n, f"{times[n]:.4f}", f"{sent[n]:.4f}"] for n in sent]
assert all(abs(sent[n] / times[n] - 1) < 0.01 for n in sent)
Table([t(".stage"), t(".wire.formula"), t(".wire.measured")], rows)
# %% [markdown] lang="en"
# Stages 1 and 2 cost nothing; stage 3 costs half as much again, for the second gathering.
#
# Is it still the same training? Each stage beside one process, which reads the whole batch:
# %% [markdown] lang="ko" en="77614385"
# 1, 2단계는 통신이 늘지 않습니다. 3단계는 한 번 더 모으느라 절반이 더 듭니다.
#
# 그래도 같은 학습일까요? 단계마다, 배치 전체를 혼자 읽는 단일 프로세스와 견줘 봅니다.
# %%
# %%ranks --fast
from contextlib import nullcontext

from dlcourse.training import loop

job = {"steps": 5, "batch_size": 2 * world_size, "block": 64}


def apart_from(alone, wrapper):
    model = wrapper(GPT(seed=rank).to(device))
    train(model, corpus, **job)
    with getattr(model, "gathered", nullcontext)():
        pairs = zip(model.module.parameters(), alone.parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)


# %%
# %%ranks --fast
alone = GPT(seed=0).to(device)
wanted = loop.train(alone, corpus, **job)
apart = [apart_from(alone, wrapper) for wrapper in (ZeRO1, ZeRO2, ZeRO3)]
# %%
lr = 1e-3
for stage, found in enumerate(zip(*ranks["apart"], strict=True), start=1):
    name = t(".stage.number", stage=stage)
    print(t(".apart", stage=name, apart=f"{max(found):.1e}", allowed=f"{0.05 * lr:.0e}"))
    assert max(found) <= 0.05 * lr
print(t(".apart.why", lr=f"{lr:.0e}"))
# %% [markdown] lang="en"
# ## 4 times, 8 times, N times less?
#
# That is what people say of stages 1, 2 and 3. Compare with the formulas: with $N$ ranks a parameter
# takes $4 + 12/N$, $2 + 14/N$ and $16/N$ bytes, where data parallelism takes 16.
# %% [markdown] lang="ko" en="1dfe53cf"
# ## 4분의 1, 8분의 1, N분의 1?
#
# 1, 2, 3단계를 두고 흔히 하는 말입니다. 공식과 견줘 봅시다. 랭크가 $N$개면 파라미터 하나에 $4 + 12/N$,
# $2 + 14/N$, $16/N$바이트가 들고, 데이터 병렬화는 16바이트가 듭니다.
# %%
worlds = [1, 2, 4, 8, 16, 64, 256, 1024]
def bytes_each(stage, world_size):
    return sum(state_bytes(1, precision="master", world_size=world_size, stage=stage).values())


total = {(n, w): bytes_each(n, w) for n in range(4) for w in worlds}
curves = {t(".stage.number", stage=n): [16 / total[n, w] for w in worlds] for n in (1, 2, 3)}
figure = sweep_figure(
    worlds,
    curves,
    x_title=t(".axis.ranks"),
    y_title=t(".axis.factor"),
    log_x=True,
)
figure.update_yaxes(type="log", range=[-0.1, 3.2], tickvals=[1, 2, 4, 8, 64, 1024])
figure.update_layout(title_text=t(".limits"))
# %% [markdown] lang="en"
# 4 and 8 are limits for $N \to \infty$. At 4 ranks stage 1 saves 2.3 times and stage 2 saves 2.9
# times. They also need the 2 + 2 + 12 of mixed precision: in plain float32 (4 + 4 + 8) the limits
# are 2 and 4. Only N is exact. Mind the units: the paper's 120 GB are $10^9$ bytes, that is 111.8
# GiB.
#
# And all this counts model states only. What does a rank need at its *peak*?
# %% [markdown] lang="ko" en="9120a1a0"
# 4와 8은 $N \to \infty$일 때의 극한입니다. 랭크 4개면 1단계는 2.3배, 2단계는 2.9배 줄어듭니다. 혼합
# 정밀도의 2 + 2 + 12도 전제입니다. float32만 쓰면(4 + 4 + 8) 극한은 2와 4입니다. N만 정확합니다. 단위도
# 조심하세요. 논문의 120 GB는 $10^9$바이트 단위이며, GiB로는 111.8입니다.
#
# 게다가 이것은 모델 상태만 센 것입니다. *최대 메모리*는 어떨까요?
# %%
# %%ranks --fast
from dlcourse.measure import Recorder, live_bytes
from dlcourse.parallel import data


def peak_of(wrapper, batch_size=2 * world_size, block=128):
    live_bytes()
    with Recorder(rank, world_size) as recorder:
        model = wrapper(GPT(seed=rank).to(device))
        loop = data.train if wrapper is NaiveDataParallel else train
        loop(model, corpus, steps=2, batch_size=batch_size, block=block)
    return recorder.record["memory"]["at_peak"]


model = optimizer = alone = None
peaks = [peak_of(wrap) for wrap in (NaiveDataParallel, ZeRO1, ZeRO2, ZeRO3)]
# %%
peaks = ranks["peaks"][0]
ratio = sum(peaks[0].values()) / sum(peaks[3].values())
rows = {t(".stage.number", stage=stage): peak for stage, peak in enumerate(peaks)}
assert ratio < num_ranks and peaks[3]["activations"] > sum(peaks[3].values()) / 2
memory_by_category_figure(rows, title=t(".peak", ratio=ratio))
# %% [markdown] lang="en"
# Most of what stage 3 leaves is **activations**. No stage divides them: that takes a smaller batch,
# checkpointing ([lesson 11](11_checkpointing.ipynb)), or tensor parallelism.
#
# And a higher stage can even need *more*. Take the whole small model as one unit, and 16 tokens a
# rank, so that activations do not hide it. Which stage needs least?
# %% [markdown] lang="ko" en="c27250cf"
# 3단계에 남은 것은 대부분 **활성화값**입니다. 어느 단계도 이것을 나누지 않습니다. 배치를 줄이거나, 활성화 체크포인팅
# ([레슨 11](11_checkpointing.ipynb))이나 텐서 병렬화를 써야 합니다.
#
# 단계를 올렸는데 오히려 *더* 필요할 수도 있습니다. 이 작은 모델 전체를 유닛 하나로 두고, 활성화값에 가리지 않게
# 랭크마다 토큰을 16개만 줍니다. 가장 적게 쓰는 것은 몇 단계일까요?
# %%
# %%ranks --fast
def one_unit(stage):
    return lambda module: stage(module, units=[])


small = [peak_of(one_unit(stage), world_size, 16) for stage in (ZeRO1, ZeRO2, ZeRO3)]
# %%
small = ranks["small"][0]
rows = {t(".one_unit", stage=stage): peak for stage, peak in enumerate(small, start=1)}
least, two_needs, three_needs = (sum(peak.values()) for peak in small)
assert three_needs > two_needs > least
memory_by_category_figure(rows, title=t(".trap", ratio=three_needs / least))
# %% [markdown] lang="en"
# Stage 1! One unit is gathered at once, and all its gradients wait for one message, beside the buffer
# that they are copied to. With 4 blocks as units, the two that are here (one computing, one coming)
# are half of the model; with 80 they are little. So buffers weigh much in a small model, little in a
# large one.
# %% [markdown] lang="ko" en="bd9c0e08"
# 1단계입니다! 유닛이 하나면 한꺼번에 다 모으고, 그래디언트도 모두 모였다가 메시지 하나로 나갑니다. 옮겨 담을 버퍼도
# 그 옆에 있어야 합니다. 블록 4개를 유닛으로 두어도 와 있는 두 개(계산 중인 것과 오는 중인 것)가 모델의 절반이지만,
# 80개면 얼마 되지 않습니다. 이런 버퍼는 작은 모델에서만 큰 몫을 차지합니다.
# %%
baseline = sum(sizes[0].values())
saved = {n: baseline / sum(ledger[n].values()) for n in (1, 2, 3)}
claim("B4", at_4=saved[1])
claim("B5", at_4=saved[2])
claim("B6", at_4=saved[3], peak=ratio)
# %% [markdown] lang="en"
# ## Beside the real libraries
#
# Same model, same data. torch has stage 1 (`ZeroRedundancyOptimizer`) and stage 3 (FSDP2's
# `fully_shard`); DeepSpeed has all three, if it is installed here.
# %% [markdown] lang="ko" en="ec0ced7f"
# ## 실제 라이브러리와 나란히
#
# 모델도 데이터도 같습니다. torch에는 1단계(`ZeroRedundancyOptimizer`)와 3단계(FSDP2의 `fully_shard`)가 있고,
# DeepSpeed에는 세 단계가 모두 있습니다(설치되어 있다면).
# %%
# %%ranks --fast
from dlcourse.peers.comparison import compare_steps

half = corpus.batch(0, rank=rank, world_size=world_size, micro_batch=2, block=64)
half = [part.to(device) for part in half]


def our_step(model):
    optimizer = torch.optim.AdamW(model.shards)

    def step():
        loss = model(*half)
        loss.backward()
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()
        return loss.detach()

    return step


# %%
# %%ranks --fast
def stepping(name):
    gpt = GPT(seed=0).to(device)
    if name in ("ZeRO1", "ZeRO2", "ZeRO3"):
        return our_step({"ZeRO1": ZeRO1, "ZeRO2": ZeRO2, "ZeRO3": ZeRO3}[name](gpt))
    step = peers.training_step(gpt, name, micro_batch=2)
    return lambda: step(*half)


def row(name):
    return compare_steps(lambda: stepping(name), reference)


# %%
ranks.cell("installed, stage_of = peers.installed(), peers.STAGE_OF", record=False)
stage_of = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3} | ranks["stage_of"][0]
installed = ["ZeRO1", "ZeRO2", "ZeRO3", *ranks["installed"][0]]
found = {}
ranks.cell("reference = stepping('FSDP2')", record=False)
for name in sorted(installed, key=stage_of.get):
    ranks.cell(f"found = row({name!r})", record=False)
    found[name] = ranks["found"]
ranks.cell("del reference", record=False)
assert len({f"{sum(rank['loss'] for rank in of):.3f}" for of in found.values()}) == 1
library_comparison_table(found, reference="FSDP2", absent=stage_of.keys() - set(installed))
# %% [markdown] lang="en"
# Same loss everywhere. FSDP2 sends more here, since over Gloo its reduce-scatter is an all-reduce;
# with NCCL it sends what ours sends, or less: it keeps the outermost unit from forward to backward.
# `ZeroRedundancyOptimizer` all-reduces whole gradients, then sends the new parameters (DeepSpeed 1 and
# 2 send as much here); it cuts between parameters, so ranks are uneven. DeepSpeed 3 keeps its
# shards outside of `nn.Parameter`, so the ledger counts gathered weights elsewhere.
#
# DeepSpeed has its thresholds off here. By default, parameters under 100,000 elements are never
# divided, and a billion may stay gathered [3]: of a small model, all, so that stage 3 can need more
# than stage 1. It also clips gradients to 1.0 unless told otherwise.
# %% [markdown] lang="ko" en="37a6f550"
# 손실은 모두 같습니다. FSDP2가 더 많이 보내는 것은 Gloo의 리듀스스캐터가 올리듀스이기 때문입니다. NCCL이라면
# 우리와 같거나 더 적습니다. 가장 바깥 유닛을 순전파에서 역전파까지 그대로 두기 때문입니다.
# `ZeroRedundancyOptimizer`는 그래디언트 전체를 올리듀스한 뒤 새 파라미터를 또 보냅니다(여기서는 DeepSpeed 1, 2도 같은
# 양입니다). 파라미터 단위로 나누므로 랭크마다 고르지도 않습니다. DeepSpeed 3은 샤드를 `nn.Parameter` 밖에 두어,
# 모은 가중치가 표의 다른 항목에 들어갑니다.
#
# DeepSpeed는 임계값을 껐습니다. 기본 설정에서는 원소 10만 개 미만인 파라미터를 나누지 않고, 10억 개까지는 모은
# 채로 둡니다[3]. 작은 모델이라면 전부이므로 3단계가 1단계보다 더 쓸 수도 있습니다. 그래디언트도 1.0으로
# 자르므로, 끄지 않으면 손실이 달라집니다.
# %% [markdown] lang="en"
# ## Four ranks save, two load
#
# A checkpoint is in shards, too: each rank writes its own. To load them over fewer ranks, the shards
# are put side by side, the padding is cut off, and the row is cut anew:
# %% [markdown] lang="ko" en="689f50ef"
# ## 네 랭크가 저장하고 두 랭크가 읽기
#
# 체크포인트 파일도 샤드로 되어 있습니다. 랭크마다 자기 것을 씁니다. 더 적은 랭크로 읽으려면 샤드를 이어 붙이고, 패딩을
# 버리고, 다시 자릅니다.
# %%
show("dlcourse.parallel.zero_checkpoint:load_checkpoint")
# %%
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
pairs = zip(ranks["by_all"][0], ranks["by_half"][0], strict=True)
resumed_apart = max(abs(a - b) for a, b in pairs)
print(t(".resumed", apart=f"{resumed_apart:.0e}"))
assert resumed_apart < 1e-4
# %% [markdown] lang="en"
# Each half of the ranks has gone on alone, with the same losses. A checkpoint that is of another model,
# or broke off, is refused where nothing has started yet: sizes are enough to tell.
# %% [markdown] lang="ko" en="584fb4cd"
# 랭크를 반으로 나누어 저마다 이어 갔는데 손실이 같습니다. 다른 모델의 체크포인트 파일이거나 쓰다 만 것이면, 아무것도
# 시작하기 전에 거부합니다. 크기만 봐도 알 수 있습니다.
# %%
# %%ranks --fast
from dlcourse.models.gpt import GPTConfig

with torch.device("meta"):
    wider = layout_of(GPT(GPTConfig(n_embd=256)))
# %%
from dlcourse.parallel.zero_checkpoint import check_checkpoint

with expect_failure("has shape"):
    check_checkpoint(folder.name, ranks["wider"][0])
# %% [markdown] lang="en"
# ## On one mesh
#
# Large runs combine what you have seen. Ranks form a grid: those of a row share each matrix
# ([lesson 04](04_tensor_parallel.ipynb)), those of a column hold the same part of it, read other
# sequences, and divide their states by ZeRO. It must still be the training of one process.
# %% [markdown] lang="ko" en="ed306417"
# ## 하나의 메시 위에서
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
kept_by_rank = sum(shard.numel() for shard in model.shards)
losses = train(model, corpus, **job)
mesh_apart = torch.tensor([abs(a - b) for a, b in zip(losses, wanted, strict=True)]).max()
dist.all_reduce(mesh_apart, op=dist.ReduceOp.MAX)
mesh_apart = mesh_apart.item()
# %%
print(t(".mesh", apart=f"{ranks['mesh_apart'][0]:.0e}", share=ranks["kept_by_rank"][0] / num_parameters))
assert ranks["mesh_apart"][0] < 1e-4
assert abs(ranks["kept_by_rank"][0] * num_ranks / num_parameters - 1) < 0.05
# %% [markdown] lang="en"
# ## Exercises
#
# **1. `06.bytes`** (3 minutes). Bytes that a rank keeps, mixed precision, stages 0 to 3.
# %% [markdown] lang="ko" en="51484c99"
# ## 연습 문제
#
# **1. `06.bytes`** (3분). 혼합 정밀도에서 0~3단계의 랭크 하나가 들고 있는 바이트 수를 돌려주세요.
# %% exercise="06.bytes"
def bytes_per_rank(num_parameters, ranks, stage):
    raise NotImplementedError


# %%
check("06.bytes")
# %% [markdown] lang="en"
# **2. `06.cut`** (10 minutes). `cut` puts tensors into one row and returns this rank's shard of it:
# of equal length in all ranks, padded by zeros, in a memory of its own. `join` gives the tensors of
# these shapes back, from all ranks' shards, and sends as little as can be.
# %% [markdown] lang="ko" en="9cf9bcfd"
# **2. `06.cut`** (10분). `cut`은 텐서들을 한 줄로 이어 이 랭크의 샤드를 돌려줍니다. 모든 랭크에서 길이가 같고,
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
# **3. `06.clip`** (10 minutes). `nn.utils.clip_grad_norm_(model.shards, 1.0)` looks right, and each
# rank clips by another number. Write it for shards: scale `shard.grad` by the norm over *all* ranks,
# and return that norm. One all-reduce of one number.
# %% [markdown] lang="ko" en="39be7a9a"
# **3. `06.clip`** (10분). `nn.utils.clip_grad_norm_(model.shards, 1.0)`은 맞아 보이지만 랭크마다 다른 값으로
# 자릅니다. 샤드에 맞게 고쳐 쓰세요. *모든* 랭크를 합친 노름으로 `shard.grad`를 줄이고 그 노름을 돌려줍니다.
# 숫자 하나를 올리듀스 한 번으로 보냅니다.
# %% exercise="06.clip"
# %%ranks
def clip_shards(shards, max_norm):
    raise NotImplementedError


# %%
check("06.clip")
# %% [markdown] lang="en"
# **4. `06.peak`** (20 minutes). Stage 3 of one matrix: `linear(x, shard)` returns `x @ weight.T`,
# where the flat `weight` is cut into the ranks' shards, and has `x.shape[-1]` columns. Backward
# leaves in `shard.grad` this rank's part of the mean gradient. Twelve such layers train in a row.
# Target: at most six layers' worth of memory above shards and gradients. (Gathering inside autograd
# keeps all twelve.)
# %% [markdown] lang="ko" en="c2da0470"
# **4. `06.peak`** (20분). 행렬 하나짜리 3단계입니다. `linear(x, shard)`는 `x @ weight.T`를 돌려줍니다. 한 줄로
# 편 `weight`가 랭크들의 샤드로 나뉘어 있고, 열은 `x.shape[-1]`개입니다. 역전파가 끝나면 `shard.grad`에 평균
# 그래디언트의 자기 몫이 있어야 합니다. 이런 층 12개를 이어서 학습합니다. 목표는 샤드와 그래디언트 외에 층 6개분
# 이하의 메모리입니다(autograd 안에서 모으면 12개가 다 남습니다).
# %% exercise="06.peak"
# %%ranks
def linear(x, shard):
    raise NotImplementedError


# %%
check("06.peak")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# What changes: with NCCL, reduce-scatter is a real one. All-gathers run in a stream of their own, so
# they hide behind matrix products if a block computes long enough. Between nodes the network is
# slower, so people shard inside a node and copy between nodes (HSDP).
#
# No GPU run of this lesson is recorded yet. Derived only: GB of model states in each GPU, 7.5
# billion parameters, on 1 to 1,024 GPUs (the paper's table [1]).
# %% [markdown] lang="ko" en="6d1c35c7"
# ## GPU 클러스터에서는
#
# 달라지는 것이 있습니다. NCCL의 리듀스스캐터는 진짜 리듀스스캐터입니다. 올게더는 별도의 스트림에서 실행되므로,
# 블록의 계산이 충분히 길면 행렬 곱 뒤에 숨습니다. 노드 사이는 네트워크가 느려서, 노드 안에서는 샤딩하고 노드
# 사이에는 복제본을 두기도 합니다(HSDP).
#
# 이 레슨의 GPU 실행 기록은 아직 없어 계산만 합니다. 파라미터 75억 개를 GPU 1~1,024개에 나눌 때 GPU마다 드는
# 모델 상태(GB)입니다(논문의 표 [1]).
# %% tags=["nbval-check-output"]
{w: [round(7.5 * total[n, w], 2) for n in (1, 2, 3)] for w in worlds}
# %% [markdown] lang="en"
# And the classes of this lesson as **one rank of 1,024**: stage 3 over 128 copies of an 8-way tensor
# parallel 7B model, on tensors that have shapes and no numbers. Bytes are exact, times mean nothing.
# %% [markdown] lang="ko" en="22c024f5"
# 이 레슨의 클래스를 그대로 써서 **랭크 1,024개 가운데 하나**도 되어 봅니다. 텐서 병렬화 8로 자른 7B 모델을 복제본
# 128개에 3단계로 나누고, 모양만 있고 숫자는 없는 텐서로 돌립니다. 바이트는 정확하고 시간은 뜻이 없습니다.
# %%
from dlcourse import scale

one_of_many = scale("06_zero", model="7b", world=1024)
share = 16 * one_of_many.record["parameters"] / 1024
assert share <= sum(one_of_many.kept.values()) < 1.02 * share
one_of_many
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Equal copies are waste: cut one flat row, let each rank update its part.
# 2. Stage 1 divides optimizer state, stage 2 also gradients; without accumulation neither sends a byte more.
# 3. Stage 3 also divides parameters, for half as many bytes again; every forward is a collective.
# 4. 4 and 8 times are limits, of 16-bit training, over infinitely many ranks; N times is exact.
# 5. Activations and buffers stay: measure the peak, not the formula.
#
# Sources: [1] [Rajbhandari et al., SC 2020](https://arxiv.org/abs/1910.02054).
# [2] [Zhao et al., PyTorch FSDP, VLDB 2023](https://arxiv.org/abs/2304.11277).
# [3] [DeepSpeed's configuration](https://www.deepspeed.ai/docs/config-json/).
# %% [markdown] lang="ko" en="091240e7"
# ## 다섯 줄 요약
#
# 1. 똑같은 복제본은 낭비입니다. 한 줄로 펴서 자르고, 랭크마다 자기 몫만 갱신합니다.
# 2. 1단계는 옵티마이저 상태를, 2단계는 그래디언트까지 나눕니다. 누적하지 않으면 둘 다 한 바이트도 더 보내지 않습니다.
# 3. 3단계는 파라미터까지 나누는 대신 절반을 더 보냅니다. 모든 순전파가 집합 통신이 됩니다.
# 4. 4분의 1과 8분의 1은 16비트 학습에서 랭크가 한없이 많을 때의 극한입니다. N분의 1은 정확합니다.
# 5. 활성화값과 버퍼는 그대로입니다. 공식이 아니라 최대 메모리를 재세요.
#
# 출처: [1] [Rajbhandari 외, SC 2020](https://arxiv.org/abs/1910.02054).
# [2] [Zhao 외, PyTorch FSDP, VLDB 2023](https://arxiv.org/abs/2304.11277).
# [3] [DeepSpeed 설정 문서](https://www.deepspeed.ai/docs/config-json/).
# %%
quiz()
