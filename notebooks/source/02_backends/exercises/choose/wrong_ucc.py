# caught by: cuda
def backend_for(devices):
    best = {"cpu": "gloo", "cuda": "ucc", "xpu": "xccl"}
    return ",".join(f"{device}:{best[device]}" for device in devices)
