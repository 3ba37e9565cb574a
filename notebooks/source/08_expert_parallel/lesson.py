# %% [markdown] lang="en" form="core"
# # 08 Expert parallelism
#
# Time: reading 20 min + exercises 48 min.
# %% [markdown] lang="ko" en="11845768"
# # 08 전문가 병렬화(expert parallelism)
#
# 시간: 읽기 20분 + 연습 48분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, solution

lesson(lang=lang, name="08_expert_parallel")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("08.splits")` helps step by step;
# `solution("08.splits")` shows one answer. Experts are spread as above: neighbours in number share a
# rank.
#
# **1. `08.splits`** (3 minutes). `experts`, (N, K), are the choices of this rank's tokens. Return two
# lists with a number for each rank: copies that this rank sends there, and copies that come from
# there. Only counts may travel.
# %% [markdown] lang="ko" en="7e489839"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("08.splits")`는 한 단계씩 도와주고,
# `solution("08.splits")`은 답 하나를 보여 줍니다. 전문가는 위에서처럼 이어진 번호끼리 한 랭크에 있습니다.
#
# **1. `08.splits`** (3분). `experts`는 이 랭크의 토큰이 고른 전문가이고 모양은 (N, K)입니다. 랭크마다 수가
# 하나씩 들어 있는 리스트 둘을 돌려주세요. 그 랭크로 보낼 사본 수와 그 랭크에서 올 사본 수입니다. 개수만
# 주고받아야 합니다.
# %% exercise="08.splits"
# %%ranks
def splits(experts, num_experts):
    raise NotImplementedError


# %%
check("08.splits")
# %% [markdown] lang="en"
# **2. `08.once`** (15 minutes). Two experts of a token may share a rank: then one copy of the token is
# enough. Return the tokens that arrive here, sorted by the rank they come from and then by token, and
# a mask, (tokens, experts of this rank), that says which expert wants which. Target: at most 1.1 times
# the fewest bytes; the mask is small beside a token.
# %% [markdown] lang="ko" en="67a25874"
# **2. `08.once`** (15분). 토큰이 고른 전문가 둘이 같은 랭크에 있을 수 있습니다. 그러면 토큰은 한 번만 보내면
# 됩니다. 여기에 도착하는 토큰을 보낸 랭크 순으로, 그 안에서는 토큰 순으로 돌려주세요. 어느 전문가가 어느 토큰을
# 원하는지를 나타내는 (토큰, 이 랭크의 전문가) 모양의 마스크도 함께 돌려주세요. 목표: 최소 바이트의 1.1배
# 이하입니다. 마스크는 토큰에 비하면 작습니다.
# %% exercise="08.once"
# %%ranks
def dispatch(x, experts, num_experts):
    raise NotImplementedError


# %%
check("08.once")
# %% [markdown] lang="en"
# **3. `08.combine`** (10 minutes). Answers come as messages `(rank, rows)` in any order; a rank that was
# sent nothing sends none. `copies` is what `permute` gave, so row i of all that was sent is copy
# `copies[i]`; `send` says how many rows went to each rank. Return each token's weighted sum, (N, C): the
# same **bits** in whatever order messages arrive.
# %% [markdown] lang="ko" en="288c6275"
# **3. `08.combine`** (10분). 답은 `(rank, rows)` 메시지로 아무 순서로나 옵니다. 아무것도 받지 못한 랭크는
# 답하지 않습니다. `copies`는 `permute`가 준 것이어서, 보낸 행 가운데 i번째가 사본 `copies[i]`입니다. `send`는
# 랭크마다 보낸 행의 수입니다. 토큰마다 가중합을 (N, C)로 돌려주세요. 메시지가 어떤 순서로 와도 **비트까지** 같아야
# 합니다.
# %% exercise="08.combine"
# %%ranks
def combine(arrivals, copies, send, weights):
    raise NotImplementedError


# %%
check("08.combine")
# %% [markdown] lang="en"
# **4. `08.gradients`** (20 minutes). Each rank's loss is the mean over its own tokens, and `backward()`
# has run. `dense` parameters are on every rank; `experts` on the ranks of `expert_group`, which hold
# copies of the same experts. Make every `.grad` that of one process, whose loss is the mean of the
# ranks' losses. An expert without tokens has `.grad` None. Target: no more bytes than needed. The code
# below is a common mistake.
# %% [markdown] lang="ko" en="6d722961"
# **4. `08.gradients`** (20분). 랭크마다 손실은 자기 토큰의 평균이고 `backward()`는 끝났습니다. `dense`
# 파라미터는 모든 랭크에 있습니다. `experts`는 같은 전문가의 복제본을 가진 `expert_group`의 랭크에만 있습니다.
# 모든 `.grad`를 단일 프로세스의 것으로 만드세요. 단일 프로세스의 손실은 랭크별 손실의 평균입니다. 토큰을 받지
# 못한 전문가의 `.grad`는 None입니다. 필요한 만큼만 보내야 합니다. 아래 코드는 흔한 실수입니다.
# %% exercise="08.gradients"
# %%ranks
def sync_gradients(dense, experts, expert_group):
    for parameter in dense + experts:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size


# %%
check("08.gradients")
# %% [markdown] lang="en"
# ## Deeper
#
# More.
# %% [markdown] lang="ko" en="b73074da"
# ## 더 깊이
#
# 더.
