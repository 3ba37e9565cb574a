# %% [markdown] lang="en" form="core"
# # NN A new lesson: what is the question?
#
# Say what the learner wants to know, and what they will measure to find out.
#
# Time: reading 6 min + exercises 3 min.
# %% [markdown] lang="ko" en=""
# # NN 새 레슨: 무엇이 궁금한가요?
#
# 학습자가 알고 싶은 것과, 그것을 알아내려고 무엇을 재는지 쓰세요.
#
# 시간: 읽기 6분 + 연습 3분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 2
device = "auto"
# %% hidden=true
from dlcourse import Ranks, check, compare, hint, lesson, predict, quiz, solution

lesson(lang=lang, name="NN_name")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# Each rank has the number 1. **Predict** what a rank has after `all_reduce`, as a multiple of it for
# each rank.
# %% [markdown] lang="ko" en=""
# 랭크(rank)마다 숫자 1이 있습니다. `all_reduce` 뒤에 랭크 하나가 가진 값은 랭크 수의 몇 배일지
# **예측해 보세요.**
# %%
predict("NN.sum")
# %%
# %%ranks
x = torch.ones(1, device=device)
dist.all_reduce(x)
times = x.item() / world_size
# %%
compare("NN.sum", ranks["times"])
# %% [markdown] lang="en"
# ## Exercises
#
# **1. `NN.example`** (3 minutes). `mean(number)` returns the mean of all ranks' numbers, with one
# collective.
# %% [markdown] lang="ko" en=""
# ## 연습 문제
#
# **1. `NN.example`** (3분). `mean(number)`는 모든 랭크의 숫자의 평균을 집합 통신 한 번으로 구해 돌려줍니다.


# %% exercise="NN.example"
# %%ranks
def mean(number):
    raise NotImplementedError


# %%
check("NN.example")
# %%
hint("NN.example")
# %%
solution("NN.example")
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# ### What goes beyond the idea
#
# Libraries, variants, a second failure.
# %% [markdown] lang="ko" en=""
# ## 더 깊이
#
# ### 핵심을 넘어서는 내용
#
# 라이브러리, 변형, 또 다른 실패를 여기에 씁니다.
# %%
ranks.stop()
