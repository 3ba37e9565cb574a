# caught by: memory


def run_again(function, x):
    return function(x)
