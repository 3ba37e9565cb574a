# %% [markdown] lang="en"
# # Distributed training, one measurement at a time
#
# [한국어](../ko/index.md) · **English**
#
# Every lesson runs in real processes on this machine. You predict a number, measure it, and see
# why the two differ. You need PyTorch on one device and nothing more.
#
# Click a lesson to open it. Run a cell with Shift+Enter. Start at the top: lesson 00 checks this
# machine, and each lesson builds on those before it.
# %% [markdown] lang="ko" en="0e49ada3"
# # 분산 학습: 예측하고, 재고, 이해하기
#
# **한국어** · [English](../en/index.md)
#
# 모든 레슨은 이 컴퓨터의 실제 프로세스에서 실행됩니다. 숫자를 먼저 예측하고, 직접 재고, 둘이 왜
# 다른지 확인합니다. 장치 하나에서 PyTorch를 써 본 경험이면 충분합니다.
#
# 레슨을 누르면 열립니다. 셀은 Shift+Enter로 실행합니다. 위에서부터 차례로 보세요. 레슨 00이 이
# 컴퓨터를 점검하고, 각 레슨은 앞선 레슨을 바탕으로 합니다.
# %% [markdown] lang="en"
# {{lessons}}
# %% [markdown] lang="ko" en="783f13d7"
# {{lessons}}
# %% [markdown] lang="en"
# **In every lesson.** A question, a picture, a prediction, the real code, a run, the measured
# number beside the predicted one, the real library beside ours, and exercises that check
# themselves. If a run hangs, press the stop button: the course says which rank waits for which.
#
# The rules of thumb that the course tests, each with its verdict and the figures it rests on:
# [claims and verdicts](claims.md).
#
# Lessons also run without a browser: `dlcourse run 00_start --lang en`.
# %% [markdown] lang="ko" en="12478872"
# **레슨의 흐름.** 질문, 그림, 예측, 실제 코드, 실행, 예측값 옆에 놓인 측정값, 실제 라이브러리와의
# 비교, 스스로 채점되는 연습 문제로 이어집니다. 실행이 멈추면 정지 버튼을 누르세요. 어느 랭크가
# 어느 랭크를 기다리는지 알려 줍니다.
#
# 이 과정에서 확인하는 경험칙과 그 판정, 판정의 근거가 된 수치: [주장과 판정](claims.md)
#
# 브라우저 없이도 실행됩니다: `dlcourse run 00_start --lang ko`.
