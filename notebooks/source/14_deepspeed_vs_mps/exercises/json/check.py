"""A configuration that is accepted in silence, said again in keys that DeepSpeed reads."""

from dlcourse.course.exercises import describe, expect

NAMES = ("mended",)
CASES = ("batch", "clipping", "precision", "zero", "ignored")
NUM_RANKS = 1
WHERE = "kernel"

# What the author meant: one of these sets of keys for each case
_KEYS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "gradient_clipping", "bf16", "bfloat16", "zero_optimization", "optimizer", "scheduler",
    "steps_per_print", "wall_clock_breakdown",
}  # fmt: skip
_RANKS = 2


def check(mended, rank, world_size):
    answer = mended()
    if not isinstance(answer, dict):
        return [expect(case, False, "no_dict", got=describe(answer)) for case in CASES]
    return [
        _batch(answer),
        _value("clipping", answer, "gradient_clipping", 0.5),
        _enabled(answer),
        _stage(answer),
        _ignored(answer),
    ]


def _batch(answer):
    batch = answer.get("train_batch_size", 64)
    micro = answer.get("train_micro_batch_size_per_gpu")
    accumulate = answer.get("gradient_accumulation_steps", 2)
    if micro != 16:
        return expect(
            "batch",
            False,
            "value",
            name="train_micro_batch_size_per_gpu",
            got=describe(micro),
            want=16,
        )
    whole = type(accumulate) is int and batch == 64 == micro * accumulate * _RANKS
    sizes = "gradient_accumulation_steps" in answer or "train_batch_size" in answer
    return expect("batch", whole and sizes, "does_not_divide", got=describe(batch))


def _value(case, answer, key, want):
    got = answer.get(key)
    right = not isinstance(got, bool) and got == want
    return expect(case, right, "value", name=key, got=describe(got), want=want)


def _enabled(answer):
    block = answer.get("bf16", answer.get("bfloat16"))
    if not isinstance(block, dict):
        return expect("precision", False, "no_block", name="bf16", got=describe(block))
    if block.get("enabled") is not True:
        name = "bf16.enabled"
        return expect(
            "precision", False, "value", name=name, got=describe(block.get("enabled")), want=True
        )
    extra = sorted(set(block) - {"enabled", "immediate_grad_update", "check_grad_overflow"})
    return expect("precision", not extra, "refused", name=f"bf16.{extra[0]}" if extra else "")


def _stage(answer):
    block = answer.get("zero_optimization")
    if not isinstance(block, dict):
        return expect("zero", False, "no_block", name="zero_optimization", got=describe(block))
    return _value("zero", block, "stage", 2)


def _ignored(answer):
    unknown = sorted(str(key) for key in set(answer) - _KEYS)
    return expect("ignored", not unknown, "ignored", keys=", ".join(unknown))
