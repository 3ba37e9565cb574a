# %% [markdown] lang="en"
# # NN A new lesson: what is the question?
#
# Say what the learner wants to know, and what they will measure to find out.
# %% [markdown] lang="ko" en="00000000"
# # NN 새 레슨: 무엇이 궁금한가요?
#
# 학습자가 알고 싶은 것과, 그것을 알아내려고 무엇을 재는지 쓰세요.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 2
device = "auto"
# %%
from dlcourse import Ranks, check, compare, hint, lesson, predict, solution

lesson(lang=lang, name="NN_name")
ranks = Ranks(num_ranks, device=device)
# %% [markdown] lang="en"
# **Predict** the sum of all ranks' numbers before you measure it.
# %% [markdown] lang="ko" en="00000000"
# 재 보기 전에 모든 랭크(rank) 번호의 합을 **예측해 보세요.**
# %%
predict("NN.sum", ..., formula=num_ranks * (num_ranks - 1) / 2)
# %%
# %%ranks
x = torch.tensor([float(rank)], device=device)
dist.all_reduce(x)
total = x.item()
# %%
compare("NN.sum", ranks["total"])
# %% [markdown] lang="en"
# ## Exercise
#
# `mean(number)` returns the mean of all ranks' numbers, with one collective.
# %% [markdown] lang="ko" en="00000000"
# ## 연습 문제
#
# `mean(number)`는 모든 랭크의 숫자의 평균을 집합 통신 한 번으로 구해 돌려줍니다.


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
ranks.stop()
