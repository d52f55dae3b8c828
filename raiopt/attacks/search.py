"""The loop of every search: evaluate, record, differentiate, step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Problem:
    """The problem that a search solves: a model, a perturbation and a loss; subclasses record the results."""

    optimizer: Optimizer
    schedule: LRScheduler | None = None
    needs_gradient: bool = True

    def forward(self) -> tuple[Tensor, Any, Tensor]:
        """Returns the current iterate to keep, the model's output and the losses."""
        raise NotImplementedError

    def objective(self, losses: Tensor) -> Tensor:
        """Returns the scalar that the optimizer minimizes."""
        raise NotImplementedError

    def record(self, kept: Tensor, output: Any, losses: Tensor) -> None:
        """Records an iterate; all tensors are detached from the autograd graph."""
        raise NotImplementedError

    def published(self) -> dict[str, Any]:
        """Returns the values that the optimizer may read during its next step; see `published`."""
        raise NotImplementedError

    def is_decided(self) -> bool:
        """Whether further steps cannot change the result."""
        return False

    def check_gradient(self) -> None:
        """Called after the parameter's gradient was computed."""

    def before_step(self) -> None:
        """Called before each step of the optimizer; may remove decided rows."""

    def gradient(self) -> Tensor:
        """Returns the gradient of the objective at the current value of the first parameter."""
        with torch.enable_grad():
            objective = self.objective(self.forward()[2])
            return torch.autograd.grad(objective, self.optimizer.param_groups[0]["params"][0])[0]


def search(problem: Problem, steps: int) -> None:
    """Takes at most `steps` steps of the problem's optimizer, with a final evaluation after the last one."""
    for step in range(steps + 1):
        is_last = step == steps
        with torch.set_grad_enabled(problem.needs_gradient and not is_last):
            kept, output, losses = problem.forward()
            objective = problem.objective(losses)
        problem.record(kept.detach(), output.detach() if isinstance(output, Tensor) else output, losses.detach())
        if is_last or problem.is_decided():
            break
        if problem.needs_gradient:
            differentiate(objective, problem.optimizer)
            problem.check_gradient()
        del kept, output, losses, objective  # their graph depends on the number of rows
        problem.before_step()
        if problem.is_decided():
            break
        with published(problem.optimizer, **problem.published(), gradient=problem.gradient):
            problem.optimizer.step()
        if problem.schedule is not None:
            problem.schedule.step()
    problem.optimizer.zero_grad(set_to_none=True)


def differentiate(objective: Tensor, optimizer: Optimizer) -> None:
    """Sets the gradient of the optimizer's parameters to that of the objective, discarding earlier gradients."""
    optimizer.zero_grad(set_to_none=True)
    objective.backward()


@contextmanager
def published(optimizer: Optimizer, **values: Any) -> Iterator[None]:
    """Puts values into an optimizer's groups for it to read within the context, and restores the groups afterwards.

    - `losses` (N,): the loss of each sample, which the step is to decrease; the gradient is that of their sum.
    - `fooled` (N,): whether the attack on each sample is successful at the current iterate.
    - `gradient`: called without arguments, returns the gradient at the current value of the first parameter.
    - `generators`: one for each sample, on the CPU.
    """
    before = [{name: group[name] for name in values if name in group} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(values)
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            for name in values:
                group.pop(name, None)
            group.update(own)


def check_grad_mode() -> None:
    """Raises in inference mode, where no gradient can be computed; `torch.no_grad()` around a search is fine."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "An attack computes gradients, which torch.inference_mode() forbids: call it outside of that context, or "
            "use torch.no_grad() instead."
        )
