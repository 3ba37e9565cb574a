# %% [markdown] lang="en"
# # 10 Mixed precision: where does the other half go?
#
# "Switch on mixed precision: 16-bit forward, 32-bit backward, and memory falls by 50%." You try it
# on a small GPT, as below, and memory falls by a sixth. With the other 16-bit type some gradients become
# zero, and others infinite.
#
# What did run in 16 bits? Which bytes are still there? And why did one number type break where the
# other did not?
#
# You will build autocast and a loss scaler, watch each operator's type and test both promises. You
# need [lesson 09](09_accumulation.ipynb). 30 to 40 minutes.
# %% [markdown] lang="ko" en="57ae9f77"
# # 10 혼합 정밀도: 나머지 절반은 어디로 갔을까?
#
# "혼합 정밀도(mixed precision)를 켜세요. 순전파는 16비트, 역전파는 32비트로 돌고 메모리가 50% 줄어듭니다."
# 아래처럼 작은 GPT에서 켜 보면 메모리는 6분의 1만 줄어듭니다. 다른 16비트 자료형을 쓰면 어떤 그래디언트는 0이, 어떤
# 그래디언트는 무한대가 됩니다.
#
# 16비트로 돈 것은 무엇일까요? 어떤 바이트가 남아 있을까요? 왜 한 자료형은 망가지고 다른 자료형은 괜찮을까요?
#
# autocast와 손실 스케일러를 직접 만들고, 연산자마다 자료형을 지켜보고, 두 가지 약속이 맞는지 확인합니다.
# [레슨 09](09_accumulation.ipynb)를 먼저 보세요. 30~40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 2
device = "auto"
steps = 4
# %% [markdown] lang="en"
# One step of mixed precision. Two boxes carry a question mark, and this lesson answers them:
#
# ```mermaid
# flowchart LR
#   W["weights<br>32 bits"] -- cast --> F["forward<br>16 bits"] --> L["loss<br>32 bits"]
#   L -- "× scale" --> B["backward<br>? bits"] --> G["gradients<br>? bits"]
#   G -- "÷ scale" --> S["optimizer<br>32 bits"] --> W
# ```
# %% [markdown] lang="ko" en="654cb2ed"
# 혼합 정밀도의 한 스텝입니다. 물음표가 붙은 두 칸의 답을 이 레슨에서 찾습니다.
#
# ```mermaid
# flowchart LR
#   W["가중치<br>32비트"] -- 변환 --> F["순전파<br>16비트"] --> L["손실<br>32비트"]
#   L -- "× 스케일" --> B["역전파<br>?비트"] --> G["그래디언트<br>?비트"]
#   G -- "÷ 스케일" --> S["옵티마이저<br>32비트"] --> W
# ```
# %%
from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, show, solution
from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.formulas.activations import BYTES_KEPT, activation_peak, weight_copy_bytes
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import PRECISIONS as WAYS
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.formulas.states import state_bytes

lesson(lang=lang, name="10_mixed_precision")
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}")
# %% [markdown] lang="en"
# Sixteen bits have to be shared: some for the range, the rest for the digits.
# %% [markdown] lang="ko" en="b3593dee"
# 16비트를 나눠 써야 합니다. 몇 비트는 범위에, 나머지는 자릿수에 씁니다.
# %%
# %%ranks --fast
names = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
infos = [(name, torch.finfo(getattr(torch, name))) for name in names]
formats = [(n, f.bits, f.max, f.smallest_normal * f.eps, f.eps) for n, f in infos]
# %%
keys = ("type", "bits", "largest", "smallest", "digits")
rows = [[n, b, f"{x:.3g}", f"{s:.2g}", f"1 + {e:.2g}"] for n, b, x, s, e in ranks["formats"][0]]
Table([t(f".{key}") for key in keys], rows)
# %% [markdown] lang="en"
# bfloat16 has float32's range and few digits. float16 has more digits, ends at 65,504, and knows
# nothing between 0 and 6e-8. Keep both weaknesses in mind: each breaks training in its own way. (The
# two float8 types come at the end.)
#
# So cast the batch and be done?
# %% [markdown] lang="ko" en="25bdb0ee"
# bfloat16은 범위가 float32만큼 넓은 대신 자릿수가 적습니다. float16은 자릿수가 더 많지만 65,504가 끝이고,
# 0과 6e-8 사이에는 아무 수도 없습니다. 두 약점을 기억해 두세요. 학습을 망가뜨리는 방식이 서로 다릅니다.
# (float8 두 가지는 끝에서 다룹니다.)
#
# 그렇다면 배치만 변환하면 될까요?
# %%
# %%ranks --fails "have the same dtype"
x, weight = torch.ones(2, 4, device=device), torch.ones(4, 4, device=device)
F.linear(x.to(torch.bfloat16), weight)
# %% [markdown] lang="en"
# torch adds different types, but takes no matrix product of them. Someone has to convert, at every
# operator. `model.to(torch.bfloat16)` converts all; we shall see what that costs. **Autocast** decides
# operator by operator. Ours is a mode that sees each torch function before it runs:
# %% [markdown] lang="ko" en="925291d4"
# torch는 자료형이 달라도 더해 주지만 행렬 곱은 해 주지 않습니다. 누군가 연산자마다 변환해야 합니다.
# `model.to(torch.bfloat16)`은 전부 바꿉니다. 그 대가는 뒤에서 봅니다. **autocast**는 연산자마다 따로
# 정합니다. 우리 것은 torch 함수가 실행되기 직전에 끼어드는 모드입니다.
# %% source="dlcourse.training.mixed_precision.autocast:Autocast"
# %% [markdown] lang="en"
# Three lists [2]: `LOW` (matrix products), `self.float32` (losses; on CUDA also softmax, norms, sums
# and powers), `self.widest` (`cat` and the like). The rest runs in what it gets. Note `copies`: the
# 16-bit copy of a weight is kept, and it takes room.
#
# Now run a GPT, once in ours, once in `torch.autocast`, and write down each operator's types:
# %% [markdown] lang="ko" en="fa1a7a4e"
# 목록은 세 가지입니다[2]. `LOW`(행렬 곱), `self.float32`(손실. CUDA에서는 softmax, 정규화, 합, 거듭제곱도),
# `self.widest`(`cat` 등). 나머지는 받은 자료형 그대로 실행됩니다. `copies`도 눈여겨보세요. 가중치의 16비트
# 복사본을 들고 있으니 메모리를 차지합니다.
#
# 이제 GPT를 한 번은 우리 것으로, 한 번은 `torch.autocast`로 돌리며 연산자마다 자료형을 적습니다.
# %%
# %%ranks --fast
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.corpus import Corpus
from dlcourse.training.mixed_precision.dtype_log import DtypeLog

kind, corpus = torch.device(device).type, Corpus()
small = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64)
few = [half.to(device) for half in corpus.batch(0, micro_batch=4, block=64)]


def types_of(autocast):
    model = GPT(small).to(device)
    with autocast, DtypeLog() as forward:
        loss = model(*few)
    with DtypeLog() as backward:
        loss.backward()
    return forward, backward, str(model.head.weight.grad.dtype)


# %%
# %%ranks --fast
forward, backward, gradient = types_of(Autocast(kind))
theirs, *_ = types_of(torch.autocast(kind, dtype=torch.bfloat16))
operators = forward.by_operator(), theirs.by_operator()
same_calls = forward.calls == theirs.calls
# %%
ours, theirs = ranks["operators"][0]
rows = [[name, ours[name], theirs.get(name, "")] for name in ours]
assert all(ranks["same_calls"]) or ranks["kind"][0] != "cpu"
Table([t(".operator"), "Autocast", "torch.autocast"], rows)
# %% [markdown] lang="en"
# Matrix products (`mm`, `addmm`), attention and what follows directly (`gelu`) run in bfloat16. Norms,
# the loss and the residual stream between the blocks do not: `add` of float32 and bfloat16 is float32.
# So "16-bit forward" is true of the products.
#
# **Predict.** People say backward runs in 32 bits. Of the floating-point operations in backward's
# matrix products, how many percent are float32?
# %% [markdown] lang="ko" en="a5af2a1f"
# 행렬 곱(`mm`, `addmm`), 어텐션, 바로 뒤의 `gelu`는 bfloat16으로 돕니다. 정규화, 손실, 블록 사이를 잇는 잔차
# 스트림(residual stream)은 아닙니다. float32와 bfloat16을 더하면(`add`) float32가 되기 때문입니다. "16비트 순전파"는 곱셈에만 맞는
# 말입니다.
#
# **예측해 보세요.** 역전파는 32비트로 돈다고들 합니다. 역전파의 행렬 곱 연산량 가운데 float32는 몇 퍼센트일까요?
# %%
predict("10.backward", ..., formula=0, unit="%")
# %%
# %%ranks --fast
in_32 = [100 * log.share_in("float32") for log in (forward, backward)]
# %%
backward_in_32 = max(share for _, share in ranks["in_32"])
compare("10.backward", backward_in_32)
print(t(".gradient", dtype=ranks["gradient"][0]))
assert backward_in_32 == 0
# %% [markdown] lang="en"
# None. Backward multiplies what forward has saved, and that is 16-bit. Only at the very end, where the
# graph meets the weight's cast, is each gradient cast back. So `.grad` is float32, its digits are not.
#
# Half of the sentence is gone. Now the 50%. **Predict** for autocast, our GPT and 4 x 128 tokens: bytes
# kept between two steps, and the highest bytes of activations (about 18 MiB in float32).
# %% [markdown] lang="ko" en="3053a1f6"
# 전혀 없습니다. 역전파는 순전파가 저장해 둔 것을 곱하는데, 그것이 16비트입니다. 그래프가 가중치의 변환과 만나는
# 맨 끝에서야 그래디언트를 float32로 되돌립니다. `.grad`는 float32지만 정밀도는 16비트입니다.
#
# 문장의 절반이 틀렸습니다. 이제 50% 차례입니다. autocast로 우리 GPT에 토큰 4 x 128개를 넣을 때, 스텝과
# 스텝 사이에 남는 바이트와 활성화값의 최댓값(float32에서는 약 18 MiB)을 **예측해 보세요.**
# %%
config = GPTConfig()
count = num_parameters(config)
states = {way: state_bytes(count, precision=way) for way in WAYS}
acts = {way: activation_peak(config, micro_batch=4, block=128, precision=way) for way in WAYS}
predict("10.states", ..., formula=sum(states["autocast"].values()), unit="bytes")
predict("10.activations", ..., formula=acts["autocast"], unit="bytes")
# %%
# %%ranks --fast
from dlcourse.measure import Recorder, live_bytes
from dlcourse.training.mixed_precision.training_step import mixed_step, prepare

batch = [half.to(device) for half in corpus.batch(0, micro_batch=4, block=128)]


# %%
# %%ranks --fast
def memory_of(way):
    idle = live_bytes()
    model, optimizer = prepare(GPT().to(device), way)
    for data in (few, batch):
        autocast = Autocast(kind) if way == "autocast" else None
        with Recorder(rank, world_size) as recorder:
            mixed_step(model, data, optimizer, autocast=autocast)
    found = recorder.record["memory"]
    found = [found["end"], found["at_peak"]]
    return [{name: n - idle[name] for name, n in sizes.items()} for sizes in found]


memory = {way: memory_of(way) for way in ("float32", "autocast", "master", "bfloat16")}
# %%
end, peak = ({w: both[i] for w, both in ranks["memory"][0].items()} for i in (0, 1))
kept = {way: sum(end[way][name] for name in states[way]) for way in WAYS}
compare("10.states", kept["autocast"])
compare("10.activations", peak["autocast"]["activations"])
for way in WAYS:
    assert 0 <= kept[way] - sum(states[way].values()) < 1000
    assert abs(peak[way]["activations"] / acts[way] - 1) < 0.05
# %%
top = {way: sum(peak[way].values()) for way in WAYS}
share = {way: top[way] / top["float32"] for way in WAYS}
rows = {t(f".way.{way}"): peak[way] for way in WAYS}
memory_by_category_figure(rows, title=t(".peak", **{way: f"{share[way]:.0%}" for way in WAYS}))
# %% [markdown] lang="en"
# Not one byte of the states has gone: parameters, gradients and Adam's moments are float32 as before.
# (At the peak there are no gradients yet, as in lesson 09. The two lower rows come below.) Activations
# fell to three quarters, and this is why:
# %% [markdown] lang="ko" en="4b35da3a"
# 모델 상태에서는 한 바이트도 줄지 않았습니다. 파라미터, 그래디언트, Adam의 모멘트가 모두 float32 그대로입니다.
# (레슨 09에서처럼 최대 메모리일 때는 아직 그래디언트가 없습니다. 아래 두 줄은 뒤에서 다룹니다.) 활성화값은 4분의
# 3으로 줄었습니다. 까닭은 이렇습니다.
# %%
kept_by = {"stream": ("attention_norm", "mlp_norm"), "qkv_in": ("q, k, v",)}
kept_by |= {"qkv": ("attention",), "attention": ("proj",), "mlp_in": ("up",), "hidden": ("gelu", "down")}
total = lambda names: [sum(column) for column in zip(*(BYTES_KEPT[name] for name in names))]
rows = [[t(f".kept.{name}"), *(f"{n}C" for n in total(by))] for name, by in kept_by.items()]
together = total(BYTES_KEPT)
rows.append([t(".kept.together"), *(f"{n}C" for n in together)])
heads = [t(".kept"), *(t(f".way.{way}") for way in ("float32", "autocast", "bfloat16"))]
Table(heads, rows, caption=t(".copies", share=weight_copy_bytes(config) / acts["autocast"]))
# %% [markdown] lang="en"
# The input of q, k and v is *larger* than before: each of the three converts it anew, and each copy is
# saved for backward (exercise 2 mends that). And the copies of the weights live until then.
#
# With all in bfloat16, everything halves. Why does nobody stop there? **Predict:** a weight is 1.0, and a
# thousand times we subtract 0.001. What is left, in bfloat16?
# %% [markdown] lang="ko" en="79395802"
# q, k, v의 입력은 오히려 *늘었습니다*. 셋이 저마다 새로 변환하고, 복사본 세 개가 모두 역전파까지 남습니다(연습
# 문제 2에서 고칩니다). 가중치의 복사본도 그때까지 남습니다.
#
# 전부 bfloat16으로 두면 모두 절반입니다. 왜 거기서 멈추지 않을까요? **예측해 보세요.** 가중치 1.0에서 0.001을
# 천 번 뺍니다. bfloat16이라면 얼마가 남을까요?
# %%
predict("10.lost", ..., formula=1.0)
# %%
# %%ranks --fast
lost = torch.ones((), dtype=torch.bfloat16, device=device)
master = torch.ones((), device=device)
for _ in range(1000):
    lost -= 0.001
    master -= 0.001
    weight = master.to(torch.bfloat16)
lost, weight = lost.item(), weight.item()
# %%
compare("10.lost", ranks["lost"])
print(t(".master", left=f"{ranks['weight'][0]:.1g}"))
assert ranks["lost"][0] == 1.0 and abs(ranks["weight"][0]) < 1e-3
# %% [markdown] lang="en"
# Each step is rounded away, for ever: just below 1.0 the next bfloat16 number is 0.996. A **master
# weight** in float32 takes the steps, and the 16-bit weight is its rounded copy [1]. The optimizer of
# lesson 06:
# %% [markdown] lang="ko" en="c052512a"
# 갱신할 때마다 반올림되어 영영 제자리입니다. 1.0 바로 아래의 bfloat16 수가 0.996이기 때문입니다. 그래서 float32
# **마스터 가중치**(master weights)를 갱신하고, 16비트 가중치에는 그것을 반올림해 옮겨 적습니다[1]. 레슨 06의
# 옵티마이저입니다.
# %%
show("dlcourse.training.mixed_precision.master_adamw:MasterAdamW")
# %% [markdown] lang="en"
# And so the saving is gone again: parameter, gradient and optimizer take 2 + 2 + 12 = 16 bytes, as
# 4 + 4 + 8 are. What mixed precision saves
# are *activations*. How much that is depends on the batch. GPT-2 Large, by the same formulas:
# %% [markdown] lang="ko" en="4363a929"
# 그래서 절약도 도로 사라집니다. 파라미터, 그래디언트, 옵티마이저를 더하면 2 + 2 + 12도 4 + 4 + 8도
# 16바이트입니다. 혼합 정밀도가 아끼는 것은
# *활성화값*이고, 얼마나 아끼는지는 배치에 달려 있습니다. 같은 공식으로 GPT-2 Large를 봅시다.
# %%
large = MODELS["gpt2-large"]
batches = [1, 2, 4, 8, 16, 32, 64]


def peak_of(way, sequences):
    kept = state_bytes(num_parameters(large), precision=way)
    active = activation_peak(large, micro_batch=sequences, block=1024, precision=way)
    return sum(kept.values()) + max(0, active - kept["gradients"])


ratios = {way: [peak_of(way, b) / peak_of("float32", b) for b in batches] for way in WAYS[1:]}
# %%
curves = {t(f".way.{way}"): [100 * r for r in ratios[way]] for way in ratios}
best = {way: f"{min(ratios[way]):.0%}" for way in ("autocast", "master")}
axes = {"x_title": t(".axis.batch"), "y_title": t(".axis.share")}
sweep_figure(batches, curves, **axes, log_x=True, y_unit="%", title=t(".large", **best))
# %% [markdown] lang="en"
# Only pure bfloat16, the one that forgets small steps, is at 50% from the start. Master weights come
# near it as activations outweigh states. Autocast does not: its residual stream and the loss stay
# float32. With one sequence it even needs *more* than float32: the copies of all weights.
#
# Now float16, and its other weakness. Gradients are small: the loss is a mean over all tokens. Multiply
# the loss by a scale, and count which gradients become 0, and which infinite:
# %% [markdown] lang="ko" en="c56b37cb"
# 처음부터 50%인 것은 작은 갱신량을 잊어버리는 순수 bfloat16뿐입니다. 마스터 가중치는 배치가 커져 활성화값의 비중이
# 늘수록 50%에 다가갑니다. autocast는 잔차 스트림과 손실이 float32라서 그러지 못합니다. 시퀀스가 하나면 float32보다
# *더* 쓰기도 합니다. 모든 가중치의 복사본 때문입니다.
#
# 이제 float16의 다른 약점을 봅시다. 손실은 모든 토큰의 평균이라 그래디언트가 작습니다. 손실에 스케일을 곱하고
# 그래디언트 가운데 몇이 0이 되고 몇이 무한대가 되는지 셉니다.
# %%
# %%ranks --fast
from contextlib import nullcontext


def gradients(autocast=None, scale=1.0):
    model = GPT(small).to(device)
    with autocast or nullcontext():
        loss = model(*few)
    (loss * scale).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %%
# %%ranks --fast
exponents, real = [-16, -8, 0, 12, 24], gradients() != 0
counts = []
for exponent in exponents:
    found = gradients(Autocast(kind, torch.float16), 2.0**exponent)
    counts.append([(part & real).sum().item() for part in (found == 0, ~found.isfinite())])
total = real.sum().item()
# %%
exponents, total = ranks["exponents"][0], ranks["total"][0]
zero, infinite = ([100 * n / total for n in column] for column in zip(*ranks["counts"][0]))
curves = {t(".zero"): zero, t(".infinite"): infinite}
axes = {"x_title": t(".axis.scale"), "y_title": t(".axis.gradients")}
title = t(".window", zero=f"{zero[0]:.0f}", infinite=f"{infinite[-1]:.0f}")
assert zero[0] > 5 and infinite[-1] > 5 and max(zero[3], infinite[3]) < 1
sweep_figure(exponents, curves, **axes, y_unit="%", title=title)
# %% [markdown] lang="en"
# A window. Its left edge moves with the batch: what backward hands from layer to layer is divided by the
# number of tokens, so 256 times as many shift it by 8. (Scales below 1 show here what a larger batch
# meets.) Its right edge moves with the gradients. Nobody knows either beforehand, so the **loss
# scaler** tries:
# %% [markdown] lang="ko" en="9af045c5"
# 쓸 수 있는 구간이 있습니다. 왼쪽 끝은 배치에 따라 움직입니다. 역전파가 층에서 층으로 넘기는 값은 토큰 수로
# 나눈 것이라, 토큰이 256배면 8칸 밀립니다(1보다 작은 스케일은 배치가 더 클 때를 보여 줍니다). 오른쪽 끝은
# 그래디언트에 따라 움직입니다. 둘 다 미리 알 수 없으니 **손실 스케일러**(loss scaler)는 직접 시도해 보며
# 찾습니다.
# %% source="dlcourse.training.mixed_precision.loss_scaler:LossScaler"
# %% [markdown] lang="en"
# Provoke an overflow: start at $2^{24}$, and let it grow after 4 quiet steps in a row (without an
# overflow). Torch's `GradScaler`
# gets the same model and the same data. How many steps will be skipped?
# %% [markdown] lang="ko" en="1035cf9d"
# 오버플로를 일부러 일으킵니다. $2^{24}$에서 시작하고, 오버플로 없는 스텝이 4번 이어지면 키웁니다. torch의
# `GradScaler`에도 같은 모델과 같은 데이터를 줍니다. 몇 스텝을 건너뛸까요?
# %%
# %%ranks --fast
tiny = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
start = {"init_scale": 2.0**24, "growth_interval": 4}


def scales_of(scaler):
    model, found = GPT(tiny).to(device), []
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(24):
        data = [half.to(device) for half in corpus.batch(step, micro_batch=2, block=32)]
        half = Autocast(kind, torch.float16)
        loss = mixed_step(model, data, optimizer, autocast=half, scaler=scaler)
        found.append((scaler.get_scale(), loss.item()))
    return found


both = scales_of(LossScaler(**start)), scales_of(torch.amp.GradScaler(kind, **start))
# %%
import math

ours, theirs = ([math.log2(scale) for scale, _ in found] for found in ranks["both"][0])
before = [24, *ours]
skipped = sum(after < now for now, after in zip(before, ours))
axes = {"x_title": t("figure.axis.step"), "y_title": t(".axis.power")}
assert ours == theirs and 2 <= skipped < 16
curves = {"LossScaler": ours, "GradScaler": theirs}
sweep_figure(range(1, 25), curves, **axes, title=t(".recovered", skipped=skipped, of=24))
# %% [markdown] lang="en"
# The same scales as torch's. Each skipped step leaves the weights as they were, and a try upwards may
# cost another. torch waits 2,000 quiet steps, so that the price is small.
#
# Without a scaler our loop refuses; and a type that no autocast has is refused, too:
# %% [markdown] lang="ko" en="b52de7d3"
# 스케일이 torch와 매번 같습니다. 건너뛴 스텝에서는 가중치가 그대로이고, 스케일을 키웠다가 또 한 스텝을 잃기도
# 합니다. torch는 오버플로 없는 스텝을 2,000번 기다린 뒤에 키우므로 손해가 적습니다.
#
# 스케일러가 없으면 우리 루프는 거부합니다. autocast에 없는 자료형도 거부합니다.
# %%
# %%ranks --fails "without a scaler"
from dlcourse.training.mixed_precision.training_step import train

train(GPT(tiny).to(device), corpus, precision="autocast", dtype=torch.float16, steps=1, block=32)
# %%
# %%ranks --fails "is not a type for mixed precision"
Autocast(kind, torch.float8_e4m3fn)
# %% [markdown] lang="en"
# `torch.autocast` only warns there, and goes on in float32. So does `GradScaler("cuda")` where there is
# no GPU: it switches itself off.
#
# Now with ranks. Under data parallelism, all-reduce spreads an infinity, so that every rank skips. With
# shards (lesson 06) each rank sees its own part. Rank 0 meets an infinity:
# %% [markdown] lang="ko" en="942289fb"
# `torch.autocast`는 경고만 하고 float32로 계속합니다. GPU가 없는 곳의 `GradScaler("cuda")`도 경고만 하고
# 스스로 꺼집니다.
#
# 이제 랭크가 여럿입니다. 데이터 병렬화에서는 올리듀스가 무한대를 퍼뜨려 모든 랭크가 건너뜁니다. 샤드로
# 나누면(레슨 06) 랭크마다 자기 몫만 봅니다. 랭크 0이 무한대를 만납니다.
# %%
# %%ranks --fast
def step_of_a_shard(group):
    shard = nn.Parameter(torch.ones(4, device=device))
    shard.grad = torch.full_like(shard, float("inf") if rank == 0 else 0.5)
    scaler = LossScaler(1024.0, process_group=group)
    stepped = scaler.step(torch.optim.SGD([shard], lr=0.1))
    scaler.update()
    return stepped, scaler.get_scale()


alone, together = step_of_a_shard(None), step_of_a_shard(dist.group.WORLD)
# %%
yes = {True: t(".stepped"), False: t(".skipped")}
rows = [[r, *(f"{yes[s]}, {x:.0f}" for s, x in (a, b))]
        for r, (a, b) in enumerate(zip(ranks["alone"], ranks["together"]))]  # fmt: skip
assert len(set(ranks["alone"])) == min(2, num_ranks) and set(ranks["together"]) == {(False, 512.0)}
Table([t(".rank"), t(".no_group"), t(".group")], rows)
# %% [markdown] lang="en"
# Left: rank 0 keeps its old weights, the others go on, with another scale. No error, a broken model.
# `process_group` makes it one all-reduce of one number (torch: `ShardedGradScaler`).
#
# And what travels between ranks? **Predict** the bytes a parameter that DDP under autocast gives to
# all-reduce.
# %% [markdown] lang="ko" en="a2e4f011"
# 왼쪽에서는 랭크 0만 옛 가중치를 지키고 나머지는 다른 스케일로 나아갑니다. 오류도 없이 모델이 깨집니다.
# `process_group`을 주면 숫자 하나를 올리듀스 한 번으로 맞춥니다(torch: `ShardedGradScaler`).
#
# 랭크 사이에는 무엇이 오갈까요? autocast를 켠 DDP가 올리듀스에 넘기는 양을 파라미터당 바이트로
# **예측해 보세요.**
# %%
predict("10.wire", ..., formula=4.0, unit=t(".per_parameter"))
# %%
# %%ranks --fast
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel


def sent_by(way, hook=None):
    model, optimizer = prepare(GPT(small).to(device), way)
    ddp = DistributedDataParallel(model)
    if hook is not None:
        ddp.register_comm_hook(None, hook)
    autocast = torch.autocast(kind, torch.bfloat16) if way == "autocast" else None
    with Recorder(rank, world_size) as recorder:
        mixed_step(ddp, few, optimizer, autocast=autocast)
    calls = [c for c in recorder.record["comm"] if c["op"] == "all_reduce"]
    return calls[0]["dtype"], sum(c["bytes"] for c in calls) / model.num_parameters()


sent = [sent_by("float32"), sent_by("autocast"), sent_by("master")]
sent.append(sent_by("autocast", fp16_compress_hook))
# %%
names = [t(f".way.{way}") for way in WAYS[:3]] + ["fp16_compress_hook"]
compare("10.wire", ranks["sent"][0][1][1])
Table(
    [t(".way"), t(".type"), t(".per_parameter")],
    [[name, dtype, f"{n:.0f}"] for name, (dtype, n) in zip(names, ranks["sent"][0])],
)
# %% [markdown] lang="en"
# float32, since `.grad` is. Autocast makes messages no smaller; 16-bit parameters do, or a hook that
# casts each bucket.
#
# Is it still the same training? Each way beside one process in float32, on the same batches:
# %% [markdown] lang="ko" en="6eb4de89"
# `.grad`가 float32이므로 그대로 float32입니다. autocast로는 통신이 줄지 않습니다. 파라미터를 16비트로 두거나,
# 버킷을 변환하는 훅을 써야 합니다.
#
# 그래도 같은 학습일까요? 방법마다, float32 단일 프로세스와 같은 배치로 견줘 봅니다.
# %%
# %%ranks --fast
from dlcourse.training import loop

job = {"steps": steps, "batch_size": 2, "block": 64}
want = loop.train(GPT(small).to(device), corpus, **job)
losses = {w: train(GPT(small).to(device), corpus, precision=w, **job) for w in ("autocast", "master")}
half = {"precision": "autocast", "dtype": torch.float16, "scaler": LossScaler()}
losses["float16"] = train(GPT(small).to(device), corpus, **half, **job)
apart = {w: max(abs(a / b - 1) for a, b in zip(got, want)) for w, got in losses.items()}
# %%
allowed = {"autocast": 0.01, "master": 0.01, "float16": 0.002}
for way, apart in ranks["apart"][0].items():
    name = t(f".way.{way}")
    print(t(".apart", way=name, apart=f"{apart:.1e}", allowed=f"{allowed[way]:.0e}"))
    assert apart <= allowed[way]
print(t(".apart.why"))
# %% [markdown] lang="en"
# And speed? That is a matter of hardware alone: are there units that multiply 16-bit numbers? This
# device, one product of square matrices, 256 wide on a CPU. A GPU gets 4,096, or the time would be that of
# starting the kernel:
# %% [markdown] lang="ko" en="5efe0a1b"
# 속도는 어떨까요? 오로지 하드웨어에 달렸습니다. 16비트 수를 곱하는 유닛이 있느냐는 것입니다. 이 장치에서
# 정사각 행렬 곱 하나를 재 봅니다. 폭은 CPU에서 256, GPU에서는 4,096입니다. GPU에서 작은 곱을 재면 커널을 시작하는
# 시간만 재게 됩니다.
# %%
# %%ranks --fast
import time

from dlcourse.training.mixed_precision.support import has_units


def seconds_of(dtype, times=3):
    width = 4096 if kind == "cuda" else 256
    x, found = torch.ones(width, width, device=device, dtype=dtype), []
    for _ in range(1 + times):
        start = time.perf_counter()
        (x @ x).sum().item()
        found.append(time.perf_counter() - start)
    return min(found[1:])


types = (torch.float32, torch.bfloat16, torch.float16)
speeds = [(str(d)[6:], d == types[0] or has_units(d, device), seconds_of(d)) for d in types]
# %%
speeds = ranks["speeds"][0]
yes = {True: t(".units.yes"), False: t(".units.no")}
rows = [[name, yes[units], f"{seconds / speeds[0][2]:.3g}×"] for name, units, seconds in speeds]
Table([t(".type"), t(".units"), t(".time")], rows)
# %% [markdown] lang="en"
# Where it says "emulated", 16 bits cost time, and this lesson claims no speed for them. Bytes do not
# depend on that.
#
# Now the verdict:
# %% [markdown] lang="ko" en="275826cc"
# "에뮬레이션"이라고 나온 곳에서는 16비트가 오히려 느리므로, 이 레슨은 빠르다고 말하지 않습니다. 바이트는
# 그것과 상관없습니다.
#
# 이제 판정입니다.
# %%
claim(
    "D2",
    backward=100 - backward_in_32,
    states=kept["autocast"] / count,
    autocast=100 * share["autocast"],
    master=100 * share["master"],
    bfloat16=100 * share["bfloat16"],
    large_autocast=100 * ratios["autocast"][-1],
    large_master=100 * ratios["master"][-1],
)
# %% [markdown] lang="en"
# **Outlook: 8 bits.** The same trade once more. Gradients of size 0.001, cast to 8 bits and back; then
# with a scale for each tensor that puts its largest number at the type's end:
# %% [markdown] lang="ko" en="90ebc65c"
# **내다보기: 8비트.** 같은 거래를 한 번 더 합니다. 크기가 0.001쯤인 그래디언트를 8비트로 바꿨다가 되돌립니다.
# 다음에는 텐서마다 스케일을 두어 가장 큰 수를 자료형의 끝에 맞춥니다.
# %%
# %%ranks --fast
def error_of(dtype, scaled):
    x = 1e-3 * torch.randn(4096, generator=torch.Generator().manual_seed(0))
    scale = torch.finfo(dtype).max / x.abs().max() if scaled else 1.0
    back = (x * scale).to(dtype).float() / scale
    return ((back - x).norm() / x.norm()).item()


eight = torch.float8_e4m3fn, torch.float8_e5m2
errors = [[str(d)[6:], error_of(d, False), error_of(d, True)] for d in eight]
# %%
rows = [[name, f"{plain:.1%}", f"{scaled:.1%}"] for name, plain, scaled in ranks["errors"][0]]
Table([t(".type"), t(".unscaled"), t(".scaled")], rows)
# %% [markdown] lang="en"
# e4m3 needs the scale; e5m2 has the range, but fewer digits. One scale for the loss is no longer enough:
# each tensor (or each block of it) has its own. e4m3 for weights and activations, e5m2 for gradients
# [3]. Master weights stay.
#
# ## Exercises
#
# **1. `10.bytes`** (3 minutes). Return the number of bytes kept between two steps. `way` is one of
# "float32", "autocast", "master" (bfloat16 with master weights), "bfloat16" (pure).
# %% [markdown] lang="ko" en="44ed8d0d"
# e4m3에는 스케일이 꼭 필요하고, e5m2는 범위가 넓은 대신 자릿수가 적습니다. 이제 손실에 스케일 하나로는 모자라
# 텐서마다, 또는 그 블록마다 스케일을 둡니다. 가중치와 활성화값에는 e4m3, 그래디언트에는 e5m2를 씁니다[3].
# 마스터 가중치는 그대로 남습니다.
#
# ## 연습 문제
#
# **1. `10.bytes`** (3분). 스텝과 스텝 사이에 남는 바이트 수를 돌려주세요. `way`는 "float32", "autocast",
# "master"(bfloat16 + 마스터 가중치), "bfloat16"(순수) 가운데 하나입니다.
# %% exercise="10.bytes"
def bytes_between_steps(num_parameters, way):
    raise NotImplementedError


# %%
check("10.bytes")
# %% [markdown] lang="en"
# **2. `10.copies`** (10 minutes). Under `torch.autocast`, q, k and v each keep their own copy of `x`.
# Write `project(x, q, k, v)`: the results of three `F.linear`, the same gradients, one copy. It must
# work without autocast, too.
# %% [markdown] lang="ko" en="92524c86"
# **2. `10.copies`** (10분). `torch.autocast` 안에서는 q, k, v가 저마다 `x`의 복사본을 둡니다. `F.linear` 세 번과
# 결과도 그래디언트도 같으면서 복사본은 하나뿐인 `project(x, q, k, v)`를 쓰세요. autocast 밖에서도 돌아야
# 합니다.
# %% exercise="10.copies"
# %%ranks
def project(x, q, k, v):
    raise NotImplementedError


# %%
check("10.copies")
# %% [markdown] lang="en"
# **3. `10.clip`** (10 minutes). A whole training step in float16, from a given `loss` on, with gradients
# clipped to `max_norm`. Order matters. Return the norm before clipping, that of the *true* gradients. `scaler`
# is torch's or ours.
# %% [markdown] lang="ko" en="e7660f9a"
# **3. `10.clip`** (10분). `loss`를 받아 float16 학습 스텝 하나를 끝까지 합니다. 그래디언트는 `max_norm`으로
# 자릅니다. 순서가 중요합니다. 자르기 전의 *진짜* 그래디언트 노름을 돌려주세요. `scaler`는 torch의 것이거나 우리
# 것입니다.
# %% exercise="10.clip"
# %%ranks
def clipped_step(loss, parameters, optimizer, scaler, max_norm):
    raise NotImplementedError


# %%
check("10.clip")
# %% [markdown] lang="en"
# **4. `10.scaler`** (20 minutes). A scaler that survives anything: `unscale(grads)` divides in place and
# returns whether this step may be taken, equally in *all* ranks, though only one may see an infinity or
# a NaN; then it sets `self.scale` anew. Halve after a bad step, double after `interval` good ones in a
# row, stay within 1 and $2^{24}$. One all-reduce of one number a step.
# %% [markdown] lang="ko" en="9b939904"
# **4. `10.scaler`** (20분). 무엇이 와도 살아남는 스케일러입니다. `unscale(grads)`는 제자리에서 나누고, 이
# 스텝에서 업데이트해도 되는지 *모든* 랭크에서 똑같이 돌려줍니다. 무한대나 NaN은 한 랭크만 볼 수도 있습니다.
# 그다음 `self.scale`을 새로 정합니다. 나쁜 스텝 뒤에는 절반, 좋은 스텝이 `interval`번 이어지면 두 배, 범위는
# 1부터 $2^{24}$까지입니다. 스텝마다 숫자 하나를 올리듀스 한 번으로 보냅니다.
# %% exercise="10.scaler"
# %%ranks
class Scaler:
    def __init__(self, scale=2.0**16, interval=3):
        self.scale, self.interval = scale, interval

    def unscale(self, grads):
        raise NotImplementedError


# %%
check("10.scaler")
# %% [markdown] lang="en"
# ## On a GPU
#
# Tensor cores multiply 16-bit matrices many times faster: on an H100, dense, 989 TFLOP/s in bfloat16,
# 67 in float32 outside of them [4]. Norms and sums stay limited by memory, but move fewer bytes. CUDA's
# list of float32 operators is longer, softmax and norms included. Use bfloat16 from Ampere on, without
# a scaler; float16 where there is nothing else.
#
# No GPU run of this lesson is recorded yet. Bytes hardly depend on it. GPT-2 Large with 8 sequences of
# 1,024 tokens, GB at its peak, by the formulas:
# %% [markdown] lang="ko" en="b39a7a38"
# ## GPU에서는
#
# 텐서 코어는 16비트 행렬을 몇 배나 빨리 곱합니다. H100은 밀집 행렬에서 bfloat16이 989 TFLOP/s, 텐서 코어를
# 쓰지 않는 float32가 67 TFLOP/s입니다[4]. 정규화와 합은 여전히 메모리 대역폭에 묶이지만 옮길 바이트가 줄어듭니다.
# CUDA의 float32 목록은 softmax와 정규화까지 더 깁니다. Ampere부터는 스케일러 없이 bfloat16을, 그것이 없으면
# float16을 쓰세요.
#
# 이 레슨의 GPU 실행 기록은 아직 없습니다. 바이트는 GPU에서도 거의 같습니다. GPT-2 Large에 길이 1,024인 시퀀스
# 8개를 넣을 때의 최대 메모리(GB)를 공식으로 구하면 이렇습니다.
# %% tags=["nbval-check-output"]
{way: round(peak_of(way, 8) / 1e9, 1) for way in WAYS}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Autocast: products in 16 bits, losses (on GPUs also norms and sums) in 32, forward *and* backward.
# 2. `.grad`, optimizer and messages stay float32. Master weights: also 16 bytes of states a parameter.
# 3. Activations shrink, under autocast by less than half; pure bfloat16 halves all, and loses small steps.
# 4. float16 needs a loss scaler; bfloat16 needs master weights, or float32 ones.
# 5. Speed needs hardware with 16-bit units.
#
# Sources: [1] [Micikevicius et al., ICLR 2018](https://arxiv.org/abs/1710.03740).
# [2] [PyTorch, Autocast Op Reference](https://docs.pytorch.org/docs/stable/amp.html).
# [3] [Micikevicius et al., FP8 Formats, 2022](https://arxiv.org/abs/2209.05433).
# [4] [NVIDIA H100 data sheet](https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306).
# %% [markdown] lang="ko" en="dd87855e"
# ## 다섯 줄 요약
#
# 1. autocast는 순전파와 역전파 *모두* 곱셈을 16비트로, 손실(GPU에서는 정규화와 합도)을 32비트로 합니다.
# 2. `.grad`, 옵티마이저, 통신은 float32 그대로입니다. 마스터 가중치를 써도 상태는 파라미터당 16바이트입니다.
# 3. 활성화값은 줄지만 autocast로는 절반까지 줄지 않습니다. 모두 절반이 되는 것은 순수 bfloat16뿐이고, 작은 갱신량을 잃습니다.
# 4. float16에는 손실 스케일러가, bfloat16에는 마스터 가중치나 float32 가중치가 필요합니다.
# 5. 빨라지려면 16비트 유닛이 있는 하드웨어가 있어야 합니다.
#
# 출처: [1] [Micikevicius 외, ICLR 2018](https://arxiv.org/abs/1710.03740).
# [2] [PyTorch, Autocast Op Reference](https://docs.pytorch.org/docs/stable/amp.html).
# [3] [Micikevicius 외, FP8 Formats, 2022](https://arxiv.org/abs/2209.05433).
# [4] [NVIDIA H100 데이터시트](https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306).
