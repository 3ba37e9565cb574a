# %% [markdown] lang="en" form="core"
# # 13 Anatomy of memory: where does it go, and which saving comes first?
#
# "CUDA out of memory." You know four remedies by now: mixed precision
# ([lesson 10](10_mixed_precision.ipynb)), accumulation ([09](09_accumulation.ipynb)), checkpointing
# ([11](11_checkpointing.ipynb)) and sharding ([06](06_zero.ipynb)). Which one first? Popular advice has an
# order for all cases, and a pie chart of your memory.
#
# You will take one training step apart, category by category and moment by moment, and hold the pie, the
# table of remedies and the order against measurements. At the end a slider puts your model on a card.
#
# Time: reading 16 min + exercises 33 min.
# %% [markdown] lang="ko" en="acf69b13"
# # 13 메모리 해부: 메모리는 어디에 쓰이고, 무엇부터 줄여야 할까?
#
# "CUDA out of memory." 처방은 이미 네 가지를 알고 있습니다. 혼합 정밀도(mixed precision,
# [레슨 10](10_mixed_precision.ipynb)), 누적(accumulation, [09](09_accumulation.ipynb)),
# 체크포인팅(checkpointing, [11](11_checkpointing.ipynb)), 샤딩(sharding, [06](06_zero.ipynb))입니다. 무엇부터
# 켜야 할까요? 흔한 조언에는 언제나 통한다는 순서와, 메모리가 어떻게 나뉘는지 그린 원그래프가 있습니다.
#
# 학습 스텝 하나를 범주별로, 순간별로 뜯어보고 원그래프와 처방표, 순서를 측정값과 맞춰 봅니다. 끝에서는 슬라이더로
# 모델을 카드에 올려 봅니다.
#
# 시간: 읽기 16분 + 연습 33분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 2
device = "auto"
# %% [markdown] lang="en"
# Four things live in memory, and not for the same time:
#
# ```mermaid
# flowchart LR
#   P["parameters<br>always"] --> F["forward<br>activations grow"] --> B["backward<br>activations shrink<br>gradients grow"]
#   B --> O["optimizer<br>activations gone<br>gradients all there"] --> F
#   S["optimizer state<br>always"] --> O
# ```
# %% [markdown] lang="ko" en="be9ccf39"
# 메모리에는 파라미터, 그래디언트(gradient), 옵티마이저 상태(optimizer state), 활성화값(activation)이 있는데,
# 머무는 시간이 서로 다릅니다.
#
# ```mermaid
# flowchart LR
#   P["파라미터<br>늘 있음"] --> F["순전파<br>활성화값이 늘어남"] --> B["역전파<br>활성화값이 줄고<br>그래디언트가 늘어남"]
#   B --> O["옵티마이저<br>활성화값은 없고<br>그래디언트는 모두 있음"] --> F
#   S["옵티마이저 상태<br>늘 있음"] --> O
# ```
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.explorer.memory_anatomy import every_set, figures_of_d7, figures_of_d8
from dlcourse.explorer.memory_anatomy import memory_on_card, relative_costs, show_alone
from dlcourse.explorer.memory_anatomy import show_fitting, show_gpt2, show_machines, show_search
from dlcourse.figures.memory_anatomy import bytes_a_parameter, figures_of_d5, figures_of_d6
from dlcourse.figures.memory_anatomy import nearest_tokens, show_analogies, show_cases
from dlcourse.figures.memory_anatomy import show_few_tokens, show_matrix, show_published
from dlcourse.figures.memory_anatomy import show_same, show_shares, show_states

lesson(lang=lang, name="13_memory_anatomy")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# Every training loop is these lines. Read them as a plan of memory: what is alive after each line, and
# what has gone?
#
# Folded below is the same loop with every technique of this course to switch on, from
# `dlcourse/training/memory_anatomy.py`. In its `__init__` the order matters: checkpoints go around the
# blocks, then parameters get their type, then ZeRO cuts them up.
# %% [markdown] lang="ko" en="5eeb2300"
# 어떤 학습 루프든 결국 다음 몇 줄입니다. 메모리의 설계도로 읽어 보세요. 한 줄이 끝날 때마다 무엇이 살아 있고 무엇이
# 사라졌을까요?
#
# 그 아래에는 이 과정의 기법을 무엇이든 켤 수 있는 같은 루프를 접어 두었습니다(`dlcourse/training/memory_anatomy.py`).
# `__init__`에서는 순서가 중요합니다. 블록을 활성화 체크포인트로 감싸고, 파라미터의 자료형을 바꾸고, 그다음에 ZeRO가
# 자릅니다.
# %%
# %%ranks
def one_step(model, optimizer, micro_batches):
    optimizer.zero_grad()
    for tokens, targets in micro_batches:
        loss = model(tokens, targets) / len(micro_batches)
        loss.backward()
        del loss
    optimizer.step()
# %% hidden=true source="dlcourse.training.memory_anatomy:Training"

# %% [markdown] lang="en"
# **Predict** for AdamW in float32: parameters, gradients and optimizer state together, how many bytes for
# each parameter? And the peak of activations, for 8 layers of width 64 with 4 heads, and 8 sequences of 64
# tokens in each rank? (By lesson 11 a layer stores 4 × tokens × (16 × width + heads + 4) bytes; the rest
# adds about a tenth.)
# %% [markdown] lang="ko" en="1aed4cc5"
# float32 AdamW에 대해 **예측해 보세요.** 파라미터와 그래디언트와 옵티마이저 상태를 더하면 파라미터 하나에 몇
# 바이트일까요? 폭 64, 헤드 4개인 층이 8개이고 랭크(rank)마다 토큰 64개짜리 시퀀스가 8개일 때, 활성화값의 최대
# 메모리(peak memory)는 얼마일까요? (레슨 11에서 층 하나는 4 × 토큰 × (16 × 폭 + 헤드 + 4)바이트를 저장했고, 나머지가
# 10%쯤 더합니다.)
# %%
predict("13.states")
predict("13.activations")
# %% hidden=true
# %%ranks --fast
import gc

import numpy as np
from dlcourse.corpus import Corpus
from dlcourse.figures.memory_anatomy import BATCH, CONFIG
from dlcourse.measure import Recorder
from dlcourse.models.gpt import GPT

gpt = GPT(CONFIG).to(device)
adamw = torch.optim.AdamW(gpt.parameters())
two = [Corpus().batch(step, rank=rank, world_size=world_size, **BATCH) for step in range(2)]
first, second = ([half.to(device) for half in batch] for batch in two)
one_step(gpt, adamw, [first])
# %%
# %%ranks --as step
one_step(gpt, adamw, [second])
# %%
step.memory.over_time()
# %% hidden=true
# %%ranks --fast
gpt = adamw = None


def take_step(training, number, sequences=8, block=64):
    place = dict(rank=rank, world_size=world_size, micro_batch=sequences, block=block)
    training.step(*(half.to(device) for half in Corpus().batch(number, **place)))


def ledger_of(training, *batch):
    with Recorder(rank, world_size) as recorder:
        take_step(training, 1, *batch)
    return recorder.record["memory"]


def measure(recipe, *batch):
    gc.collect()
    training = Training(GPT(CONFIG).to(device), recipe)
    take_step(training, 0, *batch)  # makes the optimizer's state
    return ledger_of(training, *batch), training.weights().cpu().numpy().copy()


adam, want = measure(Recipe())
# %%
adam = ranks["adam"][0]
compare("13.states", bytes_a_parameter(adam))
compare("13.activations", adam["peaks"]["activations"])
show_states(adam)
# %% [markdown] lang="en"
# So the formula can be trusted for models that do not fit here. And look at the picture above again:
# where the mountain is highest **there are no gradients yet**. They are all there only in the optimizer's
# step, when activations are gone. A step has two high moments, and its peak is the higher one.
#
# Now change one thing at a time:
# %% [markdown] lang="ko" en="bc47ab68"
# 그러니 이 컴퓨터에 들어가지 않는 모델도 공식으로 계산할 수 있습니다. 위의 그림을 다시 보세요. 산이 가장 높은 곳에는
# **아직 그래디언트가 없습니다.** 그래디언트가 다 모이는 것은 활성화값이 사라진 옵티마이저 스텝입니다. 스텝에는 높은
# 순간이 두 번 있고, 둘 중 높은 쪽이 최대 메모리입니다.
#
# 이제 하나씩 바꿔 봅니다.
# %% hidden=true
# %%ranks --fast
mixed = measure(Recipe.of(["mixed"]))
anatomy = {"adam": adam, "master": mixed[0]}
anatomy |= {name: measure(Recipe(optimizer=name))[0] for name in ("momentum", "sgd")}
training = Training(GPT(CONFIG).to(device), Recipe())
take_step(training, 0, 2)
anatomy |= {"small": ledger_of(training, 2), "large": ledger_of(training, 16)}
training = None
# %%
anatomy = ranks["anatomy"][0]
show_cases(anatomy)
# %% [markdown] lang="en"
# Same model, same data, one scale. With a large batch activations rise like a mountain; with a small one
# most of the area is flat: parameters and optimizer state. So "what is memory made of" has no answer
# without the batch, the optimizer and the moment.
#
# ## 25, 25, 35, 15?
#
# The pie has one: 25% parameters, 25% gradients, 35% optimizer state, 15% activations. Which case is that?
# %% [markdown] lang="ko" en="8324d63f"
# 같은 모델, 같은 데이터, 같은 눈금입니다. 배치가 크면 활성화값이 산처럼 솟고, 작으면 평평한 파라미터와 옵티마이저
# 상태가 대부분입니다. 그러니 배치와 옵티마이저, 순간을 말하지 않고는 "메모리가 무엇으로 이루어지는지" 답할 수 없습니다.
#
# ## 25, 25, 35, 15?
#
# 원그래프는 답을 하나로 정해 둡니다. 파라미터 25%, 그래디언트 25%, 옵티마이저 상태 35%, 활성화값 15%입니다. 어떤
# 경우일까요?
# %%
show_shares(anatomy)
# %% [markdown] lang="en"
# None so far. For all four to be there at once, gradients of an earlier micro-batch must be alive at the
# loss: with accumulation. And activations go with the tokens. **Predict**: at how many tokens in a
# micro-batch are activations 15% of all?
# %% [markdown] lang="ko" en="8700aabe"
# 아직 없습니다. 네 가지가 한꺼번에 있으려면 손실 때 앞선 마이크로배치(micro-batch)의 그래디언트가 남아 있어야 합니다.
# 누적할 때입니다. 활성화값은 토큰 수에 비례합니다. **예측해 보세요.** 마이크로배치의 토큰이 몇 개일 때 활성화값이
# 전체의 15%가 될까요?
# %%
predict("13.tokens")
# %% hidden=true
# %%ranks --fast
training = Training(GPT(CONFIG).to(device), Recipe(accumulate=2))
take_step(training, 0, 2, 8)
few = {n: ledger_of(training, 2, n)["at_peak"] for n in (8, 16, 32, 48)}
training = None
# %%
few = ranks["few"][0]
compare("13.tokens", nearest_tokens(few))
show_few_tokens(few)
# %% [markdown] lang="en"
# Even at the nearest length the pie does not fit: AdamW's two moments are **twice** the parameters,
# never 35 ÷ 25 = 1.4 times, and no optimizer above has such a ratio. In GPT-2 Large the same share comes
# at 613 tokens, less than one sequence.
# %% [markdown] lang="ko" en="01e343b4"
# 가장 가까운 길이에서도 원그래프와는 맞지 않습니다. AdamW의 모멘트 둘은 파라미터의 **두 배**이지 35 ÷ 25 = 1.4배가
# 아니고, 앞에서 본 옵티마이저 가운데 그런 비율은 없습니다. GPT-2 Large에서는 토큰 613개, 시퀀스 하나도 안 되는
# 길이에서 15%가 됩니다.
# %%
claim("D5", **figures_of_d5(anatomy, few))
# %% [markdown] lang="en"
# ## What shrinks what
#
# The usual table makes eight promises: parameters shrink by sharding and mixed precision, gradients by
# mixed precision and accumulation, optimizer state by mixed precision and ZeRO, activations by
# checkpointing and accumulation. We switch on one technique at a time and read **each category's own**
# peak. First **predict** one of them: mixed precision with master weights makes the optimizer state how
# many times as large?
# %% [markdown] lang="ko" en="2094d201"
# ## 무엇이 무엇을 줄이나
#
# 흔한 처방표에는 약속이 여덟 개 있습니다. 파라미터는 샤딩과 혼합 정밀도로, 그래디언트는 혼합 정밀도와 누적으로,
# 옵티마이저 상태는 혼합 정밀도와 ZeRO로, 활성화값은 체크포인팅과 누적으로 줄어든다고 합니다. 기법을 하나씩 켜고
# **범주마다 따로 최댓값**을 읽습니다. 먼저 하나를 **예측해 보세요.** 마스터 가중치(master weights)를 쓰는 혼합
# 정밀도에서 옵티마이저 상태는 몇 배가 될까요?
# %%
predict("13.masters")
# %% hidden=true
# %%ranks --fast
alone = {
    "autocast": Recipe(precision="autocast"),
    "bfloat16": Recipe(precision="bfloat16"),
    **{name: Recipe.of([name]) for name in ("mixed", "accumulate", "checkpoint", "zero1", "zero3")},
}
matrix, errors = {}, {}
for name, recipe in alone.items():
    matrix[name], got = mixed if name == "mixed" else measure(recipe)
    errors[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
# %%
matrix = ranks["matrix"][0]
compare("13.masters", round(figures_of_d6(adam, matrix)["state"], 2))
show_matrix(adam, matrix)
# %% [markdown] lang="en"
# Read down the columns. Accumulation leaves gradients as they are: it *keeps* them longer. Master weights
# make the state larger; autocast touches no state at all; and both shrink activations, which the usual
# table leaves out. ZeRO-3 holds the layer at work and the next one whole, so with only 8 layers parameters
# do not fall to a half.
#
# ZeRO-1 saves nothing at the peak here. Our buffer for all gradients is there at the loss, 4 bytes a
# parameter, and with 2 ranks the state saves just as much. From three ranks on it saves more. (Gradients
# +4%: each is there twice while it is copied into the buffer.)
# %% [markdown] lang="ko" en="01a45a62"
# 열을 따라 내려가며 읽어 보세요. 누적은 그래디언트를 줄이지 않고 오히려 더 오래 *들고 있습니다*. 마스터 가중치는 상태를
# 늘리고, autocast는 상태를 전혀 건드리지 않습니다. 둘 다 활성화값을 줄이는데 흔한 표에는 빠져 있습니다. ZeRO-3는 계산
# 중인 층과 다음 층을 온전히 모아 두므로 층이 8개뿐이면 파라미터가 절반까지 줄지 않습니다.
#
# ZeRO-1은 여기서 최대 메모리를 줄이지 못합니다. 우리 구현은 그래디언트 전체의 버퍼를 손실 때도 파라미터당 4바이트씩
# 들고 있는데, 랭크가 둘이면 상태가 줄어든 양이 꼭 그만큼이기 때문입니다. 랭크가 셋부터는 이득입니다. (그래디언트가
# 4% 늘어난 까닭은 버퍼로 복사하는 동안 텐서 하나가 잠깐 두 벌이 되기 때문입니다.)
# %%
claim("D6", **figures_of_d6(adam, matrix))
# %% [markdown] lang="en"
# Is it still the same training? One process takes the batches of all ranks at once, for comparison. The
# optimizer is SGD: AdamW would hide a factor in all gradients, such as a forgotten mean over ranks. And
# do torch's own `MemTracker` and the formula find the same peaks?
# %% [markdown] lang="ko" en="a232fa68"
# 여전히 같은 학습일까요? 단일 프로세스에 모든 랭크의 배치를 한꺼번에 주어 비교합니다. 랭크 평균을 빠뜨리면
# 그래디언트 전체가 몇 배가 되는데 AdamW로는 드러나지 않으므로 SGD로 봅니다. torch의 `MemTracker`와 공식도 최대
# 메모리를 똑같이 셀까요?
# %% hidden=true
# %%ranks --fast
from torch.distributed._tools.mem_tracker import MemTracker


def one_process(steps):
    gpt = GPT(CONFIG).to(device)
    sgd = torch.optim.SGD(gpt.parameters(), lr=1.0)
    for step in range(steps):
        batch = Corpus().batch(step, micro_batch=8 * world_size, block=64)
        one_step(gpt, sgd, [[half.to(device) for half in batch]])
    return torch.cat([p.detach().flatten() for p in gpt.parameters()])


# %% hidden=true
# %%ranks --fast
def in_ranks(**options):
    training = Training(GPT(CONFIG).to(device), Recipe(optimizer="sgd", **options), lr=1.0)
    place = dict(rank=rank, world_size=world_size, micro_batch=8, block=64)
    for step in range(2):
        training.step(*(x.to(device) for x in Corpus().batch(step, **place)))
    return training.weights()


begin, whole = one_process(0), one_process(2)
same = {"accumulate": {"accumulate": 4}, "checkpoint": {"checkpoint": True}}
same |= {"zero1": {"stage": 1}, "zero3": {"stage": 3}}
off = {name: (in_ranks(**options) - whole).norm() for name, options in same.items()}
off = {name: (distance / (whole - begin).norm()).item() for name, distance in off.items()}
begin = whole = None
# %% hidden=true
# %%ranks --fast
training, tracker = Training(GPT(CONFIG).to(device), Recipe()), MemTracker()
training.step(*first)
tracker.track_external(training.model, training.optimizer)
with tracker:
    training.step(*second)
torchs = tracker.get_tracker_snapshot("peak")[device]["Total"]
training = tracker = None
# %%
show_same(ranks["off"][0], adam["peak_bytes"], ranks["torchs"][0], matrix, num_ranks)
# %% [markdown] lang="en"
# Techniques that contradict each other are refused before anything is built:
# %% [markdown] lang="ko" en="d8c4302a"
# 서로 맞지 않는 기법은 모델을 만들기 전에 거부합니다.
# %%
# %%ranks --fails "keeps no master weights"
Recipe(precision="master", optimizer="sgd")
# %% [markdown] lang="en"
# ## Which one first?
#
# Recommended: mixed precision, accumulation, checkpointing, then sharding; stop as soon as it fits. That
# is one path through all sets of techniques. A set has a peak and a price, the time of a step, and for a
# memory limit the best set is the **cheapest that fits**. So try all sets on GPT-2 Large: 774 million
# parameters, 4 ranks, 16 sequences of 1,024 tokens in each. All of it is computed by formula. Peaks come from the one
# just checked, and time from FLOPs, bytes sent, an A100's datasheet [1] and 2 ms a micro-batch, our
# assumption.
# %% [markdown] lang="ko" en="e4e1528a"
# ## 무엇부터?
#
# 권장 순서는 혼합 정밀도, 누적, 체크포인팅, 샤딩이고, 들어가는 순간 멈추라고 합니다. 이것은 기법의 여러 조합을 지나는
# 길 하나일 뿐입니다. 조합마다 최대 메모리와 가격(스텝 시간)이 있고, 어떤 메모리 한도에서 가장 좋은 조합은 **들어가는
# 것 중 가장 싼** 것입니다. 그러니 GPT-2 Large(파라미터 7억 7,400만 개)로 조합을 모두 시험합니다. 랭크 4개에 토큰
# 1,024개짜리 시퀀스가 16개씩입니다. 모두 공식으로 계산합니다. 최대 메모리는 방금 확인한 공식의 값이고, 시간은
# FLOPs와 보낸 양, A100 데이터시트[1], 마이크로배치당 2 ms(우리의 가정)에서 나옵니다.
# %% hidden=true source="dlcourse.plan.technique_order:cheapest,first_that_fits"

# %%
everything = every_set()
show_search(everything)
# %% [markdown] lang="en"
# Each dot is a set: up is more memory, right is slower. For a limit, look below its height and take the
# dot furthest left. One line joins these; the other is the recommended order. Where they part, the order
# pays for time it does not need. On other machines:
# %% [markdown] lang="ko" en="3986f084"
# 점 하나가 조합 하나입니다. 위로 갈수록 메모리가 많고 오른쪽으로 갈수록 느립니다. 한도가 정해지면 그 높이 아래에서 가장
# 왼쪽 점을 고르면 됩니다. 선 하나는 그런 점들을 이은 것이고, 다른 하나는 권장 순서입니다. 둘이 갈라지는 곳에서 권장
# 순서는 쓰지 않아도 될 시간을 씁니다. 다른 기계에서는 어떨까요?
# %%
show_machines(everything)
# %% [markdown] lang="en"
# Mixed precision first is right where 16 bits are faster: it saves time *and* memory. After that the order
# puts ZeRO last, though ZeRO-1 sends what an all-reduce sends anyway and so costs no time: with several
# ranks it comes **before** accumulation and checkpointing. ZeRO-3 sends half as much again, and on a slow
# link it is last indeed. No order is right everywhere; put your own numbers in (see Deeper).
# %% [markdown] lang="ko" en="efde3dbb"
# 16비트가 더 빠른 곳이라면 혼합 정밀도가 먼저입니다. 시간과 메모리를 *모두* 아끼니까요. 그다음부터 권장 순서는 ZeRO를
# 맨 뒤에 두지만, ZeRO-1은 올리듀스(all-reduce)가 어차피 보내는 만큼만 보내므로 시간이 더 들지 않습니다. 랭크가 여럿이면
# 누적과 체크포인팅**보다 먼저** 옵니다. ZeRO-3는 절반을 더 보내므로 링크가 느리면 정말 맨 뒤입니다. 어디서나 맞는 순서는
# 없습니다. 내 숫자는 '더 깊이'에서 넣어 볼 수 있습니다.
# %%
claim("D7", **figures_of_d7(everything))
# %% [markdown] lang="en"
# ## GPT-2 Large, row by row
#
# A popular table: 12 GB at first, 6 GB with mixed precision, still 6 with accumulation, 4 with
# checkpointing, 2 on each device with sharding. **Predict** the first row, in GB (10⁹ bytes): AdamW, float32,
# two sequences of 1,024 tokens. (It is measured on tensors that have shapes and no numbers: the **ledger**,
# our record of what is alive, counts the bytes of a model that would not fit here.)
# %% [markdown] lang="ko" en="def15a67"
# ## GPT-2 Large, 한 줄씩
#
# 널리 알려진 표가 있습니다. 처음에는 12 GB, 혼합 정밀도로 6 GB, 누적을 더해도 6 GB, 체크포인팅으로 4 GB, 샤딩으로
# 장치마다 2 GB라고 합니다. 첫 줄은 몇 GB(10⁹바이트)일지 **예측해 보세요.** AdamW, float32, 토큰 1,024개짜리 시퀀스
# 2개입니다. (값 없이 모양만 있는 텐서로 잽니다. 살아 있는 텐서를 적는 장부(ledger)가 이 컴퓨터에 들어가지 않는
# 모델의 바이트도 셉니다.)
# %%
predict("13.gpt2")
# %% hidden=true
# %%ranks --fast
from dlcourse.explorer.memory_anatomy import large_cases
from dlcourse.plan import fake_ledger

alone_here, counted = dist.new_group([0]), None
if rank == 0:
    counted = fake_ledger.measure(large_cases()[0], alone_here)["memory"]["peak_bytes"] / 1e9
# %%
compare("13.gpt2", round(ranks["counted"][0], 1))
show_gpt2(ranks["counted"][0])
# %% [markdown] lang="en"
# "12 GB" is the states alone, 16 bytes a parameter, **without any activation**. And those 16 bytes stay 16
# with mixed precision (2 + 2 + 12), so they do not halve. Only sharding divides them, and the last row
# depends on how many devices you have. The claimed speeds are for a GPU to test; here stand FLOPs.
# %% [markdown] lang="ko" en="fed868f2"
# "12 GB"는 파라미터마다 16바이트인 상태만의 크기이며, **활성화값은 하나도 들어 있지 않습니다**. 이 16바이트는 혼합
# 정밀도에서도 16바이트(2 + 2 + 12)이므로 절반이 되지 않습니다. 상태를 나누는 것은 샤딩뿐이고, 마지막 줄은 장치가 몇
# 개냐에 달렸습니다. 주장하는 속도는 GPU에서 재야 하고, 여기에는 FLOPs만 있습니다.
# %%
claim("D8", **figures_of_d8())
# %% [markdown] lang="en"
# ## On your card
#
# The same formula for other models, 4 ranks and 1,024 tokens a sequence. Move the sliders: what is the
# largest model that 24 GB hold, and with what? Where does one more technique hardly help?
# %% [markdown] lang="ko" en="32c4cc9b"
# ## 내 카드에서는
#
# 같은 공식을 다른 모델에도 씁니다. 랭크 4개, 시퀀스마다 토큰 1,024개입니다. 슬라이더를 움직여 보세요. 24 GB에 들어가는
# 가장 큰 모델은 무엇이고, 무엇을 켜야 할까요? 기법을 하나 더 켜도 별 도움이 안 되는 곳은 어디일까요?
# %%
explore(
    memory_on_card,
    model=["gpt2-large", "1.3b", "7b"],
    card_gb=[24, 80],
    sequences=[1, 4, 16],
    techniques=[0, 1, 2, 3, 4],
)
# %% [markdown] lang="en"
# Leave room: this counts tensors. A GPU adds what the ledger cannot see: the CUDA context, workspaces of
# libraries, rounding of each tensor to 512 bytes, blocks that are free but in pieces [2], and buffers of
# torch's `foreach` optimizers as large as the parameters [3].
# %% [markdown] lang="ko" en="48a2f975"
# 여유를 남겨 두세요. 이 그림은 텐서만 셉니다. GPU에는 장부에 보이지 않는 것이 더해집니다. CUDA 컨텍스트,
# 라이브러리의 작업 공간, 텐서마다 512바이트 단위로 올림, 비었지만 조각난 블록[2], 그리고 파라미터만큼 큰 `foreach`
# 옵티마이저의 버퍼[3]입니다.
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("13.moment")` helps step by step; `solution("13.moment")`
# shows one answer.
#
# **1. `13.moment`** (3 minutes). The peak of a step: the higher one of its two high moments, the loss and
# the optimizer's step. Given are the full sizes of the four categories (activations of one micro-batch)
# and the number of micro-batches.
# %% [markdown] lang="ko" en="ac26315a"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("13.moment")`는 한 단계씩 도와주고, `solution("13.moment")`은 답
# 하나를 보여 줍니다.
#
# **1. `13.moment`** (3분). 스텝의 최대 메모리를 돌려주세요. 손실 때와 옵티마이저 스텝, 높은 순간 둘 중 큰 쪽입니다. 네
# 범주의 온전한 크기(활성화값은 마이크로배치 하나의 것)와 마이크로배치 수가 주어집니다.
# %% exercise="13.moment"
def peak(parameters, gradients, state, activations, micro_batches):
    raise NotImplementedError
# %%
check("13.moment")
# %% [markdown] lang="en"
# **2. `13.batch`** (10 minutes). The largest micro-batch that fits. `need(n)` measures the bytes of a step
# with `n` sequences; it grows with `n`, but not in proportion. Return the largest `n` with `need(n) <=
# memory`, 0 if there is none, with at most 25 calls.
# %% [markdown] lang="ko" en="0fcc16bf"
# **2. `13.batch`** (10분). 들어가는 가장 큰 마이크로배치를 찾으세요. `need(n)`은 시퀀스가 `n`개일 때 한 스텝의
# 바이트를 잽니다. `n`이 커지면 커지지만 비례하지는 않습니다. `need(n) <= memory`인 가장 큰 `n`을 돌려주세요. 없으면
# 0이고, 호출은 25번까지입니다.
# %% exercise="13.batch"
def largest(need, memory):
    raise NotImplementedError
# %%
check("13.batch")
# %% [markdown] lang="en"
# **3. `13.order`** (20 minutes). Your own search. `plans` is a list of `(techniques, peak, seconds)`, where
# `techniques` is a tuple of names. Let the limit fall from very large to the smallest peak: which set is
# the fastest that fits? Return the list of their `techniques`, in this order, each once. Of equally fast
# sets the one with the smaller peak counts, and then the one with fewer techniques.
# %% [markdown] lang="ko" en="dd3ca5a7"
# **3. `13.order`** (20분). 직접 탐색해 보세요. `plans`는 `(techniques, peak, seconds)`의 리스트이고,
# `techniques`는 이름의 튜플입니다. 한도를 아주 큰 값에서 가장 작은 최대 메모리까지 낮추면 그때마다 들어가는 가장 빠른
# 조합이 있습니다. 그 `techniques`를 차례로, 한 번씩만 담은 리스트를 돌려주세요. 시간이 같으면 메모리가 작은 것, 그것도
# 같으면 기법이 적은 것을 고릅니다.
# %% exercise="13.order"
def best_sets(plans):
    raise NotImplementedError
# %%
check("13.order")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# Bytes of tensors are the same there, and nothing here says how fast anything is: no GPU run of this lesson
# is recorded (`dlcourse bench gpu` measures GPT-2 Large against `torch.cuda`'s peaks).
#
# Published, and beside it this lesson's count: the states of 7.5 billion parameters in each of 64 GPUs,
# with Adam in mixed precision [4]:
# %% [markdown] lang="ko" en="c39603ad"
# ## GPU 클러스터에서는
#
# 텐서의 바이트는 그대로입니다. 무엇이 얼마나 빠른지는 여기서 말하지 않습니다. 이 레슨의 GPU 실행 기록이 없기
# 때문입니다(`dlcourse bench gpu`가 GPT-2 Large를 `torch.cuda`의 최대 메모리와 견줍니다).
#
# 발표된 값을 이 레슨의 셈과 나란히 봅시다. 파라미터 75억 개를 GPU 64개에서 혼합 정밀도 Adam으로 학습할 때 GPU마다 드는
# 상태입니다[4].
# %% tags=["nbval-check-output"]
show_published()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. A step has two high moments: the loss, and the optimizer's step; the peak is the higher one.
# 2. States are 16 bytes a parameter with AdamW, mixed precision or not; activations go with the tokens.
# 3. No moment of a usual step looks like 25, 25, 35, 15.
# 4. Accumulation never shrinks gradients; master weights make the state larger; ZeRO-1 takes no more time.
# 5. Which technique comes next depends on prices: search, and leave room for what a GPU adds.
#
# Sources: [1] [NVIDIA A100 datasheet](https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf).
# [2] [PyTorch: CUDA semantics, memory management](https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management).
# [3] [torch.optim.AdamW, foreach](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html).
# [4] [Rajbhandari et al., 2019](https://arxiv.org/abs/1910.02054).
# %% [markdown] lang="ko" en="879de514"
# ## 다섯 줄 요약
#
# 1. 스텝에는 높은 순간이 두 번, 손실 때와 옵티마이저 스텝에 있고, 높은 쪽이 최대 메모리입니다.
# 2. AdamW의 상태는 혼합 정밀도든 아니든 파라미터당 16바이트이고, 활성화값은 토큰 수를 따라갑니다.
# 3. 보통의 학습 스텝에 25, 25, 35, 15처럼 보이는 순간은 없습니다.
# 4. 누적은 그래디언트를 줄이지 않고, 마스터 가중치는 상태를 늘리고, ZeRO-1은 시간이 더 들지 않습니다.
# 5. 다음에 무엇을 켤지는 가격이 정합니다. 찾아보고, GPU가 더하는 만큼 여유를 남기세요.
#
# 출처: [1] [NVIDIA A100 데이터시트](https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf).
# [2] [PyTorch: CUDA semantics, 메모리 관리](https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management).
# [3] [torch.optim.AdamW, foreach](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html).
# [4] [Rajbhandari 외, 2019](https://arxiv.org/abs/1910.02054).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Everything below runs on its own once the cells above have run.
#
# ### One device
#
# On **one** device nothing can be sharded. For three jobs, the table shows the limit at which the order is
# worst, of those that plain float32 does not fit into:
# %% [markdown] lang="ko" en="87925d4d"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 실행했다면 아래는 어느 것이나 바로 실행할 수 있습니다.
#
# ### 장치가 하나라면
#
# 장치가 **하나**라면 나눌 곳이 없습니다. float32 그대로는 들어가지 않는 한도 가운데 권장 순서가 가장 불리한 것을 세
# 경우에 대해 봅니다.
# %%
show_alone()
# %% [markdown] lang="en"
# The order turns accumulation on before checkpointing and pays for four micro-batches where one would
# do. Their fixed price hardly counts while each has much to compute; with few tokens, or a slow start, it
# does.
#
# ### Your own numbers
#
# The free memory of your device (`torch.cuda.mem_get_info()`), your batch and the number of devices.
# `model=replace(GPT2_LARGE, n_layer=48, n_embd=1600, n_head=25)` would be GPT-2 XL.
# %% [markdown] lang="ko" en="c0d551e2"
# 권장 순서는 체크포인팅보다 누적을 먼저 켜므로, 마이크로배치 하나로 될 일에 네 번의 고정 비용을 치릅니다. 한 번에
# 계산할 것이 많으면 그 비용은 거의 드러나지 않지만, 토큰이 적거나 시작하는 데 오래 걸리면 커집니다.
#
# ### 내 숫자로
#
# 장치의 빈 메모리(`torch.cuda.mem_get_info()`), 배치, 장치 수를 넣어 보세요. 예를 들어 `model=replace(GPT2_LARGE,
# n_layer=48, n_embd=1600, n_head=25)`는 GPT-2 XL입니다.
# %%
show_fitting(20e9, sequences=8, block=1024, devices=2)
# %% [markdown] lang="en"
# ### A batch that cannot be split
#
# It is refused in its first step, in every rank:
# %% [markdown] lang="ko" en="be95df30"
# ### 나눌 수 없는 배치
#
# 첫 스텝에서, 모든 랭크에서 거부합니다.
# %%
# %%ranks --fails "a batch of 6 sequences does not divide"
measure(Recipe(accumulate=4), 6)
# %% [markdown] lang="en"
# ### The pictures in our heads
#
# Two analogies are popular: moving house, and money. Ask each what it predicts.
# %% [markdown] lang="ko" en="b7d2ec03"
# ### 머릿속의 그림
#
# 널리 쓰이는 비유가 둘 있습니다. 이사와 돈입니다. 비유마다 무엇을 예측하는지 물어봅시다.
# %%
errors = ranks["errors"][0]
show_analogies(adam, matrix, errors, relative_costs(everything))
# %% [markdown] lang="en"
# Several trips, or instalments: right, the same load (FLOPs), and nothing is lost but rounding. Boxes
# fetched, receipts reissued: right, bit for bit, though boxes are *made* again, not fetched (fetching is
# offload, [lesson 12](12_sharding_offload.ipynb)). Furniture in parts: right, with all the carrying.
# Vacuum-packing and notes for coins mislead: what is packed comes out as it was, bf16 is rounded; packing
# takes time, 16 bits save it (by datasheets [1]; not measured here); and the states do not shrink.
# %% [markdown] lang="ko" en="0f4f1820"
# 여러 번 나르기나 할부는 맞습니다. 나르는 짐(FLOPs)은 같고 반올림 말고는 잃는 것이 없습니다. 상자를 다시 가져오거나
# 영수증을 재발급받는 것도 비트까지 맞지만, 상자는 가져오는 것이 아니라 *다시 만드는* 것입니다(가져오는 것은
# [레슨 12](12_sharding_offload.ipynb)의 오프로드입니다). 가구를 분해해 나눠 두기도 맞고, 그만큼 나르는 일이
# 늘어납니다. 압축 포장과 지폐는 오해를 부릅니다. 압축은 풀면 그대로이지만 bf16은 반올림을 남깁니다. 포장에는 시간이
# 들지만 16비트는 시간을 아끼고(데이터시트[1]의 값이며 여기서 재지 않았습니다), 상태는 줄지 않습니다.
# %%
kept = {"exact": "accumulate", "again": "checkpoint", "sharded": "zero3", "lossy": "mixed"}
claim("D9", **{figure: errors[name] for figure, name in kept.items()})
