# caught by: both
def backend_for(devices):
    best = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
    name = "nccl" if "cuda" in devices else "gloo"
    return best[devices[0]] if len(devices) == 1 else name
