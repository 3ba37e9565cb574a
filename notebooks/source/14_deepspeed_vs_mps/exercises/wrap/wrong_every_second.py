# caught by: each, memory
# Only every second block


def wrap_blocks(gpt, checkpoint):
    class Wrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return checkpoint(self.block, x)

    blocks = list(gpt.blocks)
    gpt.blocks = nn.ModuleList(Wrapped(b) if i % 2 else b for i, b in enumerate(blocks))
