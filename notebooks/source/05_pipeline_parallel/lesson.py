# %% [markdown] lang="en" form="core"
# # 05 Pipeline parallelism: keep every rank fed
#
# The model does not fit on one GPU. So give each of four GPUs a quarter of the layers. It fits. And
# it is not faster at all: while one GPU works, three wait for it. You have bought four GPUs and use
# one.
#
# How much of that waiting goes away if the work only comes in smaller pieces, in another *order*?
# You need lesson [01](01_collectives.ipynb) (send and receive).
#
# Time: reading 19 min + exercises 41 min.
# %% [markdown] lang="ko" en="fcac3bfc"
# # 05 파이프라인 병렬화(pipeline parallelism): 모든 랭크에 일감을
#
# 모델이 GPU 하나에 들어가지 않습니다. 그래서 GPU 네 개에 층을 4분의 1씩 나눠 줍니다. 들어갑니다. 그런데
# 조금도 빨라지지 않습니다. 하나가 일하는 동안 셋은 기다립니다. 네 개를 사서 하나만 쓰는 셈입니다.
#
# 일을 잘게 나누고 *순서*만 바꾸면 기다리는 시간을 얼마나 없앨 수 있을까요?
# 레슨 [01](01_collectives.ipynb)의 송신과 수신을 알면 됩니다.
#
# 시간: 읽기 19분 + 연습 41분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% [markdown] lang="en"
# Twelve layers, four ranks, three layers each. What a rank passes on is small: the activations of
# its last layer. What comes back is their gradient.
#
# ```mermaid
# flowchart LR
#   T[tokens] --> R0[rank 0<br>embedding<br>layers 1-3]
#   R0 -- activations --> R1[rank 1<br>layers 4-6] -- activations --> R2[rank 2<br>layers 7-9]
#   R2 -- activations --> R3[rank 3<br>layers 10-12<br>head, loss]
#   R3 -. gradient .-> R2 -. gradient .-> R1 -. gradient .-> R0
# ```
# %% [markdown] lang="ko" en="2c0add4a"
# 층 12개를 랭크(rank) 네 개에 세 층씩 나눕니다. 랭크가 넘기는 것은 작습니다. 마지막 층의
# 활성화값(activation)뿐이고, 돌아오는 것은 그 그래디언트(gradient)입니다.
#
# ```mermaid
# flowchart LR
#   T[토큰] --> R0[랭크 0<br>임베딩<br>1-3층]
#   R0 -- 활성화값 --> R1[랭크 1<br>4-6층] -- 활성화값 --> R2[랭크 2<br>7-9층]
#   R2 -- 활성화값 --> R3[랭크 3<br>10-12층<br>헤드, 손실]
#   R3 -. 그래디언트 .-> R2 -. 그래디언트 .-> R1 -. 그래디언트 .-> R0
# ```
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, expect_failure, explore
from dlcourse import hint, lesson, predict, quiz, solution
from dlcourse.figures.pipeline_parallel import check_ranks, figures_of_b3, pipeline_picture
from dlcourse.figures.pipeline_parallel import show_activations, show_both, show_bubbles
from dlcourse.figures.pipeline_parallel import show_ledger, show_libraries, show_message, show_real
from dlcourse.figures.pipeline_parallel import show_same, show_six, show_twice, show_whole
from dlcourse.parallel.pipeline_schedules import SCHEDULES, Schedule, make_schedule
from dlcourse.parallel.pipeline_simulation import simulate

lesson(lang=lang, name="05_pipeline_parallel")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device=device, preload="dlcourse.peers.shared_libraries")
ranks.cell(f"steps = {steps}")
w, m = num_ranks, 8
# %% hidden=true
# %%ranks --fast
from dlcourse.corpus import Corpus
from dlcourse.machine import cores as available
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline import PipelineParallel, Runtime, gather_spans, train
from dlcourse.parallel.pipeline_emulation import run_emulated
from dlcourse.parallel.pipeline_schedules import Schedule, make_schedule
from dlcourse.parallel.pipeline_stages import Stage, split_layers
from dlcourse.peers import pipeline_parallel as peers
from dlcourse.peers.comparison import compare_steps
from dlcourse.training import loop

config = GPTConfig(n_layer=12, n_embd=64, block_size=64)
# %%
# %%ranks
stage = Stage(GPT(config), split_layers(12, world_size)[rank])
layers = [int(name) + 1 for name in stage.blocks]
parameters = sum(p.numel() for p in stage.parameters())
layers, parameters
# %% [markdown] lang="en"
# Such a part is a **stage**. The first and the last hold more than layers: the embedding, the head.
#
# Now: who works when? We write it down, for each rank a list of what it does, in order. `F0` is the
# forward of piece 0 of the batch, `BW0` its whole backward. First with the whole batch as one
# piece, and a backward that takes twice as long as a forward:
# %% [markdown] lang="ko" en="48b8f952"
# 이렇게 나눈 부분을 **스테이지**(stage)라고 합니다. 첫 스테이지와 마지막 스테이지에는 층 말고도 임베딩과 헤드가
# 있습니다.
#
# 이제 누가 언제 일하는지 봅시다. 랭크마다 할 일을 순서대로 적습니다. `F0`은 배치의 0번 조각을 순전파하는 것,
# `BW0`은 그 역전파 전체입니다. 먼저 배치를 나누지 않고 한 조각으로 합니다. 역전파는 순전파보다 두 배
# 걸린다고 합시다.
# %%
show_whole()
# %% [markdown] lang="en"
# The gaps are the **bubble**: ranks that wait. Cut the batch into 8 **micro-batches**, and rank 1
# can begin as soon as the first eighth has arrived. GPipe does all forwards, then all backwards.
#
# **Predict.** Each rank now does 8 forwards and 8 backwards. The last rank waits for 3 forwards before
# its first piece arrives, and at the end it has nothing to do while the other 3 go backward.
# Which percentage of the *total* time is it idle?
# %% [markdown] lang="ko" en="b1c22cb3"
# 빈 곳이 **파이프라인 버블**(pipeline bubble), 기다리는 시간입니다. 배치를 **마이크로배치**(micro-batch)
# 8개로 자르면 랭크 1은 첫 조각만 와도 시작할 수 있습니다. GPipe는 순전파를 모두 한 다음 역전파를 모두
# 합니다.
#
# **예측해 보세요.** 랭크마다 순전파 8번, 역전파 8번을 합니다. 마지막 랭크는 첫 조각이 올 때까지 순전파
# 3번만큼 기다리고, 끝에는 앞의 세 랭크가 차례로 역전파하는 동안 놉니다. *전체* 시간의 몇 퍼센트를 놀까요?
# %%
predict("05.bubble")
# %% where="kernel" source="dlcourse.parallel.pipeline_schedules:gpipe"
# %% [markdown] lang="en"
# The code writes `F` and `BW` without numbers, and `numbered` counts: `F0 F1 F2 …`.
#
# The picture above was simulated: times added up along the lists. Better to measure. But four ranks on
# two cores cannot compute at the same time, so their bubble would only show that cores are missing. Hence
# **the stage times are imposed here**: a forward sleeps for 20 ms, a backward for 40, and sleeping ranks
# need no core. Processes, messages and their order are real.
# %% [markdown] lang="ko" en="6c29e55f"
# 코드에는 `F`와 `BW`만 적혀 있고, 번호는 `numbered`가 차례로 붙여 `F0 F1 F2 …`가 됩니다.
#
# 위 그림은 목록을 따라 시간을 더해 본 시뮬레이션입니다. 재 보는 편이 낫습니다. 그런데 코어 두 개로는 랭크 네 개가
# 동시에 계산할 수 없어서, 재 봐야 코어가 모자란다는 것만 나옵니다. 그래서 **여기서는 스테이지 시간을 정해 줍니다.**
# 계산하는 대신 순전파에서는 20 ms, 역전파에서는 40 ms를 쉬고(sleep), 쉬는 랭크에는 코어가 필요 없습니다. 프로세스, 메시지, 순서는 모두
# 진짜입니다.
# %% hidden=true
# %%ranks --fast
def impose(lines, placement):
    found = run_emulated(Schedule.parse(lines.split("\n"), placement=placement), seconds=0.02)
    return found.predicted, found.gantt
# %% hidden=true
runs = {}


def measure(schedule):
    ranks.cell(f"found = impose({schedule.text()!r}, {schedule.placement!r})", record=False)
    runs[schedule.text()] = ranks["found"][0]
    return ranks["found"][0]
# %%
predicted, measured = measure(gpipe(w, m))
compare("05.bubble", 100 * measured.idle_over_total)
show_both("GPipe", predicted, measured)
# %% [markdown] lang="en"
# The upper picture is simulated, with this run's stage times and the time that a message took in
# another run.
#
# Careful when you compare papers. Idle over *total* time is $\frac{p-1}{m+p-1}$. Many papers give
# idle over *ideal* time, $\frac{p-1}{m}$, a larger number for the same picture. For $p$ ranks (here 4,
# in the code `w`) and $m$ micro-batches:
# %% [markdown] lang="ko" en="e1bdeacb"
# 위 그림은 시뮬레이션입니다. 스테이지 시간은 이 실행에서, 메시지 시간은 다른 실행에서 잰 값을 씁니다.
#
# 논문을 견줄 때는 조심하세요. 노는 시간을 *전체* 시간으로 나누면 $\frac{p-1}{m+p-1}$입니다. 많은 논문은 *이상적인*
# 시간으로 나눈 $\frac{p-1}{m}$을 씁니다. 같은 그림인데 숫자는 더 큽니다. 랭크 $p$개(여기서는 4, 코드에서는
# `w`), 마이크로배치 $m$개일 때는 이렇습니다.
# %%
show_bubbles()
# %% [markdown] lang="en"
# More micro-batches, less bubble; but each is smaller, and a GPU likes large pieces.
#
# Now with a real model. These lines execute a rank's list: wait for the message, do the action,
# send on what it made. They do not know GPipe or any other name. Who sends what follows from the
# lists, which all ranks have; a message has the shape of `like`. Folded below is the whole class, for
# several stages a rank too.
# %% [markdown] lang="ko" en="97781253"
# 마이크로배치가 많을수록 버블은 줄지만 하나하나는 작아지고, GPU는 큰 조각을 좋아합니다.
#
# 이제 진짜 모델입니다. 아래 몇 줄은 랭크의 목록을 그대로 실행합니다. 메시지를 기다리고, 일하고, 만든 것을
# 보냅니다. GPipe 같은 이름은 모릅니다. 누가 무엇을 보낼지는 모든 랭크가 가진 목록에서 나오고, 메시지의 모양은
# `like`와 같습니다. 그 아래에는 랭크마다 스테이지가 여럿일 때까지 다루는 전체 클래스를 접어 두었습니다.
# %%
# %%ranks
class Short(Runtime):
    def run(self, inputs, targets, like, total=None):
        losses, worker, share = [], self.workers[0], like.new_tensor(1 / len(inputs))
        self.mailbox.open(like)
        for action in self.schedule.ranks[rank]:
            i, made, arrived = action.micro_batch, None, self.mailbox.receive(action)
            if action.kind == "BW":
                made = worker.backward(i, arrived)
            elif rank < world_size - 1:
                made = worker.forward(i, arrived if rank else inputs[i])
            else:
                losses.append(worker.forward(i, arrived, targets[i], share=share))
            self.mailbox.send(action, made)
        self.mailbox.close()
        return losses
# %% hidden=true source="dlcourse.parallel.pipeline:Runtime"

# %% [markdown] lang="en"
# Note the one weight, $1/m$: all micro-batches are equally long here. (The whole class weighs each by
# its targets.) The ranks' models differ at first: `PipelineParallel` gives rank 0's weights to all. Is this
# the training of one process? Some steps of both:
# %% [markdown] lang="ko" en="bf3fcfc3"
# 곱하는 가중치가 $1/m$ 하나뿐인 점을 눈여겨보세요. 여기서는 마이크로배치의 길이가 모두 같습니다. (전체 클래스는
# 타깃 수만큼 가중치를 줍니다.) 처음에는 랭크마다 모델이 다르지만, `PipelineParallel`이 랭크 0의 가중치를 모두에게
# 줍니다. 이것은 단일 프로세스의 학습과 같을까요? 양쪽 다 몇 스텝 해 봅니다.
# %% hidden=true
# %%ranks --fast
corpus, job = Corpus(), dict(steps=steps, batch_size=16, block=64)


def pipeline(name, micro_batches=8, seed=0, runtime=Runtime):
    schedule = make_schedule(name, world_size, micro_batches)
    return PipelineParallel(GPT(config, seed=seed).to(device), schedule, runtime=runtime)
# %%
# %%ranks --fast
model = pipeline("gpipe", seed=rank, runtime=Short)
alone = GPT(config).to(device)
losses, alone_losses = train(model, corpus, **job), loop.train(alone, corpus, **job)
# %% hidden=true
# %%ranks --fast
theirs = dict(alone.named_parameters())
mine = {name: p for stage in model.stages for name, p in stage.named_parameters()}
apart = max((p - theirs[name]).abs().max().item() for name, p in mine.items())
# %%
show_same(ranks["losses"], ranks["alone_losses"][0], ranks["apart"])
# %% [markdown] lang="en"
# ## 1F1B: the same bubble, less memory
#
# Between forward and backward a micro-batch's activations must be kept. In GPipe that is all 8 at
# once. But rank 3 could go backward right after its first forward. **1F1B**: a rank does just
# enough forwards to keep the others fed, then one forward, one backward, in turn.
# %% [markdown] lang="ko" en="26f9d197"
# ## 1F1B: 버블은 그대로, 메모리는 적게
#
# 마이크로배치의 활성화값은 순전파부터 역전파까지 들고 있어야 합니다. GPipe에서는 8개를 한꺼번에 들고 있게
# 됩니다. 그런데 랭크 3은 첫 순전파를 마치자마자 역전파를 할 수 있습니다. **1F1B**는 다른 랭크가 놀지
# 않을 만큼만 순전파를 하고, 그 뒤로는 순전파 한 번, 역전파 한 번을 번갈아 합니다.
# %% where="kernel" source="dlcourse.parallel.pipeline_schedules:one_f_one_b"
# %%
show_both("1F1B", *measure(one_f_one_b(w, m)))
# %% [markdown] lang="en"
# Rank $r$ of $p$ now keeps at most $p - r$ micro-batches, however many there are.
#
# **Predict**: how many times more bytes of activations does rank 0 hold in GPipe than in 1F1B? The
# memory ledger counts each tensor's bytes, in the real GPT. Runs with one and with two micro-batches give
# the unit.
# %% [markdown] lang="ko" en="406f1de9"
# 이제 랭크 $p$개 가운데 $r$번은 마이크로배치가 아무리 많아도 $p - r$개까지만 들고 있습니다.
#
# **예측해 보세요.** GPipe에서 랭크 0이 들고 있는 활성화값은 1F1B의 몇 배일까요? 진짜 GPT로 돌리고 메모리
# 장부(ledger, 텐서마다 바이트를 센 기록)로 잽니다. 마이크로배치 하나일 때와 둘일 때의 차이가 단위입니다.
# %%
predict("05.memory")
# %% hidden=true
peaks = {}
for name, count in (("gpipe", 1), ("gpipe", 2), ("gpipe", m), ("1f1b", m)):
    ranks.cell(f"model = pipeline({name!r}, {count})", record=False)
    ranks.cell(f"train(model, corpus, steps=1, batch_size={2 * count}, block=64)")
    peaks[name, count] = ranks.last.memory.peaks("activations")
# %%
compare("05.memory", peaks["gpipe", m][0] / peaks["1f1b", m][0])
show_activations(peaks)
# %% [markdown] lang="en"
# Same time, less memory. And in 1F1B it is *uneven*: rank 0 holds the most. Four equal parts of the
# layers are not four equal loads.
#
# ## A schedule that hangs
#
# A list is easily written and easily wrong. Here rank 0 wants a gradient before it sends micro-batch
# 1, and rank 1 wants micro-batch 1 before it goes backward:
# %% [markdown] lang="ko" en="600606d0"
# 시간은 같고 메모리는 적습니다. 다만 1F1B에서는 *고르지 않습니다*. 랭크 0이 가장 많이 들고 있습니다. 층을
# 똑같이 나눴다고 부하까지 똑같이 나뉘지는 않습니다.
#
# ## 멈춰 버리는 스케줄
#
# 목록은 쓰기도 쉽고 틀리기도 쉽습니다. 아래에서 랭크 0은 그래디언트를 받아야 1번 마이크로배치를 보내고, 랭크
# 1은 1번을 받아야 역전파를 시작합니다.
# %%
stuck = Schedule.parse(["F0 BW0 F1 BW1", "F0 F1 BW0 BW1"])
with expect_failure("deadlocks after 2 of 8 actions"):
    simulate(stuck)
# %% [markdown] lang="en"
# Run without that check, both ranks would wait in a receive until the time-out ([ten minutes on
# NCCL](https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.init_process_group)),
# and the message would name the receive, not the reason. Whether a schedule deadlocks is a
# question about lists: answer it before you start ranks. `PipelineParallel` does.
#
# ## Smaller stages: interleaved
#
# The bubble is the time to *fill* the pipeline. Give each rank two smaller stages, its **chunks**,
# layers far apart, and the first micro-batch reaches the last rank in half the time.
#
# **Predict** the idle share of the total time with two chunks: the filling takes half as long.
# %% [markdown] lang="ko" en="08d0f221"
# 이 검사 없이 돌리면 두 랭크는 시간 초과까지
# ([NCCL은 10분](https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.init_process_group))
# 수신에서 기다리고, 오류 메시지에는 이유가 아니라 수신의 이름만 나옵니다. 교착 상태(deadlock)인지는 목록만 봐도 알 수 있으니 랭크를 띄우기 전에 확인하세요.
# `PipelineParallel`도 그렇게 합니다.
#
# ## 더 작은 스테이지: 인터리브(interleaved)
#
# 버블은 파이프라인을 *채우는* 시간입니다. 랭크마다 멀리 떨어진 작은 스테이지 두 개, 곧 **청크**(chunk)를 주면
# 첫 마이크로배치가 절반의 시간에 마지막 랭크에 닿습니다.
#
# 청크가 둘이면 채우는 시간이 절반입니다. 전체 시간 가운데 노는 비율을 **예측해 보세요.**
# %%
predict("05.chunks")
# %%
predicted, measured = measure(make_schedule("interleaved", w, m))
compare("05.chunks", 100 * measured.idle_over_total)
show_both("interleaved", predicted, measured)
# %% [markdown] lang="en"
# Idle over total is now $\frac{p-1}{vm+p-1}$ for $v$ chunks. The price: $v$ times as many messages, and
# more activations in flight. Move the sliders: which schedule takes most of the bubble away, and what does
# it cost? (`zb_h1` and `zb_v` are explained next. Messages take no time; a backward of 3 forwards is one
# with recomputation.)
# %% [markdown] lang="ko" en="d0a4bcf6"
# 청크가 $v$개면 전체 시간 가운데 노는 비율은 $\frac{p-1}{vm+p-1}$입니다. 대신 메시지가 $v$배로 늘고 들고 있는
# 활성화값도 늘어납니다. 슬라이더를 움직여 보세요. 버블을 가장 많이 줄이는 스케줄은 무엇이고, 그 대가는 무엇인가요?
# (`zb_h1`과 `zb_v`는 바로 다음에 설명합니다. 메시지 시간은 0이고, 역전파가 순전파의 3배라면 재계산까지 하는 경우입니다.)
# %%
explore(
    pipeline_picture,
    schedule=["gpipe", "1f1b", "zb_h1", "interleaved_2", "interleaved_4", "zb_v"],
    ranks=[2, 4],
    micro_batches=[8, 16],
    backward=[2, 3],
    start={"schedule": "interleaved_2", "micro_batches": 8, "backward": 2},
)
# %% [markdown] lang="en"
# ## Cut the backward in two
#
# A linear layer's backward is *two* matrix products. Only one of them is waited for:
#
# ```mermaid
# flowchart LR
#   D[gradient of<br>the output] --> B[B: gradient of the input] --> P[the stage before<br>waits for it]
#   D --> W[W: gradient of the weights] --> O[nobody waits<br>before optimizer.step]
# ```
#
# So do B at once, and W when there is nothing better to do: in the bubble. **ZB-H1** is 1F1B with W put
# off. **ZB-V** also folds the stages into a V: rank 0 has the first *and* the last stage.
# %% [markdown] lang="ko" en="309078f0"
# ## 역전파를 둘로 자르기
#
# 선형 층의 역전파는 행렬 곱 *두 번*입니다. 그중 하나만 누군가 기다립니다.
#
# ```mermaid
# flowchart LR
#   D[출력의<br>그래디언트] --> B[B: 입력의 그래디언트] --> P[앞 스테이지가<br>기다림]
#   D --> W[W: 가중치의 그래디언트] --> O[optimizer.step까지<br>아무도 안 기다림]
# ```
#
# 그러니 B는 바로 하고, W는 달리 할 일이 없을 때, 곧 버블에서 합니다. **ZB-H1**은 W를 뒤로 미룬 1F1B입니다.
# **ZB-V**는 스테이지를 V자로 접습니다. 랭크 0이 첫 스테이지와 마지막 스테이지를 *모두* 맡습니다.
# %%
show_both("ZB-V", *measure(make_schedule("zb_v", w, m)))
# %% [markdown] lang="en"
# A parallelogram: no gap between a rank's own first and last action. That is the "zero" in zero
# bubble. Counted from the first start to the last end, a little is left, unless the next step
# begins where this one is still ending.
#
# DeepSeek's DualPipeV is also a V: each forward stands beside a backward of the other chunk, so that
# on a GPU one's messages hide behind the other. All six beside each other. The formula takes
# F = B = W and free messages; the prediction, the measured times of stages and messages:
# %% [markdown] lang="ko" en="57178637"
# 평행사변형입니다. 한 랭크의 처음과 끝 사이에는 빈틈이 없습니다. 제로 버블(zero bubble)의 '제로'는 이
# 뜻입니다. 첫 시작부터 마지막 끝까지로 세면 조금 남습니다. 이번 스텝이 끝나 가는 동안 다음 스텝을 시작할 수
# 있다면 그것마저 사라집니다.
#
# DeepSeek의 DualPipeV도 V자입니다. 순전파 옆에 다른 청크의 역전파를 두어, GPU에서는 한쪽의 통신이 다른 쪽
# 계산 뒤에 숨습니다. 여섯 스케줄을 나란히 놓습니다. 공식은 F = B = W이고 메시지가 공짜라고 놓은 값이고, 예측값은 잰
# 스테이지 시간과 메시지 시간으로 계산합니다.
# %% hidden=true
found = {}
for name in SCHEDULES:
    schedule = make_schedule(name, w, m)
    found[name] = runs.get(schedule.text()) or measure(schedule)
# %%
show_six(found)
# %% [markdown] lang="en"
# The first three columns of numbers use one definition, idle over total, and should agree. The last one does
# not count what a rank waits before its first and after its last action.
#
# ## Beside the real library
#
# `torch.distributed.pipelining` has the same schedules, DeepSpeed has 1F1B. Same stages, same data.
# Look at the activations of `zb_h1`:
# %% [markdown] lang="ko" en="b0df22eb"
# 앞의 세 열은 모두 전체 시간으로 나눈 값이라 서로 맞아야 합니다. 마지막 열은 랭크의 첫 작업 전과 마지막 작업
# 뒤에 기다린 시간을 빼고 셉니다.
#
# ## 실제 라이브러리와 나란히
#
# `torch.distributed.pipelining`에는 같은 스케줄들이 있고, DeepSpeed에는 1F1B가 있습니다. 같은 스테이지, 같은
# 데이터로 견줍니다. `zb_h1`의 활성화값을 눈여겨보세요.
# %% hidden=true
# %%ranks --fast
batch = [half.to(device) for half in corpus.batch(0, micro_batch=16, block=64)]


def with_adamw(model):
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        loss = model.step(*batch)
        optimizer.step()
        return loss

    return step
# %% hidden=true
# %%ranks --fast
def stepping(kind, name):
    if kind == "ours":
        return with_adamw(pipeline(name))
    if kind == "torch":
        return with_adamw(peers.TorchPipeline(GPT(config).to(device), name, 8))
    engine = peers.DeepSpeedPipeline(GPT(config).to(device), 8, batch_size=16)
    return lambda: engine.train_step(*batch)


def row(kind, name):
    return compare_steps(lambda: stepping(kind, name), reference)
# %% hidden=true
libraries = {}
ranks.cell("installed = peers.deepspeed_engine.is_installed()", record=False)
deepspeed = [("DeepSpeed", "1f1b")] if ranks["installed"][0] else []
ranks.cell("reference = stepping('torch', '1f1b')", record=False)
pairs = [(kind, name) for name in ("1f1b", "zb_h1", "zb_v") for kind in ("ours", "torch")]
for kind, name in [*pairs, *deepspeed]:
    ranks.cell(f"found = row({kind!r}, {name!r})", record=False)
    libraries[kind, name] = ranks["found"]
ranks.cell("del reference", record=False)
absent = [] if deepspeed else ["DeepSpeed 1f1b"]
# %%
show_libraries(libraries, absent)
# %% [markdown] lang="en"
# torch's B keeps the whole graph until W, and the gradients inside the layers on top; ours frees what W
# does not need.
#
# Now the sentence that everybody starts from:
# %% [markdown] lang="ko" en="b066bb47"
# torch에서는 B가 끝나도 W를 할 때까지 그래프가 통째로 남고, 층의 그래디언트까지 함께 남습니다. 우리 것은 W에 필요
# 없는 것을 비웁니다.
#
# 이제 누구나 출발점으로 삼는 그 문장을 봅시다.
# %%
claim("B3", **figures_of_b3(ranks["apart"], peaks, ranks["parameters"]))
# %% [markdown] lang="en"
# ## Exercises
#
# `hint("05.micro_batches")` helps step by step; `solution("05.micro_batches")` shows one answer.
#
# **1. `05.micro_batches`** (3 minutes). Return the smallest number of micro-batches with which GPipe
# on `p` ranks is idle for at most `limit` (such as 0.1) of the *total* time.
# %% [markdown] lang="ko" en="94946bb3"
# ## 연습 문제
#
# `hint("05.micro_batches")`는 한 단계씩 도와주고, `solution("05.micro_batches")`는 답 하나를 보여 줍니다.
#
# **1. `05.micro_batches`** (3분). 랭크 `p`개의 GPipe에서 *전체* 시간 가운데 노는 비율이 `limit`(0.1 등)
# 이하가 되는 가장 작은 마이크로배치 수를 돌려주세요.
# %% exercise="05.micro_batches"
# %%ranks
def fewest(p, limit):
    raise NotImplementedError
# %%
check("05.micro_batches")
# %% [markdown] lang="en"
# **2. `05.deadlock`** (8 minutes). This schedule hangs. Mend it so that rank $r$ of 3 never holds
# more than $3 - r$ micro-batches, in the time of 1F1B (18 units, where F takes 1 and BW 2). `simulate` says what is wrong;
# the check also trains with it.
# %% [markdown] lang="ko" en="39146cc0"
# **2. `05.deadlock`** (8분). 아래 스케줄은 멈춥니다. 랭크 3개 가운데 $r$번이 마이크로배치를 $3 - r$개보다 많이
# 들지 않으면서 1F1B의 시간(18단위)에 끝나도록 고치세요(F는 1, BW는 2). 무엇이 잘못됐는지는 `simulate`가 알려 줍니다. 채점할
# 때는 실제로 학습도 해 봅니다.
# %% exercise="05.deadlock"
# %%ranks
def repaired():
    return [
        "F0 F1 BW0 F2 BW1 F3 BW2 BW3",
        "F0 F1 F2 BW0 F3 BW1 BW2 BW3",
        "F0 BW0 F1 BW1 F2 BW2 F3 BW3",
    ]
# %%
check("05.deadlock")
# %% [markdown] lang="en"
# **3. `05.one_f_one_b`** (10 minutes). Return the 1F1B list of rank `rank` of `w`, with `m`
# micro-batches, as one line such as `"F0 BW0 F1 BW1"`. Do not call `one_f_one_b`.
# %% [markdown] lang="ko" en="8d63e4ea"
# **3. `05.one_f_one_b`** (10분). 랭크 `w`개 가운데 `rank`번이 마이크로배치 `m`개를 처리하는 1F1B 목록을
# `"F0 BW0 F1 BW1"` 같은 한 줄로 돌려주세요. `one_f_one_b`는 부르지 마세요.
# %% exercise="05.one_f_one_b"
# %%ranks
def my_line(rank, w, m):
    raise NotImplementedError
# %%
check("05.one_f_one_b")
# %% [markdown] lang="en"
# **4. `05.own`** (20 minutes). A schedule of your own, for 4 ranks and 8 micro-batches, one chunk
# each; F, B and W take the same time. Targets: idle for at most 12% of the total time, and no rank
# holds more than 4 activations (from F to the end of W). The check runs it on a GPT and compares
# with one process. The lists are to be your own, not a library's.
# %% [markdown] lang="ko" en="a3ae0b60"
# **4. `05.own`** (20분). 랭크 4개, 마이크로배치 8개, 청크 하나씩인 스케줄을 직접 만드세요. F, B, W에 드는
# 시간은 같습니다. 목표는 둘입니다. 유휴 시간은 전체의 12% 이하, 활성화값은(F부터 W가 끝날 때까지) 어느 랭크도
# 4개 이하. 채점할 때 GPT에서 실행해 단일 프로세스와 견줍니다. 목록은 라이브러리에서
# 가져오지 말고 직접 만드세요.
# %% exercise="05.own"
# %%ranks
def my_schedule():
    rows = ["F0 B0 W0 F1 B1 W1 F2 B2 W2 F3 B3 W3 F4 B4 W4 F5 B5 W5 F6 B6 W6 F7 B7 W7"] * 4
    return rows
# %%
check("05.own")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# There a rank that waits wastes a GPU, and the bubble is as in the table of six. This code has not been
# tried on GPUs yet.
#
# A pipeline sends little, so it goes *between* nodes, with tensor parallelism inside. Megatron-LM took
# training steps of 1008B parameters with 64 stages and 8-way tensor parallelism, at 52% of peak [1]. With
# tensor parallel 8 all eight GPUs of a stage hold the same activations, so each sends only an eighth
# and the receivers gather (scatter and gather). That gave GPT-3 (175B, interleaved) up to 11% more
# throughput [1]. Llama 3 405B used 16 stages [2]. One message at its sizes (derived):
# %% [markdown] lang="ko" en="8b4dbda7"
# ## GPU 클러스터에서는
#
# GPU에서는 기다리는 랭크가 곧 노는 GPU이고, 버블은 위의 여섯 줄 표와 같습니다. 이 코드를 GPU에서 돌려 보지는
# 않았습니다.
#
# 파이프라인은 적게 보내므로 노드 *사이*에 두고, 노드 안에서는 텐서 병렬화를 합니다. Megatron-LM은 파라미터 1조(1008B)
# 개짜리 모델의 학습 스텝을 스테이지 64개와 텐서 병렬화 8로 돌려 최고 성능의 52%를 냈습니다[1]. 텐서 병렬화 8이면 한
# 스테이지의 GPU 여덟 개가 같은 활성화값을 들고 있으므로, 8분의 1씩만 보내고 받은 쪽에서 모으면 됩니다. 그렇게 해서
# GPT-3(175B, 인터리브)의 처리량이 최대 11% 늘었습니다[1]. Llama 3 405B는 스테이지 16개였습니다[2]. 그 크기의 메시지
# 하나는 이렇습니다(계산한 값).
# %% tags=["nbval-check-output"]
show_message()
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Cut the layers into stages, the batch into micro-batches; gradients add up to the same training.
# 2. GPipe and 1F1B idle for $\frac{p-1}{m+p-1}$ of the time; rank $r$ of 1F1B holds $p - r$ micro-batches, not $m$.
# 3. More chunks fill the pipeline sooner; B before W fills what is left.
# 4. A schedule is data: check it, simulate it, then run it.
# 5. Equal layers are not equal loads. Lesson 15 puts data, tensor and pipeline on one mesh.
#
# Sources: [1] [Narayanan et al., SC21](https://arxiv.org/abs/2104.04473) (1F1B, interleaved).
# [2] [Llama 3](https://arxiv.org/abs/2407.21783). [GPipe](https://arxiv.org/abs/1811.06965),
# [zero bubble](https://arxiv.org/abs/2401.10241), [ZB-V](https://arxiv.org/abs/2405.15362),
# [DualPipe](https://arxiv.org/abs/2412.19437).
# %% [markdown] lang="ko" en="1cc6ff72"
# ## 다섯 줄 요약
#
# 1. 층은 스테이지로, 배치는 마이크로배치로 자릅니다. 그래디언트를 더하면 같은 학습입니다.
# 2. GPipe와 1F1B는 전체 시간 가운데 $\frac{p-1}{m+p-1}$을 놉니다. 1F1B의 랭크 $r$은 마이크로배치를 $m$개가 아니라 $p - r$개만 들고 있습니다.
# 3. 청크를 늘리면 파이프라인이 빨리 차고, B를 W보다 먼저 하면 남은 틈까지 메웁니다.
# 4. 스케줄은 데이터입니다. 검사하고, 시뮬레이션하고, 그다음 실행하세요.
# 5. 층 수가 같다고 부하가 같지는 않습니다. 레슨 15에서 데이터, 텐서, 파이프라인을 한 메시에 올립니다.
#
# 출처: [1] [Narayanan 외, SC21](https://arxiv.org/abs/2104.04473) (1F1B, 인터리브).
# [2] [Llama 3](https://arxiv.org/abs/2407.21783). [GPipe](https://arxiv.org/abs/1811.06965),
# [제로 버블](https://arxiv.org/abs/2401.10241), [ZB-V](https://arxiv.org/abs/2405.15362),
# [DualPipe](https://arxiv.org/abs/2412.19437).
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
# ### How a backward is cut
#
# In B each linear layer notes its input and the gradient of its output; `backward_weight` multiplies
# them later. Together they compute exactly what `backward` computes, nothing twice. And they keep
# little: all that only B needed is free when B ends. The classes are folded below; then comes ZB-H1, as
# it was measured for the table.
# %% [markdown] lang="ko" en="c621ffe6"
# ### 역전파를 자르는 방법
#
# B에서 선형 층은 자기 입력과 출력의 그래디언트를 적어 두기만 하고, 곱셈은 나중에 `backward_weight`가 합니다.
# 둘을 합치면 `backward`와 똑같은 계산이고, 두 번 하는 것은 없습니다. 들고 있는 것도 적습니다. B에만 필요하던
# 것은 B가 끝나면 모두 비웁니다. 클래스는 아래에 접어 두었고, 그다음은 표를 만들며 잰 ZB-H1입니다.
# %% hidden=true source="dlcourse.parallel.pipeline_stages:StageWorker,LinearInTwo"

# %%
show_both("ZB-H1", *runs[make_schedule("zb_h1", w, m).text()])
# %% [markdown] lang="en"
# ### The price in memory
#
# The ledger counts, on a GPT of 8 layers (so that two chunks are equal). One
# unit is what a micro-batch adds in a middle rank; half a rank's layers are half a unit.
# %% [markdown] lang="ko" en="e34da88f"
# ### 메모리 비용
#
# 층이 8개인 GPT에서(두 청크가 같아지도록) 메모리 장부로 잽니다. 마이크로배치 하나가 가운데
# 랭크에서 늘리는 양이 1이고, 그 랭크 층의 절반이면 0.5입니다.
# %% hidden=true
# %%ranks --fast
eight = GPTConfig(n_layer=8, n_embd=64, block_size=64)


def in_eight_layers(name, micro_batches):
    schedule = make_schedule(name, world_size, micro_batches)
    model = PipelineParallel(GPT(eight).to(device), schedule)
    tokens, targets = corpus.batch(0, micro_batch=2 * micro_batches, block=64)
    return model, (tokens.to(device), targets.to(device))
# %% hidden=true
in_eight = {}
for name, count in [("gpipe", 1), ("gpipe", 2), *((name, m) for name in SCHEDULES)]:
    ranks.cell(f"model, given = in_eight_layers({name!r}, {count})", record=False)
    ranks.cell("model.step(*given)")
    in_eight[name, count] = ranks.last.memory.peaks("activations")
# %%
show_ledger(in_eight)
# %% [markdown] lang="en"
# A W that waits counts as a whole forward: beside the inputs of its matrices it also keeps the
# gradients of their outputs. (The last rank holds logits too, unless it is a V.)
#
# Read it with the table of times as a price list. 1F1B costs no more time than GPipe and less memory. ZB-H1
# takes two thirds of the bubble for more activations in the later ranks. The V schedules halve the rest, for
# more messages.
#
# ### The real GPT
#
# Its measured picture on this machine:
# %% [markdown] lang="ko" en="ea8a822a"
# 기다리는 W는 순전파 하나만큼 자리를 차지합니다. 행렬의 입력에다 출력의 그래디언트까지 들고 있기
# 때문입니다. (V자가 아니면 마지막 랭크에는 로짓이 더해집니다.)
#
# 시간을 잰 표와 함께 가격표처럼 읽으면 됩니다. 1F1B는 GPipe와 시간이 같고 메모리가 적습니다. ZB-H1은 뒤쪽 랭크의
# 활성화값을 더 쓰고 버블의 3분의 2를 없앱니다. V자 스케줄은 남은 것을 다시 절반으로 줄이는 대신 메시지가 늘어납니다.
#
# ### 진짜 GPT
#
# 이 컴퓨터에서 잰 그림입니다.
# %% hidden=true
# %%ranks --fast
model = pipeline("1f1b")
for _ in range(3):
    model.step(*batch)
real, cores = gather_spans(model.runtime), available()
# %%
show_real(ranks["real"][0], ranks["cores"][0])
# %% [markdown] lang="en"
# With fewer cores than ranks, a bar also contains waiting for a core, and a rank that waits for a
# message lends its core to another. The bubble is filled by neighbours, so no step time here says
# which schedule is better on four GPUs.
#
# ### A quiet trap: dividing twice
#
# torch's schedules divide the gradients by $m$ themselves (`scale_grads=True`). Our runtime scales
# the loss. If you do *both*, no error appears. Here the gradients are divided once more, in four steps of
# AdamW and of SGD:
# %% [markdown] lang="ko" en="22fea964"
# 코어가 랭크보다 적으면 막대에는 코어를 기다린 시간도 들어 있고, 메시지를 기다리는 랭크는 코어를 이웃에게
# 내줍니다. 버블을 이웃이 채우는 셈입니다. 그래서 여기서 잰 스텝 시간으로는 GPU 네 개에서 어느 스케줄이 나은지 알
# 수 없습니다.
#
# ### 조용한 함정: 두 번 나누기
#
# torch의 스케줄은 그래디언트를 스스로 $m$으로 나눕니다(`scale_grads=True`). 우리 런타임은 손실을 나눕니다.
# *둘 다* 해도 오류는 나지 않습니다. 그래디언트를 한 번 더 나누면서 AdamW와 SGD로 네 스텝씩 학습해 봅니다.
# %%
# %%ranks --fast
def divide(extra, make_optimizer, **options):
    model = pipeline("1f1b")
    optimizer = make_optimizer(model.parameters(), **options)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model.step(*batch)
        for p in model.parameters():
            p.grad /= extra
        optimizer.step()
    square = sum(p.grad.square().sum() for p in model.parameters())
    dist.all_reduce(square)
    dist.broadcast(loss, model.last_rank)
    return square.sqrt().item(), loss.item()
# %% hidden=true
# %%ranks --fast
SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
twice = [[divide(extra, AdamW), divide(extra, SGD, lr=0.1)] for extra in (1, 8)]
# %%
show_twice(ranks["twice"][0])
# %% [markdown] lang="en"
# Adam divides by the gradient's size, so it hides the mistake. SGD learns more slowly. And code that
# clips at a norm of 1 would never clip, without a word. A comparison with one process, as above, finds it at once.
#
# ### One rank of 1,024
#
# This lesson's classes in a 7B model, 16 copies × 8 stages × 8-way
# tensor parallelism, on tensors that have shapes and no numbers. Bytes are exact, times mean
# nothing. It is a first step: optimizer state is 0 at its highest moment because AdamW makes it only
# after that. Each rank here sends whole activations (Megatron: an eighth); even so `send` is little beside the two
# all-reduces.
# %% [markdown] lang="ko" en="4aa799c0"
# Adam은 그래디언트의 크기로 나누므로 실수를 숨겨 줍니다. SGD는 학습이 느려집니다. 노름 1로
# 클리핑하는 코드라면 아무 말 없이 한 번도 클리핑하지 않게 됩니다. 위에서처럼 단일 프로세스와 견주는 검사는 이를 바로 찾아냅니다.
#
# ### 랭크 1,024개 가운데 하나
#
# 이 레슨의 클래스를 그대로 써서 7B 모델을 복제본 16개 × 스테이지 8개 × 텐서 병렬화 8로 나누고, 모양만 있고 숫자는
# 없는 텐서로 한 스텝을 돌립니다. 바이트는 정확하고 시간은 뜻이 없습니다. 첫 스텝이라서 메모리가 가장 많은 순간의
# 옵티마이저 상태가 0입니다. AdamW는 그 뒤에야 상태를 만듭니다. 여기서는 랭크마다 활성화값을 통째로 보내는데도(Megatron은
# 8분의 1), `send`는 두 올리듀스에 비하면 얼마 안 됩니다.
# %%
from dlcourse import scale

one_of_many = scale("05_pipeline_parallel", model="7b", world=1024, micro_batches=8)
one_of_many
