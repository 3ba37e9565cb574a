# caught by: each, memory
# Sets what looks like a switch; nothing reads it


def wrap_blocks(gpt, checkpoint):
    gpt.gradient_checkpointing = True
    for block in gpt.blocks:
        block.checkpoint = checkpoint
