"""Words of lesson 00, in the form of `words.py`, which takes them in as the area "start"."""

from __future__ import annotations

START_WORDS: dict[str, tuple[str, str]] = {
    "architecture.dense": ("밀집", "dense"),
    "architecture.moe": ("MoE", "MoE"),
    "axes.caption": ("두 번째 스텝의 손실", "loss at the second step"),
    "backend.gloo": (
        "CPU끼리 TCP로 주고받습니다. 바이트는 진짜지만\n속도는 네트워크의 속도가 아닙니다",
        "CPUs talk over TCP: the bytes are real,\nthe speed is not a network's",
    ),
    "backend.nccl": ("GPU끼리 직접 주고받습니다", "GPUs talk to each other"),
    "column.data": ("데이터", "data"),
    "column.expert": ("전문가", "expert"),
    "column.pipeline": ("파이프라인", "pipeline"),
    "column.tensor": ("텐서", "tensor"),
    "column.zero": ("ZeRO", "ZeRO"),
    "cores.own": (
        "랭크 {ranks}개가 코어를 하나 이상씩 씁니다",
        "each of {ranks} ranks has a core or more",
    ),
    "cores.shared": (
        "랭크 {ranks}개가 코어 {cores}개를 나눠 씁니다.\n느리지만 결과와 바이트는 같습니다",
        "{ranks} ranks share {cores} cores: slower,\nwith the same results and bytes",
    ),
    "gpus.few": (
        "랭크 수보다 적어서 랭크는 CPU에서 돕니다",
        "fewer than ranks, so the ranks run on the CPU",
    ),
    "gpus.none": (
        "랭크는 CPU에서 돕니다. GPU의 속도와 메모리는 볼 수 없습니다",
        "ranks run on the CPU; speed and memory of GPUs cannot be seen",
    ),
    "gpus.own": ("랭크마다 GPU를 하나씩 씁니다", "one for each rank"),
    "library": ("라이브러리", "library"),
    "library.caption": (
        "{star}: 주장 A4의 표에 없지만 실제로는 있는 것, 모두 {count}칸. 괄호는 ZeRO 단계",
        "{star}: exists, but is not in claim A4: {count} boxes. In brackets: ZeRO stage",
    ),
    "library.communication": ("(통신 라이브러리)", "(communication)"),
    "library.last": ("(마지막 릴리스 {date})", "(last release {date})"),
    "library.sources": ("출처({date} 확인):", "Sources (read {date}):"),
    "machine.backend": ("통신 백엔드", "backend"),
    "machine.cores": ("CPU 코어", "CPU cores"),
    "machine.gpus": ("CUDA GPU", "CUDA GPUs"),
    "machine.here": ("이 컴퓨터", "here"),
    "machine.memory": ("메모리", "memory"),
    "machine.mps": ("애플 GPU (MPS)", "Apple GPU (MPS)"),
    "machine.nvlink": ("NVLink", "NVLink"),
    "machine.so": ("그래서", "so"),
    "machine.what": ("항목", "what"),
    "memory.axis": ("메모리", "memory"),
    "memory.fits": (
        "이 과정의 랭크가 {ranks}개까지 들어갑니다",
        "up to {ranks} ranks of this course fit",
    ),
    "memory.label.times": ("프로세스 하나(RSS) × {ranks}", "one process (RSS) × {ranks}"),
    "memory.label.together": ("모두 합쳐서 (PSS)", "all together (PSS)"),
    "memory.title": (
        "랭크 {ranks}개의 메모리: 하나의 {ranks}배가 아니라 {ratio}배",
        "{ranks} ranks take {ratio} times the memory of one, not {ranks} times",
    ),
    "mps.here": (
        "프로세스 하나만 쓸 수 있어서 랭크는 CPU에서 돕니다",
        "serves one process, so the ranks run on the CPU",
    ),
    "mps.none": ("해당 없음", "does not apply"),
    "no": ("없음", "no"),
    "nvlink.here": ("GPU가 서로 직접 주고받습니다", "GPUs exchange data directly"),
    "nvlink.none": (
        "GPU 사이의 빠른 연결은 여기에서 잴 수 없습니다",
        "fast links between GPUs cannot be measured here",
    ),
    "optimizer.axis": (
        "가장 많이 든 랭크의 옵티마이저 상태",
        "optimizer state in the fullest rank",
    ),
    "optimizer.title": (
        "torch만으로 된 ZeRO: 옵티마이저 상태가 {zero1}%, {zero3}%로 줄어듭니다",
        "ZeRO with torch alone: optimizer state falls to {zero1}% and {zero3}%",
    ),
    "strategy": ("전략", "strategy"),
    "strategy.alone": ("혼자 (나누지 않음)", "alone (not spread)"),
    "strategy.data": ("데이터 (DDP)", "data (DDP)"),
    "strategy.tensor": ("텐서", "tensor"),
    "strategy.zero1": ("데이터 + ZeRO-1", "data + ZeRO-1"),
    "strategy.zero3": ("데이터 + ZeRO-3 (FSDP2)", "data + ZeRO-3 (FSDP2)"),
    "yes": ("있음", "yes"),
}
