# %% [markdown] lang="en" form="core"
# # 07 Mixture of experts: more parameters at the same price?
#
# A larger model learns better, and every token pays for all of it: twice the parameters, twice the
# multiplications. Must a Korean word pay for what the model knows about Python?
#
# A **mixture of experts** (MoE) says no. In place of one feed-forward layer (MLP) keep eight, each half as
# wide: the *experts*. Let each token use two. Four times the parameters in that layer, the compute of before.
#
# Does it work? What does it cost that nobody mentions? And what should one compare it with? You need
# [lesson 00](00_start.ipynb); ranks hardly talk in this one.
#
# Time: reading 18 min + exercises 45 min.
# %% [markdown] lang="ko" en="7be55b49"
# # 07 전문가 혼합(MoE): 같은 값에 더 많은 파라미터?
#
# 모델이 클수록 더 잘 배우지만 토큰마다 모델 전체를 계산합니다. 파라미터가 두 배면 곱셈도 두 배입니다.
# 한국어 단어 하나를 처리하는 데 파이썬에 대해 배운 것까지 계산해야 할까요?
#
# **전문가 혼합**(mixture of experts, MoE)은 아니라고 답합니다. 피드포워드 층(MLP) 하나 대신 폭이 절반인 층, 곧
# *전문가*(expert)를 여덟 개 두고 토큰마다 두 개만 씁니다. 그 층의 파라미터는 네 배가 되고 계산량은 그대로입니다.
#
# 정말 더 잘 배울까요? 숨은 비용은 무엇일까요? 또 무엇과 비교해야 할까요?
# [레슨 00](00_start.ipynb)을 먼저 보세요. 랭크끼리는 거의 주고받지 않습니다.
#
# 시간: 읽기 18분 + 연습 45분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 2
device = "auto"
steps = 150
# %% [markdown] lang="en"
# ```mermaid
# flowchart LR
#   T["token"] --> R{"router:<br>8 scores"}
#   R -- "0.7" --> E2["expert 2"]
#   R -- "0.3" --> E5["expert 5"]
#   R -.- O["experts 0, 1, 3,<br>4, 6, 7: unused"]
#   E2 & E5 --> S(("weighted<br>sum")) --> Y["output"]
# ```
#
# The **router** is one small matrix. It gives each expert a score, and the best two are chosen (*top-2*). Their
# outputs are added, weighted by their two scores, scaled to a sum of 1. In code, expert by expert:
# %% [markdown] lang="ko" en="159dc442"
# ```mermaid
# flowchart LR
#   T["토큰"] --> R{"라우터:<br>점수 8개"}
#   R -- "0.7" --> E2["전문가 2"]
#   R -- "0.3" --> E5["전문가 5"]
#   R -.- O["전문가 0, 1, 3,<br>4, 6, 7: 쓰지 않음"]
#   E2 & E5 --> S(("가중합")) --> Y["출력"]
# ```
#
# **라우터**(router)는 작은 행렬 하나입니다. 전문가마다 점수를 매기고 점수가 높은 둘을 고릅니다(*top-2*). 두
# 점수를 합이 1이 되게 맞춘 다음, 그것으로 두 출력을 가중해 더합니다. 전문가를 하나씩 도는 코드로 쓰면 이렇습니다.
# %% hidden=true
from dlcourse import Film, Ranks, check, claim, compare, explore, hint, lesson, predict, quiz
from dlcourse import solution
from dlcourse.figures.moe import busiest_share, costs, dropped_share, dropping, experts_by_kind
from dlcourse.figures.moe import figures_of_a2, loss_and_cost, memory_of_experts, shares_asked_for
from dlcourse.figures.moe import show_balance, show_capacity, show_choices, show_contracts
from dlcourse.figures.moe import show_cures, show_scores, show_short
from dlcourse.figures.moe import show_states, show_v3, show_ways, state_bytes_of

lesson(lang=lang, name="07_moe")
ranks = Ranks(num_ranks, device=device, preload="dlcourse.peers.shared_imports")
ranks.cell(f"steps = {steps}", record=False)
# %%
# %%ranks
def by_loop(x, router, experts):
    chosen, weights, _ = router(x)
    y = torch.zeros_like(x)
    for e in range(len(experts.up)):
        token, choice = torch.where(chosen == e)
        y[token] += weights[token, choice, None] * experts.one(x[token], e)
    return y
# %% hidden=true source="dlcourse.models.moe:Router,Experts"

# %% hidden=true
# %%ranks --fast
from dlcourse.models.moe import MoE, combine, permute

text = "if \uc190\uc2e4"


def new_layer():
    torch.manual_seed(0)
    layer = MoE(64, num_experts=8, top_k=2, hidden=128).to(device)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer


embedding = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).to(device)
routing = new_layer().router(embedding[list(text.encode())])
choices = routing.experts_NK.tolist(), routing.weights_NK.tolist()
# %%
show_choices(ranks["text"][0], *ranks["choices"][0])
# %% [markdown] lang="en"
# Nine tokens, which here are bytes, and a router that has learned nothing yet. The byte alone decides: the two
# Korean letters begin with the same byte, so these two rows are equal. Neighbours in the text are scattered.
#
# That is bad for a computer: it wants a few large matrix products, not many small scattered ones. A token that
# uses two experts is copied twice. These copies are sorted by expert first (*permute*), and brought back
# afterwards (*combine*):
#
# ```mermaid
# flowchart LR
#   subgraph P["permute: sort"]
#     A["expert 5: tokens 0, 1, 7"]
#     B["expert 7: tokens 1, 2"]
#   end
#   A --> MA["its MLP, once"]
#   B --> MB["its MLP, once"]
#   MA & MB --> C["combine: weigh,<br>add to tokens 0, 1, 2, 7"]
# ```
# %% [markdown] lang="ko" en="bfaeb812"
# 토큰(여기서는 바이트) 아홉 개와 아직 아무것도 배우지 않은 라우터입니다. 갈 곳은 바이트 값이 정합니다. 손과 실은
# 첫 바이트가 같아서 그 두 줄은 가중치까지 같습니다. 글에서 이웃한 토큰은 뿔뿔이 흩어집니다.
#
# 계산에는 불리합니다. 흩어진 작은 행렬곱 여럿보다 큰 행렬곱 몇 개가 훨씬 빠르기 때문입니다. 토큰마다
# 전문가 둘을 쓰므로 복사본도 둘입니다. 이 복사본을 먼저 전문가 순서로 정렬하고(*permute*), 계산한 다음 제자리로
# 돌려보냅니다(*combine*, 컴바인).
#
# ```mermaid
# flowchart LR
#   subgraph P["permute: 정렬"]
#     A["전문가 5: 토큰 0, 1, 7"]
#     B["전문가 7: 토큰 1, 2"]
#   end
#   A --> MA["MLP 한 번"]
#   B --> MB["MLP 한 번"]
#   MA & MB --> C["combine: 가중해서<br>토큰 0, 1, 2, 7에 더함"]
# ```
# %%
# %%ranks
def by_groups(x, router, experts):
    chosen, weights, _ = router(x)
    copies, counts = permute(chosen, num_experts=len(experts.up))
    tokens = copies // router.top_k
    said = experts(x[tokens], counts.tolist())
    return combine(said, copies, weights)
# %% hidden=true source="dlcourse.models.moe:permute,combine"

# %% hidden=true
# %%ranks --fast
from dlcourse.peers.moe import compare_layers, other_ways



def race(layer, x):
    own = {
        "groups": lambda x: by_groups(x, layer.router, layer.experts),
        "loop": lambda x: by_loop(x, layer.router, layer.experts),
    }
    return compare_layers(own | other_ways(layer), x)


ways = race(new_layer(), torch.randn(1536, 64, device=device))
# %%
show_ways(ranks["ways"][0])
# %% [markdown] lang="en"
# Same numbers everywhere: the layer is right. "Every expert, every token" does without
# sorting: most results are multiplied by zero, and four times the work eats the gain. The loop
# wastes nothing, but calls more than twice as many operators, each a kernel or more on a GPU. Torch's `grouped_mm`
# takes all pieces at once. **DeepSpeed**'s layer, with our weights in it, pads every expert to the fullest one.
#
# Now a price easily forgotten. In a **dense** GPT every token passes every MLP. In our second GPT each MLP
# becomes eight experts *half as wide*, of which a token uses two: the same multiplications. **Predict**: how
# many times the dense model's memory do parameters, gradients and Adam's state take?
# %% [markdown] lang="ko" en="74cc53bc"
# 결과가 모두 같으니 층은 맞습니다. '모든 전문가가 모든 토큰을 계산'은 정렬하지 않는 대신 대부분에 0을 곱합니다.
# 계산이 네 배라서 MoE의 이득이 사라집니다. 반복문은 곱셈을 낭비하지 않지만 연산자를 두 배 넘게 부르고, GPU에서는
# 연산자마다 커널을 실행합니다. torch의 `grouped_mm`은 조각들을 한꺼번에 계산합니다. **DeepSpeed**의 층(가중치는 우리
# 것)은 가장 바쁜 전문가에 맞춰 나머지의 빈자리를 채웁니다.
#
# 이제 잊기 쉬운 비용입니다. **밀집**(dense) GPT에서는 모든 토큰이 모든 MLP를 지납니다. 우리 MoE GPT에서는 MLP가
# *폭이 절반인* 전문가 여덟 개로 바뀌고 토큰은 둘만 씁니다. 곱셈 수는 같습니다. 파라미터, 그래디언트, Adam의 상태가
# 차지하는 메모리는 밀집 모델의 몇 배일지 **예측해 보세요.**
# %%
predict("07.states")
# %% hidden=true
# %%ranks --fast
from dlcourse.corpus import KindsCorpus
from dlcourse.figures.moe import MOE, SHORT
from dlcourse.models.architectures import ArchitectureGPT

corpus = KindsCorpus()
batch = [half.to(device) for half in corpus.batch(0, micro_batch=12, block=64)]


def one_step(model, optimizer):
    optimizer.zero_grad()
    model(*batch).backward()
    optimizer.step()


def ready(config):
    model = ArchitectureGPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    one_step(model, optimizer)
    return model, optimizer
# %% hidden=true
# %%ranks 0 --fast
dense = ready(SHORT["dense"])
# %% hidden=true
# %%ranks 0 --as dense_step
one_step(*dense)
# %% hidden=true
# %%ranks 0 --fast
dense = None  # its memory goes
moe = ready(MOE)
# %% hidden=true
# %%ranks 0 --as moe_step
one_step(*moe)
# %%
compare("07.states", state_bytes_of(moe_step) / state_bytes_of(dense_step))
show_states(dense_step, moe_step)
# %% [markdown] lang="en"
# A token uses two experts of eight. Training keeps all eight, with their gradients and both of Adam's
# numbers, because *some* token of the batch goes to each. Compute is saved, memory is not.
#
# In a large model this decides how many GPUs one needs. Below are the layers of Mixtral 8x7B [1], with the
# number of experts and top-k to choose. Find its own setting, 8 and 2: is it "8 × 7 billion"? (Attention and
# embeddings exist only once.)
# %% [markdown] lang="ko" en="4838f9e2"
# 토큰 하나는 전문가 여덟 개 가운데 둘만 씁니다. 그러나 배치의 *어떤* 토큰은 다른 전문가로 가므로, 학습에는 여덟 개
# 모두의 파라미터와 그래디언트, Adam의 두 값이 필요합니다. 줄어드는 것은 계산량이지 메모리가 아닙니다.
#
# 큰 모델에서는 GPU가 몇 개 필요한지가 여기에 달려 있습니다. 아래는 Mixtral 8x7B[1]의 층에서 전문가 수와 top-k를
# 바꾸어 본 것입니다. 실제 설정인 8과 2를 찾아보세요. 정말 "8 × 70억"일까요? (어텐션과 임베딩은 하나뿐입니다.)
# %%
explore(memory_of_experts, experts=[1, 2, 4, 8, 16], top_k=[1, 2, 4])
# %% [markdown] lang="en"
# ## Will the tokens spread?
#
# Two of eight: if all experts are used alike, each serves 25% of the tokens. Nothing has asked the router
# for that. We train the small MoE on three kinds of text: the standard library's code, this course's English, and its
# Korean, as bytes. Each rank trains a model of its own, from another seed.
#
# **Predict.** After 150 steps, what share of the tokens uses the *busiest* expert of the last layer?
# Then run on, and watch the next picture while the cell below it trains.
# %% [markdown] lang="ko" en="18439a44"
# ## 토큰은 고르게 퍼질까요?
#
# 여덟 개 중 둘이므로, 모두 고르게 쓴다면 전문가 하나가 토큰의 25%를 맡습니다. 하지만 라우터에게 그렇게 하라고 한
# 적은 없습니다. 세 가지 글을 바이트로 학습합니다. 표준 라이브러리의 코드, 이 과정의 영어와 한국어입니다. 랭크마다
# 시드가 다른 모델을 따로 학습합니다.
#
# 150스텝 뒤, 마지막 층에서 *가장 바쁜* 전문가를 쓰는 토큰은 몇 %일지 **예측해 보세요.** 그런 다음 계속 실행하고,
# 아래 셀이 학습하는 동안 바로 다음 그림을 지켜보세요.
# %%
predict("07.busiest")
# %%
film = Film(experts_by_kind)
ranks.cell(f"film = {film.path!r}", record=False)
film
# %%
# %%ranks --fast
from dlcourse.measure.frames import write_frame
from dlcourse.training.architectures import train


def show(look):
    if rank == 0:
        write_frame(film, step=look["step"], load=look["load"][1])


short = {"steps": steps, "block": 64, "seed": rank, "look_every": 5, "sequences": 8}
results = {"none": train(MOE, balance=None, on_look=show, **short)}
# %%
compare("07.busiest", busiest_share([of["none"] for of in ranks["results"]]))
# %% [markdown] lang="en"
# The router has **collapsed**: a few experts do nearly all the work, and the others cost memory for nothing.
# It feeds itself. An expert that is ahead by chance gets more tokens, learns more, and is chosen more.
#
# Two cures. The **balance loss** [2] is a second loss, least where all experts get the same; its
# gradient pushes the router, against the loss of the text if need be. The **bias** [3] adds no loss. After each step
# a number is added to the scores of experts with too few tokens, and taken from the others'. It counts when
# experts are chosen, not when their outputs are weighed.
# %% [markdown] lang="ko" en="463acdc1"
# 라우터가 **무너졌습니다**(collapse). 전문가 몇 개가 거의 모든 일을 하고 나머지는 메모리만 차지합니다. 한번
# 기울면 저절로 심해집니다. 우연히 앞선 전문가가 토큰을 더 받고, 더 배우고, 더 자주 뽑히기 때문입니다.
#
# 고치는 방법은 둘입니다. **균형 손실**(balance loss)[2]은 모두 똑같이 받을 때 가장 작아지는 두 번째 손실입니다.
# 그 그래디언트가 라우터를 균등한 쪽으로 밀고, 때로는 다음 바이트를 맞히려는 원래 손실과 맞서기도 합니다.
# **바이어스**(bias)[3]는 손실을 더하지 않습니다. 스텝이 끝날 때마다 토큰이 모자란 전문가의 점수는 조금 올리고
# 나머지는 내립니다. 이 값은 전문가를 고를 때만 쓰고, 출력을 가중할 때는 쓰지 않습니다.
# %% hidden=true source="dlcourse.models.moe:balance_loss"

# %%
cured = Film(experts_by_kind)
ranks.cell(f"film = {cured.path!r}", record=False)
cured
# %%
# %%ranks --fast
results["loss"] = train(MOE, balance="loss", on_look=show, **short)
results["bias"] = train(MOE, balance="bias", bias_rate=0.01, **short)
for name in ("dense", "dense_total"):
    results[name] = train(SHORT[name], **short)
# %%
by_name = {name: [of[name] for of in ranks["results"]] for name in ranks["results"][0]}
show_balance(by_name)
# %%
show_cures(by_name)
# %% [markdown] lang="en"
# Both cures spread the tokens. Do they cost loss? Here the seeds differ as much as the rows. In the recorded
# run (300 steps, three seeds) the router without balance stays collapsed to the end, and still no price of a cure
# can be seen. Nor one of the collapse: in so small a model a few experts do. What it costs is memory, for experts
# that hardly any token uses.
#
# And what have the experts specialised in? Move the slider through the training with the balance loss.
# %% [markdown] lang="ko" en="308226f4"
# 두 방법 모두 토큰을 고르게 퍼뜨립니다. 대신 손실이 늘어날까요? 여기서는 시드끼리도 그만큼 다릅니다. 기록된
# 실행(300스텝, 시드 셋)에서는 균형 장치가 없는 라우터가 끝까지 무너져 있는데, 그것과 견주어도 손실이 늘었다고 볼 수
# 없습니다. 무너진 쪽도 손해를 보지 않았습니다. 이렇게 작은 모델에는 전문가 몇 개로 충분합니다. 손해는 거의 쓰지 않는
# 전문가가 차지한 메모리입니다.
#
# 전문가는 무엇을 맡게 되었을까요? 균형 손실로 학습한 과정을 슬라이더로 따라가 보세요.
# %%
explore(cured.at, step=cured.steps)
# %% [markdown] lang="en"
# Some experts serve Korean and hardly anything else. Code and English share the others: as bytes they
# look alike. Nobody told the router which language is which.
#
# ## A place for every token?
#
# Pieces of a fixed size are easier to compute and to send. So many systems give each expert a **capacity**: its even share times a
# *capacity factor*. A copy that comes too late is **dropped**: this expert adds nothing for the token, and a token
# that loses both copies skips the layer. **Predict**: factor 1, balance loss. What share of the copies is dropped?
# %% [markdown] lang="ko" en="48e501a8"
# 어떤 전문가는 거의 한국어만 맡습니다. 코드와 영어는 나머지를 함께 씁니다. 바이트로 보면 서로 비슷하기 때문입니다.
# 어느 것이 어느 언어인지 라우터에게 알려 준 사람은 없습니다.
#
# ## 모든 토큰에 자리가 있을까요?
#
# 조각의 크기가 정해져 있으면 계산하고 보내기 쉽습니다. 그래서 전문가마다 **용량**(capacity)을 두는 시스템이 많습니다. 균등한 몫에
# *용량 계수*를 곱한 만큼입니다. 늦게 온 복사본은 **버립니다**. 그 전문가의 출력은 더해지지 않고, 복사본 둘을 모두
# 잃은 토큰은 이 층을 그냥 지나갑니다. 계수가 1이고 균형 손실을 쓰면 복사본의 몇 %를 버리게 될지 **예측해 보세요.**
# %%
predict("07.dropped")
# %%
asked_for = shares_asked_for(by_name)
compare("07.dropped", dropped_share(asked_for["loss"], 1))
explore(dropping(asked_for), capacity_factor=[0.5, 1, 1.25, 1.5, 2, 3, 4])
# %% [markdown] lang="en"
# A large factor drops nothing and leaves places empty, which are computed and sent all the same. Our
# layer is **dropless** unless one gives it a `capacity_factor`: its pieces are as long as they must be.
#
# One thing no capacity can repair. A NaN in a token makes all its scores NaN, and top-k would choose *some* experts
# and go on. Ours refuses. We spoil one byte's embedding; attention carries it through each sequence that has this
# byte, even to earlier positions: their weight for it is 0, but 0 × NaN is NaN. (The z-loss that the message names
# is in Deeper.)
# %% [markdown] lang="ko" en="f370b2e6"
# 계수가 크면 버리는 토큰은 없지만 빈자리가 남고, 빈자리도 똑같이 계산하고 보냅니다. 우리 층은 `capacity_factor`를
# 주지 않으면 **토큰을 버리지 않습니다**(dropless). 조각의 길이를 필요한 만큼 늘립니다.
#
# 용량으로 고칠 수 없는 것도 있습니다. 토큰에 NaN이 있으면 점수가 모두 NaN이 되고, top-k는 *아무* 전문가나 고르고
# 넘어갑니다. 우리 라우터는 거부합니다. 바이트 하나의 임베딩을 망가뜨리면 어텐션을 타고 그 바이트가 있는 시퀀스 전체로
# 번집니다. 가중치가 0인 앞 위치도 마찬가지입니다. 0 × NaN은 NaN이기 때문입니다. (메시지에 나오는 z-손실은 '더 깊이'에서 봅니다.)
# %%
# %%ranks 0 --fails "gives NaN or infinity for"
model, _ = ready(MOE)
with torch.no_grad():
    model.token_embedding.weight[batch[0][0, -1]] = float("nan")
model(*batch)
# %% [markdown] lang="en"
# ## Compared with what?
#
# Claim A2 names dense, MoE, sparse and hybrid. A fair comparison fixes something: the compute of a token, the
# parameters, or the seconds. First our own short runs, for the first two: *dense* computes as much for a token
# as the MoE, *large dense* has as many parameters.
# %% [markdown] lang="ko" en="31815518"
# ## 무엇과 비교할까요?
#
# 주장 A2는 밀집, MoE, 희소(sparse), 혼합(hybrid)을 나란히 놓습니다. 공정하게 비교하려면 무언가를 같게 맞춰야
# 합니다. 토큰당 계산량, 파라미터 수, 또는 시간입니다. 먼저 우리의 짧은 실행을 앞의 두 가지로 비교합니다. *밀집*은
# 토큰당 계산량이, *큰 밀집*은 파라미터 수가 MoE와 같습니다.
# %%
show_short(by_name)
# %% [markdown] lang="en"
# Too short to decide. The long run was recorded once by `dlcourse bench architectures`: six
# architectures, three seeds. *Sparse* reads the last 32 positions only and has blocks in place of whole
# matrices. *Hybrid* has two kinds of layers in turn: dense and MoE, or attention and a recurrence.
# %% [markdown] lang="ko" en="49a005a5"
# 이렇게 짧게 학습해서는 가릴 수 없습니다. 긴 실행은 `dlcourse bench architectures`로 한 번 기록해 두었습니다. 구조
# 여섯 가지, 시드 세 개입니다. *희소*는 바로 앞 32개 위치만 읽고, 행렬 전체 대신 블록만 씁니다. *혼합*은 두 종류의 층을 번갈아
# 씁니다. 밀집과 MoE, 또는 어텐션과 순환(recurrence)입니다.
# %%
show_contracts()
# %% [markdown] lang="en"
# At equal compute of a token the MoE learns more than the dense model, and more than a dense one with as
# many parameters. At equal *seconds* it loses: the same arithmetic in small pieces takes longer on this
# CPU, and in that time the dense model reads more text. A difference smaller than its range over
# the seeds would be a draw. And it is a small model, trained briefly: with twice the steps the large dense
# one comes nearer (claim below).
#
# So "MoE is better" says nothing until one says at equal *what*. And a hybrid with recurrence beats both: the
# question was too narrow. The same losses beside the cost, counted in four ways:
# %% [markdown] lang="ko" en="70299fbb"
# 토큰당 계산량이 같으면 MoE가 밀집 모델보다, 그리고 파라미터 수가 같은 큰 밀집 모델보다도 더 잘 배웁니다. 하지만
# *시간*이 같으면 뒤처집니다. 같은 계산도 작은 조각으로 하면 이 CPU에서는 더 오래 걸리고, 그동안 밀집 모델은 글을 더 읽습니다.
# 차이가 시드에 따른 범위보다 작으면 무승부로 봅니다. 작은 모델을 짧게 학습한 결과이기도 합니다. 스텝을 두 배로
# 늘리면 큰 밀집 모델이 더 따라옵니다(아래 주장).
#
# 그래서 "MoE가 더 낫다"는 말은 *무엇을* 맞췄는지 말하기 전에는 뜻이 없습니다. 게다가 순환을 섞은 혼합 모델은 둘을
# 모두 앞섭니다. 질문이 너무 좁았습니다. 같은 손실을 네 가지 비용과 나란히 놓아 봅니다.
# %%
explore(loss_and_cost, cost=costs())
# %% [markdown] lang="en"
# The MoE computes like the dense model and needs the memory of the large one: cheap in one way, expensive
# in another. And the four words of claim A2 do not name four of a kind. Sparse and MoE both skip work, one by
# a fixed pattern, one by a router; hybrid says only that layers differ. Here is the map of lesson 00 with its
# right-hand box opened. (In the claim below it, "measured here" is our short run; "recorded" are other models and
# longer runs.)
#
# ```mermaid
# flowchart TB
#   J["one training job"] --> S["STRATEGY<br>How is training spread over devices?"]
#   J --> A["ARCHITECTURE<br>How is the model built?"]
#   S --> S1["data · tensor · pipeline<br>ZeRO · expert"]
#   A --> M["how a layer mixes tokens:<br>attention · window · recurrent"]
#   A --> F["feed-forward of a layer:<br>dense · block-sparse · MoE"]
#   F -. "experts can be<br>split, too" .-> S1
# ```
# %% [markdown] lang="ko" en="b35861a8"
# MoE의 계산량은 밀집 모델만큼이고 메모리는 큰 밀집 모델만큼입니다. 어떻게 재느냐에 따라 싸기도 하고 비싸기도
# 합니다. 주장 A2의 네 낱말은 나란히 놓고 하나를 고를 수 있는 것도 아닙니다. 희소와 MoE는 둘 다 일을 건너뜁니다.
# 하나는 정해진 패턴으로, 하나는 라우터로 건너뜁니다. 혼합은 층이 서로 다르다는 말일 뿐입니다. 레슨 00의 지도에서
# 오른쪽 상자를 열어 봅니다. (그 아래 주장에서 '여기에서 잰 값'은 우리의 짧은 실행, '기록된 값'은 다른 모델과 더 긴
# 실행입니다.)
#
# ```mermaid
# flowchart TB
#   J["학습 작업 하나"] --> S["전략<br>학습을 여러 장치에 어떻게 나눌까?"]
#   J --> A["모델 구조<br>모델을 어떻게 만들까?"]
#   S --> S1["데이터 · 텐서 · 파이프라인<br>ZeRO · 전문가"]
#   A --> M["토큰을 섞는 방법:<br>어텐션 · 윈도 · 순환"]
#   A --> F["피드포워드 층:<br>밀집 · 블록 희소 · MoE"]
#   F -. "전문가도<br>나눌 수 있음" .-> S1
# ```
# %%
claim("A2", **figures_of_a2(by_name))
claim("A1")
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("07.sizes")` helps step by step;
# `solution("07.sizes")` shows one answer.
#
# **1. `07.sizes`** (3 minutes). One MoE layer: a router of `num_experts × width`, and experts of two
# matrices, `width × hidden` and `hidden × width`, all without biases. Return two numbers: how many
# parameters the layer holds, and how many of them one token uses.
# %% [markdown] lang="ko" en="f7b29f8e"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("07.sizes")`는 한 단계씩 도와주고, `solution("07.sizes")`은
# 답 하나를 보여 줍니다.
#
# **1. `07.sizes`** (3분). MoE 층 하나입니다. 라우터는 `num_experts × width`, 전문가는 `width × hidden`과
# `hidden × width` 행렬 두 개이고, 모두 바이어스가 없습니다. 층이 들고 있는 파라미터 수와 토큰 하나가 쓰는 파라미터
# 수, 이렇게 두 값을 돌려주세요.
# %% exercise="07.sizes"
def moe_sizes(width, hidden, num_experts, top_k):
    raise NotImplementedError


# %%
check("07.sizes")
# %% [markdown] lang="en"
# **2. `07.reroute`** (10 minutes). The letters at the end of a name are its sizes: N tokens, K choices of
# each, E experts, C and F the width outside and inside an expert. Row n of `choices_N2` has the first and the second choice of token
# n. An expert takes `limit` tokens. First choices are served first, in the order of the tokens. Then
# those who found no place try their second choice, in the same order. Return the expert of each token,
# -1 for a dropped one. Target: under 1% dropped.
# %% [markdown] lang="ko" en="18bba568"
# **2. `07.reroute`** (10분). 이름 끝의 글자는 크기입니다. N은 토큰 수, K는 토큰마다 고른 전문가 수, E는 전문가 수,
# C와 F는 전문가 밖과 안의 폭입니다. `choices_N2`의 n행은 토큰 n의 첫째 선택과 둘째 선택입니다. 전문가 하나는 토큰을
# `limit`개까지 받습니다. 먼저 첫째 선택을 토큰 순서대로 받아 줍니다. 그런 다음 자리를 얻지 못한 토큰이 같은 순서로
# 둘째 선택을 시도합니다. 토큰마다 전문가 번호를, 버린 토큰은 -1을 돌려주세요. 목표: 버린 토큰 1% 미만.
# %% exercise="07.reroute"
# %%ranks
def place(choices_N2, num_experts, limit):
    raise NotImplementedError


# %%
check("07.reroute")
# %% [markdown] lang="en"
# **3. `07.grouped`** (12 minutes). The experts without waste. `up` is (E, C, F), `down` is (E, F, C), and expert e
# computes `F.gelu(x @ up[e]) @ down[e]`. Return each token's sum over its experts `experts_NK`, weighted by
# `weights_NK`.
# Targets: not one multiplication more than needed, two matrix products for each expert at most, no copy of
# the matrices, and right gradients. Some experts may get no token.
# %% [markdown] lang="ko" en="adc629d1"
# **3. `07.grouped`** (12분). 낭비 없는 전문가입니다. `up`은 (E, C, F), `down`은 (E, F, C)이고 전문가 e는
# `F.gelu(x @ up[e]) @ down[e]`를 계산합니다. 토큰마다 `experts_NK`의 출력을 `weights_NK`로 가중해 더한 값을
# 돌려주세요. 목표: 곱셈은 꼭 필요한 만큼만, 행렬곱은 전문가마다 두 번까지, 행렬을 복사하지 않기, 그래디언트도 맞게.
# 토큰을 하나도 받지 못하는 전문가도 있습니다.
# %% exercise="07.grouped"
# %%ranks
def grouped(x_NC, experts_NK, weights_NK, up, down):
    raise NotImplementedError


# %%
check("07.grouped")
# %% [markdown] lang="en"
# **4. `07.balance`** (20 minutes). Your own bias rule, in four ranks. Each rank sees its own tokens.
# After every step it calls `new_bias(bias_E, counts_E)` with the copies that *its* router sent to each
# expert; return the next bias. It is added to scores between 0 and 1.
#
# Targets: after 60 steps the busiest expert has at most 1.2 times the mean, counted over all ranks and averaged
# over the last 20 steps. Then other experts become the favourites, and 60 steps later the same holds. The bias
# is the same in all ranks, and no more is sent than one all-reduce of the counts.
# %% [markdown] lang="ko" en="c3cf0e21"
# **4. `07.balance`** (20분). 바이어스 규칙을 직접 만들어 랭크 네 개에서 써 봅니다. 랭크마다 보는 토큰이 다릅니다.
# 스텝이 끝날 때마다 *자기* 라우터가 전문가별로 보낸 복사본 수로 `new_bias(bias_E, counts_E)`를 부릅니다. 다음
# 바이어스를 돌려주세요. 바이어스는 0과 1 사이인 점수에 더해집니다.
#
# 목표: 60스텝 뒤 가장 바쁜 전문가가 평균의 1.2배 이하(모든 랭크를 합치고, 마지막 20스텝의 평균으로 셉니다). 그런
# 다음 인기 있는 전문가가 바뀌고, 다시 60스텝 뒤에도 1.2배 이하여야 합니다. 바이어스는 모든 랭크에서 같아야 하고,
# 토큰 수를 한 번 올리듀스(all-reduce)하는 것보다 많이 보내면 안 됩니다.
# %% exercise="07.balance"
# %%ranks
def new_bias(bias_E, counts_E):
    raise NotImplementedError


# %%
check("07.balance")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# The memory is the reason why experts are spread over GPUs: lesson 08 does it, and pays with all-to-alls in every
# layer. Published: with the same compute, Switch Transformers trained up to 7 times as fast as their dense T5
# [2]; Mixtral, with 13 billion parameters in use, did as well as the dense Llama 2 70B or better in the
# benchmarks of its paper [1].
#
# DeepSeek-V3 has 671 billion parameters, and a token uses 37 billion [4]. It was trained in FP8; with the 16
# bytes a parameter of our float32 it would take:
# %% [markdown] lang="ko" en="063f6206"
# ## GPU 클러스터에서는
#
# 전문가를 여러 GPU에 나누는 까닭은 메모리입니다. 레슨 08에서 직접 나누어 봅니다. 나누면 층마다
# 올투올(all-to-all)을 해야 합니다. 발표된 결과를 보면, 같은 계산량에서 Switch Transformer가 밀집
# 모델 T5보다 최대 7배 빨리 학습했고[2], Mixtral은 파라미터를 130억 개만 쓰면서 논문의 벤치마크에서 밀집 모델
# Llama 2 70B와 같거나 더 나았습니다[1].
#
# DeepSeek-V3의 파라미터는 6710억 개이고 토큰 하나는 370억 개를 씁니다[4]. 실제로는 FP8로 학습했습니다. 우리처럼
# float32로 파라미터당 16바이트라면 이만큼 필요합니다.
# %%
show_v3()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. A router chooses k of E experts for each token; tokens sorted by expert make few large products.
# 2. Compute is that of k experts. Memory for training is that of all E.
# 3. Left alone a router leans on a few experts. A balance loss or a bias spreads the tokens.
# 4. Capacity trades dropped tokens for empty places; dropless pieces have neither.
# 5. Compare architectures at equal compute, parameters or seconds, and say which, and with which seeds.
#
# Sources: [1] [Mixtral](https://arxiv.org/abs/2401.04088). [2]
# [Switch Transformers](https://arxiv.org/abs/2101.03961). [3]
# [Balancing without a loss](https://arxiv.org/abs/2408.15664). [4]
# [DeepSeek-V3](https://arxiv.org/abs/2412.19437).
# %% [markdown] lang="ko" en="76e46949"
# ## 다섯 줄 요약
#
# 1. 라우터가 토큰마다 전문가 E개 중 k개를 고릅니다. 토큰을 전문가 순서로 정렬하면 큰 행렬곱 몇 개가 됩니다.
# 2. 계산량은 전문가 k개만큼, 학습 메모리는 E개 모두만큼입니다.
# 3. 그냥 두면 라우터는 몇몇 전문가에 쏠립니다. 균형 손실이나 바이어스가 토큰을 퍼뜨립니다.
# 4. 용량이 작으면 토큰을 버리고 크면 빈자리가 남습니다. 조각 길이가 자유로우면 둘 다 없습니다.
# 5. 구조를 비교할 때는 계산량, 파라미터, 시간 가운데 무엇을 맞췄는지, 시드가 몇 개인지 밝힙니다.
#
# 출처: [1] [Mixtral](https://arxiv.org/abs/2401.04088). [2]
# [Switch Transformers](https://arxiv.org/abs/2101.03961). [3]
# [손실 없이 균형 맞추기](https://arxiv.org/abs/2408.15664). [4]
# [DeepSeek-V3](https://arxiv.org/abs/2412.19437).
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
# ### What dropping costs
#
# Recorded, too: the MoE of the long run, trained for 300 steps with several capacity factors, against dropless. From
# which share on does the loss rise by more than the seeds differ?
# %% [markdown] lang="ko" en="cb303243"
# ### 토큰을 버리면 얼마나 손해일까요?
#
# 이것도 기록된 실행입니다. 긴 실행의 MoE를 용량 계수를 바꾸어 가며 300스텝씩 학습해, 버리지 않을 때와
# 비교했습니다. 얼마나 버려야 손실이 시드에 따른 차이보다 크게 늘어날까요?
# %%
show_capacity()
# %% [markdown] lang="en"
# ### A router in 16 bits
#
# Two scores may be nearly equal, and rounding decides. Our router computes in float32 also under
# autocast (lesson 10). For what share of the tokens would bfloat16 have chosen other experts?
# %% [markdown] lang="ko" en="7615809b"
# ### 16비트 라우터
#
# 두 점수가 거의 같으면 반올림 오차만으로도 고르는 전문가가 바뀝니다. 우리 라우터는 autocast(레슨 10) 안에서도
# float32로 계산합니다. bfloat16이었다면 토큰의 몇 %가 다른 전문가를 골랐을까요?
# %%
# %%ranks 0
tokens, router = torch.randn(4096, 64, device=device), new_layer().router
with torch.autocast(device.type, dtype=torch.bfloat16):
    wide, narrow = router(tokens), F.linear(tokens, router.weight)
other = narrow.float().topk(2).indices.sort(1).values != wide.experts_NK.sort(1).values
f"{wide.logits_NE.dtype}, {narrow.dtype}: {other.any(1).float().mean():.1%}"
# %% [markdown] lang="en"
# ### The z-loss
#
# Add the same number to all scores, and softmax gives the same; but large numbers are rounded more coarsely. The
# z-loss is the mean of log(sum of exp)², a gentle pull of it to 0
# ([ST-MoE](https://arxiv.org/abs/2202.08906), with weight 0.001). Our scores, and all of them 10 higher:
# %% [markdown] lang="ko" en="8f782152"
# ### z-손실
#
# 모든 점수에 같은 수를 더해도 softmax는 그대로지만, 수가 크면 반올림이 거칠어집니다. z-손실은 log(exp의 합)²의
# 평균으로, 이 값을 0 쪽으로 살며시 당깁니다([ST-MoE](https://arxiv.org/abs/2202.08906), 가중치는 0.001). 우리
# 점수, 그리고 모두 10씩 올린 점수입니다.
# %%
# %%ranks 0
from dlcourse.models.moe import z_loss

scores = new_layer().router(torch.randn(4096, 64, device=device))
moved = [scores._replace(logits_NE=scores.logits_NE + more) for more in (0, 10)]
[round(z_loss(routing).item(), 2) for routing in moved]
# %% [markdown] lang="en"
# And in training? Recorded: the MoE of the long run, as it is, and begun with a router whose scores are far too
# large.
# %% [markdown] lang="ko" en="3537813b"
# 학습에서는 어떨까요? 기록된 실행입니다. 긴 실행의 MoE를 그대로, 그리고 라우터의 점수가 너무 큰 상태에서 시작해
# 학습했습니다.
# %%
show_scores()
# %% [markdown] lang="en"
# It keeps log(sum of exp), which it squares, near 0. A single score is no smaller with it: for 0.6 in place of 2.3 all
# of them sink, and far below 0 is large, too. Where scores begin in the tens, the largest ends a third lower. What
# it costs in loss is within the seeds; in the rows with one seed nobody can say.
# %% [markdown] lang="ko" en="056181e4"
# z-손실은 제곱하는 값인 log(exp의 합)을 0 근처에 둡니다. 점수 하나하나가 작아지지는 않습니다. 이 값이 2.3이 아니라
# 0.6이 되려면 모든 점수가 내려가야 하고, 0보다 한참 작은 점수도 크기로는 큽니다. 수십에서 시작한 점수 가운데 가장 큰 것은
# 3분의 1쯤 작아집니다. 손실의 차이는 시드 차이 안에 있고, 시드가 하나인 줄에서는 판단할 수 없습니다.
# %% [markdown] lang="en"
# ### A shared expert
#
# What every token needs would be learned by every expert.
# [DeepSeekMoE](https://arxiv.org/abs/2401.06066) gives it an expert of its own, which all tokens use beside the routed ones. At equal compute: one shared expert and top-1, against top-2.
# %% [markdown] lang="ko" en="cce165dc"
# ### 공유 전문가
#
# 모든 토큰에 필요한 것은 전문가마다 따로 배우게 됩니다. [DeepSeekMoE](https://arxiv.org/abs/2401.06066)는 이것을
# 모든 토큰이 함께 쓰는 전문가(공유 전문가)에게 맡깁니다. 계산량을 같게 맞춰 공유 전문가 하나와 top-1을
# top-2와 비교합니다.
# %%
# %%ranks --fast
from dataclasses import replace

with_shared = replace(MOE, top_k=1, expert_hidden=128, shared_hidden=128)
found = train(with_shared, **short)
last = [[look["loss"]["mean"] for look in run["looks"][-3:]] for run in (found, results["loss"])]
[round(sum(three) / 3, 3) for three in last]
# %% [markdown] lang="en"
# Two lists, one for each seed; the first number is with the shared expert. Compare their difference
# with that between the seeds before you believe either.
# %% [markdown] lang="ko" en="a82d4db1"
# 시드마다 목록 하나씩이고, 첫 숫자가 공유 전문가를 쓴 쪽입니다. 믿기 전에 두 숫자의 차이를 시드 사이의 차이와
# 견주어 보세요.
