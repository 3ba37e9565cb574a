# %% [markdown] lang="en"
# # 04 Tensor parallelism: one layer on several GPUs
#
# A model of 70 billion parameters takes 140 GB in 16 bits, and a GPU has 80 GB. Data parallelism
# does not help: every rank would need all 140. A smaller batch does not help either. The *weights*
# are too large.
#
# So each GPU must hold a part of every matrix. But then, who can compute what? And what has to be
# sent, inside every layer, forward and backward?
#
# You need [lesson 01](01_collectives.ipynb) (all-reduce, all-gather) and the GPT of
# [lesson 03](03_data_parallel.ipynb). 40 minutes.
# %% [markdown] lang="ko" en="43a7d783"
# # 04 텐서 병렬화(tensor parallelism): 층 하나를 여러 GPU에
#
# 파라미터 700억 개는 16비트로 140GB인데 GPU 메모리는 80GB입니다. 데이터 병렬화로는 풀리지 않습니다. 랭크마다
# 140GB를 통째로 가져야 하기 때문입니다. 배치를 줄여도 소용없습니다. *가중치*가 너무 큽니다.
#
# 그러니 GPU마다 모든 행렬의 한 조각씩만 가져야 합니다. 그러면 누가 무엇을 계산할 수 있을까요? 층마다
# 순전파와 역전파에서 무엇을 보내야 할까요?
#
# [레슨 01](01_collectives.ipynb)의 올리듀스(all-reduce)와 올게더(all-gather),
# [레슨 03](03_data_parallel.ipynb)의 GPT를 알면 됩니다. 40분 걸립니다.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% [markdown] lang="en"
# A matrix can be cut in two ways. By **columns**, each rank computes some of the outputs,
# completely. By **rows**, each rank takes some of the inputs, and computes a summand of every output.
#
# ```mermaid
# flowchart LR
#   X[all of x] --> A0[columns of rank 0] & A1[columns of rank 1]
#   A0 --> Y0[part 0 of y]
#   A1 --> Y1[part 1 of y]
#   Z0[part 0 of x] --> B0[rows of rank 0] --> S((sum))
#   Z1[part 1 of x] --> B1[rows of rank 1] --> S
#   S --> Y[all of y]
# ```
# %% [markdown] lang="ko" en="d47544c3"
# 행렬을 자르는 방법은 둘입니다. **열**로 자르면 랭크(rank)마다 출력의 일부를 완전하게 계산합니다. **행**으로
# 자르면 랭크마다 입력의 일부를 받아, 모든 출력의 합에 들어갈 몫을 하나씩 계산합니다.
#
# ```mermaid
# flowchart LR
#   X[x 전체] --> A0[랭크 0의 열] & A1[랭크 1의 열]
#   A0 --> Y0[y의 0번 조각]
#   A1 --> Y1[y의 1번 조각]
#   Z0[x의 0번 조각] --> B0[랭크 0의 행] --> S((합))
#   Z1[x의 1번 조각] --> B1[랭크 1의 행] --> S
#   S --> Y[y 전체]
# ```
# %%
from dlcourse import Ranks, check, claim, compare, expect_failure, hint, lesson, predict
from dlcourse import quiz, show, solution
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.figures.charts import bars_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import human_bytes
from dlcourse.parallel.divisibility import check_tensor_parallel

lesson(lang=lang, name="04_tensor_parallel")
check_tensor_parallel(n_head=4, n_embd=128, size=num_ranks)
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}")
# %% [markdown] lang="en"
# The example that everybody gives: a 4096 × 4096 linear layer, cut by columns over 4 ranks. Each has
# 1024 columns, and an all-gather puts the output together.
#
# **Predict.** 64 tokens go through it, so the whole output has 64 × 4096 numbers of 4 bytes. How many
# bytes does each rank send in that all-gather? Write your number in place of `...`.
# %% [markdown] lang="ko" en="d2852a1d"
# 누구나 드는 예부터 봅시다. 4096 × 4096 선형 층을 랭크 네 개에 열로 나눕니다. 각각 1024열을 갖고, 올게더로
# 출력을 모읍니다.
#
# **예측해 보세요.** 토큰 64개가 지나가므로 출력 전체는 4바이트 숫자 64 × 4096개입니다. 이 올게더에서 랭크
# 하나는 몇 바이트를 보낼까요? `...` 자리에 숫자를 적어 보세요.
# %%
output_bytes = 4 * 64 * 4096
predict("04.gather", ..., formula=(num_ranks - 1) / num_ranks * output_bytes, unit="bytes")
# %% [markdown] lang="en"
# The layer, whole. It takes an ordinary `nn.Linear`, equal in all ranks, and keeps its part. Mind:
# torch stores a weight as (outputs, inputs), so "columns" are rows of `weight`. What `enter` is for
# comes soon.
#
# Capitals at the end of a name are a tensor's shape: B sequences, T tokens, I inputs, O outputs.
# %% [markdown] lang="ko" en="b7b191c8"
# 층의 코드 전체입니다. 모든 랭크에서 똑같은 보통의 `nn.Linear`를 받아 자기 조각만 남깁니다. torch는 가중치를
# (출력, 입력) 모양으로 저장하므로 여기서 말하는 "열"은 `weight`의 행입니다. `enter`가 하는 일은 곧 나옵니다.
#
# 이름 끝의 대문자는 텐서의 모양입니다. B는 시퀀스, T는 토큰, I는 입력, O는 출력의 수입니다.
# %% source="dlcourse.parallel.tensor_layers:ColumnParallelLinear"
# %%
# %%ranks --fast
from dlcourse.collectives.tcp_counters import wire_counters


def one_layer():
    torch.manual_seed(0)
    whole = nn.Linear(4096, 4096, bias=False).to(device)
    column = ColumnParallelLinear(whole, gather_output=True)
    x = torch.randn(64, 4096, device=device)
    with torch.no_grad():
        column(x[:1])
        before = wire_counters()
        y = column(x)
        sent = wire_counters()[0] - before[0] if before else None
        return len(column.weight), tuple(y.shape), (y - whole(x)).abs().max().item(), sent


# %%
# %%ranks --fast
columns, shape, layer_off, sent = one_layer()
columns, shape, layer_off < 1e-5
# %%
sent = [count for count in ranks["sent"] if count is not None]
gathered = max(sent) if sent else (num_ranks - 1) / num_ranks * output_bytes
compare("04.gather", gathered)
held, column_apart = ranks["columns"][0], max(ranks["layer_off"])
assert ranks["columns"] == [4096 // num_ranks] * num_ranks
assert column_apart < 1e-5
# %% [markdown] lang="en"
# As predicted: 768 KiB (the 1 KiB on top is message headers). But is the all-gather *needed*? A layer is seldom
# alone. In an MLP a second matrix follows, and if that one is cut by rows, rank 0 needs just the part
# of the input that rank 0 has made. Nothing is sent between the two.
# %% [markdown] lang="ko" en="994b1330"
# 예측대로 768 KiB입니다(조금 더 나온 것은 메시지 헤더입니다). 그런데 올게더가 *꼭 필요할까요?* 층은 보통 혼자 있지 않습니다. MLP라면
# 두 번째 행렬이 이어집니다. 그것을 행으로 자르면, 랭크 0에 필요한 입력은 바로 랭크 0이 방금 만든
# 조각입니다. 둘 사이에는 보낼 것이 없습니다.
# %% source="dlcourse.parallel.tensor_layers:RowParallelLinear"
# %% [markdown] lang="en"
# **Predict.** An MLP, 128 → 512 → 128. Way A: both matrices by columns, an all-gather after each.
# Way B: columns, then rows, and one all-reduce. How many times as many bytes does A send in forward?
#
# (For $S$ bytes over $p$ ranks an all-gather sends $\frac{p-1}{p}S$, an all-reduce twice that. The
# middle is four times as wide as the end.)
# %% [markdown] lang="ko" en="8bb2b1b4"
# **예측해 보세요.** 128 → 512 → 128인 MLP가 있습니다. 방법 A는 두 행렬을 모두 열로 자르고 그때마다 올게더를
# 합니다. 방법 B는 열 다음에 행으로 자르고 올리듀스를 한 번 합니다. 순전파에서 A는 B의 몇 배를 보낼까요?
#
# (랭크 $p$개에서 $S$바이트를 올게더하면 $\frac{p-1}{p}S$, 올리듀스하면 그 두 배를 보냅니다. 가운데는 끝보다 네
# 배 넓습니다.)
# %%
predict("04.ways", ..., formula=(4 + 1) / 2, unit="")
# %%
# %%ranks
from dlcourse.models.gpt import MLP, GPT, GPTConfig
from dlcourse.corpus import Corpus


@torch.no_grad()
def mlp(x, make_up, make_down):
    torch.manual_seed(0)
    whole = MLP(GPTConfig()).to(device)
    return make_down(whole.down)(F.gelu(make_up(whole.up)(x)))


x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(device)
mlp_out = mlp(x, lambda up: up, lambda down: down)
# %%
# %%ranks --as run_a
def gathering(linear):
    return ColumnParallelLinear(linear, gather_output=True)


way_a = mlp(x, gathering, gathering)
# %%
# %%ranks --as run_b
way_b = mlp(x, ColumnParallelLinear, RowParallelLinear)
right = ((way_b - mlp_out).norm() / mlp_out.norm()).item()
# %%
way_a, way_b = run_a.comm.ranks[0], run_b.comm.ranks[0]
compare("04.ways", way_a["wire_bytes"] / way_b["wire_bytes"])
rows = [
    [t(f".way.{name}"), way["calls"], human_bytes(way["wire_bytes"])]
    for name, way in (("columns", way_a), ("rows", way_b))
]
assert way_b["ops"]["all_reduce"]["calls"] == way_b["calls"] == 1
Table([t(f".way{key}") for key in ("", ".messages", ".sent")], rows)
# %% [markdown] lang="en"
# Why not rows first? Each rank would hold a *summand* of the hidden layer, and GELU of a sum is not
# the sum of GELUs. One more all-reduce would be needed before it. What happens if you forget it?
# %% [markdown] lang="ko" en="ce1b492d"
# 행을 먼저 자르면 안 될까요? 그러면 랭크마다 가진 것은 은닉층의 *몫*인데, 합의 GELU는 GELU의 합이 아닙니다. GELU
# 앞에서 올리듀스를 한 번 더 해야 합니다. 잊으면 어떻게 될까요?
# %%
# %%ranks --fast
def rows_first(linear):
    layer = RowParallelLinear(linear, leave=lambda y, group: y)
    return lambda x: layer(x.chunk(world_size, -1)[rank])


def then_sum(linear):
    return lambda summand: linear(reduce_from(summand))


rows_first_out = mlp(x, rows_first, then_sum)
wrong = ((rows_first_out - mlp_out).norm() / mlp_out.norm()).item()
# %%
wrong, right = max(ranks["wrong"]), max(ranks["right"])
print(t(".gelu", wrong=f"{wrong:.0%}", right=f"{right:.0e}"))
assert right < 1e-5 < 0.1 < wrong
# %% [markdown] lang="en"
# ## Backward
#
# No error there, only a wrong number. Now the gradients. Each rank's columns use *all* of $x$, so a
# rank knows only a summand of the gradient of $x$: backward must **sum** it. At the other end the
# forward sums, and then every summand gets the same gradient: backward has nothing to do.
#
# Two functions say so, each the mirror of the other. `enter` above is `copy_to`, `leave` is
# `reduce_from`.
# %% [markdown] lang="ko" en="e94a75c4"
# ## 역전파
#
# 오류는 없고 숫자만 틀렸습니다. 이제 그래디언트(gradient)를 봅시다. 랭크의 열은 $x$ *전체*를 쓰므로, 랭크 하나가
# 아는 것은 $x$의 그래디언트에 들어갈 몫뿐입니다. 그래서 역전파에서 **더해야** 합니다. 반대쪽 끝에서는 순전파가
# 더하고, 모든 몫이 같은 그래디언트를 받으므로 역전파에서는 할 일이 없습니다.
#
# 서로 거울 같은 두 함수가 이 일을 합니다. 위의 `enter`가 `copy_to`, `leave`가 `reduce_from`입니다.
# %%
show("dlcourse.parallel.tensor_layers:_CopyTo,_ReduceFrom")
# %% [markdown] lang="en"
# **Attention** is cut by heads. A head needs no other head until `proj` mixes them, so q, k and v are
# cut by columns (whole heads), and `proj` by rows.
#
# A head cannot be halved. So the number of ranks must divide the heads, and that is checked before
# any rank starts:
# %% [markdown] lang="ko" en="80c4f672"
# **어텐션**은 헤드로 나눕니다. 헤드는 `proj`가 섞기 전까지 다른 헤드가 필요 없습니다. 그래서 q, k, v는
# 열로(헤드째로), `proj`는 행으로 자릅니다.
#
# 헤드를 반으로 쪼갤 수는 없습니다. 그래서 헤드 수는 랭크 수로 나누어떨어져야 하고, 랭크를 시작하기도 전에
# 확인합니다.
# %%
with expect_failure("n_head=4 cannot be cut into 3"):
    check_tensor_parallel(n_head=4, n_embd=128, size=3)
# %% source="dlcourse.parallel.tensor:parallel_attention"
# %% [markdown] lang="en"
# `parallel_mlp` does the same with `up` and `down`.
#
# **Predict.** Our GPT has 4 layers, each with attention and an MLP. How many all-reduces does one
# step take, forward and backward?
# %% [markdown] lang="ko" en="e0d140e5"
# `parallel_mlp`는 `up`과 `down`에 같은 일을 합니다.
#
# **예측해 보세요.** 우리 GPT는 4층이고 층마다 어텐션과 MLP가 있습니다. 한 스텝에 올리듀스는 순전파와 역전파를
# 합쳐 몇 번일까요?
# %%
predict("04.calls", ..., formula=4 * (2 + 2), unit="")
# %%
# %%ranks
import gc

from dlcourse.parallel.tensor import parallel_blocks, parallel_mlp, tensor_parallel, train

corpus, model = Corpus(), GPT().to(device)
both = dict(enter=copy_to, leave=reduce_from)
for block in model.blocks:
    parallel_attention(block.attention, None, **both)
    parallel_mlp(block.mlp, None, **both)
# %%
# %%ranks --as blocks
losses = train(model, corpus, steps=steps, batch_size=2)
[round(loss, 3) for loss in losses]
# %%
calls = blocks.comm.ranks[0]["ops"]["all_reduce"]["calls"] / steps
compare("04.calls", calls)
stream_bytes = 4 * 2 * 128 * 128
assert calls == 16
assert blocks.comm.ranks[0]["ops"]["all_reduce"]["bytes"] == steps * 16 * stream_bytes
blocks.comm.figure()
# %% [markdown] lang="en"
# Four a layer: leaving attention and leaving the MLP in forward, entering each in backward. Each
# carries the whole residual stream, which flows from block to block: 2 sequences × 128 tokens ×
# width 128 × 4 bytes = 128 KiB.
#
# Unlike in lesson 03, nothing can hide here: the next layer cannot start before the sum is there.
# `tensor_parallel` does all this to a GPT, and cuts its vocabulary too (more on that below).
# %% [markdown] lang="ko" en="1c1a91f3"
# 층마다 네 번입니다. 순전파에서 어텐션과 MLP를 나올 때, 역전파에서 각각에 들어갈 때입니다. 한 번에
# 잔차 스트림(residual stream, 블록에서 블록으로 흐르는 활성화값) 전체를 보냅니다. 시퀀스 2개 × 토큰 128개 × 폭
# 128 × 4바이트로 128 KiB입니다.
#
# 레슨 03과 달리 숨길 곳이 없습니다. 합이 와야 다음 층을 시작할 수 있습니다. `tensor_parallel`은 이 일을 GPT
# 전체에 하고, 아래에서 볼 어휘까지 나눕니다.
# %% [markdown] lang="en"
# ## Is this difference normal?
#
# Is it the same training as in one process? The numbers will not be bitwise equal: four partial sums
# are added where one process adds once. So which difference is rounding, and which is a bug?
#
# Compare four trainings with one process, and guess first: which row is the broken one?
# %% [markdown] lang="ko" en="cc467be3"
# ## 이 차이는 정상일까요?
#
# 단일 프로세스와 같은 학습일까요? 비트까지 같지는 않습니다. 혼자면 한 번에 더할 것을 몫 네 개로 나누어 더하기
# 때문입니다. 그렇다면 어떤 차이가 반올림이고, 어떤 차이가 버그일까요?
#
# 네 가지 학습을 단일 프로세스와 비교합니다. 먼저 맞혀 보세요. 고장 난 것은 어느 줄일까요?
# %%
# %%ranks --fast
class Reversed:
    def batch(self, *args, **kwargs):
        return [half.flip(0) for half in corpus.batch(*args, **kwargs)]


def apart(cut, dtype=torch.float32, texts=corpus):
    alone, ours = GPT().to(device, dtype), cut(GPT().to(device, dtype))
    wanted = train(alone, corpus, steps=steps, batch_size=4)
    losses = train(ours, texts, steps=steps, batch_size=4)
    pairs = zip(ours.parameters(), cut(alone).parameters(), strict=True)
    return abs(losses[0] - wanted[0]), max((a - b).abs().max().item() for a, b in pairs)


# %%
# %%ranks --fast
def forgetful(gpt):
    return parallel_blocks(gpt, enter=lambda x, group: x)


trials = {
    "float32": apart(tensor_parallel),
    "float64": apart(tensor_parallel, torch.float64),
    "reordered": apart(lambda gpt: gpt, texts=Reversed()),
    "forgotten": apart(forgetful),
}
# %%
lr, trials = 1e-3, {}
for name in ("float32", "float64", "reordered", "forgotten"):
    trials[name] = [max(numbers) for numbers in zip(*(of[name] for of in ranks["trials"]), strict=True)]
rows = [
    [t(f".apart.{name}"), f"{first:.1g}", f"{worst:.1g} ({worst / lr:.2g} lr)"]
    for name, (first, worst) in trials.items()
]
assert trials["float32"][1] < 0.3 * lr and trials["float64"][1] < 1e-9
assert trials["reordered"][1] < 0.3 * lr and trials["forgotten"][1] > lr
assert trials["forgotten"][0] < 5e-6
Table([t(f".apart{key}") for key in (".what", ".loss", "")], rows)
# %% [markdown] lang="en"
# Three tests for "normal". It vanishes in float64: only rounding does that. It is of the size that
# reordering a batch makes in *one* process. And it is far below one step of the optimizer (`lr`): Adam
# divides a gradient by its own size, so near zero rounding becomes a part of a step; 30% is allowed.
#
# The last row is far beyond the second and the third, and its **first loss is right**: forward needs no `copy_to`. No error,
# no warning. A check of the loss alone would have passed it.
# %% [markdown] lang="ko" en="1501537c"
# "정상"인지 가리는 기준은 셋입니다. float64에서 사라집니다. 반올림만 그렇습니다. *단일* 프로세스에서 배치 순서만
# 바꿔도 이만한 차이는 생깁니다. 그리고 옵티마이저의 갱신량(`lr`)보다 훨씬 작습니다. Adam은 그래디언트를 자기
# 크기로 나누므로 0 근처에서는 반올림이 갱신량의 일부가 됩니다. 30%까지 허용합니다.
#
# 마지막 줄은 둘째와 셋째 기준을 크게 넘는데 **첫 손실은 맞습니다**. 순전파에는 `copy_to`가 필요 없기
# 때문입니다. 오류도 경고도 없습니다. 손실만 확인했다면 그냥 넘어갔을 것입니다.
# %% [markdown] lang="en"
# ## The vocabulary
#
# Embedding and output layer are the largest matrices of a small model, and are cut by tokens. But 4
# ranks do not divide 50,257 tokens. What if the remainder is simply dropped? Eleven tokens here, so
# that the effect is large; the model is sure of the right token.
# %% [markdown] lang="ko" en="e549f235"
# ## 어휘
#
# 작은 모델에서 가장 큰 행렬은 임베딩과 출력층이고, 토큰으로 나눕니다. 그런데 토큰 50,257개는 랭크 4개로
# 나누어떨어지지 않습니다. 나머지를 그냥 버리면 어떻게 될까요? 여기서는 효과가 잘 보이도록 토큰이 11개뿐이고,
# 모델은 정답을 확신합니다.
# %%
# %%ranks --fast
from dlcourse.parallel.tensor_vocabulary import _CrossEntropy, parallel_cross_entropy

torch.manual_seed(0)
V = 11
logits, targets = torch.randn(500, V), torch.randint(V, (500,))
logits[torch.arange(500), targets] += 4
logits, targets = logits.to(device), targets.to(device)
exact = F.cross_entropy(logits, targets).item()
width = V // world_size
naive = _CrossEntropy.apply(logits.narrow(1, rank * width, width), targets, None).item()
padded = F.pad(logits, (0, -V % world_size)).chunk(world_size, dim=1)[rank]
padded = parallel_cross_entropy(padded, targets, vocab_size=V).item()
# %%
exact, naive, padded = (ranks[name][0] for name in ("exact", "naive", "padded"))
vocabulary_off = abs(naive / exact - 1)
numbers = {"right": f"{exact:.4f}", "naive": f"{naive:.4f}", "padded": f"{padded:.4f}"}
print(t(".naive_vocabulary", off=f"{vocabulary_off:.0%}", **numbers))
assert abs(padded - exact) < 1e-5 and vocabulary_off > 0.1
# %% [markdown] lang="en"
# Again no error from the sums themselves; `parallel_cross_entropy` refuses a target that no rank has.
# So the vocabulary is **padded** with zeros to the next multiple, and the loss masks
# the padding. Megatron pads to a multiple of 128 a rank: 50,257 becomes 51,200 over 8.
#
# And the loss? Joining the logits would send $V$ numbers for each token. Softmax needs less: the
# largest logit, the sum of exponentials, the target's logit. **Three** numbers, for any $V$.
# %% [markdown] lang="ko" en="b9d36bf3"
# 이번에도 합을 구하는 데서는 오류가 없습니다. 어느 랭크에도 없는 정답은 `parallel_cross_entropy`가 거부합니다. 그래서 어휘를 다음 배수까지 0으로 **덧붙이고**, 손실에서는 덧붙인 곳을 가립니다.
# Megatron은 랭크마다 128의 배수로 맞춥니다. 랭크가 8개면 50,257이 51,200이 됩니다.
#
# 손실은요? 로짓을 모으려면 토큰마다 숫자 $V$개를 보내야 합니다. softmax에는 그만큼 필요 없습니다. 가장 큰 로짓,
# 지수의 합, 정답의 로짓이면 됩니다. $V$가 얼마든 숫자 **세 개**입니다.
# %%
show("dlcourse.parallel.tensor_vocabulary:_CrossEntropy")
# %% [markdown] lang="en"
# ## Memory, and sequence parallelism
#
# Now everything is cut: a quarter of the parameters, gradients and optimizer state in each of four
# ranks. But not a quarter of the *activations*: LayerNorm and residual work on the whole stream, the
# same in every rank.
#
# **Sequence parallelism** cuts that too. An all-reduce is a reduce-scatter and then an all-gather.
# Leave with the first, keep only your positions, enter with the second. **Predict**: how many times
# the bytes of tensor parallelism does this send?
# %% [markdown] lang="ko" en="e3c7ad11"
# ## 메모리와 시퀀스 병렬화
#
# 이제 모두 나뉘었습니다. 랭크가 네 개면 파라미터, 그래디언트, 옵티마이저 상태(optimizer state)가 각각 4분의
# 1입니다. 그런데 *활성화값*(activation)은 그렇지 않습니다. LayerNorm과 잔차 스트림의 덧셈은 랭크마다 똑같이 전체를
# 계산합니다.
#
# **시퀀스 병렬화**(sequence parallelism)는 이것도 나눕니다. 올리듀스는 리듀스스캐터(reduce-scatter) 다음에
# 올게더를 한 것과 같습니다. 나올 때 앞의 것만 하고, 자기 위치만 지니고 있다가, 들어갈 때 뒤의 것을 합니다.
# **예측해 보세요.** 보내는 바이트는 텐서 병렬화의 몇 배일까요?
# %%
predict("04.sequence", ..., formula=1, unit="")
# %%
show("dlcourse.parallel.sequence:_GatherSequence,_ScatterSequence")
# %%
# %%ranks
model = block = None
gc.collect()
model = GPT().to(device)
# %%
# %%ranks --as alone
losses = train(model, corpus, steps=2, batch_size=2)
# %%
# %%ranks
model = None
gc.collect()
model = tensor_parallel(GPT(seed=0).to(device))
# %%
# %%ranks --as tensor
tensor_losses = train(model, corpus, steps=2, batch_size=2)
# %%
# %%ranks
from dlcourse.parallel.sequence import sequence_parallel

model = None
gc.collect()
model = sequence_parallel(GPT(seed=0).to(device))
# %%
# %%ranks --as sequence
sequence_losses = train(model, corpus, steps=2, batch_size=2)
# %%
sent = {name: run.comm.ranks[0]["wire_bytes"] / 2 for name, run in (("t", tensor), ("s", sequence))}
compare("04.sequence", sent["s"] / sent["t"])
losses = zip(ranks["tensor_losses"][0], ranks["sequence_losses"][0], strict=True)
assert max(abs(a - b) for a, b in losses) < 1e-4
assert abs(sent["s"] / sent["t"] - 1) < 0.1
# %%
rows = []
for name, run in (("alone", alone), ("tensor", tensor), ("sequence", sequence)):
    one = run.memory.ranks[0]
    kept = [one["peak_bytes"], one["at_peak"]["parameters"], one["at_peak"]["activations"]]
    sizes = [human_bytes(size) for size in (*kept, run.comm.ranks[0]["wire_bytes"] / 2)]
    rows.append([t(f".peak.{name}"), *sizes])
heads = ("peak.kind", "peak", "peak.parameters", "peak.activations", "peak.sent")
peaks = [run.memory.ranks[0]["at_peak"]["activations"] for run in (alone, tensor, sequence)]
assert peaks[0] > peaks[1] > peaks[2]
Table([t(f".{key}") for key in heads], rows)
# %% [markdown] lang="en"
# As many bytes, and fewer activations. (The small rest: a rank knows LayerNorm's gradients for its
# own positions only, so they are summed once a step.) The reduce-scatter is this course's; Gloo's own
# is an all-reduce inside.
#
# What is left lies inside the matrices: this code keeps the gathered input for backward. Megatron
# gathers it again.
# %% [markdown] lang="ko" en="17088998"
# 바이트는 같고 활성화값은 줄었습니다. (조금 남는 것은 LayerNorm의 그래디언트입니다. 랭크마다 자기 위치의 몫만
# 알기 때문에 스텝마다 한 번 더합니다.) 리듀스스캐터는 이 과정의 것입니다. Gloo의 것은 속이 올리듀스입니다.
#
# 남은 활성화값은 행렬 안쪽에 있습니다. 이 코드는 모은 입력을 역전파까지 두고, Megatron은 버렸다가 다시 모읍니다.
# %% [markdown] lang="en"
# ## Long sequences: context parallelism
#
# With 128,000 tokens, one sequence is too long for one rank, attention included. Cut it for good: each
# rank keeps its positions through all layers. Only attention must look elsewhere. So **keys and
# values go round the ring**, while each rank attends to what it has:
#
# ```mermaid
# flowchart LR
#   R0[rank 0: my queries] -- keys, values --> R1[rank 1: my queries] -- keys, values --> R2[rank 2]
#   R2 -- keys, values --> R3[rank 3] -- keys, values --> R0
# ```
#
# Attention over two sets of keys can be computed apart: with each set's log-sum-exp the two results
# combine into the exact softmax over both.
# %% [markdown] lang="ko" en="c5ddf500"
# ## 긴 시퀀스: 컨텍스트 병렬화(context parallelism)
#
# 토큰이 12만 8천 개라면 시퀀스 하나가 랭크 하나에 너무 깁니다. 어텐션까지 그렇습니다. 그러면 아예 나눕니다.
# 랭크마다 모든 층에서 자기 위치만 맡습니다. 다른 곳을 봐야 하는 것은 어텐션뿐입니다. 그래서 **키와 값이 링을
# 돌고**, 랭크는 그때그때 가진 것에 어텐션을 합니다.
#
# ```mermaid
# flowchart LR
#   R0[랭크 0의 쿼리] -- 키, 값 --> R1[랭크 1의 쿼리] -- 키, 값 --> R2[랭크 2]
#   R2 -- 키, 값 --> R3[랭크 3] -- 키, 값 --> R0
# ```
#
# 키를 두 묶음으로 나눠 따로 계산해도, 묶음마다 log-sum-exp를 알면 둘을 합쳐 전체 softmax를 정확하게 구할 수
# 있습니다.
# %% source="dlcourse.parallel.context:merge"
# %%
show("dlcourse.parallel.context:_RingAttention")
# %% [markdown] lang="en"
# **Predict.** One sequence of 64 positions, shared by the ranks; 4 heads of 32 float32 numbers each.
# How many bytes does a rank send in forward? (Keys *and* values move; count how often.)
# %% [markdown] lang="ko" en="fbff1343"
# **예측해 보세요.** 위치 64개짜리 시퀀스 하나를 랭크들이 나눠 맡습니다. float32 숫자 32개짜리 헤드가 4개입니다. 랭크
# 하나는 순전파에서 몇 바이트를 보낼까요? (키*와* 값이 움직입니다. 몇 번 넘기는지 세어 보세요.)
# %%
predict("04.ring", ..., formula=(num_ranks - 1) * 2 * 4 * (64 // num_ranks) * 4 * 32, unit="bytes")
# %%
# %%ranks --as ring
from dlcourse.parallel.context import blocks_of_work, ring_attention, split_sequence

random = torch.Generator().manual_seed(0)
whole = [torch.randn(1, 4, 64, 32, generator=random).to(device).requires_grad_() for _ in "qkv"]
q, k, v = (split_sequence(x.detach(), dim=2).requires_grad_() for x in whole)
out = ring_attention(q, k, v)
# %%
compare("04.ring", ring.comm.ranks[0]["ops"]["send"]["bytes"])
# %%
# %%ranks
full = F.scaled_dot_product_attention(*whole, is_causal=True)
mine = torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True)
pairs = [(out, full), *zip(mine, torch.autograd.grad(full.square().sum(), whole))]
ring_off = max((a - split_sequence(b, dim=2)).abs().max().item() for a, b in pairs)
work = [[blocks_of_work(r, world_size, balanced=b) for r in range(world_size)] for b in (False, True)]
# %%
assert max(ranks["ring_off"]) < 1e-5
plain, balanced = ranks["work"][0]
names = [t("figure.rank", rank=r) for r in range(num_ranks)]
bars_figure(
    names,
    {t(".context.plain"): plain, t(".context.balanced"): balanced},
    axis=t(".context.axis"),
    title=t(".context.title", ratio=f"{plain[-1] / plain[0]:g}"),
)
# %% [markdown] lang="en"
# Output and gradients equal full attention (float32: below 1e-5). The bars count blocks of
# $\frac{T}{2p}$ queries times as many keys (this code computes diagonal ones whole, then masks half) and
# show a trap: with causal attention the first positions have little to read, and all ranks wait for
# the last. The zig-zag split gives each rank one early and one late chunk: equal work.
#
# ## Beside the real libraries
#
# torch's DTensor does this from a plan: `ColwiseParallel`, `RowwiseParallel`. Same model, same data,
# blocks only. megatron-core has layers like ours; its row is a recorded run. Where it is installed,
# `megatron = True` runs it here.
# %% [markdown] lang="ko" en="6bbd642a"
# 출력과 그래디언트가 전체 어텐션과 같습니다(float32에서 1e-5 미만). 막대는 쿼리와 키가
# $\frac{T}{2p}$개씩인 칸을 센 것입니다(이 코드는 대각선의 칸도 다 계산한 뒤 절반을 가립니다). 여기에 함정이
# 있습니다. 인과적(causal) 어텐션에서 앞쪽 위치는 읽을 것이 적어서, 모두 마지막 랭크를 기다립니다. 지그재그로
# 나누면 랭크마다 앞 조각 하나와 뒤 조각 하나를 맡아 일이 같아집니다.
#
# ## 실제 라이브러리와 나란히
#
# torch의 DTensor는 계획표만 주면 같은 일을 합니다. `ColwiseParallel`, `RowwiseParallel`입니다. 같은 모델, 같은
# 데이터로 블록만 나눕니다. megatron-core에도 비슷한 층이 있고, 그 줄은 기록해 둔 실행입니다. 설치되어 있으면
# `megatron = True`로 여기서 실행할 수 있습니다.
# %%
# %%ranks --fast
from dlcourse.peers import tensor_parallel as peers
from dlcourse.peers.comparison import compare_steps, one_step

megatron = False
cuts = {
    "ours": lambda gpt: tensor_parallel(gpt, vocabulary=False),
    "dtensor": peers.tensor_parallel,
    "dtensor_plain": lambda gpt: peers.tensor_parallel(gpt, prepare_input=False),
}
if megatron:
    cuts["megatron"] = peers.megatron_parallel
batch = [half.to(device) for half in corpus.batch(0, micro_batch=2)]


# %%
# %%ranks --fast
def stepping(name):
    model = cuts[name](GPT(seed=0).to(device))
    return one_step(model, torch.optim.AdamW(model.parameters()), *batch)


def row(name):
    return compare_steps(lambda: stepping(name), reference)


model = None
names, installed = [*cuts], peers.megatron_installed()
reference = stepping("dtensor")
# %%
found = {}
for name in ranks["names"][0]:
    ranks.cell(f"found = row({name!r})", record=False)
    found[t(f".library.{name}")] = ranks["found"]
ranks.cell("del reference", record=False)
assert [of[0]["calls"] for of in found.values()][:3] == [16, 16, 24]
assert len({f"{of[0]['loss']:.4f}" for of in found.values()}) == 1
# %%
import json

from dlcourse.course.catalog import course_root, room

told = json.loads((room(course_root(), "04_tensor_parallel") / "megatron_core.json").read_text())
name = t(".recorded", name=f"{told['library']} {told['version']}", date=told["date"])
print(t(f".library.{'' if ranks['installed'][0] else 'not_'}installed"))
library_comparison_table(found, reference="DTensor", recorded={name: told["ranks"]})
# %% [markdown] lang="en"
# Same loss. But 24 all-reduces in one row: q, k and v each summed the gradient of the same input. In
# DTensor, `PrepareModuleInput` makes that input one replicated tensor first; here, one `copy_to` stands
# before all three. It is your third exercise.
#
# Back to the example that opened this lesson, which is claim B2:
# %% [markdown] lang="ko" en="a652322c"
# 손실이 같습니다. 그런데 한 줄은 올리듀스가 24번입니다. q, k, v가 같은 입력의 그래디언트를 저마다 더했기
# 때문입니다. DTensor에서는 `PrepareModuleInput`이 그 입력을 먼저 복제된 텐서 하나로 만들고, 여기서는 셋 앞에
# `copy_to`를 하나 둡니다. 세 번째 연습 문제입니다.
#
# 첫머리의 예, 곧 주장 B2로 돌아갑시다.
# %%
claim(
    "B2",
    columns=held,
    apart=column_apart,
    sent=gathered,
    ways=way_a["wire_bytes"] / way_b["wire_bytes"],
)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("04.row")` helps; `solution("04.row")` shows an
# answer.
#
# **1. `04.row`** (3 minutes). `x` holds this rank's columns, (N, I/p); `weight` its part, (O, I/p);
# `bias` is whole. Return what the whole layer returns, with one all-reduce.
# %% [markdown] lang="ko" en="7ea43283"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("04.row")`는 도움말, `solution("04.row")`는 답입니다.
#
# **1. `04.row`** (3분). `x`는 이 랭크의 열 (N, I/p), `weight`는 자기 조각 (O, I/p), `bias`는 전체입니다.
# 올리듀스 한 번으로 층 전체의 출력을 돌려주세요.
# %% exercise="04.row"
# %%ranks
def row_parallel(x, weight, bias):
    raise NotImplementedError


# %%
check("04.row")
# %% [markdown] lang="en"
# **2. `04.norm`** (8 minutes). Clipping needs the norm of the *whole* gradient. `in_parts` are this
# rank's parts of gradients that are cut; `whole` are gradients that every rank has, equal (LayerNorm).
# Return the norm that one process would find. Send one number.
# %% [markdown] lang="ko" en="86fa6c28"
# **2. `04.norm`** (8분). 그래디언트를 자르려면(clipping) *전체* 그래디언트의 크기(norm)를 알아야 합니다.
# `in_parts`는 나뉜 그래디언트 가운데 이 랭크의 조각들, `whole`은 모든 랭크가 똑같이 가진 것들(LayerNorm)입니다.
# 단일 프로세스가 구했을 값을 돌려주세요. 숫자 하나만 보냅니다.
# %% exercise="04.norm"
# %%ranks
def gradient_norm(in_parts, whole):
    raise NotImplementedError


# %%
check("04.norm")
# %% [markdown] lang="en"
# **3. `04.all_reduces`** (10 minutes). This cell works, and takes 24 all-reduces for 4 layers. Make it
# 16, with every gradient still right. (There is a wrong way to 16. The check knows it.)
# %% [markdown] lang="ko" en="c7941450"
# **3. `04.all_reduces`** (10분). 이 셀은 잘 돌지만 4층에 올리듀스가 24번입니다. 모든 그래디언트가 그대로 맞으면서
# 16번이 되게 고치세요. (16번이 되는 틀린 방법도 있습니다. 채점이 알아봅니다.)
# %% exercise="04.all_reduces"
# %%ranks
from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear, copy_to


def cut(block):
    attention, mlp = block.attention, block.mlp
    attention.n_head //= world_size
    attention.q = ColumnParallelLinear(attention.q)
    attention.k = ColumnParallelLinear(attention.k)
    attention.v = ColumnParallelLinear(attention.v)
    attention.proj = RowParallelLinear(attention.proj)
    mlp.up, mlp.down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)


# %%
check("04.all_reduces")
# %% [markdown] lang="en"
# **4. `04.loss`** (20 minutes). `logits` (N, V/p) are this rank's columns of a padded vocabulary, of
# which `vocab_size` tokens are real; `targets` (N) are the same everywhere. Return the mean
# cross-entropy and the gradient of this rank's logits. At most 4 numbers a token may be sent.
# %% [markdown] lang="ko" en="b95619e0"
# **4. `04.loss`** (20분). `logits` (N, V/p)는 덧붙인 어휘 가운데 이 랭크의 열이고, 진짜 토큰은 `vocab_size`개입니다.
# `targets` (N)는 모두 같습니다. 평균 교차 엔트로피와 이 랭크 로짓의 그래디언트를 돌려주세요. 토큰마다 숫자 네
# 개까지만 보낼 수 있습니다.
# %% exercise="04.loss"
# %%ranks
def vocab_loss(logits, targets, vocab_size):
    raise NotImplementedError


# %%
check("04.loss")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# Nothing hides, so tensor parallelism stays inside a node. In Megatron's published runs, from 1.7B to
# 1008B parameters, its size never exceeds 8, a node [3]; Llama 3 405B: 8 too [4].
#
# First this lesson's classes as **one rank of 1,024** (128 × 8) of a 7B model, on tensors without
# numbers: bytes are exact, times mean nothing. Then derived: milliseconds of the all-reduces among 8
# ranks in bf16 (half of those bytes), over NVLink, 450 GB/s each way [1], and over a 400 Gb/s card
# [2]; and of computing 2048 tokens, 6
# FLOP a parameter and token, at an assumed 400 TFLOP/s. No GPU run of this lesson is recorded yet.
# %% [markdown] lang="ko" en="99722ab6"
# ## GPU 클러스터에서는
#
# 숨길 수 없는 통신이라 텐서 병렬화는 노드 안에 둡니다. Megatron이 발표한 1.7B부터 1008B까지의 실행에서 텐서 병렬화의
# 크기는 노드 하나인 8을 넘지 않고[3], Llama 3 405B도 8입니다[4].
#
# 먼저 이 레슨의 클래스를 숫자 없는 텐서로 돌려 7B 모델의 **랭크 1,024개(128 × 8) 가운데 하나**가 되어 봅니다.
# 바이트는 정확하고 시간은 뜻이 없습니다. 다음은 계산입니다. 랭크 8개의 올리듀스가 bf16(그 바이트의 절반)으로
# 방향마다 450 GB/s인 NVLink[1]와 400 Gb/s 카드[2]에서 몇 밀리초인지, 토큰 2048개를(파라미터와 토큰마다 6 FLOP) 400
# TFLOP/s로 계산한다고 할 때의 시간과 견줍니다. 이 레슨의 GPU 실행 기록은 아직 없습니다.
# %%
from dlcourse.plan.scale import scale

one_of_many = scale("04_tensor_parallel", model="7b", world=1024, tensor=8)
one_of_many
# %% tags=["nbval-check-output"]
inside = sum(row["sent_bytes"] for row in one_of_many.comm if row["group_size"] == 8) / 2
times = {"NVLink": inside / 450e9, "card": inside / 50e9, "compute": 6 * 7e9 * 2048 / 8 / 400e12}
{name: f"{1e3 * seconds:.0f} ms" for name, seconds in times.items()}
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Columns, then rows: one all-reduce in forward, one in backward, and none between.
# 2. Four all-reduces of tokens × width a layer, and none can hide: stay inside a node.
# 3. Rounding vanishes in float64; a forgotten sum does not. The first loss tells nothing.
# 4. Pad the vocabulary and mask it; 3 numbers a token make the loss.
# 5. Sequence parallelism cuts activations for the same bytes; a ring cuts attention itself.
#
# Sources: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/).
# [2] [DGX H100 guide](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [Narayanan et al., SC21](https://arxiv.org/abs/2104.04473), table 1.
# [4] [Llama 3](https://arxiv.org/abs/2407.21783), table 4.
# Methods: [Megatron-LM](https://arxiv.org/abs/1909.08053),
# [sequence parallelism](https://arxiv.org/abs/2205.05198),
# [ring attention](https://arxiv.org/abs/2310.01889).
# %% [markdown] lang="ko" en="5ed3e3ca"
# ## 다섯 줄 요약
#
# 1. 열 다음에 행입니다. 순전파에 올리듀스 한 번, 역전파에 한 번, 그 사이에는 없습니다.
# 2. 층마다 토큰 × 폭 크기의 올리듀스가 네 번이고 숨길 수 없습니다. 노드 안에 두세요.
# 3. 반올림은 float64에서 사라지고, 빠뜨린 합은 사라지지 않습니다. 첫 손실만 봐서는 모릅니다.
# 4. 어휘는 덧붙이고 가립니다. 손실에는 토큰마다 숫자 세 개면 됩니다.
# 5. 시퀀스 병렬화는 같은 바이트로 활성화값을 나누고, 링은 어텐션 자체를 나눕니다.
#
# 출처: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/).
# [2] [DGX H100 안내서](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [Narayanan 외, SC21](https://arxiv.org/abs/2104.04473) 표 1.
# [4] [Llama 3](https://arxiv.org/abs/2407.21783) 표 4.
# 방법: [Megatron-LM](https://arxiv.org/abs/1909.08053),
# [시퀀스 병렬화](https://arxiv.org/abs/2205.05198),
# [링 어텐션](https://arxiv.org/abs/2310.01889).
# %%
quiz()
