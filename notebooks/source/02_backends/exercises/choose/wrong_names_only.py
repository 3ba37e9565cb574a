# caught by: both
def backend_for(devices):
    best = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
    return ",".join(best[device] for device in devices)
