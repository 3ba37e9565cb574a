# %% [markdown] lang="en" form="core"
# # 02 Communication backends: what carries a collective
#
# Four ranks add up 16 numbers, then two million, on one machine. With 16 numbers the fastest library can be tens of
# times ahead of the slowest; with two million it is only a few times. Why?
#
# `dist.all_reduce` moves nothing itself. A **backend** below it does: Gloo, NCCL, MPI, or memory
# that the ranks share. You will run Gloo, MPI and two backends of this course, find out by trying
# what they can carry, and fit α (what a start costs) and β (what a byte costs) of five collectives.
# You need [lesson 01](01_collectives.ipynb).
#
# Time: reading 19 min + exercises 41 min.
# %% [markdown] lang="ko" en="aea8cb84"
# # 02 통신 백엔드: 집합 통신은 무엇이 나를까
#
# 랭크(rank) 네 개가 컴퓨터 한 대에서 숫자 16개를 더하고, 이어서 200만 개를 더합니다. 16개일 때는 가장 빠른
# 라이브러리가 가장 느린 것보다 수십 배 빠르기도 한데, 200만 개일 때는 몇 배뿐입니다. 왜 그럴까요?
#
# `dist.all_reduce`는 아무것도 직접 나르지 않습니다. 그 아래의 **백엔드**(backend)가 나릅니다. Gloo, NCCL, MPI,
# 또는 랭크가 함께 쓰는 메모리입니다. Gloo와 MPI, 이 과정에서 만든 백엔드 둘을 직접 돌려 무엇을 나를 수 있는지
# 시험하고, 집합 통신(collective) 다섯 가지의 α(시작하는 비용)와 β(바이트당 비용)를 구합니다. [레슨
# 01](01_collectives.ipynb)을 먼저 보세요.
#
# 시간: 읽기 19분 + 연습 41분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
# %% [markdown] lang="en"
# The stack, from your training loop down to the wire:
#
# ```mermaid
# flowchart TD
#   L["DDP, FSDP, Megatron, DeepSpeed"] --> D["torch.distributed<br>all_reduce, all_to_all, …"]
#   L --> E["DeepEP<br>dispatch, combine"]
#   D --> G[Gloo] & N[NCCL] & M[MPI]
#   E --> N
#   G --> T["TCP, CPU memory"]
#   N --> W["NVLink, InfiniBand, EFA"]
#   M --> T & W
# ```
#
# NVLink joins the GPUs of one machine; InfiniBand and EFA join machines. More often you see a simpler
# drawing, with four equal boxes in a row: NCCL, Gloo, MPI, DeepEP. Is that one right? First ask
# torch what it was built with.
# %% [markdown] lang="ko" en="29c9e488"
# 학습 코드에서 네트워크까지, 통신 스택은 이렇게 쌓여 있습니다.
#
# ```mermaid
# flowchart TD
#   L["DDP, FSDP, Megatron, DeepSpeed"] --> D["torch.distributed<br>all_reduce, all_to_all, …"]
#   L --> E["DeepEP<br>디스패치, 컴바인"]
#   D --> G[Gloo] & N[NCCL] & M[MPI]
#   E --> N
#   G --> T["TCP, CPU 메모리"]
#   N --> W["NVLink, InfiniBand, EFA"]
#   M --> T & W
# ```
#
# NVLink는 한 컴퓨터 안의 GPU를, InfiniBand와 EFA는 컴퓨터와 컴퓨터를 잇습니다. 보통은 더 간단하게 NCCL, Gloo, MPI,
# DeepEP를 같은 크기의 상자 네 개로 나란히 그립니다. 그 그림이 맞을까요? 먼저 torch가 무엇과 함께 빌드되었는지
# 물어봅시다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore, hint, lesson
from dlcourse import predict, quiz, show, solution
from dlcourse.course.records import read_record
from dlcourse.figures.backends import BenchmarkFlow, figures_of_c6, figures_of_c7, labels_of
from dlcourse.figures.backends import said_missing, show_available, show_column
from dlcourse.figures.backends import show_costs, show_published, show_times, show_tried, show_wire
from dlcourse.formulas.collective_time import fastest
from dlcourse.peers import mpi, mpi_collectives
from dlcourse.peers.mpi import run_mpi

lesson(lang=lang, name="02_backends")
ranks = Ranks(num_ranks, device=device)
recorded, published = read_record("backends"), read_record("communication")


def in_mpi(function, **options):
    return said_missing(mpi.missing(), recorded) if mpi.missing() else run_mpi(function, **options)
# %%
# %%ranks
from dlcourse.collectives.trials import attempt, available, try_calls, try_dtypes

here = available()
known = dist.Backend.backend_list
config = dist.distributed_c10d.get_backend_config()
backend = dist.get_backend()
# %%
show_available(ranks["here"][0], ranks["known"][0])
# %% [markdown] lang="en"
# Two names are missing in the four boxes: **UCC** and **XCCL**. One box is no backend at all: there is
# no `backend="deepep"`; a layer of experts (MoE, lesson 00) calls that library itself. And MPI has a
# box, but nothing in it:
# %% [markdown] lang="ko" en="b3c4b56d"
# 상자 네 개에 빠진 이름이 둘 있습니다. **UCC**와 **XCCL**입니다. 상자 하나는 백엔드가 아닙니다. `backend="deepep"`은
# 없고, 전문가 층(MoE, 레슨 00)이 그 라이브러리를 직접 부릅니다. 그리고 MPI는 상자만 있고 속이 비어 있습니다.
# %%
# %%ranks --fails "MPI built in"
dist.new_group(backend="mpi")
# %% [markdown] lang="en"
# So torch *could* speak MPI, if you built it yourself. We come back to MPI without torch.
#
# The drawing hides one more thing: a job does not have one backend. A process group has one **for
# each device**. This is the group that the ranks are in, and then a group that serves CUDA only:
# %% [markdown] lang="ko" en="9d51d2a4"
# torch를 직접 빌드하면 MPI도 쓸 수는 있습니다. MPI는 나중에 torch 없이 써 봅니다.
#
# 그림에 드러나지 않는 것이 하나 더 있습니다. 백엔드는 작업마다 하나가 아닙니다. 프로세스 그룹(process group)이
# **장치마다** 하나씩 둡니다. 지금 랭크가 속한 그룹을 보고, CUDA만 맡는 그룹을 따로 만들어 봅시다.
# %%
ranks["config"][0]
# %%
# %%ranks --fails "No backend type associated with device type cpu"
only_gpus = dist.new_group(backend="cuda:gloo")
count = torch.tensor([128])
dist.all_reduce(count, group=only_gpus)
# %% [markdown] lang="en"
# Many meet this error in their first job on GPUs: `init_process_group("nccl")`, all is well, then somebody sums a
# count that lies in a CPU tensor. You need not move the count. Name a backend for both devices:
# `"cpu:gloo,cuda:nccl"`.
#
# ## What can it carry?
#
# Do not read a support matrix: try. Send a sum in each dtype and look at the *result*, not only at
# whether there was an error.
# %% [markdown] lang="ko" en="08d65af9"
# GPU에서 처음 학습할 때 흔히 만나는 오류입니다. `init_process_group("nccl")`로 잘 돌다가, 샘플 수처럼 CPU 텐서에
# 담긴 값을 더하는 순간 나옵니다. 텐서를 GPU로 옮기지 않아도 됩니다. `"cpu:gloo,cuda:nccl"`처럼 두 장치의
# 백엔드를 모두 적으면 됩니다.
#
# ## 무엇을 나를 수 있을까요?
#
# 지원 표를 읽지 말고 직접 해 봅시다. dtype마다 합을 구하고, 오류가 났는지만 보지 말고 *결과*를 봅니다.
# %%
# %%ranks
def outcome(dtype):
    x = torch.full((4,), rank + 1).to(device, dtype)
    dist.all_reduce(x)
    return bool((x.float() == sum(range(1, world_size + 1))).all())


attempt(lambda: outcome(torch.bfloat16)), attempt(lambda: outcome(torch.bool))
# %% hidden=true
# %%ranks --fast
from dlcourse.collectives.shared import shared_all_reduce

dtypes = {"torch": try_dtypes(dist.all_reduce, device)}
if device.type == "cpu":
    dtypes["shared"] = try_dtypes(shared_all_reduce)
calls = try_calls(device)
# %% hidden=true
theirs = recorded["mpi_dtypes"]
if not mpi.missing():
    theirs = run_mpi(mpi_collectives.try_dtypes, num_ranks=2)[0]
tried = ranks["dtypes"][0] | {"mpi": theirs}
labels = labels_of(ranks["backend"][0], recorded if mpi.missing() else None)
# %%
show_tried(tried, ranks["calls"][0], labels=labels)
# %% [markdown] lang="en"
# "Refused" is harmless. Look for **"wrong, no error"**: a sum of truth values comes back as "any of
# them". Whoever counts with it counts to one.
#
# `bfloat16`, the everyday format of training, is not in the MPI 5.0 standard. MPICH has a name of its
# own for it, but mpi4py's is empty here (`MPI_DATATYPE_NULL`). That alone makes MPI awkward for training.
#
# Now a tensor whose numbers do not lie side by side in memory. `whole` is 4 × 4; its second column is a
# view, with gaps of three numbers. Every element is 1 divided by the number of ranks.
#
# **Predict** the last element of that column after `dist.all_reduce(whole[:, 1])`.
# %% [markdown] lang="ko" en="e5975c54"
# "거부"는 괜찮습니다. **틀림, 오류 없음**이라고 적힌 칸을 찾아보세요. 참·거짓 값을 더했더니 "하나라도 참인가"가
# 돌아왔습니다. 이것으로 개수를 세면 아무리 많아도 1입니다.
#
# 학습에서 가장 많이 쓰는 `bfloat16`은 MPI 5.0 표준에 없습니다. MPICH는 자기만의 이름을 붙였지만, 여기의 mpi4py에서는
# 그 이름이 비어 있습니다(`MPI_DATATYPE_NULL`). 이것만으로도 학습에 MPI를 쓰기 어렵습니다.
#
# 이번에는 메모리에 연속으로(contiguous) 놓이지 않은 텐서입니다. `whole`은 4 × 4이고, 둘째 열은 숫자를 세 개씩
# 건너뛰는 뷰(view)입니다. 모든 원소는 1을 랭크 수로 나눈 값입니다.
#
# `dist.all_reduce(whole[:, 1])` 다음에 그 열의 마지막 원소가 얼마일지 **예측해 보세요.**
# %%
predict("02.column")
# %%
# %%ranks
whole = torch.full((4, 4), 1 / world_size, device=device)
refused = attempt(lambda: dist.all_reduce(whole[:, 1]) is None)
column = torch.full((4, 4), 1 / world_size, device=device)[:, 1].contiguous()
dist.all_reduce(column)
# %%
compare("02.column", float(ranks["whole"][0][3][1]))
show_column(ranks["whole"][0].tolist(), ranks["column"][0].tolist(), want=1)
# %% [markdown] lang="en"
# Gloo took the address of the first element and the *number* of elements, and added up the
# four numbers that lie there: one of the column, and three of other columns, which are spoiled now.
# NCCL checks this and refuses. `.contiguous()` copies, and the copy is right.
#
# ## MPI: ranks of another kind
#
# MPI is older than GPUs. It is a standard of *calls*; MPICH and Open MPI are libraries that implement it. It
# starts its own ranks: `mpiexec -n 4 python program.py`. `in_mpi` does just that with a function of yours, and
# says so where MPI is not installed.
# %% [markdown] lang="ko" en="257924dc"
# Gloo는 첫 원소의 주소와 원소의 *개수*만 받아서 그 자리에 이어져 있는 숫자 네 개를 더했습니다. 하나만 그 열의
# 원소였고, 나머지 셋은 다른 열의 원소인데 값이 망가졌습니다. NCCL은 이것을 검사해서 거부합니다. `.contiguous()`로
# 복사하면 맞습니다.
#
# ## MPI: 다른 방식으로 띄운 랭크
#
# MPI는 GPU보다 오래되었습니다. MPI는 *함수 호출*을 정한 표준이고, MPICH와 Open MPI는 그것을 구현한 라이브러리입니다.
# 랭크도 직접 띄웁니다. `mpiexec -n 4 python program.py`처럼요. `in_mpi`는 이렇게 띄운 랭크에서 여러분의 함수를
# 실행하고, MPI가 없으면 없다고 알려 줍니다.
# %%
def rank_sum(comm):
    import numpy as np

    x = np.full(4, comm.rank + 1.0)
    total = np.empty_like(x)
    comm.Allreduce(x, total)
    return total.tolist()


in_mpi(rank_sum, num_ranks=num_ranks)
# %% [markdown] lang="en"
# One list for each rank, all equal. Sends and receives are **two-sided**: whoever sends needs a partner
# that receives. What if rank 0 returns early, and the others wait for it? (`time_limit`: after three
# seconds all ranks are ended.)
# %% [markdown] lang="ko" en="df78f558"
# 랭크마다 리스트가 하나씩이고 모두 같습니다. 보내기와 받기는 **양방향 통신**(two-sided)입니다. 한쪽이 보내면 상대도
# 받는 함수를 호출해야 합니다. 랭크 0이 먼저 끝나 버렸는데 나머지가 랭크 0을 기다린다면 어떻게 될까요?
# (`time_limit` 때문에 3초가 지나면 랭크를 모두 끝냅니다.)
# %%
def never_sent(comm):
    if comm.rank > 0:
        return comm.recv(source=0)


with expect_failure(mpi.missing() or "not over after 3 s"):
    run_mpi(never_sent, num_ranks=num_ranks, time_limit=3)
# %% [markdown] lang="en"
# Left alone, ranks 1 to 3 would wait for ever. **One-sided** communication needs no partner. A rank opens
# a *window* of its memory; the others `Put` into it, and it calls nothing meanwhile. An all-gather made
# of puts:
# %% [markdown] lang="ko" en="fb771679"
# 그냥 두면 랭크 1~3은 끝없이 기다립니다. **단방향 통신**(one-sided)에는 짝이 될 호출이 필요 없습니다. 랭크가 자기
# 메모리의 *창*(window)을 열어 두면 다른 랭크가 `Put`으로 써 넣고, 그동안 그 랭크는 아무것도 부르지 않습니다. put으로
# 올게더(all-gather)를 만들어 봅시다.
# %%
def gather_by_puts(comm):
    import numpy as np
    from mpi4py import MPI

    window = MPI.Win.Allocate(8 * comm.size, 8, comm=comm)
    mine = np.frombuffer(window.tomemory(), dtype=np.float64)
    x = np.array([10.0 * comm.rank])
    window.Fence()
    for other in range(comm.size):
        window.Put(x, other, target=comm.rank)
    window.Fence()
    gathered = mine.tolist()
    window.Free()
    return gathered


in_mpi(gather_by_puts, num_ranks=num_ranks)
# %% [markdown] lang="en"
# A put does not say that it has arrived. The two fences do, for all ranks at once: before the first
# nobody writes, after the second everybody may read, and `x` may change. Hold on to this: "written" and "may be read" are
# two things. Exercise 4 and lesson 08 live on it.
#
# ## Memory instead of a wire
#
# `shared_all_reduce`, of this course, does without sends, too. Each rank writes into memory that all
# see, waits in a barrier (a call from which nobody returns before all have come), and adds up its
# part of everybody's data.
#
# **Predict**: how many bytes does a rank send through the network for an all-reduce of 1 MiB?
# %% [markdown] lang="ko" en="a5af1eda"
# put은 데이터가 도착했는지 알려 주지 않습니다. 펜스(fence) 두 번이 모든 랭크에 한꺼번에 알려 줍니다. 첫 펜스
# 전에는 아무도 쓰지 않고, 둘째 펜스 뒤에는 누구나 읽어도 되고 `x`를 바꾸어도 됩니다. "썼다"와 "읽어도 된다"는 서로
# 다른 일입니다. 연습 4와 레슨 08이 여기에서 출발합니다.
#
# ## 네트워크 대신 메모리
#
# 이 과정의 `shared_all_reduce`도 send를 쓰지 않습니다. 각 랭크는 모두가 보는 메모리에 데이터를 쓰고, 배리어(barrier,
# 모두 올 때까지 기다리는 호출)에서 기다린 다음, 모든 랭크의 데이터 가운데 자기가 맡은 부분을 더합니다. 1 MiB를
# 올리듀스(all-reduce)할 때 랭크 하나가 네트워크로 몇 바이트를 보낼지 **예측해 보세요.**
# %%
predict("02.wire")
# %% hidden=true
# %%ranks --fast
from dlcourse.collectives.benchmark import measure

on_cpu = device.type == "cpu"
names = ["torch_all_reduce", *(["shared_all_reduce"] if on_cpu else [])]
wires = [row for row in measure(names, [1 << 20], repeats=1, device=device) if row["wire"]]
# %%
wires = ranks["wires"][0]
if wires:
    compare("02.wire", wires[-1]["wire"])
show_wire(wires, labels=labels)
# %% [markdown] lang="en"
# Nearly nothing, yet not nothing: its two barriers are Gloo's, and a barrier is made of messages. So its
# **bytes** will be cheap, and its **start** will cost at least as much as Gloo's. Which of the two do you see in
# a tiny tensor, and which in a large one?
#
# ## Five collectives, five sizes
#
# The backends take turns in one run; what counts is the fastest call (other programs only ever make
# one slower). MPI's ranks are other processes, so they come right after.
# %% [markdown] lang="ko" en="58941226"
# 거의 없지만 0은 아닙니다. 배리어 두 번은 Gloo가 하는 것이라 메시지가 오갑니다. 그래서 **바이트**는 싸고
# **시작**은 적어도 Gloo만큼 비쌀 것입니다. 아주 작은 텐서에서는 어느 쪽이, 큰 텐서에서는 어느 쪽이 보일까요?
#
# ## 집합 통신 다섯 가지, 크기 다섯 가지
#
# 백엔드를 번갈아 가며 한 번에 재고, 가장 빠른 호출만 봅니다(다른 프로그램은 호출을 느리게 할 뿐입니다). MPI의
# 랭크는 다른 프로세스라서 바로 뒤에 잽니다.
# %%
# %%ranks --fast
five = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast"]
names = [f"torch_{name}" for name in five]
names += [f"shared_{name}" for name in five] if on_cpu else []
names += ["one_sided_all_to_all"] if on_cpu else []
sizes = [64, 4096, 65536, 1 << 20, 8 << 20]
rows = measure(names, sizes, repeats=9, device=device)
# %% hidden=true
theirs = [row for row in recorded["rows"] if row["algorithm"].startswith("mpi_")]
if not mpi.missing():
    sizes = ranks["sizes"][0]
    times = run_mpi(mpi_collectives.collective_times, sizes, 20, num_ranks=num_ranks)
    theirs = fastest(times[0])
rows = [*fastest(ranks["rows"][0]), *theirs]
# %%
show_times(rows, "all_reduce", labels=labels)
# %% [markdown] lang="en"
# Points are measured, lines are $\alpha + \beta n$, fitted to each. Left, where lines are flat, you see α: how
# long it takes to get going. Right, where they climb, β. Does shared memory start any sooner than Gloo? Think of
# its barriers.
#
# The next figure is an all-to-all, with a newcomer beside `shared`: `one_sided`, from lesson 08. It uses
# the same kind of memory, but no barrier. Each rank raises a flag beside its data, and the other looks
# at it. The table below it gives 1/β, the bandwidth.
# %% [markdown] lang="ko" en="f796b610"
# 점은 측정값, 선은 저마다 맞춘 $\alpha + \beta n$입니다. 선이 평평한 왼쪽에서는 시작하는 데 드는 α가, 올라가는
# 오른쪽에서는 β가 보입니다. 공유 메모리는 Gloo보다 빨리 시작하나요? 배리어를 떠올려 보세요.
#
# 다음 그림은 올투올(all-to-all)이고, `shared` 옆에 레슨 08의 `one_sided`가 새로 나옵니다. 같은 메모리를 쓰지만
# 배리어가 없습니다. 랭크마다 데이터 옆에 플래그(flag)를 올려 두면 상대가 들여다봅니다. 그다음 표에는 β 대신 대역폭
# 1/β를 적었습니다.
# %%
show_times(rows, "all_to_all", labels=labels)
# %%
show_costs(rows, labels=labels)
# %% [markdown] lang="en"
# By columns: **shared memory** starts no sooner than Gloo, whose barriers it waits in: two in each call,
# so all five have about the same α. On idle cores its bytes are cheaper, and **one-sided**, without a
# barrier, also starts sooner (claim C7 below): so α was mostly the barrier's.
#
# MPICH's ranks look at memory, too, all the time: quick as long as each has a core. With more ranks than free
# cores times jump (less so here: only the fastest calls are kept). Gloo's ranks sleep and are woken: slower,
# but steadier.
#
# By rows: Gloo's reduce-scatter, in theory half of an all-reduce, is no cheaper than one: it is one
# inside, as lesson 01 saw in the bytes.
# %% [markdown] lang="ko" en="cd02e544"
# 열을 따라 읽으면, **공유 메모리**는 Gloo의 배리어를 기다리므로 Gloo보다 빨리 시작하지 못합니다. 다섯 가지
# 모두 두 번씩 기다리므로 α도 비슷합니다. 코어가 놀고 있으면 바이트는 더 싸고, 배리어가 없는
# **단방향**은 시작도 빠릅니다(아래 주장 C7). 그러니 α는 메모리보다 배리어에서 나온 것입니다.
#
# MPICH의 랭크도 메모리를 쉬지 않고 들여다봅니다. 랭크마다 코어가 있으면 빠르지만, 노는 코어보다 랭크가 많으면 시간이
# 들쭉날쭉해집니다(여기에는 가장 빠른 호출만 남겨 덜 보입니다). Gloo의 랭크는 잠들었다가 깨어나므로 시작은
# 느려도 덜 흔들립니다.
#
# 행을 따라 읽으면, Gloo의 리듀스스캐터(reduce-scatter)는 이론으로는 올리듀스의 절반인데도 더 싸지
# 않습니다. 레슨 01에서 바이트로 보았듯이 안에서는 올리듀스를 합니다.
# %%
found = figures_of_c6(ranks["here"][0], ranks["known"][0], ranks["config"][0])
claim("C6", **found)
# %% [markdown] lang="en"
# ## The road and the reserved lane
#
# What follows was measured by others, on GPUs. NCCL is the public road: it carries the collectives of
# nearly all training on NVIDIA GPUs. DeepEP is a lane reserved for one kind of traffic: tokens to
# experts and back, one-sided. (RDMA: a network card reads and writes another machine's memory.)
# %% [markdown] lang="ko" en="65ca926b"
# ## 도로망과 전용 차로
#
# 이제부터는 다른 사람들이 GPU에서 재어 공개한 수치입니다. NCCL은 모두가 쓰는 도로입니다. NVIDIA GPU로 학습할 때
# 집합 통신은 거의 다 NCCL이 나릅니다. DeepEP는 한 가지만 다니는 전용 차로입니다. 토큰을 전문가에게 보내고 결과를
# 받아 오는 일을 단방향으로 합니다. (RDMA는 네트워크 카드가 다른 컴퓨터의 메모리를 직접 읽고 쓰는 방식입니다.)
# %%
show_published(published)
# %% [markdown] lang="en"
# Is DeepEP an "InfiniBand library", as one hears? No: inside a machine it moves 153 GB/s over NVLink,
# and there is no InfiniBand in that at all. V1 stood on NVSHMEM, NVIDIA's library for one-sided
# stores between GPUs. Then, in April 2026, the ground moved:
#
# ```mermaid
# flowchart TD
#   A["DeepEP V1<br>2025"] --> S[NVSHMEM]
#   B["DeepEP V2<br>April 2026"] --> C["NCCL's device API"]
#   X["NCCL EP<br>June 2026"] --> C
#   S & C --> I["NVLink, RDMA"]
# ```
#
# NCCL now lets GPU code itself store into another GPU's memory (its *device API*), and both DeepEP V2
# [1] and NVIDIA's NCCL EP [2] are built on that. The reserved lane is no road of its own any more: it
# is painted on the road that everybody uses.
# %% [markdown] lang="ko" en="af406f90"
# DeepEP를 "InfiniBand 라이브러리"라고도 하는데, 그럴까요? 아닙니다. 컴퓨터 안에서는 NVLink로 153 GB/s를 나르고,
# 여기에 InfiniBand는 전혀 없습니다. V1은 GPU끼리 단방향으로 쓰게 해 주는 NVIDIA 라이브러리 NVSHMEM 위에 있었습니다.
# 그런데 2026년 4월에 토대가 바뀌었습니다.
#
# ```mermaid
# flowchart TD
#   A["DeepEP V1<br>2025년"] --> S[NVSHMEM]
#   B["DeepEP V2<br>2026년 4월"] --> C["NCCL의 device API"]
#   X["NCCL EP<br>2026년 6월"] --> C
#   S & C --> I["NVLink, RDMA"]
# ```
#
# 이제는 GPU에서 도는 코드가 NCCL로 다른 GPU의 메모리에 직접 쓸 수 있습니다(*device API*). DeepEP V2[1]도, NVIDIA의
# NCCL EP[2]도 그 위에 있습니다. 전용 차로는 이제 따로 난 길이 아니라 모두가 쓰는 도로에 그려진 차로입니다.
# %% hidden=true
# %%ranks --fast
pair = ["torch_all_to_all", "one_sided_all_to_all"] if on_cpu else []
turns = measure(pair, [4096], repeats=40, device=device)
# %%
claim("C7", **figures_of_c7(ranks["turns"][0]))
# %% [markdown] lang="en"
# ## Which collective to time on a new cluster
#
# "All-reduce only, 10 to 20 minutes; with MoE all-to-all too, 40 to 60; with FSDP all-gather too", says
# a rule of thumb (claim C5). What a job calls, you have recorded in lesson 01, and α and β give the
# minutes. Move both sliders, by mouse or arrow keys: the chart writes the commands, for nccl-tests on
# a cluster, and for this machine with a time from the calls above.
# %% [markdown] lang="ko" en="6034c1be"
# ## 새 클러스터에서는 무엇을 재야 할까요?
#
# "올리듀스만 10–20분, MoE면 올투올까지 40–60분, FSDP면 올게더까지"라는 경험칙이 있습니다(주장 C5). 학습이 무엇을
# 부르는지는 레슨 01에서 기록했고, 걸리는 시간은 α와 β로 구합니다. 마우스나 화살표 키로 두 슬라이더를 움직여 보세요.
# 클러스터에서 쓸 nccl-tests 명령과 이 컴퓨터에서 쓸 명령이 나옵니다. 이 컴퓨터에서 걸릴 시간은 위에서 잰 값으로
# 계산합니다.
# %%
flow = BenchmarkFlow(rows)
explore(flow.draw, strategy=flow.strategies, network=flow.networks)
# %% [markdown] lang="en"
# *Which* collectives: the rule is right about DDP and incomplete about FSDP, which calls
# reduce-scatter as well, and no all-reduce. *How long*: even the slow network takes under three
# minutes a collective.
# %% [markdown] lang="ko" en="4c46153a"
# *무엇을* 재야 하는지: DDP라면 경험칙이 맞습니다. FSDP라면 모자랍니다. 리듀스스캐터도 부르고, 올리듀스는 부르지 않습니다.
# *얼마나* 걸리는지: 느린 네트워크에서도 집합 통신 하나에 3분이 안 됩니다.
# %%
claim("C5", sweep_minutes=flow.minutes("data", "slow"))
# %% [markdown] lang="en"
# ## Exercises
#
# `hint("02.choose")` helps step by step, `solution("02.choose")` shows one answer.
#
# **1. `02.choose`** (3 minutes). `devices` is a list of the kinds of tensors that a job sends: "cpu",
# "cuda", "xpu" (Intel's GPUs). Return the string to give to `init_process_group`, so that each goes
# the fastest way that a torch packaged for these devices has.
# %% [markdown] lang="ko" en="9540638d"
# ## 연습 문제
#
# `hint("02.choose")`는 한 단계씩 도와주고, `solution("02.choose")`는 답 하나를 보여 줍니다.
#
# **1. `02.choose`** (3분). `devices`는 작업이 보내는 텐서의 장치 목록입니다("cpu", "cuda", Intel GPU인 "xpu").
# 그 장치용으로 배포되는 torch에서 모든 텐서가 가장 빠른 길로 가도록, `init_process_group`에 넘길 문자열을 돌려주세요.
# %% exercise="02.choose"
def backend_for(devices):
    raise NotImplementedError


# %%
check("02.choose")
# %% [markdown] lang="en"
# **2. `02.crossover`** (8 minutes). Two backends, each (α, β) in seconds and seconds a byte. Return the
# number of bytes from which on the second is at least as fast as the first, at every larger size: 0 if
# always, `None` if there is no such size.
# %% [markdown] lang="ko" en="8242d217"
# **2. `02.crossover`** (8분). 백엔드 둘의 (α, β)가 초와 바이트당 초로 주어집니다. 둘째가 첫째보다 느리지 않게 되는 크기를
# 바이트로 돌려주세요. 그보다 큰 크기에서도 모두 그래야 합니다. 언제나 그렇다면 0, 그런 크기가 없으면 `None`입니다.
# %% exercise="02.crossover"
def overtakes(first, second):
    raise NotImplementedError


# %%
check("02.crossover")
# %% [markdown] lang="en"
# **3. `02.alpha_beta`** (10 minutes). `times` is a list of (bytes, seconds). Return α and β. Sizes go
# from 64 B to 16 MiB, and some times are off: no single measurement may decide. You may be off by 2%
# where the times are exact, by 5% to 15% elsewhere. Neither may be negative.
# %% [markdown] lang="ko" en="83d901a5"
# **3. `02.alpha_beta`** (10분). `times`는 (바이트, 초)의 목록입니다. α와 β를 돌려주세요. 크기는 64 B부터 16 MiB까지이고, 잘못
# 잰 시간도 섞여 있습니다. 측정값 하나가 결과를 정해서는 안 됩니다. 시간이 정확하면 2%, 아니면 5–15%까지 달라도 됩니다.
# 둘 다 음수가 될 수 없습니다.
# %% exercise="02.alpha_beta"
def alpha_beta(times):
    raise NotImplementedError


# %%
check("02.alpha_beta")
# %% [markdown] lang="en"
# **4. `02.window`** (20 minutes). A backend that has two calls. `window.put(to, at, values)` writes
# into rank `to`'s memory from position `at` on; `window.barrier()` waits for all ranks and for their
# puts. `window.mine` is this rank's memory (64 numbers).
#
# Make an all-gather of them: return all ranks' `part` in one tensor, in rank order. It is called
# again and again with the same window, and some ranks write late or read late; an earlier result must
# not change. In one call all parts are equally long, and together at most 64 numbers; the next call may bring
# another length. At most two barriers a call, and each part goes to each other rank once.
# %% [markdown] lang="ko" en="46e49588"
# **4. `02.window`** (20분). 호출이 두 가지뿐인 백엔드입니다. `window.put(to, at, values)`는 랭크 `to`의 메모리에 `at`
# 위치부터 씁니다. `window.barrier()`는 모든 랭크가 오고 그 put이 끝날 때까지 기다립니다. `window.mine`은 이 랭크의 메모리(숫자
# 64개)입니다.
#
# 이것으로 올게더를 만드세요. 모든 랭크의 `part`를 랭크 순서대로 이은 텐서를 돌려줍니다. 같은 창으로 여러 번 부르고, 늦게 쓰거나
# 늦게 읽는 랭크도 있습니다. 앞서 돌려준 결과가 바뀌면 안 됩니다. 한 번의 호출에서 조각의 길이는 모두 같고 합쳐서 최대 64개이며, 다음 호출에서는
# 길이가 달라질 수 있습니다. 배리어는 호출마다 두 번까지, 조각은 상대마다 한
# 번만 보냅니다.
# %% exercise="02.window"
# %%ranks
def all_gather(part, window):
    raise NotImplementedError


# %%
check("02.window")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# `"cpu:gloo,cuda:nccl"` is the usual line. NCCL carries the GPU's tensors, Gloo the counts, strings and
# barriers of the CPU. MPI's `mpirun` (or Slurm's `srun`) often only *starts* the ranks, and NCCL does
# the rest. An MoE layer calls DeepEP or NCCL EP beside all this, and all of them share the same cables.
# %% [markdown] lang="ko" en="0e6d9406"
# ## GPU 클러스터에서는
#
# 보통 `"cpu:gloo,cuda:nccl"`이라고 적습니다. GPU의 텐서는 NCCL이, CPU의 개수, 문자열, 배리어는 Gloo가 맡습니다.
# MPI의 `mpirun`(또는 Slurm의 `srun`)은 랭크를 *띄우기만* 하고 나머지는 NCCL이 하는 경우가 많습니다. MoE 층은 그
# 옆에서 DeepEP나 NCCL EP를 부르고, 모두 같은 케이블을 나누어 씁니다.
# %% [markdown] lang="en"
# ## In five lines
#
# 1. A collective is a promise; a backend keeps it, one for each device of a group.
# 2. Try what it carries, and look at results: truth values and views fail without an error.
# 3. α comes from how ranks wake each other, β from what moves the bytes: with Gloo's barriers shared memory
#    keeps Gloo's α.
# 4. Two-sided needs a partner; one-sided needs to know when reading is allowed.
# 5. DeepEP is a library beside the backends, and V2 sits on NCCL.
#
# Next: the first strategy that lives on all this, [data parallelism](03_data_parallel.ipynb).
#
# Sources: [1] [DeepEP](https://github.com/deepseek-ai/DeepEP). [2] [NCCL EP v0.1](https://github.com/NVIDIA/nccl/releases/tag/nccl-ep-v0.1.0).
# [NCCL device API](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/usage/deviceapi.html),
# [torch.distributed](https://docs.pytorch.org/docs/stable/distributed.html),
# [MPI standard](https://www.mpi-forum.org/docs/), [mpi4py](https://mpi4py.readthedocs.io/).
# %% [markdown] lang="ko" en="6f2f0cd4"
# ## 다섯 줄 요약
#
# 1. 집합 통신은 약속이고, 백엔드가 그 약속을 지킵니다. 백엔드는 그룹의 장치마다 하나씩 있습니다.
# 2. 무엇을 나르는지 해 보고 결과를 보세요. 참·거짓 값과 뷰는 오류 없이 틀립니다.
# 3. α는 랭크가 서로 깨우는 방법에, β는 바이트를 옮기는 방법에 달렸습니다. 배리어가 Gloo의 것이면 α는 줄지 않습니다.
# 4. 양방향에는 상대가, 단방향에는 언제 읽어도 되는지 아는 방법이 필요합니다.
# 5. DeepEP는 백엔드 옆의 라이브러리이고, V2는 NCCL 위에 있습니다.
#
# 다음은 이 모든 것 위에서 도는 첫 번째 전략, [데이터 병렬화](03_data_parallel.ipynb)입니다.
#
# 출처: [1] [DeepEP](https://github.com/deepseek-ai/DeepEP). [2] [NCCL EP v0.1](https://github.com/NVIDIA/nccl/releases/tag/nccl-ep-v0.1.0).
# [NCCL device API](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/usage/deviceapi.html),
# [torch.distributed](https://docs.pytorch.org/docs/stable/distributed.html),
# [MPI 표준](https://www.mpi-forum.org/docs/), [mpi4py](https://mpi4py.readthedocs.io/).
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
# ### What is built on what
#
# | | stands on | who calls it | sides |
# |---|---|---|---|
# | Gloo | TCP sockets | torch on CPUs; counts, strings and barriers of GPU jobs | two |
# | NCCL | NVLink, PCIe, InfiniBand, EFA | DDP, FSDP, Megatron, DeepSpeed | two; one by its device API |
# | MPICH | shared memory, UCX, libfabric | programs of scientific computing; starts of GPU jobs | both |
# | DeepEP | NVSHMEM (V1), NCCL (V2) | MoE layers | one |
# | `shared`, `one_sided` | memory of one machine | this course | one |
# %% [markdown] lang="ko" en="67a760e0"
# ### 무엇이 무엇 위에 있을까요?
#
# | | 아래에 있는 것 | 부르는 쪽 | 방향 |
# |---|---|---|---|
# | Gloo | TCP 소켓 | CPU의 torch, GPU 작업의 개수·문자열·배리어 | 양방향 |
# | NCCL | NVLink, PCIe, InfiniBand, EFA | DDP, FSDP, Megatron, DeepSpeed | 양방향, device API는 단방향 |
# | MPICH | 공유 메모리, UCX, libfabric | 과학 계산 프로그램, GPU 작업의 시작 | 둘 다 |
# | DeepEP | NVSHMEM(V1), NCCL(V2) | MoE 층 | 단방향 |
# | `shared`, `one_sided` | 컴퓨터 한 대의 메모리 | 이 과정 | 단방향 |
# %% [markdown] lang="en"
# ### An all-reduce through memory, whole
#
# Look for the two barriers, and for what each of them waits for. The other four have the same two, and less to
# do between them: `dlcourse/collectives/shared_calls.py`.
# %% [markdown] lang="ko" en="b5d80f3c"
# ### 메모리로 하는 올리듀스의 코드
#
# 배리어 두 번이 저마다 무엇을 기다리는지 찾아보세요. 나머지 네 가지에도 배리어가 두 번 있고, 그 사이에 하는 일은 더
# 적습니다. 코드는 `dlcourse/collectives/shared_calls.py`에 있습니다.
# %% hidden=true
show("dlcourse.collectives.shared:shared_all_reduce")
# %% [markdown] lang="en"
# ### How MPI's ranks are started and ended
#
# `in_mpi` calls `run_mpi`, which is this. A rank that is killed ends the others; a notebook that is
# killed ends all of them.
# %% [markdown] lang="ko" en="40a10a29"
# ### MPI의 랭크를 띄우고 끝내기
#
# `in_mpi`가 부르는 `run_mpi`입니다. 랭크 하나가 죽으면 나머지도 끝나고, 노트북이 죽으면 모두 끝납니다.
# %% hidden=true
show("dlcourse.peers.mpi:run_mpi,_start_and_wait,_rank,_end_with_notebook")
# %%
def dies(comm):
    import os
    import signal

    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.Barrier()


with expect_failure(mpi.missing() or "was ended by signal 9 (SIGKILL)"):
    run_mpi(dies, num_ranks=2)
# %% [markdown] lang="en"
# ### Symmetric memory
#
# Torch has one-sided memory of its own, `torch.distributed._symmetric_memory`: on CUDA devices, with
# CUDA itself, NVSHMEM or NCCL below. There is none for the CPU, so this lesson cannot run it:
# %% [markdown] lang="ko" en="b3844cdb"
# ### 대칭 메모리(symmetric memory)
#
# torch에도 단방향 메모리가 있습니다. `torch.distributed._symmetric_memory`이고, CUDA 장치에서 CUDA 자체나 NVSHMEM, NCCL
# 위에서 돕니다. CPU용은 없어서 이 레슨에서는 실행할 수 없습니다.
# %%
# %%ranks --fails "does not support device type cpu"
import torch.distributed._symmetric_memory as symmetric_memory

symmetric_memory.rendezvous(symmetric_memory.empty(4, device="cpu"), dist.group.WORLD)
# %% [markdown] lang="en"
# ### Is DeepEP how a library "supports" expert parallelism?
#
# Tables of who supports what often give expert parallelism to DeepEP. But DeepEP only moves tokens. It
# has no router, no experts, no optimizer. Megatron-Core and DeepSpeed have these, and may
# call DeepEP. The claim, with its verdict (lesson 15 runs more of it):
# %% [markdown] lang="ko" en="3dc75a36"
# ### DeepEP가 전문가 병렬화를 "지원"한다는 말
#
# 라이브러리마다 무엇을 지원하는지 정리한 표에서는 전문가 병렬화를 흔히 DeepEP의 몫으로 둡니다. 하지만 DeepEP는 토큰만
# 옮깁니다. 라우터도, 전문가도, 옵티마이저도 없습니다. 이것들은 Megatron-Core와 DeepSpeed에 있고, 거기서 DeepEP를 부를 수
# 있습니다. 주장과 판정은 이렇습니다. 레슨 15에서 더 많은 칸을 실행해 봅니다.
# %%
claim("A4")
