# %% [markdown] lang="en" form="core"
# # 10 Mixed precision: where does the other half go?
#
# "Switch on mixed precision: 16-bit forward, 32-bit backward, and memory falls by 50%." You try it on a small
# GPT, as below, and memory falls by a sixth. There are two 16-bit types, and with one of them some gradients
# become zero; multiply the loss to save them, and others become infinite.
#
# What did run in 16 bits? Which bytes are still there? And why did one number type break where the
# other did not?
#
# You will build autocast and a loss scaler, watch each operator's type and test both promises. You need
# [lesson 09](09_accumulation.ipynb).
#
# Time: reading 19 min + exercises 43 min.
# %% [markdown] lang="ko" en="37d13a94"
# # 10 혼합 정밀도: 나머지 절반은 어디로 갔을까?
#
# "혼합 정밀도(mixed precision)를 켜세요. 순전파는 16비트, 역전파는 32비트로 돌고 메모리가 50% 줄어듭니다."
# 아래처럼 작은 GPT에서 켜 보면 메모리는 6분의 1만 줄어듭니다. 16비트 자료형은 두 가지인데, 그중 하나를 쓰면
# 그래디언트 일부가 0이 되고, 이를 살리려고 손실을 키우면 이번에는 다른 그래디언트가 무한대가 됩니다.
#
# 16비트로 돈 것은 무엇일까요? 어떤 바이트가 남아 있을까요? 왜 한 자료형에서는 학습이 망가지고 다른 자료형에서는
# 괜찮을까요?
#
# autocast와 손실 스케일러를 직접 만들고, 연산자마다 자료형을 지켜보고, 두 가지 약속이 맞는지 확인합니다.
# [레슨 09](09_accumulation.ipynb)를 먼저 보세요.
#
# 시간: 읽기 19분 + 연습 43분.
# %% tags=["parameters"] hidden=true
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
#
# Sixteen bits have to be shared: one is the sign, some give the range (the exponent), the rest the digits
# (the mantissa). Move the sliders, and find float16 and bfloat16.
# %% [markdown] lang="ko" en="96972265"
# 혼합 정밀도의 한 스텝입니다. 물음표가 붙은 두 칸의 답을 이 레슨에서 찾습니다.
#
# ```mermaid
# flowchart LR
#   W["가중치<br>32비트"] -- 변환 --> F["순전파<br>16비트"] --> L["손실<br>32비트"]
#   L -- "× 스케일" --> B["역전파<br>?비트"] --> G["그래디언트<br>?비트"]
#   G -- "÷ 스케일" --> S["옵티마이저<br>32비트"] --> W
# ```
#
# 16비트를 나눠 써야 합니다. 부호에 1비트, 범위(지수)에 몇 비트, 나머지는 자릿수(가수)에 씁니다. 슬라이더를 움직여
# float16과 bfloat16을 찾아보세요.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.figures.mixed_precision import figures_of_d2, range_and_step, show_backward
from dlcourse.figures.mixed_precision import show_eight_bits, show_kept, show_large, show_large_gb
from dlcourse.figures.mixed_precision import show_lost, show_memory, show_same, show_scales
from dlcourse.figures.mixed_precision import show_shards, show_speeds, show_types, show_window
from dlcourse.figures.mixed_precision import show_wire

lesson(lang=lang, name="10_mixed_precision")
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}", record=False)
# %%
explore(range_and_step, exponent_bits=[4, 5, 8], mantissa_bits=[2, 3, 7, 10, 23])
# %% [markdown] lang="en"
# bfloat16 (8 and 7 bits) has float32's range and few digits. float16 (5 and 10) has more digits, ends at
# 65,504, and has no number between 0 and 6e-8. Keep both weaknesses in mind: each breaks training in its
# own way.
#
# So cast the batch and be done?
# %% [markdown] lang="ko" en="1d0adb04"
# bfloat16(8비트와 7비트)은 범위가 float32만큼 넓은 대신 자릿수가 적습니다. float16(5비트와 10비트)은 자릿수가 더
# 많지만 65,504가 끝이고, 0과 6e-8 사이에는 아무 수도 없습니다. 두 약점을 기억해 두세요. 학습을 망가뜨리는 방식이
# 서로 다릅니다.
#
# 그렇다면 배치만 변환하면 될까요?
# %%
# %%ranks --fails "have the same dtype"
x, weight = torch.ones(2, 4, device=device), torch.ones(4, 4, device=device)
F.linear(x.to(torch.bfloat16), weight)
# %% [markdown] lang="en"
# torch adds different types, but takes no matrix product of them. Someone has to convert, at every
# operator. **Autocast** decides operator by operator. Here it is in a few lines: a mode that sees each
# torch function before it runs. Products get 16 bits, the loss gets 32, and the rest runs in what it
# gets.
#
# Folded below is the whole of `dlcourse/training/mixed_precision/autocast.py`: more names in the lists,
# and `copies`, which keeps the 16-bit copy of a weight.
# %% [markdown] lang="ko" en="41b41c78"
# torch는 자료형이 달라도 더해 주지만 행렬 곱은 해 주지 않습니다. 누군가 연산자마다 변환해야 합니다. **autocast**는
# 연산자마다 따로 정합니다. 몇 줄로 쓰면 torch 함수가 실행되기 직전에 끼어드는 모드입니다. 행렬 곱은 16비트로, 손실은
# 32비트로 바꾸고, 나머지는 받은 자료형 그대로 실행합니다.
#
# 그 아래에는 `dlcourse/training/mixed_precision/autocast.py`의 전체 코드를 접어 두었습니다. 목록에 이름이 더 있고,
# `copies`가 가중치의 16비트 복사본을 들고 있습니다.
# %%
# %%ranks
from torch.overrides import TorchFunctionMode


class Cast(TorchFunctionMode):
    low, high = {F.linear, F.scaled_dot_product_attention}, {F.cross_entropy}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def cast(x, dtype):
            return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x

        if function in self.low | self.high:
            dtype = torch.bfloat16 if function in self.low else torch.float32
            args = [cast(x, dtype) for x in args]
        return function(*args, **kwargs or {})
# %% hidden=true source="dlcourse.training.mixed_precision.autocast:Autocast"

# %% [markdown] lang="en"
# Run a GPT in ours and in `torch.autocast`, and write down the types of each operator:
# %% [markdown] lang="ko" en="802d807f"
# GPT를 우리 것과 `torch.autocast`로 돌리며 연산자마다 자료형을 적습니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig
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
    return forward, backward, str(model.head.weight.grad.dtype)[6:]
# %% hidden=true
# %%ranks --fast
forward, backward, gradient = types_of(Cast())
theirs, *_ = types_of(torch.autocast(kind, dtype=torch.bfloat16))
operators = forward.by_operator(), theirs.by_operator()
# %%
show_types(*ranks["operators"][0])
# %% [markdown] lang="en"
# Matrix products (`mm`, `addmm`), attention and what follows directly (`gelu`) run in bfloat16. Norms,
# the loss and the residual stream between the blocks do not: `add` of float32 and bfloat16 is float32.
# So "16-bit forward" is true of the products.
#
# **Predict.** People say that backward runs in 32 bits. Of the floating-point operations in backward's
# matrix products, how many percent are float32?
# %% [markdown] lang="ko" en="76ade015"
# 행렬 곱(`mm`, `addmm`), 어텐션, 바로 뒤의 `gelu`는 bfloat16으로 돕니다. 정규화, 손실, 블록 사이를 잇는 잔차
# 스트림은 아닙니다. float32와 bfloat16을 더하면(`add`) float32가 되기 때문입니다. "16비트 순전파"는 곱셈에만 맞는
# 말입니다.
#
# **예측해 보세요.** 역전파는 32비트로 돈다고들 합니다. 역전파의 행렬 곱 연산량 가운데 float32는 몇 퍼센트일까요?
# %%
predict("10.backward")
# %% hidden=true
# %%ranks --fast
in_32 = max(100 * log.share_in("float32") for log in (forward, backward))
# %%
compare("10.backward", max(ranks["in_32"]))
show_backward(ranks["in_32"], ranks["gradient"][0])
# %% [markdown] lang="en"
# None. Backward multiplies what forward has saved, and that is 16-bit. Only at the very end, where the
# graph meets the weight's cast, is each gradient cast back. So `.grad` is float32, its digits are not.
#
# "32-bit backward" is wrong, then. Now the 50%. **Predict** for autocast, our GPT and 4 × 128 tokens: the
# bytes kept after a step (873,728 parameters, their gradients, Adam's two moments), and the highest
# bytes of activations (about 18 MiB in float32).
# %% [markdown] lang="ko" en="dc7efb69"
# 전혀 없습니다. 역전파는 순전파가 저장해 둔 값을 곱하는데, 그 값이 16비트입니다. 가중치를 16비트로 변환한 곳까지
# 거슬러 가야 비로소 그래디언트를 float32로 되돌립니다. `.grad`는 float32지만 정밀도는 16비트입니다.
#
# "역전파는 32비트"는 틀렸습니다. 이제 50% 차례입니다. autocast로 우리 GPT에 토큰 4 × 128개를 넣을 때, 스텝이
# 끝난 뒤에 남는 바이트(파라미터 873,728개, 그 그래디언트, Adam의 모멘트 두 개)와 활성화값의 최댓값(float32에서는
# 약 18 MiB)을 **예측해 보세요.**
# %%
predict("10.states")
predict("10.activations")
# %% hidden=true
# %%ranks --fast
from dlcourse.measure import Recorder, live_bytes
from dlcourse.training.mixed_precision.autocast import Autocast
from dlcourse.training.mixed_precision.loss_scaler import LossScaler
from dlcourse.training.mixed_precision.training_step import mixed_step, prepare

batch = [half.to(device) for half in corpus.batch(0, micro_batch=4, block=128)]
# %% hidden=true
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
end, peak = ranks["memory"][0]["autocast"]
compare("10.states", sum(end[name] for name in ("parameters", "gradients", "optimizer_state")))
compare("10.activations", peak["activations"])
show_memory(ranks["memory"][0])
# %% [markdown] lang="en"
# Not one byte of the states has gone: parameters, gradients and Adam's moments are float32 as before.
# (At the peak there are no gradients yet, as in lesson 09. The two lower rows come later.) Activations
# fell to three quarters, and this is why:
# %% [markdown] lang="ko" en="5c71a4c1"
# 모델 상태에서는 한 바이트도 줄지 않았습니다. 파라미터, 그래디언트, Adam의 모멘트가 모두 float32 그대로입니다.
# (레슨 09에서처럼 최대 메모리일 때는 아직 그래디언트가 없습니다. 아래 두 줄은 뒤에서 다룹니다.) 활성화값은 4분의
# 3으로 줄었습니다. 까닭은 이렇습니다.
# %%
show_kept()
# %% [markdown] lang="en"
# The input of q, k and v is *larger* than before: each of the three converts it anew, and each copy is
# saved for backward (exercise 2 mends that). The copies of the weights are kept until then, too.
#
# With all in bfloat16, everything halves. Why not do just that? **Predict:** a weight is 1.0, and
# a thousand times we subtract 0.001. What is left, in bfloat16?
# %% [markdown] lang="ko" en="1b813612"
# q, k, v의 입력은 오히려 *늘었습니다*. 셋이 저마다 새로 변환하고, 복사본 세 개가 모두 역전파까지 남습니다(연습
# 문제 2에서 고칩니다). 가중치의 복사본도 그때까지 남습니다.
#
# 전부 bfloat16으로 두면 모두 절반입니다. 그런데 왜 다들 그렇게 하지 않을까요? **예측해 보세요.** 가중치 1.0에서
# 0.001을 천 번 뺍니다. bfloat16이라면 얼마가 남을까요?
# %%
predict("10.lost")
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
show_lost(ranks["weight"][0])
# %% [markdown] lang="en"
# Each update is rounded away, and so it would be for ever. A **master weight** in float32 takes the
# updates instead, and the 16-bit weight is its rounded copy [1]. (Folded below: the optimizer of
# lesson 06 that does it.)
#
# But then the saving is gone again: parameter, gradient and optimizer take 2 + 2 + 12 = 16 bytes, the
# same as 4 + 4 + 8. What mixed precision saves are *activations*, and how much depends on the batch.
# GPT-2 large, by the same formulas:
# %% [markdown] lang="ko" en="ccc946a2"
# 갱신할 때마다 반올림되어 영영 제자리입니다. 그래서 float32 **마스터 가중치**(master weights)를 따로 두고 이것을
# 갱신합니다. 16비트 가중치는 마스터 가중치를 반올림한 복사본입니다[1]. (그렇게 하는 레슨 06의 옵티마이저를 아래에
# 접어 두었습니다.)
#
# 그러면 줄었던 메모리가 도로 늘어납니다. 파라미터, 그래디언트, 옵티마이저를 더하면 2 + 2 + 12로, 4 + 4 + 8과 같은
# 16바이트입니다. 혼합 정밀도가 아끼는 것은 *활성화값*이고, 얼마나 아끼는지는 배치에 달려 있습니다. 같은 공식으로
# GPT-2 large를 봅시다.
# %% hidden=true source="dlcourse.training.mixed_precision.master_adamw:MasterAdamW"

# %%
show_large()
# %% [markdown] lang="en"
# Only pure bfloat16, the one that forgets small updates, is at 50% from the start. Master weights come
# near it as activations outweigh states. Autocast does not: its residual stream and the loss stay
# float32. With one sequence it even needs *more* than float32: the copies of all weights.
#
# Now the other weakness: float16's range. Gradients are small: the loss is a mean over all tokens. Multiply the
# loss by a scale, and count how many gradients become 0, and how many infinite. (A batch of 65,536 tokens is
# imitated: the loss of our 256 tokens is divided by another 256.)
# %% [markdown] lang="ko" en="af6a9a7b"
# 처음부터 50%인 것은 작은 갱신을 잊어버리는 순수 bfloat16뿐입니다. 마스터 가중치는 배치가 커져 활성화값의 비중이
# 늘수록 50%에 다가갑니다. autocast는 잔차 스트림과 손실이 float32라서 그러지 못합니다. 시퀀스가 하나면 float32보다
# *더* 쓰기도 합니다. 모든 가중치의 복사본 때문입니다.
#
# 이제 나머지 약점, float16의 좁은 범위를 봅시다. 손실은 모든 토큰의 평균이라 그래디언트가 작습니다. 손실에
# 스케일을 곱하고 그래디언트 가운데 몇 개가 0이 되고 몇 개가 무한대가 되는지 셉니다. (토큰 65,536개짜리 배치는
# 우리 토큰 256개의 손실을 다시 256으로 나누어 흉내 냅니다.)
# %% hidden=true
# %%ranks --fast
def gradients(autocast=None, scale=1.0):
    model = GPT(small).to(device)
    with autocast or torch.enable_grad():
        loss = model(*few)
    (loss * scale).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


exponents, real = [0, 4, 8, 12, 16, 20, 24], gradients() != 0


def lost_at(exponent):
    found = gradients(Autocast(kind, torch.float16), 2.0**exponent)[real]
    return [100 * part.float().mean().item() for part in (found == 0, ~found.isfinite())]


window = {n: {e: lost_at(e - n) for e in exponents} for n in (0, 8)}
# %%
show_window(ranks["window"][0])
# %% [markdown] lang="en"
# At scale 1, with our few tokens, hardly a gradient vanishes; with the mean of a large batch many do. And a scale
# that is too large makes infinities. Both edges move, with the batch and as training goes on, and nobody knows
# them beforehand. So the **loss scaler** tries: after an infinity it skips the step and halves the scale; after a
# run of quiet steps, without one, it doubles it. Here it is in a few lines, and whole in the folded cell.
# %% [markdown] lang="ko" en="bad62324"
# 스케일이 1이면, 토큰이 적은 우리 배치에서는 사라지는 그래디언트가 거의 없지만, 큰 배치의 평균이라면 많이 사라집니다.
# 스케일이 너무 크면 무한대가 됩니다. 두 경계는 배치에 따라, 또 학습이 진행되면서 움직이므로 미리 알 수 없습니다. 그래서
# **손실 스케일러**(loss scaler)는 값을 바꿔 가며 찾습니다. 무한대가 나오면 그 스텝을 건너뛰고 스케일을 절반으로 줄이고,
# 무한대 없는 스텝이 이어지면 두 배로 늘립니다. 몇 줄로 먼저 써 보고, 전체 코드는 접힌 셀에 두었습니다.
# %%
# %%ranks
class TryingScaler:
    def __init__(self, scale, interval):
        self.scale, self.interval, self.quiet = scale, interval, 0

    def step(self, optimizer, grads):
        for grad in grads:
            grad /= self.scale
        if all(grad.isfinite().all() for grad in grads):
            optimizer.step()
            self.quiet += 1
        else:
            self.scale, self.quiet = self.scale / 2, 0
        if self.quiet == self.interval:
            self.scale, self.quiet = self.scale * 2, 0
# %% hidden=true source="dlcourse.training.mixed_precision.loss_scaler:LossScaler"

# %% [markdown] lang="en"
# Provoke an overflow: start at $2^{24}$, and let it grow after 4 steps in a row without one. Torch's
# `GradScaler` gets the same model and the same data. How many steps will be skipped?
# %% [markdown] lang="ko" en="3ef6271d"
# 오버플로를 일부러 일으킵니다. $2^{24}$에서 시작하고, 오버플로 없는 스텝이 4번 이어지면 키웁니다. torch의
# `GradScaler`에도 같은 모델과 같은 데이터를 줍니다. 몇 스텝을 건너뛸까요?
# %% hidden=true
# %%ranks --fast
def step_with(scaler, loss, optimizer, parameters):
    if isinstance(scaler, TryingScaler):
        (loss * scaler.scale).backward()
        scaler.step(optimizer, [p.grad for p in parameters])
        return scaler.scale
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale()
# %% hidden=true
# %%ranks --fast
tiny = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)


def scales_of(scaler):
    model, found = GPT(tiny).to(device), []
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(24):
        data = [half.to(device) for half in corpus.batch(step, micro_batch=2, block=32)]
        optimizer.zero_grad()
        with Autocast(kind, torch.float16):
            loss = model(*data)
        found.append(step_with(scaler, loss, optimizer, [*model.parameters()]))
    return found
# %% hidden=true
# %%ranks --fast
ours = scales_of(TryingScaler(2.0**24, interval=4))
theirs = scales_of(torch.amp.GradScaler(kind, init_scale=2.0**24, growth_interval=4))
# %%
show_scales(ranks["ours"][0], ranks["theirs"][0])
# %% [markdown] lang="en"
# The same scales as torch's. Each skipped step leaves the weights as they were, and a try upwards may
# cost another. torch starts at 65,536 and waits 2,000 quiet steps, so that the price is small.
#
# ## In ranks
#
# Under data parallelism, all-reduce spreads an infinity, so that every rank skips. With shards (lesson
# 06) each rank sees its own part alone. Rank 0 meets an infinity:
# %% [markdown] lang="ko" en="1b72f7f6"
# 스케일이 torch와 매번 같습니다. 건너뛴 스텝에서는 가중치가 그대로이고, 스케일을 키웠다가 또 한 스텝을 잃기도
# 합니다. torch는 65,536에서 시작해 오버플로 없는 스텝을 2,000번 기다린 뒤에 키우므로 손해가 적습니다.
#
# ## 랭크에서
#
# 데이터 병렬화에서는 올리듀스가 무한대를 퍼뜨려 모든 랭크가 건너뜁니다. 샤드로 나누면(레슨 06) 랭크마다 자기 몫만
# 봅니다. 랭크 0이 무한대를 만납니다.
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
show_shards(ranks["alone"], ranks["together"])
# %% [markdown] lang="en"
# In the first column rank 0 keeps its old weights, and the others go on, with another scale: a broken model,
# and no error. `process_group` mends it by one all-reduce of one number (in torch: `ShardedGradScaler`).
#
# And what travels between ranks? **Predict** how many bytes DDP under autocast gives to all-reduce for each
# parameter.
# %% [markdown] lang="ko" en="963a8987"
# 첫째 열에서는 랭크 0의 가중치만 그대로이고 나머지는 갱신되며, 스케일도 서로 다릅니다. 오류도 없이 모델이 망가집니다.
# `process_group`을 주면 숫자 하나를 올리듀스 한 번으로 맞춥니다(torch에서는 `ShardedGradScaler`).
#
# 랭크 사이에는 무엇이 오갈까요? autocast를 켠 DDP가 올리듀스에 넘기는 양을 파라미터당 바이트로
# **예측해 보세요.**
# %%
predict("10.wire")
# %% hidden=true
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
# %% hidden=true
# %%ranks --fast
sent = {way: sent_by(way) for way in ("float32", "autocast", "master")}
sent["hook"] = sent_by("autocast", fp16_compress_hook)
# %%
compare("10.wire", ranks["sent"][0]["autocast"][1])
show_wire(ranks["sent"][0])
# %% [markdown] lang="en"
# They are float32, since `.grad` is. Autocast makes messages no smaller; 16-bit parameters do, or a hook
# that casts each bucket.
#
# Is it still the same training? Here are the losses of each way beside one process in float32, on the same
# batches; and then what is left of the claim. (Speed is a matter of hardware: "Deeper" times this machine.)
# %% [markdown] lang="ko" en="65eaa341"
# `.grad`가 float32이므로 보내는 것도 float32입니다. autocast로는 통신이 줄지 않습니다. 파라미터를 16비트로 두거나,
# 버킷을 변환하는 훅을 써야 합니다.
#
# 그래도 같은 학습일까요? 방법마다 같은 배치로 학습해서 float32 단일 프로세스와 손실을 비교합니다. 그다음에 처음의
# 주장이 얼마나 맞는지 봅니다. (속도는 하드웨어에 달렸습니다. "더 깊이"에서 이 컴퓨터를 재 봅니다.)
# %% hidden=true
# %%ranks --fast
from dlcourse.training import loop
from dlcourse.training.mixed_precision.training_step import train

job = {"steps": steps, "batch_size": 2, "block": 64}
want = torch.tensor(loop.train(GPT(small).to(device), corpus, **job))
losses = {w: train(GPT(small).to(device), corpus, precision=w, **job) for w in ("autocast", "master")}
half = {"precision": "autocast", "dtype": torch.float16, "scaler": LossScaler()}
losses["float16"] = train(GPT(small).to(device), corpus, **half, **job)
apart = {w: (torch.tensor(got) / want - 1).abs().max().item() for w, got in losses.items()}
# %%
show_same(ranks["apart"][0])
# %%
claim("D2", **figures_of_d2(ranks["memory"][0], max(ranks["in_32"])))
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("10.spacing")` helps step by step;
# `solution("10.spacing")` shows one answer.
#
# **1. `10.spacing`** (3 minutes). In a type with `mantissa_bits` bits for the digits, return the gap
# between `x` and the next larger number (`x` is positive and in the normal range). Then say what the
# smallest update is that moves a bfloat16 weight of 1.0.
# %% [markdown] lang="ko" en="dfde7c75"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("10.spacing")`은 한 단계씩 도와주고, `solution("10.spacing")`은 답
# 하나를 보여 줍니다.
#
# **1. `10.spacing`** (3분). 가수가 `mantissa_bits`비트인 자료형에서 `x`와 그다음으로 큰 수의 간격을 돌려주세요(`x`는
# 정규 범위의 양수입니다). 그리고 bfloat16 가중치 1.0을 움직일 수 있는 가장 작은 갱신량은 얼마인지 생각해 보세요.
# %% exercise="10.spacing"
def spacing(x, mantissa_bits):
    raise NotImplementedError
# %%
check("10.spacing")
# %% [markdown] lang="en"
# **2. `10.copies`** (10 minutes). Under `torch.autocast`, q, k and v each keep their own copy of `x`.
# (They are weight matrices here.) Write `project(x, q, k, v)`: return the three results of `F.linear`, with
# the same types and gradients, but one copy of `x`. It must work without autocast, too.
# %% [markdown] lang="ko" en="71de7cf6"
# **2. `10.copies`** (10분). `torch.autocast` 안에서는 q, k, v가 저마다 `x`의 복사본을 둡니다(여기서 셋은 가중치
# 행렬입니다). `F.linear`를 세 번 부른 결과를 돌려주는 `project(x, q, k, v)`를 쓰세요. 자료형과 그래디언트는 같아야
# 하고, `x`의 복사본은 하나만 남겨야 합니다. autocast 밖에서도 돌아야 합니다.
# %% exercise="10.copies"
# %%ranks
def project(x, q, k, v):
    raise NotImplementedError
# %%
check("10.copies")
# %% [markdown] lang="en"
# **3. `10.clip`** (10 minutes). Do a whole training step in float16, from a given `loss` on, with gradients
# clipped to `max_norm`. Gradients of the step before are still in `.grad`. Order matters. Return the norm before
# clipping, that of the *true* gradients. `scaler` is torch's or ours.
# %% [markdown] lang="ko" en="120ac1da"
# **3. `10.clip`** (10분). `loss`를 받아 float16 학습 스텝 하나를 끝까지 실행하세요. 그래디언트는 `max_norm`으로
# 클리핑합니다. `.grad`에는 지난 스텝의 그래디언트가 남아 있습니다. 순서가 중요합니다. 클리핑하기 전의 *진짜*
# 그래디언트 노름을 돌려주세요. `scaler`는 torch의 것이거나 우리 것입니다.
# %% exercise="10.clip"
# %%ranks
def clipped_step(loss, parameters, optimizer, scaler, max_norm):
    raise NotImplementedError
# %%
check("10.clip")
# %% [markdown] lang="en"
# **4. `10.scaler`** (20 minutes). A scaler that survives anything: `unscale(grads)` divides in place and
# returns whether this step may be taken, the same in *all* ranks, though only one may see an infinity or
# a NaN; then it sets `self.scale` anew. Halve after a bad step, double after `interval` good ones in a
# row, stay within 1 and $2^{24}$. One all-reduce of one number a step.
# %% [markdown] lang="ko" en="5c1126ab"
# **4. `10.scaler`** (20분). 무엇이 와도 버티는 스케일러입니다. `unscale(grads)`는 제자리에서 나누고, 이
# 스텝에서 갱신해도 되는지 *모든* 랭크에서 똑같이 돌려줍니다. 무한대나 NaN은 한 랭크에만 나올 수도 있습니다.
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
# Tensor cores multiply 16-bit matrices many times faster: on an H100, dense, 989 TFLOP/s in bfloat16, 67 in
# float32 outside of them [4]. Norms and sums stay limited by memory, and autocast keeps them in 32 bits there:
# they gain nothing. CUDA's list of float32 operators is longer, softmax and norms included. Use bfloat16 from
# Ampere on, without a scaler; float16 where there is nothing else.
#
# No GPU run of this lesson is recorded yet. Bytes hardly depend on the device. GPT-2 large with 8 sequences of
# 1,024 tokens, at its peak, by the formulas:
# %% [markdown] lang="ko" en="1099e876"
# ## GPU에서는
#
# 텐서 코어는 16비트 행렬을 몇 배나 빨리 곱합니다. H100은 밀집 행렬에서 bfloat16이 989 TFLOP/s, 텐서 코어를 쓰지
# 않는 float32가 67 TFLOP/s입니다[4]. 정규화와 합은 여전히 메모리 대역폭에 묶이고, CUDA의 autocast는 이들을
# 32비트로 하므로 빨라지지 않습니다. Ampere부터는 스케일러 없이 bfloat16을, 그것이 없으면 float16을 쓰세요.
#
# 이 레슨의 GPU 실행 기록은 아직 없습니다. 바이트는 GPU에서도 거의 같습니다. GPT-2 large에 길이 1,024인 시퀀스
# 8개를 넣을 때의 최대 메모리를 공식으로 구하면 이렇습니다.
# %% tags=["nbval-check-output"]
show_large_gb()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Autocast: products in 16 bits, losses (on GPUs also norms and sums) in 32, forward *and* backward.
# 2. `.grad`, optimizer and messages stay float32. Master weights: also 16 bytes of states a parameter.
# 3. Activations shrink, under autocast by less than half; pure bfloat16 halves all, and loses small updates.
# 4. float16 needs a loss scaler; bfloat16 needs master weights, or float32 ones.
# 5. Speed needs hardware with 16-bit units.
#
# Activations are still the largest part. Lesson 11 throws them away.
#
# Sources: [1] [Micikevicius et al., ICLR 2018](https://arxiv.org/abs/1710.03740).
# [2] [PyTorch, Autocast Op Reference](https://docs.pytorch.org/docs/stable/amp.html).
# [3] [Micikevicius et al., FP8 Formats, 2022](https://arxiv.org/abs/2209.05433).
# [4] [NVIDIA H100 data sheet](https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306).
# %% [markdown] lang="ko" en="d56247b7"
# ## 다섯 줄 요약
#
# 1. autocast는 순전파와 역전파 *모두* 곱셈을 16비트로, 손실(GPU에서는 정규화와 합도)을 32비트로 합니다.
# 2. `.grad`, 옵티마이저, 통신은 float32 그대로입니다. 마스터 가중치를 써도 상태는 파라미터당 16바이트입니다.
# 3. 활성화값은 줄지만 autocast로는 절반까지 줄지 않습니다. 모두 절반이 되는 것은 순수 bfloat16뿐이고, 작은 갱신을
#    잃습니다.
# 4. float16에는 손실 스케일러가, bfloat16에는 마스터 가중치나 float32 가중치가 필요합니다.
# 5. 빨라지려면 16비트 유닛이 있는 하드웨어가 있어야 합니다.
#
# 여전히 활성화값이 가장 큽니다. 레슨 11에서는 활성화값을 버립니다.
#
# 출처: [1] [Micikevicius 외, ICLR 2018](https://arxiv.org/abs/1710.03740).
# [2] [PyTorch, Autocast Op Reference](https://docs.pytorch.org/docs/stable/amp.html).
# [3] [Micikevicius 외, FP8 Formats, 2022](https://arxiv.org/abs/2209.05433).
# [4] [NVIDIA H100 데이터시트](https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306).
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
# ### Three lists, and what is refused
#
# torch's autocast has three lists [2]: matrix products in 16 bits; losses (on CUDA also softmax, norms,
# sums and powers) in 32; and operators such as `cat`, which take the widest type that they get.
#
# Our loop refuses float16 without a scaler, and our autocast refuses other types, such as those of 8 bits.
# For such a type `torch.autocast` only warns, and goes on in float32. So does `GradScaler("cuda")` where
# there is no GPU: it switches itself off.
# %% [markdown] lang="ko" en="b39c457a"
# ### 목록 세 가지, 그리고 거부하는 것
#
# torch의 autocast에는 목록이 세 가지 있습니다[2]. 16비트로 하는 행렬 곱, 32비트로 하는 손실(CUDA에서는 softmax, 정규화,
# 합, 거듭제곱도), 그리고 받은 것 가운데 가장 넓은 자료형을 쓰는 `cat` 같은 연산자입니다.
#
# 우리 루프는 스케일러 없는 float16을, 우리 autocast는 8비트처럼 다루지 않는 자료형을 거부합니다. 그런 자료형을 주면
# `torch.autocast`는 경고만 하고 float32로 계속합니다. GPU가 없는 곳의 `GradScaler("cuda")`도 경고만 하고 스스로
# 꺼집니다.
# %%
# %%ranks --fails "without a scaler"
train(GPT(tiny).to(device), corpus, precision="autocast", dtype=torch.float16, steps=1, block=32)
# %%
# %%ranks --fails "is not a type for mixed precision"
Autocast(kind, torch.float8_e4m3fn)
# %% [markdown] lang="en"
# ### Speed on this device
#
# Are there units that multiply 16-bit numbers? We time one product of square matrices, 256 wide on a CPU
# and 4,096 on a GPU, where a small one takes no longer than starting its kernel.
# %% [markdown] lang="ko" en="ef1686f1"
# ### 이 장치의 속도
#
# 16비트 수를 곱하는 유닛이 있을까요? 정사각 행렬의 곱 하나를 재 봅니다. 한 변은 CPU에서 256, GPU에서는 4,096입니다.
# GPU에서 작은 곱을 재면 커널을 시작하는 시간만 재게 됩니다.
# %% hidden=true
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
show_speeds(ranks["speeds"][0])
# %% [markdown] lang="en"
# Units or not, a CPU's 16-bit products may be slower than its float32 ones: this lesson claims no speed
# for them. Bytes do not depend on that.
#
# ### Outlook: 8 bits
#
# Range against digits once more. Gradients of size 0.001 are cast to 8 bits and back; then with a scale for
# each tensor that puts its largest number at the type's end:
# %% [markdown] lang="ko" en="23a4d3d3"
# 유닛이 있든 없든 CPU의 16비트 곱은 float32보다 느릴 수 있어서, 이 레슨은 빠르다고 말하지 않습니다. 바이트는 그것과
# 상관없습니다.
#
# ### 내다보기: 8비트
#
# 이번에도 범위와 자릿수 사이의 선택입니다. 크기가 0.001쯤인 그래디언트를 8비트로 바꿨다가 되돌립니다. 다음에는
# 텐서마다 스케일을 곱해 가장 큰 수를 자료형이 나타낼 수 있는 가장 큰 수에 맞춥니다.
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
show_eight_bits(ranks["errors"][0])
# %% [markdown] lang="en"
# e4m3 needs the scale; e5m2 has the range, but fewer digits. One scale for the loss is no longer enough:
# each tensor (or each block of it) has its own. e4m3 for weights and activations, e5m2 for gradients
# [3]. Master weights stay.
# %% [markdown] lang="ko" en="effc56df"
# e4m3에는 스케일이 꼭 필요하고, e5m2는 범위가 넓은 대신 자릿수가 적습니다. 손실에 곱하는 스케일 하나로는 이제
# 모자라서, 텐서마다 또는 텐서의 블록마다 스케일을 둡니다. 가중치와 활성화값에는 e4m3, 그래디언트에는 e5m2를
# 씁니다[3]. 마스터 가중치는 그대로 남습니다.
