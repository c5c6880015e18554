"""Optimizers where nothing is compiled: the same steps, and no compiler in the process."""

from __future__ import annotations

import subprocess
import sys

STEPS = """
import sys, torch
from hvdspark.train.uncompiled import spare_the_compiler

class Own(torch.optim.SGD):
    pass

KINDS = {
    torch.optim.SGD: {"momentum": 0.9}, torch.optim.Adam: {"amsgrad": True}, torch.optim.AdamW: {}, Own: {},
    torch.optim.Adagrad: {}, torch.optim.RMSprop: {"centered": True}, torch.optim.Adadelta: {}, torch.optim.NAdam: {},
    torch.optim.RAdam: {}, torch.optim.Adamax: {}, torch.optim.ASGD: {}, torch.optim.Rprop: {},
}

def steps():
    ends = []
    for kind, options in KINDS.items():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        optimizer = kind(module.parameters(), lr=0.1, **options)
        for row in torch.randn(4, 3):
            optimizer.zero_grad()
            module(row).square().sum().backward()
            optimizer.step()
        again = kind(module.parameters(), lr=0.1, **options)
        again.load_state_dict(optimizer.state_dict())
        again.step()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    return torch.stack(ends)

spare_the_compiler()
without = steps()
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert torch.equal(steps(), without), "a compiler in the process changes no bit"
frames = []
real = torch._dynamo.graph_break
torch._dynamo.graph_break = lambda: (frames.append(1), real())
steps()
assert frames, "where there is a compiler, it is asked as torch asks it"
"""


def test_steps_are_the_same_and_no_compiler_is_imported() -> None:
    result = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
