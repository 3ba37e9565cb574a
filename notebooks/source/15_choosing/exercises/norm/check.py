"""The norm of a whole model's gradient, whose parts are spread over a mesh."""

from dlcourse.course.exercises import as_number, expect, gathered, measured, not_number

NAMES = ("grad_norm",)
CASES = ("tensor", "pipeline", "data", "same", "bytes")
NUM_RANKS = 4

_MESHES = {
    "tensor": {"tensor": 4},
    "pipeline": {"pipeline": 2, "tensor": 2},
    "data": {"data": 2, "tensor": 2},
}


def check(grad_norm, rank, world_size):
    from dlcourse.parallel.mesh import make_mesh

    findings = []
    for case, sides in _MESHES.items():
        mesh = make_mesh(**sides)
        place = [mesh.get_local_rank(side) for side in ("pipeline", "tensor")]
        cut, whole = _gradients(*place)
        before = [grad.clone() for grad in cut + whole]
        with measured() as seen:
            answer = grad_norm(cut, whole, mesh)
        got = as_number(answer)
        if got is None:
            findings.append(not_number(case, answer))
            continue
        size = {side: mesh[side].size() for side in ("data", "pipeline", "tensor")}
        want, known = _norms(size)
        values = {"got": f"{got:.4f}", "want": f"{want:.4f}"}
        near = [key for key, value in known.items() if abs(got / value - 1) < 1e-4]
        right = abs(got / want - 1) < 1e-5
        findings.append(expect(case, right, near[0] if near and not right else "wrong", **values))
        findings.append(expect("same", len(set(gathered(round(got, 4)))) == 1, "differs"))
        sent = seen.sent()
        changed = any((a - b).abs().max() > 0 for a, b in zip(before, cut + whole, strict=True))
        findings.append(expect("same", not changed, "changed"))
        findings.append(expect("bytes", sent <= 40, "numbers", got=f"{sent:.0f}"))
    return findings


def _gradients(stage, part):
    """Of one rank: matrices that the tensor ranks cut, and what each of them has whole."""
    import torch

    mine = torch.Generator().manual_seed(100 * stage + part)
    alike = torch.Generator().manual_seed(100 * stage + 99)
    cut = [torch.randn(6, 4, generator=mine), torch.randn(4, 8, generator=mine)]
    return cut, [3 * torch.randn(8, generator=alike), 2 * torch.randn(4, generator=alike)]


def _norms(size):
    """The norm, and what common mistakes give instead."""
    squares = {"cut": 0.0, "whole": 0.0}
    roots = 0.0
    stages = []
    for stage in range(size["pipeline"]):
        of_stage = 0.0
        for part in range(size["tensor"]):
            cut, whole = _gradients(stage, part)
            mine = [sum(float((g.double() ** 2).sum()) for g in grads) for grads in (cut, whole)]
            squares["cut"] += mine[0]
            squares["whole"] += mine[1]
            of_stage += mine[0] + mine[1] / size["tensor"]
            roots += (mine[0] + mine[1]) ** 0.5
        stages.append(of_stage**0.5)
    once = squares["whole"] / size["tensor"]
    known = {
        "whole_counted": (squares["cut"] + squares["whole"]) ** 0.5,
        "copies_counted": (size["data"] * (squares["cut"] + once)) ** 0.5,
        "all_counted": (size["data"] * (squares["cut"] + squares["whole"])) ** 0.5,
        "roots_added": roots,
        "stages_apart": stages[0],
        "whole_forgotten": squares["cut"] ** 0.5,
    }
    return (squares["cut"] + once) ** 0.5, known
