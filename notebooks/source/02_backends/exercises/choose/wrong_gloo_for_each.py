# caught by: xpu
def backend_for(devices):
    best = {"cpu": "gloo", "cuda": "nccl", "xpu": "gloo"}
    return ",".join(f"{device}:{best[device]}" for device in devices)
