# caught by: cuda
def backend_for(devices):
    return "gloo"
