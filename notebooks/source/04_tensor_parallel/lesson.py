# %% [markdown] lang="en" form="core"
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
# [lesson 03](03_data_parallel.ipynb).
#
# Time: reading 19 min + exercises 41 min.
# %% [markdown] lang="ko" en="2243b825"
# # 04 텐서 병렬화(tensor parallelism): 층 하나를 여러 GPU에
#
# 파라미터 700억 개는 16비트로 140 GB인데 GPU 메모리는 80 GB입니다. 데이터 병렬화로는 풀리지 않습니다. 랭크마다
# 140 GB를 통째로 가져야 하기 때문입니다. 배치를 줄여도 소용없습니다. *가중치*가 너무 큽니다.
#
# 그러니 GPU마다 모든 행렬의 한 조각씩만 가져야 합니다. 그러면 누가 무엇을 계산할 수 있을까요? 층마다
# 순전파와 역전파에서 무엇을 보내야 할까요?
#
# [레슨 01](01_collectives.ipynb)의 올리듀스(all-reduce)와 올게더(all-gather),
# [레슨 03](03_data_parallel.ipynb)의 GPT를 알면 됩니다.
#
# 시간: 읽기 19분 + 연습 41분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
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
#
# Below are both cuts in code, and this lesson's idea: one matrix by columns, the next by rows. Note:
# torch stores a weight as (outputs, inputs), so "columns" are rows of the tensor.
# %% [markdown] lang="ko" en="da8e620e"
# 행렬을 자르는 방법은 둘입니다. **열**로 자르면 랭크(rank)마다 출력의 일부를 완전하게 계산합니다. **행**으로
# 자르면 랭크마다 입력의 일부를 받아, 모든 출력의 부분합을 하나씩 계산합니다.
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
#
# 아래는 두 방법의 코드이고, 한 행렬은 열로, 다음 행렬은 행으로 자르는 것이 이 레슨의 핵심입니다. torch는 가중치를
# (출력, 입력) 모양으로 저장하므로 여기서 말하는 "열"은 텐서의 행입니다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore, hint, lesson
from dlcourse import predict, quiz, solution
from dlcourse.figures.matrix_cut import CUTS, cut_and_sent
from dlcourse.figures.tensor_parallel import calls_a_step, check_ranks, figures_of_b2, most_sent
from dlcourse.figures.tensor_parallel import sequence_over_tensor, show_apart, show_cluster
from dlcourse.figures.tensor_parallel import show_gelu, show_gradients, show_libraries
from dlcourse.figures.tensor_parallel import show_parts, show_peaks, show_ring, show_timeline
from dlcourse.figures.tensor_parallel import show_one_of_many, show_vocabulary, show_ways
from dlcourse.figures.tensor_parallel import show_work, ways_ratio
from dlcourse.parallel.divisibility import check_tensor_parallel

lesson(lang=lang, name="04_tensor_parallel")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device=device)
# %% hidden=true
# %%ranks --fast
import gc

from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT
from dlcourse.parallel.tensor import copy_to, parallel_blocks, tensor_parallel, train

corpus, steps = Corpus(), 5
# %%
# %%ranks --fast
def columns(weight):
    return weight.chunk(world_size, dim=0)[rank]


def rows(weight):
    return weight.chunk(world_size, dim=1)[rank]


def columns_then_rows(x, up, down):
    mine = F.gelu(F.linear(x, columns(up)))  # some of the hidden values, complete
    y = F.linear(mine, rows(down))  # a summand of every output
    dist.all_reduce(y)
    return y
# %% [markdown] lang="en"
# First the example that everybody gives, one layer alone: 4096 × 4096, cut by columns over 4 ranks.
# Each has 1024 columns, and an all-gather puts the output together.
#
# **Predict.** 64 tokens go through it, so the whole output has 64 × 4096 numbers of 4 bytes. How many
# bytes does each of 4 ranks send in that all-gather?
# %% [markdown] lang="ko" en="3b7d453c"
# 먼저 누구나 드는 예, 층 하나만 봅시다. 4096 × 4096 선형 층을 랭크 네 개에 열로 나눕니다. 각각 1024열을 갖고,
# 올게더로 출력을 모읍니다.
#
# **예측해 보세요.** 토큰 64개가 지나가므로 출력 전체는 4바이트 숫자 64 × 4096개입니다. 랭크가 네 개일 때 이
# 올게더에서 랭크 하나는 몇 바이트를 보낼까요?
# %%
predict("04.gather")
# %%
# %%ranks --fast
def gathered(x, weight):
    mine = F.linear(x, columns(weight))
    parts = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(parts, mine)
    return torch.cat(parts, dim=-1)
# %% hidden=true
# %%ranks --as large
torch.manual_seed(0)
whole = nn.Linear(4096, 4096, bias=False).to(device).weight.detach()
x = torch.randn(64, 4096, device=device)
before = wire_counters()
y = gathered(x, whole)
sent = wire_counters()[0] - before[0] if before else None
held, off = len(columns(whole)), (y - F.linear(x, whole)).abs().max().item()
whole = x = y = None
# %%
compare("04.gather", most_sent(ranks["sent"], large))
show_parts(ranks["held"], ranks["off"])
# %% [markdown] lang="en"
# ## By columns, then by rows
#
# But is the all-gather *needed*? A layer is seldom alone. In an MLP a second matrix follows, and if
# that one is cut by rows, rank 0 needs just the part of the input that rank 0 has made. Nothing is
# sent between the two.
#
# **Predict.** An MLP, 128 → 512 → 128. Way A: both matrices by columns, an all-gather after each.
# Way B: columns, then rows, and one all-reduce. How many times as many bytes does A send in forward?
#
# (For $S$ bytes over $p$ ranks an all-gather sends $\frac{p-1}{p}S$, an all-reduce twice that.)
# %% [markdown] lang="ko" en="d15d505a"
# ## 열로 자르고, 행으로 자르기
#
# 그런데 올게더가 *꼭 필요할까요?* 층은 보통 혼자 있지 않습니다. MLP라면 두 번째 행렬이 이어집니다. 그것을 행으로
# 자르면, 랭크 0에 필요한 입력은 바로 랭크 0이 방금 만든 조각입니다. 둘 사이에는 보낼 것이 없습니다.
#
# **예측해 보세요.** 128 → 512 → 128인 MLP가 있습니다. 방법 A는 두 행렬을 모두 열로 자르고 그때마다 올게더를
# 합니다. 방법 B는 열 다음에 행으로 자르고 올리듀스를 한 번 합니다. 순전파에서 A는 B의 몇 배를 보낼까요?
#
# (랭크 $p$개에서 $S$바이트를 올게더하면 $\frac{p-1}{p}S$, 올리듀스하면 그 두 배를 보냅니다.)
# %%
predict("04.ways")
# %% hidden=true
# %%ranks --fast
torch.manual_seed(0)
up, down = nn.Linear(128, 512).weight.detach(), nn.Linear(512, 128).weight.detach()
x, up, down = torch.randn(64, 128).to(device), up.to(device), down.to(device)
mlp_out = F.linear(F.gelu(F.linear(x, up)), down)


def off_by(y):
    return ((y - mlp_out).norm() / mlp_out.norm()).item()
# %%
# %%ranks --as way_a
y_a = gathered(F.gelu(gathered(x, up)), down)
# %%
# %%ranks --as way_b
y_b = columns_then_rows(x, up, down)
right = off_by(y_b)
# %%
compare("04.ways", ways_ratio(way_a, way_b))
show_ways(way_a, way_b, ranks["right"])
# %% [markdown] lang="en"
# Why not rows first? Each rank would hold a *summand* of the hidden layer, and GELU of a sum is not
# the sum of GELUs. One more all-reduce would be needed before it. What happens if you forget it?
# %% [markdown] lang="ko" en="ce1b492d"
# 행을 먼저 자르면 안 될까요? 그러면 랭크마다 가진 것은 은닉층의 *부분합*인데, 합의 GELU는 GELU의 합이 아닙니다.
# GELU 앞에서 올리듀스를 한 번 더 해야 합니다. 잊으면 어떻게 될까요?
# %%
# %%ranks --fast
summand = F.linear(x.chunk(world_size, -1)[rank], rows(up))
y = F.linear(F.gelu(summand), down)  # the sum comes too late
dist.all_reduce(y)
wrong = off_by(y)
# %%
show_gelu(ranks["wrong"], ranks["right"])
# %% [markdown] lang="en"
# No error, only a wrong number.
#
# There are four ways to cut two matrices. Move the sliders: which way sends least? And with more
# ranks, what becomes less, the weights in each rank or the bytes that it sends? (Forward goes to the
# right, backward to the left; why backward sends anything is next.)
# %% [markdown] lang="ko" en="dfd9242a"
# 오류는 없고 숫자만 틀렸습니다.
#
# 행렬 두 개를 자르는 방법은 네 가지입니다. 슬라이더를 움직여 가장 적게 보내는 방법을 찾아보세요. 그리고 랭크를 늘리면
# 랭크 하나의 가중치와 보내는 바이트 가운데 무엇이 줄어들까요? (순전파는 오른쪽, 역전파는 왼쪽입니다. 역전파에서 왜
# 보내는지는 바로 다음에 나옵니다.)
# %%
explore(cut_and_sent, first=CUTS, second=CUTS, ranks=[1, 2, 4, 8])
# %% [markdown] lang="en"
# Columns, then rows: nothing in the middle, where tensors are widest. With more ranks the weights of
# each shrink in proportion, while the bytes even grow a little, towards twice the size of $x$ in each
# direction.
#
# ## Backward
#
# Each rank's columns use *all* of $x$, so a rank knows only a summand of the gradient of $x$: backward
# must **sum** it. At the other end forward sums, and every summand gets the same gradient: backward has
# nothing to do. Two functions say so, each the mirror of the other.
# %% [markdown] lang="ko" en="bea88282"
# 열 다음에 행이면 텐서가 가장 넓은 가운데에서 아무것도 보내지 않습니다. 랭크가 늘면 가중치는 그만큼 줄지만 보내는
# 바이트는 오히려 조금씩 늘어, 방향마다 $x$ 크기의 두 배에 가까워집니다.
#
# ## 역전파
#
# 랭크의 열은 $x$ *전체*를 쓰므로, 랭크 하나가 아는 것은 $x$의 그래디언트(gradient)의 부분합뿐입니다. 그래서
# 역전파에서 **더해야** 합니다. 반대쪽 끝에서는 순전파가 더하고, 모든 부분합이 같은 그래디언트를 받으므로 역전파에서는
# 할 일이 없습니다. 서로 거울 같은 두 함수입니다.
# %%
# %%ranks --fast
class CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
# %%
# %%ranks --fast
class ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad
# %% [markdown] lang="en"
# **Predict.** The MLP of before, 64 tokens of 128 float32 numbers, 4 ranks. Its forward sent 48 KiB a
# rank. How many bytes does a rank send in backward?
# %% [markdown] lang="ko" en="1973b73b"
# **예측해 보세요.** 앞의 MLP이고, 토큰 64개에 float32 숫자가 128개씩, 랭크는 네 개입니다. 순전파에서는 랭크마다
# 48 KiB를 보냈습니다. 역전파에서는 몇 바이트를 보낼까요?
# %%
predict("04.backward")
# %%
# %%ranks --fast
parameters = [tensor.clone().requires_grad_() for tensor in (x, up, down)]
x1, up1, down1 = parameters
hidden = F.gelu(F.linear(CopyTo.apply(x1), columns(up1)))
y = ReduceFrom.apply(F.linear(hidden, rows(down1)))
# %%
# %%ranks --as going_back
y.square().sum().backward()
# %% hidden=true
# %%ranks --fast
alone = [tensor.clone().requires_grad_() for tensor in (x, up, down)]
F.linear(F.gelu(F.linear(alone[0], alone[1])), alone[2]).square().sum().backward()
pairs = zip((lambda whole: whole, columns, rows), parameters, alone)
gradients_off = max(
    ((part(ours.grad) - part(one.grad)).norm() / part(one.grad).norm()).item()
    for part, ours, one in pairs
)
del parameters, alone, hidden, y, x1, up1, down1
# %%
compare("04.backward", going_back.comm.ranks[0]["wire_bytes"])
show_gradients(ranks["gradients_off"])
# %% [markdown] lang="en"
# One all-reduce each way: that is tensor parallelism. Folded below are the course's own layers, with
# biases, and with refusals of what does not divide.
#
# **Attention** is cut by heads. A head needs no other head until `proj` mixes them, so q, k and v are
# cut by columns (whole heads), and `proj` by rows. A head cannot be halved, and that is checked before
# any rank starts:
# %% [markdown] lang="ko" en="e266063b"
# 방향마다 올리듀스 한 번, 이것이 텐서 병렬화입니다. 아래에는 이 과정의 층을 접어 두었습니다. 편향(bias)이 있고,
# 나누어떨어지지 않으면 거부합니다.
#
# **어텐션**은 헤드로 나눕니다. 헤드는 `proj`가 섞기 전까지 다른 헤드가 필요 없습니다. 그래서 q, k, v는
# 열로(헤드째로), `proj`는 행으로 자릅니다. 헤드를 반으로 쪼갤 수는 없으므로 랭크를 시작하기도 전에 확인합니다.
# %% hidden=true source="dlcourse.parallel.tensor_layers:ColumnParallelLinear,RowParallelLinear"

# %% hidden=true source="dlcourse.parallel.tensor:parallel_mlp,parallel_attention"

# %%
with expect_failure("n_head=4 cannot be cut into 3"):
    check_tensor_parallel(n_head=4, n_embd=128, size=3)
# %% [markdown] lang="en"
# **Predict.** Our GPT has 4 layers, each with attention and an MLP. All are cut like this. How many
# all-reduces does one step take, forward and backward?
# %% [markdown] lang="ko" en="c66f5d7a"
# **예측해 보세요.** 우리 GPT는 4층이고 층마다 어텐션과 MLP가 있습니다. 모두 이렇게 자르면 한 스텝에 올리듀스는
# 순전파와 역전파를 합쳐 몇 번일까요?
# %%
predict("04.calls")
# %%
# %%ranks --as blocks
model = parallel_blocks(GPT().to(device))
losses = train(model, corpus, steps=steps, batch_size=2)
# %%
compare("04.calls", calls_a_step(blocks))
show_timeline(blocks)
# %% [markdown] lang="en"
# Each carries the whole residual stream, which flows from block to block: 2 sequences × 128 tokens ×
# width 128 × 4 bytes = 128 KiB. Unlike in lesson 03, nothing can hide here: the next layer cannot start
# before the sum is there.
#
# ## Is this difference normal?
#
# Is it the same training as in one process? The numbers will not be bitwise equal: four summands
# are added where one process adds once. So which difference is rounding, and which is a bug?
#
# Compare four trainings with one process. The last has forgotten the all-reduce of backward. Guess
# first: does its first loss show it?
# %% [markdown] lang="ko" en="2ab970e7"
# 한 번에 잔차 스트림(residual stream, 블록에서 블록으로 흐르는 활성화값) 전체를 보냅니다. 시퀀스 2개 × 토큰 128개 ×
# 폭 128 × 4바이트로 128 KiB입니다. 레슨 03과 달리 숨길 곳이 없습니다. 합이 와야 다음 층을 시작할 수 있습니다.
#
# ## 이 차이는 정상일까요?
#
# 단일 프로세스와 같은 학습일까요? 비트까지 같지는 않습니다. 혼자면 한 번에 더할 것을 부분합 네 개로 나누어 더하기
# 때문입니다. 그렇다면 어떤 차이가 반올림이고, 어떤 차이가 버그일까요?
#
# 네 가지 학습을 단일 프로세스와 비교합니다. 마지막 것은 역전파의 올리듀스를 빠뜨렸습니다. 먼저 맞혀 보세요. 첫
# 손실만 봐도 알 수 있을까요?
# %% hidden=true
# %%ranks --fast
model = None


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
show_apart(ranks["trials"])
# %% [markdown] lang="en"
# Three tests for "normal". It vanishes in float64: only rounding does that. It is of the size that
# reordering a batch makes in *one* process. And it is far below one step of the optimizer (`lr`): Adam
# divides a gradient by its own size, so near zero rounding becomes a part of a step: we allow 30% of it.
#
# The last row is far beyond, and its **first loss is right**: forward needs no `CopyTo`. No error, no
# warning. A check of the loss alone would have passed it.
# %% [markdown] lang="ko" en="308fb449"
# "정상"인지 가리는 기준은 셋입니다. 첫째, float64에서 사라집니다. 그렇게 사라지는 것은 반올림뿐입니다. 둘째, *단일*
# 프로세스에서 배치 순서만 바꿔도 이만한 차이는 생깁니다. 셋째, 옵티마이저의 갱신량(`lr`)보다 훨씬 작습니다. Adam은
# 그래디언트를 자기 크기로 나누므로 0 근처에서는 반올림이 갱신량의 일부가 됩니다. 갱신량의 30%까지 허용합니다.
#
# 마지막 줄은 기준을 크게 넘는데 **첫 손실은 맞습니다**. 순전파에는 `CopyTo`가 필요 없기 때문입니다. 오류도
# 경고도 없습니다. 손실만 확인했다면 그냥 넘어갔을 것입니다.
# %% [markdown] lang="en"
# ## Beside the real libraries
#
# torch's DTensor does this from a plan: `ColwiseParallel`, `RowwiseParallel`. Same model, same data,
# blocks only. megatron-core has layers like ours; its row is a recorded run.
# %% [markdown] lang="ko" en="ad9baa9d"
# ## 실제 라이브러리와 나란히
#
# torch의 DTensor는 계획표만 주면 같은 일을 합니다. `ColwiseParallel`, `RowwiseParallel`입니다. 같은 모델, 같은
# 데이터로 블록만 나눕니다. megatron-core에도 비슷한 층이 있고, 그 줄은 기록해 둔 실행입니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.peers import tensor_parallel as peers
from dlcourse.peers.comparison import compare_steps, one_step

megatron = False
cuts = {
    "ours": parallel_blocks,
    "dtensor": peers.tensor_parallel,
    "dtensor_plain": lambda gpt: peers.tensor_parallel(gpt, prepare_input=False),
}
if megatron:
    cuts["megatron"] = peers.megatron_parallel
batch = [half.to(device) for half in corpus.batch(0, micro_batch=2)]


def stepping(name):
    model = cuts[name](GPT(seed=0).to(device))
    return one_step(model, torch.optim.AdamW(model.parameters()), *batch)
# %% hidden=true
# %%ranks --fast
reference, libraries = stepping("dtensor"), {}
for name in cuts:
    gc.collect()
    libraries[name] = compare_steps(lambda name=name: stepping(name), reference)
installed, reference = peers.megatron_installed(), None
# %%
found = ranks["libraries"]
show_libraries({name: [of[name] for of in found] for name in found[0]}, ranks["installed"])
# %% [markdown] lang="en"
# Same loss. But 24 all-reduces in one row: q, k and v each summed the gradient of the same input. In
# DTensor, `PrepareModuleInput` makes that input one replicated tensor first; in our code one `CopyTo`
# (the function `copy_to`) stands before all three. It is your third exercise.
#
# Back to the example that opened this lesson, which is claim B2:
# %% [markdown] lang="ko" en="ca67275c"
# 손실이 같습니다. 그런데 한 줄은 올리듀스가 24번입니다. q, k, v가 같은 입력의 그래디언트를 저마다 더했기
# 때문입니다. DTensor에서는 `PrepareModuleInput`이 그 입력을 먼저 복제된 텐서 하나로 만들고, 우리 코드는 셋 앞에
# `CopyTo` 하나(함수 `copy_to`)를 둡니다. 세 번째 연습 문제입니다.
#
# 첫머리의 예, 곧 주장 B2로 돌아갑시다.
# %%
gather = most_sent(ranks["sent"], large)
claim("B2", **figures_of_b2(ranks["held"], ranks["off"], gather, ways_ratio(way_a, way_b)))
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
# **2. `04.norm`** (8분). 그래디언트를 클리핑(clipping)하려면 *전체* 그래디언트의 노름(norm)을 알아야 합니다.
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
# **4. `04.loss`** (20 minutes). The output layer can be cut by columns, too: then a rank has the logits
# of some tokens of the vocabulary. `logits` (N, V/p) are this rank's columns of a padded vocabulary, of
# which `vocab_size` tokens are real; `targets` (N) are the same everywhere. Return the mean
# cross-entropy and the gradient of this rank's logits, in code of your own. At most 4 numbers a token
# may be sent.
# %% [markdown] lang="ko" en="bc36a2ce"
# **4. `04.loss`** (20분). 출력층도 열로 자를 수 있습니다. 그러면 랭크마다 어휘 가운데 일부 토큰의 로짓만 갖습니다.
# `logits` (N, V/p)는 덧붙인 어휘 가운데 이 랭크의 열이고, 진짜 토큰은 `vocab_size`개입니다. `targets` (N)는 모두
# 같습니다. 평균 교차 엔트로피와 이 랭크 로짓의 그래디언트를 직접 계산해 돌려주세요. 토큰마다 숫자 네 개까지만 보낼 수
# 있습니다.
# %% exercise="04.loss"
# %%ranks
def vocab_loss(logits, targets, vocab_size):
    raise NotImplementedError
# %%
check("04.loss")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# Nothing hides, so tensor parallelism stays inside a node, where GPUs are linked by NVLink: 450 GB/s
# each way [1], against 50 GB/s over a 400 Gb/s network card [2]. First by formula, for 8 ranks and numbers of 2
# bytes (6 FLOP a parameter and token, at an assumed 400 TFLOP/s). Then published, on A100 GPUs: the
# rows of Megatron's table that have tensor and data parallelism alone [3].
# %% [markdown] lang="ko" en="b2481ac4"
# ## GPU 클러스터에서는
#
# 숨길 수 없는 통신이라 텐서 병렬화는 GPU가 NVLink로 이어진 노드 안에 둡니다. NVLink는 방향마다 450 GB/s이고[1],
# 400 Gb/s 네트워크 카드는 50 GB/s입니다[2]. 먼저 랭크 8개와 2바이트 숫자로 계산해 봅니다(파라미터와 토큰마다 6 FLOP, 400
# TFLOP/s로 계산한다고 가정). 다음은 A100 GPU에서 발표된 값으로, Megatron의 표에서 텐서 병렬화와 데이터 병렬화만 쓴
# 줄입니다[3].
# %% tags=["nbval-check-output"]
show_cluster()
# %% [markdown] lang="en"
# Over the network card the all-reduces take longer than all that is computed. Inside a node each of 8 GPUs is
# almost as fast as alone (the models grow along). The table's other rows reach 1008B parameters, none
# with more than 8 tensor-parallel ranks; Llama 3 405B has 8, too [4]. No GPU run of ours is recorded.
# %% [markdown] lang="ko" en="db89516c"
# 네트워크 카드로 보내면 올리듀스가 계산 전체보다 오래 걸립니다. 노드 안에서는 GPU 8개가 저마다 혼자일 때와 거의 같은 속도를 냅니다(모델도 함께
# 커집니다). 표의 나머지 줄은 파라미터 1조 80억 개까지 있지만 텐서 병렬화 랭크는 모두 8개이고, Llama 3 405B도
# 8개입니다[4]. 이 레슨의 GPU 실행 기록은 없습니다.
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Columns, then rows: one all-reduce in forward, one in backward, and none between.
# 2. GELU of a sum is not the sum of GELUs: rows first would need one more.
# 3. Four all-reduces of tokens × width a layer; more ranks do not make them smaller.
# 4. None can hide: stay inside a node.
# 5. Rounding vanishes in float64; a forgotten sum does not. The first loss tells nothing.
#
# Sources: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/).
# [2] [DGX H100 guide](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [Narayanan et al., SC21](https://arxiv.org/abs/2104.04473), table 1.
# [4] [Llama 3](https://arxiv.org/abs/2407.21783), table 4.
# The method: [Megatron-LM](https://arxiv.org/abs/1909.08053).
# %% [markdown] lang="ko" en="7a27b964"
# ## 다섯 줄 요약
#
# 1. 열 다음에 행입니다. 순전파에 올리듀스 한 번, 역전파에 한 번, 그 사이에는 없습니다.
# 2. 합의 GELU는 GELU의 합이 아닙니다. 행을 먼저 자르면 올리듀스가 하나 더 듭니다.
# 3. 층마다 토큰 × 폭 크기의 올리듀스가 네 번이고, 랭크를 늘려도 작아지지 않습니다.
# 4. 숨길 수 없으니 노드 안에 두세요.
# 5. 반올림은 float64에서 사라지고, 빠뜨린 합은 사라지지 않습니다. 첫 손실만 봐서는 모릅니다.
#
# 출처: [1] [NVIDIA H100](https://www.nvidia.com/en-us/data-center/h100/).
# [2] [DGX H100 안내서](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# [3] [Narayanan 외, SC21](https://arxiv.org/abs/2104.04473) 표 1.
# [4] [Llama 3](https://arxiv.org/abs/2407.21783) 표 4.
# 방법: [Megatron-LM](https://arxiv.org/abs/1909.08053).
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
# ### The vocabulary
#
# Embedding and output layer are the largest matrices of a small model, and are cut by tokens. But 4
# ranks do not divide 50,257 tokens. What if the remainder is simply dropped? Eleven tokens here, so
# that the effect is large; the model is sure of the right token.
# %% [markdown] lang="ko" en="16802d7d"
# ### 어휘
#
# 작은 모델에서 가장 큰 행렬은 임베딩과 출력층이고, 토큰으로 나눕니다. 그런데 토큰 50,257개는 랭크 4개로
# 나누어떨어지지 않습니다. 나머지를 그냥 버리면 어떻게 될까요? 효과가 잘 보이도록 어휘를 토큰 11개로 줄이고, 모델이
# 정답을 거의 확신하는 로짓을 넣습니다.
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
show_vocabulary(*(ranks[name][0] for name in ("exact", "naive", "padded")))
# %% [markdown] lang="en"
# Again the sums themselves raise no error; `parallel_cross_entropy` refuses a target that no rank has.
# So the vocabulary is **padded** with zeros to the next multiple, and the loss masks the padding.
# Megatron pads to a multiple of 128 a rank: 50,257 becomes 51,200 over 8.
#
# And the loss? Joining the logits would send $V$ numbers for each token. Softmax needs less: the
# largest logit, the sum of exponentials, the target's logit. **Three** numbers, for any $V$.
# %% [markdown] lang="ko" en="385747f5"
# 이번에도 합을 구하는 데서는 오류가 없습니다. 어느 랭크에도 없는 타깃(target)은 `parallel_cross_entropy`가 거부합니다.
# 그래서 어휘를 다음 배수까지 0으로 **덧붙이고**, 손실에서는 덧붙인 곳을 가립니다. Megatron은 랭크마다 128의 배수로
# 맞춥니다. 랭크가 8개면 50,257이 51,200이 됩니다.
#
# 손실은요? 로짓을 모으려면 토큰마다 숫자 $V$개를 보내야 합니다. softmax에는 그만큼 필요 없습니다. 가장 큰 로짓,
# 지수의 합, 타깃의 로짓이면 됩니다. $V$가 얼마든 숫자 **세 개**입니다.
# %% hidden=true source="dlcourse.parallel.tensor_vocabulary:_CrossEntropy"

# %% [markdown] lang="en"
# ### Memory, and sequence parallelism
#
# Now everything is cut: a quarter of the parameters, gradients and optimizer state in each of four
# ranks. But not a quarter of the *activations*: LayerNorm and residual work on the whole stream, the
# same in every rank.
#
# **Sequence parallelism** cuts that too. An all-reduce is a reduce-scatter and then an all-gather.
# Leave a block's matrices with the first, keep only your positions, and enter the next
# ones with the second. **Predict**: how many times
# the bytes of tensor parallelism does this send?
# %% [markdown] lang="ko" en="096036da"
# ### 메모리와 시퀀스 병렬화
#
# 이제 모두 나뉘었습니다. 랭크가 네 개면 파라미터, 그래디언트, 옵티마이저 상태(optimizer state)가 각각 4분의
# 1입니다. 그런데 *활성화값*(activation)은 그렇지 않습니다. LayerNorm과 잔차 스트림의 덧셈은 랭크마다 똑같이 전체를
# 계산합니다.
#
# **시퀀스 병렬화**(sequence parallelism)는 이것도 나눕니다. 올리듀스는 리듀스스캐터(reduce-scatter) 다음에
# 올게더를 한 것과 같습니다. 행렬에서 나올 때는 앞의 것만 하고, 자기 위치의 값만 들고 있다가, 다음 행렬에 들어갈 때 뒤의 것을 합니다.
# **예측해 보세요.** 보내는 바이트는 텐서 병렬화의 몇 배일까요?
# %%
predict("04.sequence")
# %% hidden=true source="dlcourse.parallel.sequence:_GatherSequence,_ScatterSequence"

# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.sequence import sequence_parallel


def train_two(cut):
    gc.collect()
    return train(cut(GPT(seed=0).to(device)), corpus, steps=2, batch_size=2)
# %%
# %%ranks --as alone
train_two(lambda gpt: gpt)[-1]
# %%
# %%ranks --as tensor
train_two(tensor_parallel)[-1]
# %%
# %%ranks --as sequence
train_two(sequence_parallel)[-1]
# %%
compare("04.sequence", sequence_over_tensor(tensor, sequence))
show_peaks(alone, tensor, sequence)
# %% [markdown] lang="en"
# Almost as many bytes, and fewer activations. The reduce-scatter is this course's; Gloo's own is an
# all-reduce inside. What is left lies inside the matrices: this code keeps the gathered input for
# backward. Megatron gathers it again.
# %% [markdown] lang="ko" en="75cc4590"
# 바이트는 거의 같고 활성화값은 줄었습니다. 리듀스스캐터는 이 과정의 구현입니다. Gloo의 리듀스스캐터는 속에서 올리듀스를
# 합니다. 남은 활성화값은 행렬 안쪽에 있습니다. 이 코드는 모은 입력을 역전파까지 두고, Megatron은 버렸다가 다시 모읍니다.
# %% [markdown] lang="en"
# ### Long sequences: context parallelism
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
# combine into the exact softmax over both ([ring attention](https://arxiv.org/abs/2310.01889)).
# %% [markdown] lang="ko" en="df27bdf8"
# ### 긴 시퀀스: 컨텍스트 병렬화(context parallelism)
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
# 있습니다([링 어텐션](https://arxiv.org/abs/2310.01889)).
# %% hidden=true source="dlcourse.parallel.context:merge,_RingAttention"

# %% [markdown] lang="en"
# **Predict.** One sequence of 64 positions, shared by 4 ranks; 4 heads of 32 float32 numbers each.
# How many bytes does a rank send in forward? (Keys *and* values move; count how often.)
# %% [markdown] lang="ko" en="9b40a0f5"
# **예측해 보세요.** 위치 64개짜리 시퀀스 하나를 랭크 네 개가 나눠 맡습니다. float32 숫자 32개짜리 헤드가 4개입니다.
# 랭크 하나는 순전파에서 몇 바이트를 보낼까요? (키*와* 값이 움직입니다. 몇 번 넘기는지 세어 보세요.)
# %%
predict("04.ring")
# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.context import blocks_of_work, ring_attention, split_sequence

random = torch.Generator().manual_seed(0)
long = [torch.randn(1, 4, 64, 32, generator=random).to(device).requires_grad_() for _ in "qkv"]
q, k, v = (split_sequence(x.detach(), dim=2).requires_grad_() for x in long)
# %%
# %%ranks --as ring
out = ring_attention(q, k, v)
# %% hidden=true
# %%ranks --fast
full = F.scaled_dot_product_attention(*long, is_causal=True)
mine = torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True)
pairs = [(out, full), *zip(mine, torch.autograd.grad(full.square().sum(), long))]
ring_off = max((a - split_sequence(b, dim=2)).abs().max().item() for a, b in pairs)
work = [[blocks_of_work(r, world_size, balanced=b) for r in range(world_size)] for b in (False, True)]
# %%
compare("04.ring", ring.comm.ranks[0]["ops"]["send"]["bytes"])
show_ring(ranks["ring_off"])
# %%
show_work(ranks["work"][0])
# %% [markdown] lang="en"
# The table counts blocks of $\frac{T}{2p}$ queries times as many keys (this code computes diagonal ones
# whole, then masks half) and shows a trap: with causal attention the first positions have little to
# read, and all ranks wait for the last. The zig-zag split gives each rank one early and one late chunk:
# equal work.
#
# ### One rank of 1,024
#
# This lesson's classes as one of 1,024 ranks (128 copies of 8) of a 7B model, on tensors without
# numbers: bytes are exact, times mean nothing. Here numbers take 4 bytes.
# %% [markdown] lang="ko" en="f754b0ff"
# 표는 쿼리와 키가 $\frac{T}{2p}$개씩인 블록을 센 것입니다(이 코드는 대각선 블록도 다 계산한 뒤 절반을 가립니다).
# 여기에 함정이 있습니다. 인과적(causal) 어텐션에서 앞쪽 위치는 읽을 것이 적어서, 모두 마지막 랭크를 기다립니다.
# 지그재그로 나누면 랭크마다 앞 조각 하나와 뒤 조각 하나를 맡아 일이 같아집니다.
#
# ### 랭크 1,024개 가운데 하나
#
# 이 레슨의 클래스를 숫자 없는 텐서로 돌려 7B 모델의 랭크 1,024개(8개짜리 복제본 128벌) 가운데 하나가 되어 봅니다.
# 바이트는 정확하고 시간은 뜻이 없습니다. 여기서는 숫자 하나가 4바이트입니다.
# %% hidden=true
from dlcourse.plan.scale import scale

one_of_many = scale("04_tensor_parallel", model="7b", world=1024, tensor=8)
# %%
show_one_of_many(one_of_many)
