# caught by: gradients, each
# Stores nothing, and learns nothing


def wrap_blocks(gpt, checkpoint):
    class Quiet(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            with torch.no_grad():
                return self.block(x)

    gpt.blocks = nn.ModuleList(Quiet(block) for block in gpt.blocks)
