# %% [markdown] lang="en"
# # A demo lesson
#
# Four ranks hold a number each. What is their sum?
# %% [markdown] lang="ko" en="00000000"
# # 시험용 레슨
#
# 랭크(rank) 네 개가 숫자를 하나씩 들고 있습니다. 합은 얼마일까요?
# %% tags=["parameters"]
lang = "ko"
num_ranks = 2
device = "auto"
steps = 3
# %%
from dlcourse import (
    Ranks,
    check,
    claim,
    compare,
    lesson,
    predict,
    record_metric,
    show,
)

lesson(lang=lang, name="97_demo")
ranks = Ranks(num_ranks, device=device)
# %%
predict("97.sum", ..., formula=num_ranks * (num_ranks - 1) / 2)
# %%
# %%ranks
x = torch.full((4,), float(rank))
dist.all_reduce(x)
total = x[0].item()
# %%
compare("97.sum", ranks["total"])
# %% tags=["nbval-check-output"]
sorted(set(ranks["total"])) == [num_ranks * (num_ranks - 1) / 2]
# %% [markdown] lang="en"
# The real source of a function, and a run of it:
# %% [markdown] lang="ko" en="00000000"
# 함수의 실제 소스와 실행 결과입니다:
# %% source="dlcourse.formulas.traffic:wire_bytes"
# %%
show("dlcourse.formulas.traffic:wire_bytes")
record_metric("ratio", 1.5, "S")
claim("C2")


# %% exercise="97.mean"
# %%ranks
def mean(x):
    raise NotImplementedError


# %%
check("97.mean")
# %%
ranks.stop()
