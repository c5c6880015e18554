"""torch's optimizers without torch's compiler, in processes where nothing is compiled.

The first optimizer that a process makes imports the compiler, only to tell it to leave the optimizer's methods alone:
more CPU time than `import torch` itself, and 90 MB, on every rank of every fit.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

_COMPILER = "torch._dynamo"


def spare_the_compiler() -> None:
    """From now on torch's optimizers import the compiler in this process only where something else has.

    What they compute is the same: both things that they ask of it are about compiled code that calls them. Where torch
    is not as it is known here, nothing changes.
    """
    disabled = torch._disable_dynamo(lambda: None).__code__
    graded = torch_optimizer._use_grad_for_differentiable(lambda: None).__code__
    for kind in _kinds(Optimizer):
        for name, method in list(vars(kind).items()):
            code = getattr(method, "__code__", None)
            if code is disabled:
                setattr(kind, name, _without_compiler(method, method.__wrapped__))
            elif code is graded:
                setattr(kind, name, _without_compiler(method, _with_gradients_as_asked(method.__wrapped__)))


def _kinds(kind: type[Optimizer]) -> Iterator[type[Optimizer]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def _without_compiler(method: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (method if _COMPILER in sys.modules else plain)(*args, **kwargs)

    return either


def _with_gradients_as_asked(step: Callable[..., Any]) -> Callable[..., Any]:
    def plain(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return plain
