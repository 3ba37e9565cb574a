def backend_for(devices):
    best = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
    return ",".join(f"{device}:{best[device]}" for device in devices)
