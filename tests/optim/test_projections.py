import math
from functools import partial

import pytest
import torch
from torch import Tensor

from raiopt.optim import L0ProjectedOptim, L2ProjectedOptim, LinfProjectedOptim, ProjectedParameterOptimizer

PROJECTED = [L2ProjectedOptim, LinfProjectedOptim]


def leaf(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, requires_grad=True)


@pytest.mark.parametrize("Optim", PROJECTED)
def test_epsilon_has_no_default(Optim: type[L2ProjectedOptim]) -> None:  # it was once 0.001, read off the lr of SGD
    with pytest.raises(TypeError, match="epsilon"):
        Optim([leaf([1.0])], lr=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="epsilon=None must be a finite number, at least 0"):
        Optim([leaf([1.0])], epsilon=None, lr=1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("Optim", PROJECTED)
@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf])
def test_a_bad_radius_is_refused(Optim: type[L2ProjectedOptim], epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon={epsilon} must be a finite number, at least 0"):
        Optim([leaf([1.0])], epsilon=epsilon, lr=1)


@pytest.mark.parametrize("p", [1.5, 3, "2"])
def test_other_balls_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"p=.* must be one of 0, 1, 2, inf"):
        ProjectedParameterOptimizer([leaf([1.0])], p=p, epsilon=1.0)


def test_projection_does_not_change_the_gradient() -> None:
    x = leaf([0.0, 0.0])
    x.grad = torch.tensor([[-30.0, 4.0]])
    ProjectedParameterOptimizer([x], p=math.inf, epsilon=1.0, lr=0.1).step()
    assert x.grad.tolist() == [[-30.0, 4.0]]
    torch.testing.assert_close(x.detach(), torch.tensor([[1.0, -0.4]]))


@pytest.mark.parametrize(("param_ndim", "norms"), [(-1, [5.0, 5.0]), (1, [5.0 * math.sqrt(2)] * 2), (None, [5.0])])
def test_epsilon_is_the_radius_of_each_datum(param_ndim: int | None, norms: list[float]) -> None:
    x = torch.full((2, 2, 50), 10.0, requires_grad=True)
    L2ProjectedOptim([x], epsilon=5.0, param_ndim=param_ndim, lr=1.0).project()
    torch.testing.assert_close(x.detach().view(len(norms), -1).norm(dim=1), torch.tensor(norms))


@pytest.mark.parametrize(("Optim", "p"), [(L2ProjectedOptim, 2), (LinfProjectedOptim, math.inf)])
def test_many_steps_reach_the_nearest_adversarial_point_of_a_linear_model(
    Optim: type[L2ProjectedOptim], p: float
) -> None:
    """The loss w·δ is least, over the ball within no box, at -epsilon times the dual vector of w."""
    w = torch.tensor([[3.0, -4.0, 1.0], [0.1, 0.2, -0.2]])
    x = torch.zeros_like(w, requires_grad=True)
    optimizer = Optim([x], epsilon=0.5, lr=0.2)
    for _ in range(10):
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()
    dual = w.sign() if p == math.inf else w / w.norm(dim=1, keepdim=True)
    torch.testing.assert_close(x.detach(), -0.5 * dual)


def test_the_nearest_point_is_not_the_clipped_and_shrunk_one() -> None:
    x = leaf([3.0, 4.0])
    optimizer = L2ProjectedOptim([x], epsilon=1.0, lr=0.0)
    optimizer.param_groups[0].update(lower=torch.full((1, 2), -1.0), upper=torch.tensor([[1.0, 0.6]]))
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([[0.8, 0.6]]))


def test_each_group_has_its_own_radius_and_param_ndim() -> None:
    x, y = (torch.full((2, 2, 50), 10.0, requires_grad=True) for _ in range(2))
    groups = [{"params": [x], "epsilon": 1.0}, {"params": [y], "epsilon": 5.0, "param_ndim": 1}]
    L2ProjectedOptim(groups, epsilon=3.0, lr=1.0).project()
    torch.testing.assert_close(x.detach().view(2, -1).norm(dim=1), torch.full((2,), 1.0))
    torch.testing.assert_close(y.detach().norm(dim=2), torch.full((2, 2), 5.0))


@pytest.mark.parametrize("param_ndim", [-1, None])
def test_pixels_are_kept_with_all_their_channels(param_ndim: int | None) -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    param = x.clone().requires_grad_()
    L0ProjectedOptim([param], epsilon=4, pixels=True, param_ndim=param_ndim, lr=1.0).project()
    kept = param.detach() != 0
    assert torch.equal(kept.all(1), kept.any(1))
    assert kept[:, 0].sum() == (8 if param_ndim == -1 else 4)
    gains = x.square().sum(1)
    assert gains[kept[:, 0]].min() >= gains[~kept[:, 0]].max() if param_ndim is None else True


def test_pixels_without_an_l0_ball_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels=True would have no effect with p=2"):
        ProjectedParameterOptimizer([leaf([1.0])], p=2, epsilon=1.0, pixels=True, lr=1.0)


@pytest.mark.parametrize(("shape", "param_ndim"), [((1, 2), -1), ((2, 3, 4, 4), 2), ((3, 4, 4), -1)])
def test_pixels_need_data_with_channels(shape: tuple[int, ...], param_ndim: int) -> None:
    with pytest.raises(ValueError, match=rf"pixels=True needs data \(C, H, W\), but with param_ndim={param_ndim}"):
        L0ProjectedOptim(
            [torch.zeros(shape, requires_grad=True)], epsilon=1, pixels=True, param_ndim=param_ndim, lr=1.0
        )


@pytest.mark.parametrize("epsilon", [0.5, 0.0])
def test_an_l0_ball_holds_at_least_one_entry(epsilon: float) -> None:
    for make in (L0ProjectedOptim, partial(ProjectedParameterOptimizer, p=0)):
        with pytest.raises(ValueError, match=rf"epsilon={epsilon} must be .* at least 1. In an L0 ball it is a number"):
            make([leaf([1.0])], epsilon=epsilon, lr=1.0)
