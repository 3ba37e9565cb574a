# %% [markdown] lang="en" form="core"
# # 15 Choosing a strategy
#
# Fourteen lessons have filled a toolbox: copies, cut matrices, stages, shards, recomputation, offload. Now
# somebody gives you a model of 70 billion parameters, 128 GPUs and a deadline. The work can be divided in
# tens of thousands of ways. Most do not fit into memory, many are slow, and to try one takes hours.
#
# First you use three of the tools at once, in eight real processes, then in a thousand that do not exist.
# Then you choose, by computing memory and time of *all* ways.
#
# You need lessons [03](03_data_parallel.ipynb), [04](04_tensor_parallel.ipynb),
# [05](05_pipeline_parallel.ipynb) and [06](06_zero.ipynb).
#
# Time: reading 20 min + exercises 42 min.
# %% [markdown] lang="ko" en="e87bd88a"
# # 15 전략 고르기
#
# 레슨 열네 개를 지나는 동안 도구 상자가 가득 찼습니다. 복제본, 자른 행렬, 스테이지, 샤드, 재계산, 오프로드까지.
# 이제 파라미터 700억 개짜리 모델과 GPU 128개와 기한을 받았습니다. 일을 나누는 방법은 수만 가지입니다. 대부분은
# 메모리에 들어가지 않고, 들어가도 느린 것이 많으며, 하나를 직접 해 보는 데만 몇 시간이 듭니다.
#
# 먼저 도구 셋을 한꺼번에 씁니다. 실제 프로세스 여덟 개에서, 그다음에는 있지도 않은 천 개에서 해 봅니다. 그런
# 다음 *모든* 방법의 메모리와 시간을 계산해서 고릅니다.
#
# 레슨 [03](03_data_parallel.ipynb), [04](04_tensor_parallel.ipynb), [05](05_pipeline_parallel.ipynb),
# [06](06_zero.ipynb)을 먼저 보세요.
#
# 시간: 읽기 20분 + 연습 42분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 8
device = "auto"
steps = 5
# %% [markdown] lang="en"
# ## Three ways at once
#
# ```mermaid
# flowchart LR
#   subgraph A["copy 0: sequences 0-7"]
#     direction TB
#     subgraph S0["stage 0: layers 0-1"]
#       R0["rank 0<br>heads 0-1"] <-->|tensor| R1["rank 1<br>heads 2-3"]
#     end
#     subgraph S1["stage 1: layers 2-3"]
#       R2["rank 2<br>heads 0-1"] <-->|tensor| R3["rank 3<br>heads 2-3"]
#     end
#     S0 <-->|pipeline| S1
#   end
#   subgraph B["copy 1: sequences 8-15"]
#     direction TB
#     S2["ranks 4, 5<br>layers 0-1"] <-->|pipeline| S3["ranks 6, 7<br>layers 2-3"]
#   end
#   A <-->|data| B
# ```
#
# Eight ranks as a grid with three sides, a **mesh**: 2 copies × 2 stages × 2 halves of each matrix. This is
# **3D parallelism**. (The lesson stays on the CPU, where eight ranks fit on any machine.)
# %% [markdown] lang="ko" en="ef15647c"
# ## 세 가지를 한꺼번에
#
# ```mermaid
# flowchart LR
#   subgraph A["복제본 0: 시퀀스 0-7"]
#     direction TB
#     subgraph S0["스테이지 0: 층 0-1"]
#       R0["랭크 0<br>헤드 0-1"] <-->|텐서| R1["랭크 1<br>헤드 2-3"]
#     end
#     subgraph S1["스테이지 1: 층 2-3"]
#       R2["랭크 2<br>헤드 0-1"] <-->|텐서| R3["랭크 3<br>헤드 2-3"]
#     end
#     S0 <-->|파이프라인| S1
#   end
#   subgraph B["복제본 1: 시퀀스 8-15"]
#     direction TB
#     S2["랭크 4, 5<br>층 0-1"] <-->|파이프라인| S3["랭크 6, 7<br>층 2-3"]
#   end
#   A <-->|데이터| B
# ```
#
# 랭크 여덟 개를 세 방향이 있는 격자, 곧 **메시**(mesh)로 놓습니다. 복제본 2개 × 스테이지 2개 × 행렬의 절반
# 2개입니다. 이것이 **3D 병렬화**입니다. (이 레슨은 CPU에서 돌립니다. 랭크 여덟 개가 어느 컴퓨터에나 들어갑니다.)
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz
from dlcourse import show_guesses, solution
from dlcourse.course.library_map import library_map
from dlcourse.explorer.plan import plan_picture
from dlcourse.figures.bakeoff import show_bakeoff_memory
from dlcourse.figures.choosing import FAILING, check_ranks, side_ratio, show_equal, show_grid
from dlcourse.figures.choosing import show_recorded, show_step, show_thousands
from dlcourse.figures.goodput import goodput_picture, show_goodput, show_published_failures
from dlcourse.figures.size_rule import show_size_bands, show_size_map, show_tensor_of_mixtures
from dlcourse.figures.strategies import figures_of_a1, figures_of_a2, figures_of_a3, figures_of_a4
from dlcourse.figures.strategies import show_first_losses, show_optimizer_state
# %% hidden=true
from dlcourse.peers.bakeoff import recorded_bakeoff
from dlcourse.plan.answer_tables import show_changes, show_choice, show_published, show_rivals
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.failures import best_simulated, goodput_by_size
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.own_mesh import planned_here, planned_there
from dlcourse.plan.planner import plan
from dlcourse.plan.scale import scale
from dlcourse.plan.scenario import Scenario, show_plan
from dlcourse.plan.size_rule import size_map, tensor_of_mixtures

lesson(lang=lang, name="15_choosing")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device="cpu")
ranks.cell(f"steps = {steps}", record=False)
# %%
# %%ranks
from dlcourse.parallel.mesh import make_mesh

sides = {"data": world_size // 4, "pipeline": 2, "tensor": 2}
mesh = make_mesh(**sides)
place = mesh.get_coordinate()
# %%
sides = ranks["sides"][0]
show_grid(ranks["place"], sides)
# %% [markdown] lang="en"
# Neighbours in number are neighbours along *tensor*. You will see in a minute why.
#
# Composing is three lines, one for each of lessons 04, 05 and 03, and their order matters. First every matrix
# is cut over the tensor ranks. Of the cut model each stage keeps its layers. What is left on a rank is copied,
# and its gradients are averaged with its copies. Nobody has to know of the others: each gets the process group
# of its own side.
#
# Folded below is the class of the course, `dlcourse/parallel/mesh.py`.
# %% [markdown] lang="ko" en="c3560ab7"
# 이어진 번호는 *텐서* 방향으로 이웃합니다. 왜 그런지는 곧 알게 됩니다.
#
# 합치는 데는 세 줄이면 됩니다. 레슨 04, 05, 03에서 한 줄씩이고 순서가 중요합니다. 먼저 모든 행렬을 텐서 랭크에
# 나눠 자릅니다. 자른 모델에서 스테이지마다 자기 층만 남깁니다. 랭크에 남은 것은 복제하고, 복제본끼리 그래디언트의
# 평균을 냅니다. 서로를 알 필요는 없습니다. 저마다 자기 방향의 프로세스 그룹만 받습니다.
#
# 아래에 접어 둔 것은 과정의 클래스 `dlcourse/parallel/mesh.py`입니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import BucketedDataParallel
from dlcourse.parallel.pipeline import PipelineParallel
from dlcourse.parallel.pipeline_schedules import one_f_one_b
from dlcourse.parallel.replicas import broadcast_module
from dlcourse.parallel.tensor import parallel_blocks
from dlcourse.training.mesh_parity import apart_from, largest

OURS, BATCH = GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=64), 8
corpus = Corpus()
groups = {side: mesh.get_group(side).group_name for side in sides}
# %%
# %%ranks
def compose(gpt):
    broadcast_module(gpt)
    parallel_blocks(gpt, mesh.get_group("tensor"))
    schedule = one_f_one_b(num_ranks=sides["pipeline"], num_micro_batches=4)
    stage = PipelineParallel(gpt, schedule, process_group=mesh.get_group("pipeline"))
    return stage, BucketedDataParallel(stage, process_group=mesh.get_group("data"))


def step(tokens, targets):
    optimizer.zero_grad()
    loss = stage.step(tokens, targets)
    copies.sync_gradients()
    optimizer.step()
    for side in ("pipeline", "data"):
        dist.all_reduce(loss, group=mesh.get_group(side))
    return loss / sides["data"]
# %%
# %%ranks
stage, copies = compose(GPT(OURS, seed=rank))
optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
copy = {"rank": mesh.get_local_rank("data"), "world_size": sides["data"]}
# %% hidden=true source="dlcourse.parallel.mesh:MeshParallel"

# %% [markdown] lang="en"
# Each of the 4 micro-batches has 2 sequences, and a stage has 2 layers. A layer calls four all-reduces along
# tensor, two in forward and two in backward; between the stages goes what one layer gives, once there and once
# back. All of these are tensors of one size.
#
# **Predict**: how many times as many bytes does rank 0 send along *tensor* as along *pipeline*?
# %% [markdown] lang="ko" en="a08881d7"
# 마이크로배치 4개에는 시퀀스가 2개씩 있고, 스테이지에는 층이 2개씩 있습니다. 층 하나는 텐서 방향으로 올리듀스를 네
# 번 부릅니다. 순전파에서 두 번, 역전파에서 두 번입니다. 스테이지 사이로는 층 하나의 결과가 한 번 가고 그
# 그래디언트가 한 번 돌아옵니다. 모두 크기가 같은 텐서입니다.
#
# **예측해 보세요.** 랭크 0이 *텐서* 방향으로 보내는 바이트는 *파이프라인* 방향의 몇 배일까요?
# %%
predict("15.sides")
# %%
# %%ranks --as first
loss = step(*corpus.batch(0, **copy, micro_batch=BATCH, block=64))
# %%
groups = ranks["groups"][0]
compare("15.sides", side_ratio(first, groups))
show_step(first, groups, sides, planned_here(sides))
# %% [markdown] lang="en"
# Along tensor most bytes go, in every layer, and nobody can compute while they travel. So tensor ranks come
# first in the numbering: inside one machine, where links are fastest. Pipeline messages are few. Copies meet
# once a step, here after the backward; libraries hide most of it behind the last micro-batch's. That is why meshes look alike everywhere: tensor inside the node, pipeline
# and data between nodes [1].
#
# The planner that you will use below knew this rank's memory beforehand. And the training?
# %% [markdown] lang="ko" en="0d370228"
# 바이트는 텐서 방향이 가장 많습니다. 층마다 오가고, 오가는 동안에는 계산할 수 없습니다. 그래서 텐서 랭크가 번호에서 가장
# 가깝습니다. 링크가 가장 빠른 컴퓨터 한 대 안에 들어가라는 뜻입니다. 파이프라인 메시지는 적습니다. 복제본은 스텝마다
# 한 번, 여기서는 역전파가 끝난 뒤에 만납니다. 라이브러리는 대부분을 마지막 마이크로배치의 역전파 뒤에 숨깁니다. 그래서 메시는 어디서나 비슷하게 생겼습니다. 텐서는 노드 안, 파이프라인과
# 데이터는 노드 사이입니다[1].
#
# 아래에서 쓸 플래너(planner)는 이 랭크의 메모리를 미리 알고 있었습니다. 학습 결과도 같을까요?
# %% hidden=true
# %%ranks --fast
alone = GPT(OURS, seed=0)
adam = torch.optim.AdamW(alone.parameters(), lr=1e-3)


def alone_backward(number):
    adam.zero_grad()
    loss = alone(*corpus.batch(number, micro_batch=BATCH * sides["data"], block=64))
    loss.backward()
    return loss.detach()


off = {"loss": largest((loss - alone_backward(0)).abs())}
off["gradients"] = apart_from(stage, alone, mesh, lambda p: p.grad)
adam.step()
for number in range(1, steps):
    step(*corpus.batch(number, **copy, micro_batch=BATCH, block=64))
    alone_backward(number)
    adam.step()
off["steps"] = apart_from(stage, alone, mesh, lambda p: p.detach())
# %%
show_equal(ranks["off"][0])
# %% [markdown] lang="en"
# Three parallelisms at once, and the same training. Now a mesh whose numbers do not multiply out:
# %% [markdown] lang="ko" en="64c5e7f5"
# 병렬화 셋을 한꺼번에 써도 같은 학습입니다. 이번에는 곱해도 랭크 수가 되지 않는 메시입니다.
# %%
# %%ranks --fails "3 x 2 x 2 is 12 ranks"
make_mesh(data=3, pipeline=2, tensor=2)
# %% [markdown] lang="en"
# All ranks refuse, before anything is sent. So it is with heads, layers and batches: every side must divide
# something, and these divisors are what a planner goes through.
#
# ## A thousand ranks
#
# The same classes take a step as rank 0 of 1,024, on tensors that have shapes and no numbers: 6.9 billion
# parameters, 16 copies × 8 stages × 8 tensor ranks, in float32. Nothing is sent, all is counted. (The eight
# real ranks end here; four new ones wait at the exercises.)
#
# **Predict**: how many bytes of parameters does rank 0 keep? All of them together are 27.5 GB: 32 layers of
# width 4,096, and a vocabulary of 51,200, whose embedding our tensor ranks do not cut.
# %% [markdown] lang="ko" en="c2fad89c"
# 모든 랭크가 아무것도 보내기 전에 거부합니다. 헤드, 층, 배치도 마찬가지입니다. 방향마다 그 크기로 헤드나 층이나 배치가
# 나누어떨어져야 하고, 플래너는 바로 이 약수들을 하나하나 따져 봅니다.
#
# ## 랭크 천 개
#
# 같은 클래스로, 랭크 1,024개 가운데 랭크 0인 것처럼 한 스텝을 실행합니다. 텐서에는 모양만 있고 값은 없습니다. 파라미터
# 69억 개, 복제본 16개 × 스테이지 8개 × 텐서 랭크 8개, float32입니다. 보내는 것은 없고 모두 세기만 합니다. (실제 랭크
# 여덟 개는 여기서 끝냅니다.)
#
# **예측해 보세요.** 랭크 0이 가진 파라미터는 몇 바이트일까요? 전체는 27.5 GB로, 폭 4,096인 층 32개와 어휘 51,200개입니다.
# 임베딩은 텐서 방향으로 자르지 않습니다.
# %%
predict("15.first")
# %% hidden=true
_ = ranks.stop()
# %%
scaled = scale("05_pipeline_parallel", model="7b", world=1024)
compare("15.first", scaled.kept["parameters"])
show_thousands(scaled.record, planned_there(scaled.record))
# %% [markdown] lang="en"
# The formulas hold at a thousand ranks as they do at eight. So they can be trusted where nobody can try.
#
# ## Which layout?
#
# A **layout** says it all: data × tensor × pipeline × context (each sequence cut over ranks, lesson 04), a
# pipeline's chunks, ZeRO stage, micro-batch, recomputation, offload. The
# planner computes memory and time of every one that divides: bytes by lessons 06 to 13, time from the speed of
# matrices on this GPU, bytes over links, and bubbles. It names two: the fastest, and the *simplest* that is at
# most 5% slower. MFU is the share of a GPU's peak that goes into what the model needs.
# %% [markdown] lang="ko" en="a2f68538"
# 공식은 랭크 여덟 개에서처럼 천 개에서도 맞습니다. 그러니 아무도 해 볼 수 없는 곳에서도 믿을 만합니다.
#
# ## 어떻게 나눌까?
#
# 데이터 × 텐서 × 파이프라인 × 컨텍스트(시퀀스 하나를 랭크에 나눔, 레슨 04), 파이프라인의 청크, ZeRO 단계, 마이크로배치,
# 재계산, 오프로드를 모두 정한 것을 **구성**(layout)이라고 합니다. 플래너는 나누어떨어지는 것을 모두 계산합니다. 메모리는 레슨 06-13의 공식으로, 시간은 이
# GPU의 행렬곱 속도와 링크로 가는 바이트와 버블로 계산합니다. 그리고 둘을 고릅니다. 가장 빠른 것, 그리고 그보다
# 5%까지만 느린 것 가운데 가장 *단순한* 것입니다. MFU는 GPU 최고 속도 가운데 모델에 꼭 필요한 계산에 쓰인 비율입니다.
# %%
job = Job(
    shape=published_model("llama-3-70b"),
    cluster=cluster_of("h100", gpus=128),
    batch_tokens=4_194_304,
    sequence=8192,
)
answer = plan(job)
show_choice(answer)
# %% [markdown] lang="en"
# The right column gives up less than 5% and has fewer parts that can break: take that one. And why did the
# others lose? Look for 3D as well, "tensor + pipeline".
# %% [markdown] lang="ko" en="621e04f7"
# 오른쪽 열은 5%도 잃지 않으면서 탈이 날 곳이 적습니다. 그것을 고르세요. 나머지는 왜 밀렸을까요? 3D, 곧 "텐서 +
# 파이프라인"도 찾아보세요.
# %%
show_rivals(answer)
# %% [markdown] lang="en"
# Read the last column as this course in one table: copies do not fit, by far; ZeRO-2 leaves whole parameters;
# ZeRO-3 fits, and computes again what it has no room to keep. The line under it says how far 3D and tensor alone
# are from the fastest; a gap that small is what stages and a schedule must be worth to you.
#
# Below, what a little more hardware would change. Then sliders: the best layout's fullest GPU, and which
# tensor × pipeline sizes fit at all. (Without offload and context parallelism, with sequences of 4,096 tokens.)
# Where does the fastest layout have a pipeline?
# %% [markdown] lang="ko" en="15848f9a"
# 마지막 열은 이 과정을 표 하나로 줄인 것입니다. 복제본은 한참 모자라고, ZeRO-2에는 파라미터가 통째로 남습니다.
# ZeRO-3은 들어가지만, 둘 자리가 없는 것을 다시 계산합니다. 3D와 텐서만 쓰는 구성이 가장 빠른 것보다 얼마나 느린지는
# 표 아래 줄에 있습니다. 스테이지와 스케줄까지 돌볼 만한 차이인지는 그 수를 보고 정하세요.
#
# 아래 표는 장비가 조금 더 있으면 무엇이 달라지는지 보여 줍니다. 그다음은 슬라이더입니다. 가장 빠른 방식에서
# 메모리를 가장 많이 쓰는 GPU의 내역과, 텐서 × 파이프라인 크기마다 들어가는지가 보입니다. (오프로드와 컨텍스트 병렬화는
# 빼고, 시퀀스는 4,096토큰입니다.) 가장 빠른 것이 파이프라인을 쓰는 곳은 어디일까요?
# %%
show_changes(answer)
# %%
explore(
    plan_picture,
    model=["llama-3-8b", "llama-3-70b", "llama-3-405b"],
    gpus=[8, 64, 512, 2048],
)
# %% [markdown] lang="en"
# And where nothing fits, the planner says by how much, and what would do, offload included:
# %% [markdown] lang="ko" en="ecd5efe9"
# 아무것도 들어가지 않으면 얼마나 모자라는지, 오프로드까지 써서 얼마면 되는지를 말합니다.
# %%
huge = published_model("llama-3-405b")
try:
    plan(Job(shape=huge, cluster=cluster_of("h100", gpus=16), batch_tokens=4_194_304))
except ValueError as refused:
    print(refused)
# %% [markdown] lang="en"
# ## Can it be trusted?
#
# Runs that others have measured, beside what the planner says of the same layout (+: too fast for TFLOP/s, too
# slow for seconds). Not one of its constants is fitted to them.
# %% [markdown] lang="ko" en="ed1edd7a"
# ## 믿을 만할까?
#
# 다른 사람들이 잰 결과 옆에 플래너가 같은 방식을 두고 예측한 값을 놓았습니다. (+는 TFLOP/s에서는 너무 빠르게,
# 초에서는 너무 느리게 본 것입니다.) 플래너의 상수 가운데 이 측정에 맞춘 것은 하나도 없습니다.
# %%
show_published(["llama3", "qwen3"])
# %% [markdown] lang="en"
# Look at Qwen3: runs from 17.6 to 29 s, 65% apart, which the planner puts 6% apart, though in the right order. Good
# enough to throw out tens of thousands of layouts. Not to decide between the last few: take the simplest, and run it
# beside two or three others.
#
# ## Is the model's size enough to know?
#
# A rule of thumb says so: copies below 1B parameters, ZeRO-2 to 10B, 3D to 100B, above that 3D with ZeRO-3 and
# offload. Here it meets the planner: twelve models on five cluster sizes, with hardware and software of 2020
# and of today. A cell says how much slower the rule's *best* layout is than the fastest.
# %% [markdown] lang="ko" en="1f96e222"
# Qwen3를 보세요. 17.6초에서 29초까지 65% 차이가 나는 네 가지를 플래너는 순서는 맞게, 그러나 6% 차이로 봅니다. 수만 가지를
# 걸러 내기에는 충분하지만 마지막 몇 가지 가운데 하나를 고르기에는 모자랍니다. 가장 단순한 것을 다른 두세 가지와 함께 돌려 보세요.
#
# ## 모델 크기만 알면 될까?
#
# 그렇다는 경험칙이 있습니다. 파라미터 1B 미만이면 복제본, 10B까지 ZeRO-2, 100B까지 3D, 그 위로는 3D에 ZeRO-3과
# 오프로드를 더하라는 것입니다. 이것을 플래너와 견줍니다. 모델 열두 개와 클러스터 크기 다섯 가지, 2020년과 지금의
# 하드웨어와 소프트웨어입니다. 칸의 숫자는 규칙을 따르는 방식 가운데 *가장 좋은* 것이 가장 빠른 것보다 얼마나 느린지를
# 나타냅니다.
# %%
then, now = size_map("a100-40"), size_map("h100")
show_size_map(then, now)
# %%
claim("B7")
# %% [markdown] lang="en"
# The rule is right in the middle. To the right it fails even for small models: on 2,048 GPUs a copy has one
# sequence of the batch left, and its gradients travel as long as ever. To the left it fails for want of memory.
# And above 100B it is hardly ever right: with enough GPUs the states fit without ZeRO-3, and then offload only
# costs time. Ask for size *and* cluster.
#
# ## One GPT, every library
#
# The same GPT, text and steps by each library, in four ranks. "Lines" is what its user writes. All rows are from
# a recorded run, whose machine stands below the table.
# %% [markdown] lang="ko" en="91154674"
# 규칙은 가운데에서 맞습니다. 오른쪽에서는 작은 모델에서도 틀립니다. GPU가 2,048개면 복제본 하나에 시퀀스가 하나씩만
# 남는데 그래디언트를 보내는 시간은 그대로입니다. 왼쪽에서는 메모리가 모자라 틀립니다. 100B를 넘으면 거의 맞지
# 않습니다. GPU가 넉넉하면 ZeRO-3 없이도 들어가고, 그때 오프로드는 시간만 듭니다. 크기와 클러스터를 *함께* 따지세요.
#
# ## GPT 하나, 모든 라이브러리
#
# 같은 GPT를 같은 글로 같은 스텝만큼, 라이브러리마다 랭크 네 개에서 학습합니다. "줄"은 그 라이브러리를 쓰는 사람이
# 적는 코드입니다. 모든 행은 미리 기록한 실행이며, 기록한 컴퓨터는 표 아래에 있습니다.
# %%
record = recorded_bakeoff()
show_recorded(record)
# %% [markdown] lang="en"
# All train the same, and bytes follow the *strategy*. (In the ZeRO rows ours sends less: the libraries call Gloo's
# reduce-scatter, which sends as much as an all-reduce; over NCCL this goes. Times are noisy: Accelerate *is* DDP
# here.) So compare within a strategy, then choose by lines, by buffers (peak memory), by who maintains it, and by what else you will need.
#
# That closes the map of lesson 00. Architecture (dense, MoE, sparse, hybrid) is one question, strategy another,
# the library a third. Claims about this map get their verdicts under Deeper. Who has what:
# %% [markdown] lang="ko" en="f3ce77a0"
# 학습 결과는 모두 같고, 보내는 바이트는 *전략*을 따릅니다. (ZeRO에서 직접 만든 것이 적게 보내는 것은 Gloo의
# 리듀스스캐터가 올리듀스만큼 보내기 때문이고, NCCL에서는 사라집니다. 시간에는 잡음이 큽니다. Accelerate는 여기서 DDP
# 그 자체입니다.) 그러니 전략이 같은 것끼리 견준 다음
# 코드 줄 수, 버퍼(최대 메모리), 누가 관리하는지, 앞으로 무엇이 더 필요한지를 보고 고르세요.
#
# 이것으로 레슨 00의 지도가 완성됩니다. 모델 구조(밀집, MoE, 희소, 혼합)가 한 물음이고, 전략이 또 한 물음이고,
# 라이브러리가 세 번째 물음입니다. 이 지도에 대한 주장의 판정은 "더 깊이"에 있습니다. 어느 라이브러리에 무엇이 있는지는
# 다음과 같습니다.
# %%
library_map()
# %% [markdown] lang="en"
# ## When machines fail
#
# Llama 3 405B trained on 16,384 GPUs for 54 days, and was interrupted 466 times, 419 of them unexpectedly
# [2]: one failure every 3.1 hours. Each costs a restart and the work since the last checkpoint. Checkpoint too
# often, and writing costs more than failures do. **Goodput** is the share of the time in which training really
# advances. (Below, a restart takes 10 minutes, a failed node is away for a day, and spares are counted for each
# hundred nodes.)
#
# **Predict**: a checkpoint takes 60 seconds, and something fails every 3.09 hours. How many minutes of work
# between two checkpoints are best?
# %% [markdown] lang="ko" en="74afad95"
# ## 컴퓨터가 고장 나면
#
# Llama 3 405B는 GPU 16,384개로 54일 동안 학습하면서 466번 중단되었고, 그중 419번은 예상하지 못한
# 고장이었습니다[2]. 3.1시간마다 한 번꼴입니다. 고장이 나면 다시 시작해야 하고, 마지막으로 저장한 뒤에 한 일을 잃습니다. 그렇다고 너무 자주 저장하면 고장보다 저장에 시간이 더
# 듭니다. **유효 처리율**(goodput)은 학습이 실제로 나아간 시간의 비율입니다. (아래에서 재시작은 10분 걸리고, 고장 난 노드는 하루
# 동안 빠지며, 예비 노드는 노드 백 개마다의 수입니다.)
#
# **예측해 보세요.** 체크포인트 파일을 쓰는 데 60초가 걸리고 3.09시간마다 고장이 납니다. 몇 분마다 저장하는 것이
# 가장 좋을까요?
# %%
predict("15.interval")
# %%
compare("15.interval", best_simulated(**FAILING))
explore(
    goodput_picture,
    node_mtbf=[1000, 6300, 20000],
    checkpoint=[10, 60, 300],
    spares=[0, 3, 6],
)
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the function, run it, run the check. `hint("15.place")` helps step by step; `solution("15.place")`
# shows one answer.
#
# **1. `15.place`** (3 minutes). Ranks are numbered as above: tensor neighbours first, then stages, then copies.
# Return the coordinates (data, pipeline, tensor) of `rank`; `pipeline` and `tensor` are the sizes of these
# sides.
# %% [markdown] lang="ko" en="010405ac"
# ## 연습 문제
#
# 함수를 채워 실행하고 check 셀을 실행하세요. `hint("15.place")`는 한 단계씩 도와주고, `solution("15.place")`는 답
# 하나를 보여 줍니다.
#
# **1. `15.place`** (3분). 랭크 번호는 위와 같이 붙입니다. 텐서 이웃이 먼저, 그다음이 스테이지, 그다음이
# 복제본입니다. `rank`의 좌표 (데이터, 파이프라인, 텐서)를 돌려주세요. `pipeline`과 `tensor`는 그 방향의 크기입니다.
# %% exercise="15.place"
def place(rank, pipeline, tensor):
    raise NotImplementedError


# %%
check("15.place")
# %% [markdown] lang="en"
# **2. `15.gpus`** (7 minutes). Before any planner: how many GPUs, in whole nodes of `node`, train a model on
# `tokens` in `days`? A token uses `active` of the `total` parameters; a GPU reaches the share `mfu` of its
# `peak` FLOP/s. A parameter costs 2 FLOP for each token in forward; how many in a whole step?
# %% [markdown] lang="ko" en="f6f0daf6"
# **2. `15.gpus`** (7분). 플래너를 쓰기 전에 어림해 봅니다. `days`일 안에 토큰 `tokens`개를 학습하려면 GPU가 몇 개
# 필요할까요? GPU는 `node`개짜리 노드 단위로 씁니다. 토큰 하나는 파라미터 `total`개 가운데 `active`개를 쓰고, GPU는
# 최고 속도 `peak`(FLOP/s) 가운데 `mfu`만큼을 냅니다. 파라미터 하나는 순전파에서 토큰마다 2 FLOP을 씁니다. 한 스텝 전체로는 얼마일까요?
# %% exercise="15.gpus"
def gpus_for(active, total, tokens, days, mfu, peak, node):
    raise NotImplementedError


# %%
check("15.gpus")
# %% [markdown] lang="en"
# **3. `15.norm`** (12 minutes). To clip gradients one needs the norm of the *whole* model's gradients. A rank has `cut`,
# gradients of matrices that the tensor ranks share out, and `whole`, of what all of them have alike, such as
# norms. Both are averaged along data already. Return one number, the same in all ranks, as if one process had
# computed it. Only a few numbers may travel. The code below is a common mistake.
# %% [markdown] lang="ko" en="90f1616a"
# **3. `15.norm`** (12분). 그래디언트를 클리핑하려면 모델 *전체*의 노름이 필요합니다. `cut`은 텐서 랭크가 나눠 가진
# 행렬의 그래디언트이고, `whole`은 정규화 층처럼 텐서 랭크가 모두 똑같이 가진 것의 그래디언트입니다. 둘 다 데이터
# 방향으로는 이미 평균을 냈습니다. 단일 프로세스에서 구한 것과 같은 수 하나를 모든 랭크에서 돌려주세요. 수 몇 개만
# 보내야 합니다. 아래 코드는 흔한 실수입니다.
# %% hidden=true
ranks = Ranks(4, device="cpu")
# %% exercise="15.norm"
# %%ranks
def grad_norm(cut, whole, mesh):
    square = sum((grad**2).sum() for grad in cut + whole)
    dist.all_reduce(square)
    return square.sqrt().item()


# %%
check("15.norm")
# %% [markdown] lang="en"
# **4. `15.capstone`** (20 minutes). Write `submit`: it gets a task and returns a plan, `(number of GPUs,
# Layout)`, that fits, is in time and within the budget, or `None` where there is none. The check has tasks of
# its own. A task knows `sizes()` (numbers of GPUs for rent), `job(gpus)`, `tokens`, `days`, `dollars`, `price`
# of a GPU-hour, and `useful`, the share of the time in which training advances. You may use the planner:
# `plan(…)` raises `ValueError` where nothing fits, and `answer.numbers(answer.fastest, tokens=task.tokens)["days"]`
# is the time without failures. The code below takes all GPUs and the fastest layout.
# %% [markdown] lang="ko" en="8cc3c096"
# **4. `15.capstone`** (20분). `submit`을 쓰세요. 과제를 받아 계획 `(GPU 수, Layout)`을 돌려주는 함수입니다. 계획은
# 메모리에 들어가고 기한과 예산을 지켜야 하며, 그런 계획이 없으면 `None`을 돌려줍니다. 채점에는 다른 과제를 씁니다.
# 과제에는 `sizes()`(빌릴 수 있는 GPU 수), `job(gpus)`, `tokens`, `days`, `dollars`, GPU 한 시간 값 `price`, 학습이
# 나아가는 시간의 비율 `useful`이 있습니다. 플래너를 써도 됩니다. 들어가는 것이 없으면 `plan(…)`은
# `ValueError`를 내고, `answer.numbers(answer.fastest, tokens=task.tokens)["days"]`는 고장이 없을 때의 날수입니다. 아래 코드는 GPU를
# 모두 쓰고 가장 빠른 방식을 고릅니다.
# %% hidden=true
practice = Scenario(
    name="practice",
    model="llama-3.2-1b",
    gpu="rtx-4090",
    most=16,
    tokens=3e10,
    batch_tokens=524_288,
    days=8,
    dollars=350,
    price=0.4,
    useful=0.8,
)
# %% exercise="15.capstone"
def submit(task):
    answer = plan(task.job(task.most))
    return task.most, answer.layouts[answer.fastest]


# %%
show_plan(practice, submit(practice))
# %%
check("15.capstone")
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Cut, deal out, copy: three lines make 3D parallelism, and the training is that of one process.
# 2. Tensor inside the node, where most bytes go; pipeline and data between nodes.
# 3. Bytes can be computed for any number of ranks, so a layout can be chosen before the first GPU is rented.
# 4. Take the simplest layout within 5% of the fastest.
# 5. Libraries are compared strategy by strategy; architecture is chosen apart from both.
#
# Sources: [1] [Narayanan et al., SC 2021](https://arxiv.org/abs/2104.04473).
# [2] [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), section 3.3.4.
# [ZeRO](https://arxiv.org/abs/1910.02054), [Young, 1974](https://doi.org/10.1145/361147.361115).
#
# And you? Below, how far off your guesses were in the whole course.
# %% [markdown] lang="ko" en="a6c933e5"
# ## 다섯 줄 요약
#
# 1. 자르고, 나눠 주고, 복제합니다. 세 줄이면 3D 병렬화가 되고, 학습은 단일 프로세스와 같습니다.
# 2. 바이트가 가장 많은 텐서는 노드 안에, 파이프라인과 데이터는 노드 사이에 둡니다.
# 3. 랭크가 몇 개든 바이트를 계산할 수 있으니, GPU를 빌리기 전에 나누는 방식을 고를 수 있습니다.
# 4. 가장 빠른 것의 5% 안에서 가장 단순한 방식을 고르세요.
# 5. 라이브러리는 전략별로 비교하고, 모델 구조는 그 둘과 따로 고릅니다.
#
# 출처: [1] [Narayanan et al., SC 2021](https://arxiv.org/abs/2104.04473).
# [2] [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783), 3.3.4절.
# [ZeRO](https://arxiv.org/abs/1910.02054), [Young, 1974](https://doi.org/10.1145/361147.361115).
#
# 여러분의 예측은 과정 전체에서 얼마나 빗나갔을까요?
# %%
show_guesses()
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Run the cells above first.
# %% [markdown] lang="ko" en="dedb02d9"
# ## 더 깊이
#
# 위의 셀을 먼저 실행하세요.
# %% [markdown] lang="en"
# ### Five strategies, two architectures, torch alone
#
# `TinyLM` has one layer in the middle: an MLP (dense), or four of which each token uses one (MoE). The function
# folded below spreads either of them with torch's own tools. It nowhere asks how the model is built.
# %% [markdown] lang="ko" en="2c5790b7"
# ### 전략 다섯, 모델 구조 둘, torch만으로
#
# `TinyLM`은 가운데 층이 하나입니다. 밀집이면 MLP 하나, MoE면 토큰마다 하나를 골라 쓰는 MLP 넷입니다. 아래에 접어 둔
# 함수는 둘 가운데 무엇이든 torch의 도구로 나눕니다. 모델을 어떻게 만들었는지는 어디에서도 묻지 않습니다.
# %% hidden=true source="dlcourse.peers.first_look:spread"

# %% hidden=true
# %%ranks --fast
from dlcourse.models.tiny import ARCHITECTURES, TinyLM
from dlcourse.peers.first_look import STRATEGIES, train

sizes = {n: (m.num_parameters(), m.num_active_parameters()) for n in ARCHITECTURES for m in [TinyLM(n)]}
first_look = {
    (name, strategy): train(TinyLM(name), strategy, spread=spread, device=device)
    for name in ARCHITECTURES
    for strategy in STRATEGIES
}
# %%
show_first_losses(ranks["first_look"][0])
# %%
claim("A1", **figures_of_a1(ranks["first_look"][0]))
# %% [markdown] lang="en"
# One loss in each column: what is learned does not depend on how the work is spread. So architectures are
# compared with architectures. But are dense, MoE, sparse and hybrid alternatives? *Sparse* means that a
# token uses a part of the model, which is what an MoE does; *hybrid* means two kinds of layers, and some may be MoE.
# %% [markdown] lang="ko" en="0681a0e7"
# 같은 열의 손실은 모두 같습니다. 무엇을 배우는지는 일을 어떻게 나누는지와 상관없습니다. 그러니 모델 구조는 모델 구조와
# 비교합니다. 그런데 밀집, MoE, 희소, 혼합은 하나를 고르는 문제일까요? 희소는 토큰이 모델의 일부만 쓴다는 뜻이고 MoE가 바로 그렇습니다.
# 혼합은 두 종류의 층을 섞는다는 뜻이고 그 안에 MoE 층이 들어가기도 합니다.
# %%
claim("A2", **figures_of_a2(ranks["sizes"][0]))
# %%
claim("A3", **figures_of_a3(ranks["first_look"][0]))
# %% [markdown] lang="en"
# Claim A4 says that ZeRO is DeepSpeed's alone. AdamW keeps 8 bytes for each parameter; here is what the fullest
# rank keeps of them, with torch's tools only. (ZeRO-1 gives whole parameters to ranks, and two of these are
# large; ZeRO-3 cuts each one into equal parts.)
# %% [markdown] lang="ko" en="e3805323"
# 주장 A4는 ZeRO가 DeepSpeed에만 있다고 합니다. AdamW는 파라미터마다 8바이트를 둡니다. torch의 도구만으로 나누었을 때
# 상태를 가장 많이 든 랭크에 얼마가 있는지 봅니다. (ZeRO-1은 파라미터를 통째로 랭크에 맡기는데 둘이 유난히 크고,
# ZeRO-3은 파라미터마다 똑같이 자릅니다.)
# %%
show_optimizer_state(ranks["first_look"])
# %%
claim("A4", **figures_of_a4(ranks["first_look"]))
# %% [markdown] lang="en"
# ### 16,384 ranks
#
# The same step of a 13B model with 256 copies, as rank 0. It takes no longer and no more memory than for 1,024
# ranks: one rank calls as many collectives as before, in larger groups.
# %% [markdown] lang="ko" en="7e818f10"
# ### 랭크 16,384개
#
# 13B 모델을 복제본 256개로 늘리고 랭크 0이 되어 같은 스텝을 갑니다. 1,024개일 때보다 시간도 메모리도 더 들지
# 않습니다. 랭크 하나가 부르는 집합 통신은 그대로이고 그룹만 커집니다.
# %%
large = scale("05_pipeline_parallel", model="13b", world=16384)
show_thousands(large.record, planned_there(large.record))
# %% [markdown] lang="en"
# ### More published runs
# %% [markdown] lang="ko" en="6408cc88"
# ### 더 많은 공개 측정
# %%
show_published(["sc21", "megatron_core", "llm_foundry", "korthikanti"])
# %% [markdown] lang="en"
# ### The rule by size, in numbers, and for mixtures of experts
#
# A mixture has two sizes. By all its parameters the rule would cut its matrices over many ranks; published runs
# go by the parameters that a token uses, because experts are divided by expert parallelism already.
# %% [markdown] lang="ko" en="6a0259fd"
# ### 크기로 고르는 규칙을 수로, 그리고 전문가 혼합 모델에서
#
# 전문가 혼합 모델에는 크기가 둘 있습니다. 전체 파라미터로 보면 규칙은 행렬을 여러 랭크에 잘라야 한다고 합니다. 공개된
# 실행은 토큰 하나가 쓰는 파라미터를 따릅니다. 전문가는 이미 전문가 병렬화로 나뉘어 있기 때문입니다.
# %%
show_size_bands(then, now)
# %%
show_tensor_of_mixtures(tensor_of_mixtures())
# %% [markdown] lang="en"
# ### What each library holds
#
# The memory of the recorded run. To run all of it on this machine takes minutes: `dlcourse bench bakeoff`.
# %% [markdown] lang="ko" en="1def029f"
# ### 라이브러리마다 메모리에 두는 것
#
# 기록한 실행의 메모리입니다. 이 컴퓨터에서 직접 돌리려면 몇 분 걸립니다: `dlcourse bench bakeoff`.
# %%
show_bakeoff_memory(record["rows"], record)
# %% [markdown] lang="en"
# ### Failures in bursts
#
# Formulas assume failures without memory. Real ones come in bursts [3], as in the simulation here (points; lines
# are the formula): two published rates of failure, checkpoints of 60 seconds, restarts of 10 minutes.
#
# [3] [Schroeder and Gibson, 2010](https://doi.org/10.1109/TDSC.2009.4).
# %% [markdown] lang="ko" en="5b9d6c7d"
# ### 몰려서 오는 고장
#
# 공식은 고장이 서로 상관없이 온다고 봅니다. 실제 고장은 몰려서 옵니다[3]. 그림의 점은 그런 고장을 시뮬레이션한 것이고
# 선은 공식입니다. 공개된 고장률 두 가지, 60초 걸리는 체크포인트 파일 쓰기, 10분 걸리는 재시작입니다.
#
# [3] [Schroeder와 Gibson, 2010](https://doi.org/10.1109/TDSC.2009.4).
# %% hidden=true
from dlcourse.course.records import read_record

published = read_record("goodput_published")
hours = {row["name"]: row["hours_between"] * row["gpus"] // 8 for row in published["rows"]}
curves = {
    name: goodput_by_size(
        [8, 64, 512, 4096, 16384, 65536],
        node_mtbf=each,
        checkpoint=1 / 60,
        restart=1 / 6,
        shape=0.7,
    )
    for name, each in hours.items()
}
show_goodput(curves, published)
# %%
show_published_failures(published)
