# caught by: cpu
def backend_for(devices):
    return "mpi"
