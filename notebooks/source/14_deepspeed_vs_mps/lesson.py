# %% [markdown] lang="en" form="core"
# # 14 DeepSpeed and Mac MPS: one job, by configuration and by hand
#
# It is often told as a duel. On the left DeepSpeed: write a JSON, and accumulation, 16 bits,
# checkpointing, ZeRO-3 and offload "apply themselves". On the right a Mac: the same savings, all
# by hand, on one device for ever.
#
# You will run one training both ways, on the same data, and compare losses, bytes, memory and lines.
# Four entries of that JSON do nothing at all. And several devices, "impossible" for Macs? The library
# that joins them runs below, on CPUs. You need lessons [06](06_zero.ipynb) and [09](09_accumulation.ipynb) to
# [12](12_sharding_offload.ipynb).
#
# Time: reading 17 min + exercises 39 min.
# %% [markdown] lang="ko" en="c3049489"
# # 14 DeepSpeed와 맥 MPS: 같은 학습을 설정으로, 그리고 손으로
#
# 흔히 둘을 맞대결처럼 설명합니다. 왼쪽은 DeepSpeed입니다. JSON만 쓰면 누적, 16비트, 체크포인팅, ZeRO-3, 오프로드가
# "저절로" 적용됩니다. 오른쪽은 맥입니다. 같은 절약을 모두 손으로 짜고, 장치는 언제까지나 하나뿐입니다.
#
# 같은 데이터로 한 가지 학습을 두 방식으로 돌려 손실, 바이트, 메모리, 줄 수를 견주어 봅니다. 그 JSON에는 아무 일도 하지 않는
# 항목이 넷 있습니다. 그리고 맥에서는 여러 장치가 "불가능"할까요? 맥 여러 대를 잇는 라이브러리를 아래에서 CPU로 돌립니다. 레슨 [06](06_zero.ipynb)과
# [09](09_accumulation.ipynb)~[12](12_sharding_offload.ipynb)를 먼저 보세요.
#
# 시간: 읽기 17분 + 연습 39분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 2
device = "auto"
# %% [markdown] lang="en"
# Both ways do the same arithmetic. What differs is who writes the loop's inside:
#
# ```mermaid
# flowchart LR
#   J["ds.json"] --> E["DeepSpeed engine<br>engine.backward, engine.step"]
#   H["your own loop"] --> C["this course's pieces<br>split, ZeRO3, checkpoint, AdamW"]
#   E --> G(("same gradients,<br>same step"))
#   C --> G
# ```
#
# Here both run on this machine's device. What is true of a Mac comes later, and only what can be
# read, run or cited.
# %% [markdown] lang="ko" en="347f77db"
# 두 방식은 같은 계산을 합니다. 반복문의 속을 누가 쓰느냐가 다릅니다.
#
# ```mermaid
# flowchart LR
#   J["ds.json"] --> E["DeepSpeed 엔진<br>engine.backward, engine.step"]
#   H["직접 쓴 반복문"] --> C["이 과정의 부품<br>split, ZeRO3, checkpoint, AdamW"]
#   E --> G(("같은 그래디언트,<br>같은 스텝"))
#   C --> G
# ```
#
# 여기서는 둘 다 이 컴퓨터의 장치에서 돕니다. 맥에 대한 이야기는 뒤에서, 소스를 읽었거나 돌려 보았거나 출처가 있는 것만
# 합니다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore, hint, lesson
from dlcourse import predict, quiz, solution
from dlcourse.corpus import Corpus
from dlcourse.explain import explain
from dlcourse.figures.deepspeed_vs_mps import figures_of_e1, figures_of_e2, figures_of_e3
from dlcourse.figures.deepspeed_vs_mps import figures_of_e4, figures_of_e6
from dlcourse.figures.deepspeed_vs_mps import score_numbers, show_blocks
from dlcourse.figures.deepspeed_vs_mps import show_mistakes, show_mps, show_opaque, show_ring
from dlcourse.figures.deepspeed_vs_mps import show_scales, show_scores, show_sharded
from dlcourse.figures.deepspeed_vs_mps import show_side_by_side, show_this_mac, show_trained
from dlcourse.peers import mlx_ring
from dlcourse.peers.mlx_ring import run_ring
from dlcourse.plan.one_machine import figures_of_e7, largest_models, moved_by_offload

lesson(lang=lang, name="14_deepspeed_vs_mps")
ranks = Ranks(num_ranks, device=device)
# %% hidden=true
# %%ranks --fast
from dlcourse.corpus import Corpus
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.models.gpt import GPT
from dlcourse.peers import both_ways, deepspeed_engine, deepspeed_job
from dlcourse.training.accumulation import split
from dlcourse.training.by_hand import average_gradients, clip_norm

config = GPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=32)
size = {"config": config, "batch": 32 * world_size, "block": 16}
installed = deepspeed_engine.is_installed()
first = both_ways.first_steps(**size)
# %% [markdown] lang="en"
# A JSON as it is passed around, with slips of the kind that people make. The **explainer** asks the
# DeepSpeed that is installed about each key (`dlcourse explain ds.json` does the same for yours), here
# for one rank. Look for the signs `?` (unknown) and `∅` (ignored) before you scroll on.
# %% [markdown] lang="ko" en="e48b4921"
# 흔히 돌아다니는 JSON에, 사람들이 하는 실수를 섞었습니다. **설명기**가 설치된 DeepSpeed에 키를 하나하나 물어봅니다(여러분의 파일이라면
# `dlcourse explain ds.json`). 여기서는 랭크가 하나일 때를 묻습니다. 더 내려가기 전에 `?`(모르는 키)와 `∅`(무시됨) 표시를 찾아보세요.
# %%
pasted = """{
  "train_batch_size": 64,
  "train_micro_batch_size_per_gpu": 16,
  "fp16": {"auto_cast": true, "loss_scale": 0, "initial_scale_power": 16},
  "activation_checkpointing": {"number_checkpoints": 4, "every_n_layers": 4},
  "zero_optimisation": {"stage": 3}
}"""
explanation = explain(pasted, world_size=1)
explanation
# %% [markdown] lang="en"
# Not one error, and yet: `fp16` is off (nobody wrote `enabled`), `every_n_layers` never existed, and
# one letter in `zero_optimisation` costs the whole of ZeRO. A key that is *missing* does something,
# though: gradients are clipped at 1.0.
#
# So know the loop. By hand it is this; with an engine there is still a loop, and each micro-batch
# still calls backward and step. The six savings by hand are folded below.
# %% [markdown] lang="ko" en="b19cb505"
# 오류는 하나도 없습니다. 그런데 `fp16`은 꺼져 있고(`enabled`를 쓰지 않았습니다), `every_n_layers`라는 키는 있은 적이
# 없고, `zero_optimisation`의 글자 하나 때문에 ZeRO가 통째로 빠졌습니다. 반대로 *쓰지 않은* 키가 하는 일도 있습니다.
# 그래디언트를 1.0에서 자릅니다.
#
# 그러니 반복문을 알아야 합니다. 손으로는 이렇게 씁니다. 엔진이 있어도 반복문은 남고, 마이크로배치(micro-batch)마다
# backward와 step을 부릅니다. 손으로 하는 절약 여섯 가지는 아래에 접어 두었습니다.
# %%
# %%ranks
def step_by_hand(model, optimizer, parts):
    optimizer.zero_grad()
    for tokens, targets in parts:
        (model(tokens, targets) / len(parts)).backward()
    average_gradients(model.parameters())
    clip_norm(model.parameters(), 1.0)
    optimizer.step()


def step_configured(engine, parts):
    for tokens, targets in parts:
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
# %% hidden=true source="dlcourse.training.by_hand:in_parts,in_16_bits,with_checkpoints,in_shards,HostAdamW,in_shards_on_host"

# %% [markdown] lang="en"
# ## The batch: 64 = 16 × 4?
#
# The usual explanation: from `train_batch_size` 64 and `train_micro_batch_size_per_gpu` 16 DeepSpeed derives
# four micro-batches. **Predict**: how many does it make on **two** ranks?
# %% [markdown] lang="ko" en="8475baca"
# ## 배치: 64 = 16 × 4?
#
# 흔한 설명으로는 DeepSpeed가 `train_batch_size` 64와 `train_micro_batch_size_per_gpu` 16에서 마이크로배치 네 번을
# 알아서 정합니다. 랭크(rank)가 **둘**이면 몇 번이 될지 **예측해 보세요.**
# %%
predict("14.micro_batches")
# %% hidden=true
# %%ranks --fast
ours = GPT(config).to(device)
made = {"by_hand": (ours, torch.optim.AdamW(ours.parameters(), lr=1e-3))}
derived = 0
if installed:
    json = deepspeed_job.config_of(batch=32 * world_size, micro_batch=16)
    made["deepspeed"] = (deepspeed_engine.engine(GPT(config).to(device), json, lr=1e-3),)
    derived = made["deepspeed"][0].gradient_accumulation_steps()
steps = {"by_hand": step_by_hand, "deepspeed": step_configured}
losses = {way: both_ways.trained(steps[way], *each, **size) for way, each in made.items()}
# %%
if ranks["derived"][0]:
    compare("14.micro_batches", ranks["derived"][0])
show_trained(ranks["losses"][0])
# %% [markdown] lang="en"
# Same losses, three steps long, clipping included. And 64 = 16 × 4 × **one** rank: with two ranks two
# micro-batches are left, with four just one. "Derived" means divided, and the number of ranks is in
# it. Take micro-batches of 48, and nothing whole is left:
# %% [markdown] lang="ko" en="8871845b"
# 클리핑까지 넣고 세 스텝 동안 손실이 같습니다. 그리고 64 = 16 × 4 × 랭크 **하나**입니다. 랭크가 둘이면 두 번, 넷이면 한
# 번만 남습니다. "알아서 정한다"는 말은 나눈다는 뜻이고, 그 안에 랭크 수가 들어 있습니다. 마이크로배치를 48로 하면 남는 정수가
# 없습니다.
# %%
# %%ranks --fails "ccumulation"
both_ways.micro_batches(batch=64, micro_batch=48)
# %% [markdown] lang="en"
# Refused, before a step. (Moving a working JSON from one GPU to eight does this: 64 // 16 // 8 is 0.)
#
# ## Precision
#
# DeepSpeed's `fp16` needs `enabled`, and a device that computes in float16; most CPUs it refuses.
# `auto_cast` only casts the *inputs*: the parameters are float16 anyway. Its loss scale can be asked
# without a GPU. It starts at 2^16. In torch each infinity halves it. **Predict**
# DeepSpeed's scale after two steps with an infinity.
# %% [markdown] lang="ko" en="9ea9541b"
# 첫 스텝도 하기 전에 거부합니다. (잘 되던 JSON을 GPU 하나에서 여덟 개로 옮길 때 이렇게 됩니다. 64 // 16 // 8은 0입니다.)
#
# ## 정밀도
#
# DeepSpeed의 `fp16`에는 `enabled`가 필요하고, float16으로 계산하는 장치가 필요합니다. CPU는 대부분 거부합니다. `auto_cast`는
# *입력*만 바꿉니다. 파라미터는 어차피 float16입니다. 손실 스케일의 규칙은 GPU 없이도 물어볼 수 있습니다. 2^16에서
# 시작합니다. torch에서는 무한대가 나올 때마다 절반이 됩니다. 무한대가 나온 스텝이 두 번 이어진 뒤 DeepSpeed의 스케일을
# **예측해 보세요.**
# %%
predict("14.scale")
# %% hidden=true
# %%ranks --fast
overflows = [True, True, False, True]
scales = both_ways.scales(overflows)
refused = both_ways.refusal_of_fp16(config)
# %%
scales = ranks["scales"][0]
compare("14.scale", scales.get("DeepSpeed", scales["torch"])[1])
show_scales(scales, ranks["overflows"][0], refused=ranks["refused"][0])
# %% [markdown] lang="en"
# DeepSpeed forgives the first infinity: `hysteresis` is 2. So "dynamic" is not one rule, and runs differ
# by a skipped step or two. With `bf16` there is no scaler at all; both ways ran it, see the table
# further down.
#
# ## Checkpointing
#
# Claim E3 says that the block `activation_checkpointing` applies itself to the model; the explainer above
# said that it does not. Which of them will the memory bear out? **Predict** how many percent of the
# activations the block saves, with no other change.
# %% [markdown] lang="ko" en="10b76d48"
# DeepSpeed는 첫 번째 무한대를 봐줍니다. `hysteresis`가 2이기 때문입니다. 그러니 "동적"이라고 다 같은 규칙이 아니고, 건너뛰는
# 스텝 수가 한두 번 다릅니다. `bf16`이라면 스케일러가 아예 없습니다. 이것도 두 방식으로 돌렸고, 아래 표에 있습니다.
#
# ## 체크포인팅
#
# 주장 E3은 `activation_checkpointing` 블록이 모델에 저절로 적용된다고 하고, 위의 설명기는 아니라고 했습니다. 메모리를 재면
# 어느 쪽이 맞을까요? 다른 것은 바꾸지 않고 이 블록만 쓰면 활성화값(activation)이 몇 % 줄어들지 **예측해 보세요.**
# %%
predict("14.block")
# %% hidden=true
# %%ranks --fast
found = {name: both_ways.measure(name, **size) for name in ("none", "block", "checkpoint")}
# %%
found = ranks["found"][0]
if "deepspeed" in found["block"]:
    compare("14.block", figures_of_e3(found)["block"])
show_blocks(found["none"], found["block"], found["checkpoint"])
# %% [markdown] lang="en"
# Byte for byte the same. The block tells DeepSpeed's `checkpoint` function *how* to work, and somebody
# has to call it: `configure(...)` once, then `checkpoint(block, x)` around each block, which is the
# very line that the "Mac" side wraps by hand. `number_checkpoints` sizes a buffer; it places none.
#
# ## ZeRO-3 and offload
#
# Here configuration is strong: one line, `"stage": 3`, where this course needed several modules. What is
# left in a rank when activations are not counted?
# %% [markdown] lang="ko" en="7db582d7"
# 1바이트도 다르지 않습니다. 이 블록은 DeepSpeed의 `checkpoint` 함수가 *어떻게* 일할지만 정합니다. 함수는 누군가 불러야
# 합니다. `configure(...)`를 한 번 부르고, 블록마다 `checkpoint(block, x)`로 감쌉니다. "맥" 쪽에서 손으로 감싼다던 바로 그
# 한 줄입니다. `number_checkpoints`는 버퍼 크기일 뿐, 활성화 체크포인트를 놓지 않습니다.
#
# ## ZeRO-3과 오프로드
#
# 여기서는 설정이 강합니다. 이 과정에서 모듈 여러 개가 필요했던 일이 `"stage": 3` 한 줄입니다. 활성화값을 빼면 랭크에 무엇이
# 남을까요?
# %% hidden=true
# %%ranks --fast
found |= {name: both_ways.measure(name, **size) for name in ("zero3", "offload", "offload_param")}
seen = both_ways.what_zero3_leaves(**size) if installed else None
# %%
found = ranks["found"][0]
show_sharded(*(found[name] for name in ("none", "zero3", "offload", "offload_param")))
# %% [markdown] lang="en"
# The optimizer's state halves on two ranks, either way (at the peak shown there are no gradients).
# DeepSpeed's bars stay long: "other" is its share of the parameters, in tensors of its own, and a bucket
# of 250,000 numbers, as large as this model. (The lesson has set that low, with four thresholds: by default
# it is 500 million, and parameters under 100,000 stay whole.) On a CPU, device and host are one memory:
# offload adds a copy of this rank's parameters, `offload_param` nothing. A GPU would be rid of the last bar.
#
# "Fully transparent"? The training loop is. Code that *looks* at parameters is not. A loop over
# `model.parameters()` finds this after a backward, under DeepSpeed's ZeRO-3:
# %% [markdown] lang="ko" en="8463351d"
# 랭크가 둘이면 옵티마이저 상태는 어느 방식이든 절반입니다(그림은 메모리가 최대인 순간이라 그래디언트가 없습니다). 그래도
# DeepSpeed의 막대는 깁니다. "기타"는 따로 만든 텐서에 두는 자기 몫의 파라미터와, 이 모델 전체만 한 25만 개짜리 버킷입니다.
# (레슨이 임계값 네 가지와 함께 낮춘 값입니다. 기본값은 5억 개이고, 10만 개가 안 되는 파라미터는 나누지 않습니다.) CPU에서는
# 장치와 호스트가 메모리를 함께 쓰므로 오프로드는 이 랭크 파라미터의 복사본을 더하고, `offload_param`은 아무것도 바꾸지 않습니다.
# GPU라면 마지막 막대만큼 비고, 계산 중인 유닛만 남습니다.
#
# "완전히 투명"할까요? 학습 반복문은 그렇습니다. 파라미터를 *들여다보는* 코드는 그렇지 않습니다. 역전파한 뒤
# `model.parameters()`를 도는 반복문에는 이렇게 보입니다.
# %%
show_opaque(ranks["seen"][0])
# %% hidden=true source="dlcourse.training.sharding_offload.zero3_offload:HostFlatParameters,OffloadedZeRO3"

# %% [markdown] lang="en"
# No element, no gradient: a line that logs the gradient's norm prints nothing useful. DeepSpeed has
# helpers (`GatheredParameters`, `safe_get_full_grad`); you must know that you need them.
#
# Now everything at once, both ways. The last column has lines of JSON (without the thresholds that the
# small model needs), of code beside it, by hand, and in brackets what of this course stands behind them.
# %% [markdown] lang="ko" en="4460f329"
# 원소도 그래디언트도 없습니다. 그래디언트의 노름을 찍던 줄은 쓸모가 없어집니다. DeepSpeed에는 도우미
# (`GatheredParameters`, `safe_get_full_grad`)가 있지만, 필요하다는 것을 알아야 부릅니다.
#
# 이제 모두를 한꺼번에 두 방식으로 견줍니다. 마지막 열은 JSON의 줄 수(작은 모델에 필요한 임계값은 빼고), 그 옆에 쓰는 코드, 손으로 쓴 코드, 괄호 안은 그
# 뒤에 있는 이 과정의 코드입니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.peers.lines_of_code import lines_of_savings

found["accumulate"] = both_ways.measure("accumulate", **size)
found |= {name: both_ways.measure(name, **size, turns=1) for name in ("bf16", "all")}
lines = lines_of_savings()
mistakes = both_ways.mistakes(config)
# %%
found, lines = ranks["found"][0], ranks["lines"][0]
show_side_by_side(found, lines=lines)
# %% [markdown] lang="en"
# Equal losses in every row but bf16, a step of its grid (1/32) apart at most, and not by rounding alone: at stage 0 DeepSpeed 0.19 makes the optimizer's state by a step of zero gradients, so AdamW's first real step
# counts as its second, 0.74 as long. With that step by hand too, the trained parameters' losses, in float32, agree
# to 0.00001; without it they are 0.018 apart.
#
# Its ZeRO-3 sends more here because Gloo's reduce-scatter is an all-reduce inside; ours is an exchange of our own
# (lesson 06). With NCCL that difference goes.
#
# Few lines both ways: the difference is who maintains what stands behind them. Four claims:
# %% [markdown] lang="ko" en="2bf09a84"
# bf16을 뺀 모든 줄에서 손실이 같습니다. bf16은 눈금 한 칸(1/32)까지 다른데, 반올림 탓만은 아닙니다. 0단계에서
# DeepSpeed 0.19는 그래디언트가 0인 스텝으로 옵티마이저 상태를 만들어, AdamW의 첫 스텝이 두 번째로 세어지고 갱신량이 0.74배가
# 됩니다. 손으로도 그런 스텝을 먼저 하면 float32로 계산한 손실 차이는 0.00001, 하지 않으면 0.018입니다.
#
# DeepSpeed의 ZeRO-3이 더 많이 보내는 것은 Gloo의 리듀스스캐터가 속은 올리듀스이기 때문이고, 우리 것은 직접 만든
# 교환입니다(레슨 06). NCCL에서는 이 차이가 없습니다.
#
# 줄 수는 어느 쪽이나 적습니다. 차이는 그 뒤의 코드를 누가 관리하느냐입니다. 주장 네 가지입니다.
# %%
claim("E1", **figures_of_e1(found, ranks["derived"][0]))
claim("E2", **figures_of_e2(scales))
claim("E3", **figures_of_e3(found))
claim("E4", **figures_of_e4(found, ranks["seen"][0], moved_by_offload("Mac 128 GB")))
# %% [markdown] lang="en"
# ## What is true of a Mac
#
# A Mac has one memory for CPU and GPU. So "12 layers on `mps`, 12 on `cpu`" frees nothing: both
# halves lie in the same memory, and the half on the CPU is computed more slowly. Offload is worse: it
# adds copies.
#
# There is no Mac here, and none is imitated. Each row says since when it is true, and how that was
# found.
# %% [markdown] lang="ko" en="9892dd40"
# ## 맥에 대해 맞는 말
#
# 맥에서는 CPU와 GPU가 메모리 하나를 함께 씁니다. 그래서 "12층은 `mps`, 12층은 `cpu`"로 나누어도 비는 것이 없습니다. 두
# 쪽 모두 같은 메모리에 있고, CPU에 둔 절반은 계산만 더 느려집니다. 오프로드는 더 나쁩니다. 복사본까지 늘어나기 때문입니다.
#
# 여기에는 맥이 없고, 흉내 내지도 않습니다. 줄마다 언제부터 맞는 말인지, 어떻게 알았는지 적었습니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.peers.mps_statements import statements

mac = statements() if rank == 0 else None
# %%
show_mps(ranks["mac"][0])
# %% [markdown] lang="en"
# So "several devices: impossible" is true of *torch on MPS*. It is false of Macs. **MLX**, Apple's own
# array library, joins Macs in a ring over Ethernet or Thunderbolt. The same calls run here, in two
# processes of its CPU build: each puts in its rank plus 1, and both get the sum, 3:
# %% [markdown] lang="ko" en="177b5040"
# "여러 장치는 불가능"이라는 말은 *torch의 MPS*에 대해서는 맞습니다. 맥에 대해서는 틀립니다. 애플의 배열 라이브러리
# **MLX**는 이더넷이나 Thunderbolt로 맥 여러 대를 링(ring)으로 잇습니다. 같은 호출을 여기서 CPU 빌드의 프로세스 두 개로
# 돌립니다. 랭크마다 자기 번호에 1을 더한 값을 내놓고, 두 랭크가 합 3을 받습니다.
# %%
def rank_sum(group):
    import mlx.core as mx

    return mx.distributed.all_sum(mx.array([group.rank() + 1.0]), group=group).tolist()


mlx_ring.missing() or run_ring(rank_sum, num_ranks=2)
# %% hidden=true
rows, ring, alone = None, None, None
if not mlx_ring.missing():
    text = Corpus(limit=100_000).bytes
    rows = mlx_ring.rows_of(text, steps=4, sequences=8, block=16)
    ring = run_ring(mlx_ring.train, rows, num_ranks=2)
    alone = run_ring(mlx_ring.train, rows, num_ranks=1)[0]
# %%
show_ring(ring, alone)
# %% [markdown] lang="en"
# Data parallelism, gradients averaged over a ring, and the losses of one process: [lesson
# 03](03_data_parallel.ipynb) on Apple's library. (Here over loopback between CPUs; between Macs it was
# not run by us.)
#
# ## Scores, and a choice
#
# Such comparisons end with scores, and a score has no unit. So here each row is either counted, in
# this very run, or argued, and each says what would change it.
# %% [markdown] lang="ko" en="83ce43bf"
# 데이터 병렬화이고, 그래디언트를 링으로 평균 내고, 손실은 단일 프로세스와 같습니다. [레슨 03](03_data_parallel.ipynb)을 애플의
# 라이브러리로 한 셈입니다. (여기서는 CPU끼리 루프백으로 돌렸습니다. 맥끼리는 돌려 보지 못했습니다.)
#
# ## 점수와 선택
#
# 이런 비교는 점수로 끝나곤 하는데, 점수에는 단위가 없습니다. 그래서 여기서는 줄마다 이번 실행에서 세거나 논증하고,
# 무엇이 그 결과를 바꿀지 적습니다.
# %%
first, mistakes = ranks["first"][0], ranks["mistakes"][0]
numbers = {"lines": lines, "mistakes": mistakes, "first": first, "seen": ranks["seen"][0]}
show_scores(score_numbers(found, **numbers))
# %%
claim("E5")
claim("E6", **figures_of_e6(found, **numbers))
# %% [markdown] lang="en"
# Last, the rule: "DeepSpeed for 13B and more, MPS up to 7B". Parameters alone decide nothing; bytes do.
# The planner counts them for a step of 4 sequences of 2,048 tokens; a bar ends at the largest of nine
# published models that fits (0.8, 1.2, 6.7, 8, 13, 21, 70, 175 and 405 billion parameters). Switch the savings on, one after
# the other, by mouse or arrow keys: bf16, accumulation, checkpointing, ZeRO-3, offload.
# %% [markdown] lang="ko" en="91029fa5"
# 끝으로 선택 규칙입니다. "13B 이상은 DeepSpeed, 7B까지는 MPS." 파라미터 수만으로는 정해지지 않습니다. 바이트가 정합니다.
# 토큰 2,048개짜리 시퀀스 4개로 한 스텝을 할 때의 바이트를 플래너가 세고, 막대는 공개된 모델 아홉 개(0.8, 1.2, 6.7, 8, 13,
# 21, 70, 175, 405 B) 가운데 들어가는 가장 큰 것까지입니다. 마우스나 화살표 키로 절약 기법을 하나씩 켜
# 보세요. bf16, 누적, 체크포인팅, ZeRO-3, 오프로드 순서입니다.
# %%
explore(largest_models, savings=[0, 1, 2, 3, 4, 5])
# %% [markdown] lang="en"
# A Mac's line is drawn by its memory: with Adam's 16 bytes a parameter, 16 GB do not train 1B, 128 GB
# train 7B, 512 GB train 20B. (All of its memory is counted, so these are upper bounds; speed is not
# in the picture.) Look at the last position: offload lifts one H100 from the 1.2B model to the 13B one,
# and *lowers* the Mac of 128 GB.
# %% [markdown] lang="ko" en="b205a8a0"
# 맥의 한계는 메모리가 정합니다. Adam의 파라미터당 16바이트라면 16 GB로는 1B도 학습하지 못하고, 128 GB로는 7B, 512 GB로는
# 20B까지입니다. (메모리를 전부 쓸 수 있다고 셌으니 상한이고, 속도는 이 그림에 없습니다.) 마지막 칸을 보세요. 오프로드는
# H100 하나에 들어가는 모델을 1.2B에서 13B로 올리고, 128 GB 맥은 오히려 *낮춥니다*.
# %%
claim("E7", **figures_of_e7())
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("14.triangle")` helps step by step;
# `solution("14.triangle")` shows one answer.
#
# **1. `14.triangle`** (3 minutes). The number of micro-batches that DeepSpeed makes of these three
# numbers, or `None` where no whole number does and it would refuse.
# %% [markdown] lang="ko" en="5a9c797c"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("14.triangle")`은 한 단계씩 도와주고,
# `solution("14.triangle")`은 답 하나를 보여 줍니다.
#
# **1. `14.triangle`** (3분). 세 수에서 DeepSpeed가 정하는 마이크로배치 수를 돌려주세요. 맞는 정수가 없어서 DeepSpeed가
# 거부할 때는 `None`입니다.
# %% exercise="14.triangle"
def micro_batches(batch, micro_batch, num_ranks):
    raise NotImplementedError


# %%
check("14.triangle")
# %% [markdown] lang="en"
# **2. `14.json`** (8 minutes). DeepSpeed accepts this configuration for two ranks without a word and
# trains something else: one GPU's batch of 32 at a time, float32, no ZeRO, clipping at 1.0. Say what
# its author *meant* in keys that DeepSpeed reads, and leave none that it ignores. `explain(...)`
# may help.
# %% [markdown] lang="ko" en="0409d0c4"
# **2. `14.json`** (8분). DeepSpeed는 랭크가 둘일 때 이 설정을 아무 말 없이 받아들이고는 다른 학습을 합니다. 한 번에
# 32개씩, float32로, ZeRO 없이, 1.0에서 자릅니다. 쓴 사람이 *뜻한* 것을 DeepSpeed가 읽는 키로 고치고, 무시하는
# 키는 하나도 남기지 마세요. `explain(...)`을 써도 좋습니다.
# %% exercise="14.json"
def mended():
    return {
        "train_batch_size": 64,
        "micro_batch_size_per_gpu": 16,
        "gradient_clip": 0.5,
        "bf16_enabled": True,
        "zero_optimisation": {"stage": 2},
    }


# %%
check("14.json")
# %% [markdown] lang="en"
# **3. `14.wrap`** (8 minutes). Make the block act. `gpt.blocks` are its layers, called one after the
# other; `checkpoint(function, x)` is DeepSpeed's function, or torch's where DeepSpeed is missing.
# Change `gpt` so that each block keeps only its input. Losses and gradients must stay as they are.
# %% [markdown] lang="ko" en="59368777"
# **3. `14.wrap`** (8분). 블록이 일하게 하세요. `gpt.blocks`의 층은 차례로 불리고, `checkpoint(function, x)`는 DeepSpeed의
# 함수입니다(DeepSpeed가 없으면 torch의 함수). 블록마다 입력만 남도록 `gpt`를 바꾸세요. 손실과 그래디언트는 그대로여야 합니다.
# %% exercise="14.wrap"
# %%ranks
def wrap_blocks(gpt, checkpoint):
    raise NotImplementedError


# %%
check("14.wrap")
# %% [markdown] lang="en"
# **4. `14.by_hand`** (20 minutes). Write the step that *is* this JSON, on any number of ranks. After
# three steps it is compared with one process that computes as DeepSpeed does:
#
# `{"train_batch_size": 4 * num_ranks, "train_micro_batch_size_per_gpu": 2}`
#
# `model` is a plain GPT, the same in every rank, `tokens` and `targets` are this rank's 4 sequences.
# Return the mean loss of this rank. Mind the key that is not there. Targets: gradients are sent once;
# never more activations than those of one micro-batch. The loop below runs, and two of the checks fail.
# %% [markdown] lang="ko" en="21c204bf"
# **4. `14.by_hand`** (20분). 랭크가 몇 개든 이 JSON과 *똑같은* 스텝을 쓰세요. 세 스텝 뒤의 결과를, DeepSpeed처럼 계산하는
# 단일 프로세스와 비교합니다.
#
# `{"train_batch_size": 4 * num_ranks, "train_micro_batch_size_per_gpu": 2}`
#
# `model`은 모든 랭크에서 같은 보통 GPT이고, `tokens`와 `targets`는 이 랭크의 시퀀스 4개입니다. 이 랭크의 평균 손실을
# 돌려주세요. 쓰여 있지 않은 키를 잊지 마세요. 목표: 그래디언트는 한 번만 보내고, 활성화값은 언제나 마이크로배치 하나만큼만
# 있어야 합니다. 아래 코드는 돌아가지만 검사 두 가지에서 틀립니다.
# %% exercise="14.by_hand"
# %%ranks
def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    loss = model(tokens, targets)
    loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
    optimizer.step()
    return loss.item()


# %%
check("14.by_hand")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# There the JSON earns its keep: NCCL, fused Adam, offload to NVMe, a launcher for a thousand ranks,
# all maintained by others. The habits stay: `dlcourse explain ds.json` before the job, the first
# losses against one process, memory with a saving off and on.
# %% [markdown] lang="ko" en="42d17b30"
# ## GPU 클러스터에서는
#
# 거기서는 JSON이 제값을 합니다. NCCL, 융합된 Adam, NVMe 오프로드, 랭크 천 개를 띄우는 런처를 남이 관리해 줍니다.
# 습관은 그대로입니다. 작업 전에 `dlcourse explain ds.json`, 첫 손실은 단일 프로세스와, 메모리는 절약을 끄고 켜며 봅니다.
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Both ways are one arithmetic: equal losses in every row, but for DeepSpeed's first step in bf16.
# 2. `64 = 16 × 4` holds for one rank; the number of ranks is in it.
# 3. Unknown keys at the top level are ignored in silence, missing ones have defaults: clipping at 1.0.
# 4. The checkpointing block applies itself to nothing.
# 5. On unified memory, offload and "half on the CPU" free nothing; several Macs are MLX's.
#
# Sources: [DeepSpeed's configuration](https://www.deepspeed.ai/docs/config-json/), DeepSpeed pull
# requests [7767](https://github.com/deepspeedai/DeepSpeed/pull/7767) and
# [8293](https://github.com/deepspeedai/DeepSpeed/pull/8293), torch's
# [99272](https://github.com/pytorch/pytorch/pull/99272) and
# [139390](https://github.com/pytorch/pytorch/pull/139390),
# [MLX distributed](https://ml-explore.github.io/mlx/build/html/usage/distributed.html).
# %% [markdown] lang="ko" en="cf5cb304"
# ## 다섯 줄 요약
#
# 1. 두 방식은 같은 계산입니다. bf16에서 DeepSpeed의 첫 스텝만 다르고, 모든 줄에서 손실이 같습니다.
# 2. `64 = 16 × 4`는 랭크가 하나일 때입니다. 랭크 수가 그 안에 있습니다.
# 3. 최상위의 모르는 키는 말없이 무시되고, 쓰지 않은 키에는 기본값이 있습니다. 1.0에서 자릅니다.
# 4. 체크포인팅 블록은 아무것에도 저절로 적용되지 않습니다.
# 5. 통합 메모리에서는 오프로드도, "절반은 CPU에"도 메모리를 비우지 못합니다. 맥 여러 대는 MLX로 합니다.
#
# 출처: [DeepSpeed 설정 문서](https://www.deepspeed.ai/docs/config-json/), DeepSpeed 풀 리퀘스트
# [7767](https://github.com/deepspeedai/DeepSpeed/pull/7767),
# [8293](https://github.com/deepspeedai/DeepSpeed/pull/8293), torch의
# [99272](https://github.com/pytorch/pytorch/pull/99272),
# [139390](https://github.com/pytorch/pytorch/pull/139390),
# [MLX 분산 문서](https://ml-explore.github.io/mlx/build/html/usage/distributed.html).
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
# ### Four mistakes, told and not told
#
# The same mistake in a JSON and in a call. A misspelt key at the top level is dropped without a word.
# Inside most blocks, `bf16` here, DeepSpeed refuses it; the block `activation_checkpointing` drops it
# too, as it did `every_n_layers` above. A Python function refuses all of them.
# %% [markdown] lang="ko" en="70e21c26"
# ### 네 가지 실수: 오류가 날까
#
# 같은 실수를 JSON과 함수 호출에 해 봅니다. 최상위의 틀린 키는 말없이 버려집니다. 여기의 `bf16`처럼 대부분의 블록에서는
# DeepSpeed가 거부하지만, `activation_checkpointing` 블록은 위의 `every_n_layers`처럼 말없이 버립니다. 파이썬 함수는 모두
# 거부합니다.
# %%
show_mistakes(ranks["mistakes"][0])
# %% [markdown] lang="en"
# ### A rank of the ring that leaves
#
# A rank whose function has returned but whose process lives, as ours do, leaves the others waiting.
# Where the process ends, the connection closes, and the others notice. Gloo says "Connection closed by
# peer", MLX's ring this:
# %% [markdown] lang="ko" en="707fd19c"
# ### 링에서 먼저 나간 랭크
#
# 함수가 끝나도 프로세스가 살아 있으면(이 과정의 랭크가 그렇습니다) 나머지는 계속 기다립니다. 프로세스가 끝나 연결이 끊기면
# 나머지도 알아챕니다. Gloo는 "Connection closed by peer", MLX의 링은 다음과 같이 알립니다.
# %%
def leaves_early(group):
    import mlx.core as mx

    if group.rank() > 0:
        mx.eval(mx.distributed.all_sum(mx.ones(1 << 20), group=group))


with expect_failure(mlx_ring.missing() or "connection to a peer was lost"):
    run_ring(leaves_early, num_ranks=2, time_limit=30)
# %% [markdown] lang="en"
# ### On a Mac
#
# Where torch sees an Apple GPU, the next cell copies a tensor to it, compares addresses, and takes the
# step by hand (bf16, checkpointing, accumulation) on `cpu` and `mps`. Elsewhere it says that there is
# none. It was written without a Mac, and has not been run on one.
# %% [markdown] lang="ko" en="f8af8ebc"
# ### 맥에서
#
# torch가 애플 GPU를 찾으면 다음 셀은 텐서를 복사해 주소를 견주고, 손으로 한 스텝(bf16, 체크포인팅, 누적)을 `cpu`와
# `mps`에서 돌립니다. 다른 곳에서는 맥이 없다고 알려 줍니다. 맥 없이 쓴 코드이고, 맥에서 돌려 본 적이 없습니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.peers.mps_statements import this_mac

apple = this_mac() if rank == 0 else None
# %%
show_this_mac(ranks["apple"][0])
