"""Words of the course tools: lesson titles, predictions, claims, exercises, headless runs.

Key → (Korean, English), like `words.py`, which takes them in.
"""

from __future__ import annotations

COURSE_WORDS: dict[str, tuple[str, str]] = {
    # The start page
    "course.index.lesson": ("레슨", "Lesson"),
    "course.index.question": ("이 레슨이 답하는 질문", "The question it answers"),
    "course.index.planned": ("준비 중", "not written yet"),
    "lab.copied": (
        "노트북 파일 {n}개를 {folder} 폴더에 복사했습니다.",
        "{n} notebook files were copied into {folder}.",
    ),
    "lab.kept": (
        "직접 고친 {path} 파일은 그대로 두었습니다. 이 버전에는 더 새로운 파일이 있습니다. "
        "나란히 두고 보려면 고친 파일의 이름을 바꾸고 `dlcourse lab`을 다시 실행하세요.",
        "{path} stays as you have changed it; this version has a newer one. To get that beside "
        "yours, rename yours and run `dlcourse lab` again.",
    ),
    "lab.no_browser": (
        "이 컴퓨터에서 열 브라우저가 없습니다. 노트북 컴퓨터에서 아래 명령을 실행해 둔 채로\n\n"
        "    {ssh}\n\n"
        "그 브라우저에서 아래에 나올 주소(http://127.0.0.1:{port}/lab/…?token=…)를 여세요.",
        "No browser opens here. On your laptop, leave this running\n\n"
        "    {ssh}\n\n"
        "and open, in its browser, the address below (http://127.0.0.1:{port}/lab/…?token=…).",
    ),
    "lab.root": (
        "root로 실행합니다. 노트북의 코드가 여기서 무엇이든 바꿀 수 있으니 믿는 노트북만 여세요.",
        "This runs as root: a notebook may change anything here, so open only those you trust.",
    ),
    "lesson.00_start.title": ("시작하기", "Start here"),
    "lesson.00_start.question": (
        "랭크란 무엇이고, 이 컴퓨터에서는 무엇을 해 볼 수 있을까요?",
        "What is a rank, and what can this machine show?",
    ),
    "lesson.01_collectives.title": ("집합 통신", "Collectives"),
    "lesson.01_collectives.question": (
        "랭크 네 개가 숫자를 합치려면 바이트가 얼마나 오가야 할까요?",
        "How many bytes must move for four ranks to add up their numbers?",
    ),
    "lesson.02_backends.title": ("통신 백엔드", "Communication backends"),
    "lesson.02_backends.question": (
        "같은 올리듀스인데 NCCL, Gloo, MPI는 왜 속도가 다를까요?",
        "Why is the same all-reduce fast in one library and slow in another?",
    ),
    "lesson.03_data_parallel.title": ("데이터 병렬화", "Data parallelism"),
    "lesson.03_data_parallel.question": (
        "GPU 여덟 개로 나누어 학습해도 한 개로 학습한 것과 같을까요?",
        "Does training on eight GPUs give what one GPU gives?",
    ),
    "lesson.04_tensor_parallel.title": ("텐서 병렬화", "Tensor parallelism"),
    "lesson.04_tensor_parallel.question": (
        "행렬 하나가 GPU 한 개에 다 들어가지 않으면 어떻게 할까요?",
        "What if one matrix does not fit on one GPU?",
    ),
    "lesson.05_pipeline_parallel.title": ("파이프라인 병렬화", "Pipeline parallelism"),
    "lesson.05_pipeline_parallel.question": (
        "층을 나누어 맡기면 왜 노는 시간이 생기고, 어떻게 줄일까요?",
        "Why do stages stand idle, and how is that made less?",
    ),
    "lesson.06_zero.title": ("ZeRO와 FSDP", "ZeRO and FSDP"),
    "lesson.06_zero.question": (
        "복제본마다 똑같이 들고 있는 메모리를 없앨 수 있을까요?",
        "Must every replica hold the same memory?",
    ),
    "lesson.07_moe.title": ("전문가 혼합 (MoE)", "Mixture of experts"),
    "lesson.07_moe.question": (
        "계산량은 그대로 두고 파라미터만 늘리면 더 잘 배울까요?",
        "Do more parameters help when the compute stays the same?",
    ),
    "lesson.08_expert_parallel.title": ("전문가 병렬화", "Expert parallelism"),
    "lesson.08_expert_parallel.question": (
        "토큰을 다른 랭크의 전문가에게 보내고 받는 데 얼마가 들까요?",
        "What does it cost to send tokens to experts elsewhere and back?",
    ),
    "lesson.09_accumulation.title": ("그래디언트 누적", "Gradient accumulation"),
    "lesson.09_accumulation.question": (
        "16개씩 네 번은 64개 한 번과 정말 같을까요?",
        "Are four batches of 16 really one batch of 64?",
    ),
    "lesson.10_mixed_precision.title": ("혼합 정밀도", "Mixed precision"),
    "lesson.10_mixed_precision.question": (
        "16비트로 바꾸면 메모리가 정말 절반이 될까요?",
        "Does memory really halve with 16 bits?",
    ),
    "lesson.11_checkpointing.title": ("활성화 체크포인팅", "Activation checkpointing"),
    "lesson.11_checkpointing.question": (
        "버렸다가 다시 계산하면 무엇을 얻고 무엇을 잃을까요?",
        "What is won and lost by throwing away and computing again?",
    ),
    "lesson.12_sharding_offload.title": ("샤딩과 오프로드", "Sharding and offload"),
    "lesson.12_sharding_offload.question": (
        "모델을 GPU와 CPU에 나누어 두면 어디가 병목이 될까요?",
        "Where is the bottleneck of a model spread over GPU and CPU?",
    ),
    "lesson.13_memory_anatomy.title": ("메모리 해부", "Anatomy of memory"),
    "lesson.13_memory_anatomy.question": (
        "메모리는 어디에 쓰이고, 무엇부터 줄여야 할까요?",
        "Where does memory go, and which saving comes first?",
    ),
    "lesson.14_deepspeed_vs_mps.title": ("DeepSpeed와 맥 MPS", "DeepSpeed and Mac MPS"),
    "lesson.14_deepspeed_vs_mps.question": (
        "같은 학습을 설정 파일로 할 때와 손으로 짤 때 무엇이 다를까요?",
        "What differs between one job by configuration and by hand?",
    ),
    "lesson.15_choosing.title": ("전략 고르기", "Choosing a strategy"),
    "lesson.15_choosing.question": (
        "내 모델과 내 클러스터에는 어떤 전략이 맞을까요?",
        "Which strategy fits my model on my cluster?",
    ),
    # predict and compare
    "predict.yours": ("내 예측: {guess}", "Your prediction: {guess}"),
    "predict.left_open": (
        "비워 두었으므로 공식의 답을 씁니다: {formula}",
        "Left open, so the formula's answer is used: {formula}",
    ),
    "compare.quantity": ("값", "quantity"),
    "compare.guess": ("내 예측값", "your prediction"),
    "compare.formula": ("공식의 예측값", "the formula's prediction"),
    "compare.measured": ("측정값", "measured"),
    "compare.ratio": ("측정값 / 예측값", "measured / predicted"),
    "compare.no_prediction": (
        "{id}: 예측이 없습니다. 예측 셀을 먼저 실행하면 나란히 보여 줍니다.",
        "{id}: no prediction yet. Run the cell that predicts, and both are shown.",
    ),
    "compare.same": ("같음", "equal"),
    "compare.different": ("다름", "different"),
    # show
    "show.where": ("{path}, {first}-{last}행", "{path}, lines {first}-{last}"),
    # claims
    "claim.verdict": ("판정", "verdict"),
    "claim.statement": ("주장", "claim"),
    "claim.lesson": ("레슨", "lesson"),
    "claim.how": ("확인 방법", "how it is tested"),
    "claim.figure": ("수치", "figure"),
    "claim.recorded": ("기록된 값", "recorded"),
    "claim.here": ("여기에서 잰 값", "measured here"),
    "claim.origin": ("어디에서", "where"),
    "claim.verdict.holds": ("맞습니다", "holds"),
    "claim.verdict.holds_when": ("조건이 맞을 때만 맞습니다", "holds when …"),
    "claim.verdict.does_not_hold": ("맞지 않습니다", "does not hold"),
    "claim.verdict.not_tested_yet": ("아직 확인하지 않았습니다", "not tested yet"),
    "claim.tested_in": (
        "레슨 {lesson}에서 확인합니다",
        "lesson {lesson} will test it",
    ),
    "claim.page.title": ("주장과 판정", "Claims and verdicts"),
    "claim.page.language": ("한국어", "English"),
    "claim.page.start": ("시작 페이지", "start page"),
    "claim.page.intro": (
        "이 과정에서 확인하는 경험칙의 목록입니다. 판정은 아래의 수치에 근거하며, CPU에서 확인할 "
        "수 있는 판정은 모두 테스트가 다시 계산합니다. 수치마다 직접 잰 값인지, 계산한 값인지, "
        "출처가 있는 값인지 적었습니다.",
        "The rules of thumb that the course tests. Each verdict rests on the figures below it, and "
        "a test computes every verdict anew that a CPU can decide. Each figure says whether it was "
        "measured, derived, or taken from a source.",
    ),
    "claim.kind.measured": ("{machine}, {date}", "{machine}, {date}"),
    "claim.kind.derived": ("계산한 값", "derived"),
    "claim.kind.documented": ("출처: {source}", "source: {source}"),
    # exercises
    "check.passed": ("{id}: 통과했습니다.", "{id}: passed."),
    "check.failed": (
        "{id}: 아직 아닙니다. {total}개 가운데 {good}개가 맞았습니다.",
        "{id}: not yet. {good} of {total} cases are right.",
    ),
    "check.not_run": ("{id}: 아직 아닙니다.", "{id}: not yet."),
    "check.no_ranks": (
        "랭크가 없습니다. 레슨의 처음 두 셀을 먼저 실행하세요.",
        "There are no ranks. Run the first two cells of the lesson first.",
    ),
    "check.no_name": (
        "{place}에 {name} 이름이 없습니다. 연습 문제 셀을 먼저 실행하세요.",
        "{name} is not defined in {place}. Run the exercise's cell first.",
    ),
    "check.place.ranks": ("랭크", "the ranks"),
    "check.place.kernel": ("노트북", "the notebook"),
    "check.not_callable": (
        "{name}: 함수나 클래스여야 하는데 지금은 {kind}입니다.",
        "{name} must be a function or a class, and is {kind}.",
    ),
    "check.not_sendable": (
        "{name}: 새 랭크로 보낼 수 없습니다. {error}",
        "{name} cannot be sent to fresh ranks: {error}",
    ),
    "check.stub": (
        "아직 채우지 않은 부분(NotImplementedError)이 있습니다.",
        "A part is not filled in yet (NotImplementedError).",
    ),
    "check.hang": (
        "{seconds:g}초 안에 끝나지 않았습니다. 어떤 랭크가 다른 랭크를 끝없이 기다리거나 반복문이 "
        "끝나지 않습니다. 모든 랭크가 같은 집합 통신을 같은 순서로 부르는지 보세요.",
        "It did not end within {seconds:g} seconds: a rank waits for another without end, or a "
        "loop never stops. Does every rank call the same collectives in the same order?",
    ),
    "check.raised": ("코드가 예외를 냈습니다.\n{error}", "The code raised an error.\n{error}"),
    "check.aborted": (
        "크기나 자료형이 다른 텐서가 한 통신에서 만나면 Gloo가 프로세스를 끝냅니다(SIGABRT). 모든 "
        "랭크가 같은 모양과 자료형의 텐서로 같은 집합 통신을 부르는지 보세요.",
        "Gloo ends a process (SIGABRT) when tensors of different sizes meet in one message. Does "
        "every rank call the same collectives with tensors of the same shape and type?",
    ),
    "check.changed": (
        "{module} 파일은 {place}에서 import한 뒤에 바뀌었습니다. 검사는 지금 파일을 봅니다. "
        "{place}에서도 쓰려면 importlib.reload({module})를 실행하세요.",
        "The file of {module} has changed since {place} imported it. The check judges the file as "
        "it is now; for {place}, run importlib.reload({module}).",
    ),
    "check.rank": ("랭크 {rank}", "rank {rank}"),
    "check.ranks": ("랭크 {ranks}", "ranks {ranks}"),
    "check.unmet": ("조건을 만족하지 못했습니다", "the condition is not met"),
    "check.none": (
        "None을 돌려주었습니다. return이 빠졌나요?",
        "returned None: is a return missing?",
    ),
    "check.value": (
        "돌려준 값 {got}, 정답 {want}",
        "returned {got}, and should be {want}",
    ),
    "check.shape": (
        "모양 {got}, 정답 {want}",
        "the shape is {got}, and should be {want}",
    ),
    "check.dtype": (
        "자료형 {got}, 정답 {want}",
        "the dtype is {got}, and should be {want}",
    ),
    "check.type": (
        "돌려준 것 {got}, 필요한 종류 {want}",
        "returned {got}, and should return a {want}",
    ),
    "check.device": (
        "결과가 {got} 장치에 있습니다. {want} 장치에 있어야 합니다",
        "the result is on the device {got}, and should be on {want}",
    ),
    "check.not_number": (
        "돌려준 것 {got}, 필요한 것은 숫자 하나(또는 원소가 하나인 텐서)",
        "returned {got}, and should return one number (or a tensor of one element)",
    ),
    "check.not_truth": (
        "돌려준 것 {got}, 필요한 것은 True나 False",
        "returned {got}, and should return True or False",
    ),
    "check.parameters": (
        "{name}: 연습 문제의 매개변수로 부를 수 없습니다(인자 {number}개). 매개변수를 연습 문제에 "
        "있는 그대로 두세요. {error}",
        "{name} cannot be called as the exercise does (arguments: {number}): keep the parameters "
        "that it gives. {error}",
    ),
    "check.unusable": (
        "{name}의 답으로는 검사를 끝낼 수 없습니다. 돌려준 것: {answer}. 검사하다가 난 오류: "
        "{error}",
        "the check cannot go on with what {name} did. It returned {answer}. What happened then: "
        "{error}",
    ),
    "check.far": (
        "값이 최대 {error}만큼 다릅니다 (허용 {atol}). 예: {got}, 정답 {want}",
        "values are off by up to {error} (allowed: {atol}), as {got} for {want}",
    ),
    "check.bytes": (
        "보낸 양 {got}: 최소 {minimum}의 {ratio:.3g}배 (허용 {allowed:.3g}배)",
        "sent {got}: {ratio:.3g} times the minimum of {minimum} (allowed: {allowed:.3g} times)",
    ),
    "check.calls": (
        "{op} 호출 {got}번, 정답 {want}번",
        "calls of {op}: {got}, and should be {want}",
    ),
    "check.at_most": (
        "{name}: {got}. {limit} 이하여야 합니다",
        "{name} is {got}, and may be {limit} at most",
    ),
    "check.at_least": (
        "{name}: {got}. {limit} 이상이어야 합니다",
        "{name} is {got}, and must be {limit} at least",
    ),
    "hint.one": ("힌트 {number}/{total}: {text}", "Hint {number} of {total}: {text}"),
    "hint.last": (
        "마지막 힌트입니다. 다음은 {solution}입니다.",
        "That was the last hint; next is {solution}.",
    ),
}
