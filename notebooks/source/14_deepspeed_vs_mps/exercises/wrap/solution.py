def wrap_blocks(gpt, checkpoint):
    class Wrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return checkpoint(self.block, x)

    gpt.blocks = nn.ModuleList(Wrapped(block) for block in gpt.blocks)
