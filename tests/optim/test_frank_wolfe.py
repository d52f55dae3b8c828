import math

import pytest
import torch
from torch import Tensor

from raiopt.optim import FrankWolfe, L1FrankWolfe, L1qFrankWolfe, L2FrankWolfe, LinfFrankWolfe

BALLS = {L1FrankWolfe: 1, L2FrankWolfe: 2, LinfFrankWolfe: math.inf}


def leaf(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, requires_grad=True)


def test_the_step_size_decreases_with_the_steps() -> None:
    x, expected = leaf([4.0]), 4.0
    optimizer = FrankWolfe([x], lr=2.0, lmo_scaling_factor=3.0)
    for step in range(4):
        x.grad = torch.tensor([[float(step)]])
        optimizer.step()
        share = 2 / (2 + step)
        expected = (1 - share) * expected - share * 3 * step
        assert x.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be a finite number, at least 0"),
        ({"lr": 1.5, "use_default_lr_schedule": False}, "lr=1.5 must be a finite number, at least 0, at most 1"),
        ({"lmo_scaling_factor": math.nan}, "lmo_scaling_factor=nan"),
    ],
)
def test_bad_hyperparameters_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrankWolfe([leaf([1.0])], **options)
    optimizer = FrankWolfe([leaf([1.0])])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [leaf([1.0])], **options})
    assert len(optimizer.param_groups) == 1


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    x = leaf([0.25, -0.25])
    x.grad = torch.ones(1, 2)
    LinfFrankWolfe([x], epsilon=0.5, lr=0.0).step()
    assert x.tolist() == [[0.25, -0.25]]


@pytest.mark.parametrize("Optim", BALLS)
def test_images_stay_in_the_ball(Optim: type[L1FrankWolfe]) -> None:  # L1 once left it by a factor of 48
    x = torch.zeros(4, 3, 4, 4, requires_grad=True)
    optimizer = Optim([x], epsilon=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x.grad = torch.randn(x.shape, generator=generator)
        optimizer.step()
        norms = torch.linalg.vector_norm(x.detach().double().flatten(1), BALLS[Optim], dim=1)
        assert (norms <= 1 + 1e-6).all()


@pytest.mark.parametrize("Optim", [*BALLS, L1qFrankWolfe])
def test_a_start_outside_is_brought_into_ball_and_box(Optim: type[L1FrankWolfe]) -> None:
    x = torch.full((2, 6), 9.0, requires_grad=True)
    group = {"params": [x], "upper": torch.full((2, 6), 0.25), "lower": torch.full((2, 6), -0.25)}
    optimizer = Optim([group], epsilon=0.5, **({"q": 0.5} if Optim is L1qFrankWolfe else {}))
    optimizer.project()
    assert (torch.linalg.vector_norm(x.detach(), BALLS.get(Optim, 1), dim=1) <= 0.5).all()
    assert x.abs().max() <= 0.25


@pytest.mark.parametrize("Optim", [*BALLS, L1qFrankWolfe])
@pytest.mark.parametrize("schedule", [True, False])
def test_samples_without_a_gradient_do_not_move(Optim: type[L1FrankWolfe], schedule: bool) -> None:
    x = leaf([0.125, -0.25], [0.0, 0.25])
    options = {"q": 0.4} if Optim is L1qFrankWolfe else {}
    optimizer = Optim([x], epsilon=0.5, lr=0.5, use_default_lr_schedule=schedule, **options)
    for _ in range(3):
        x.grad = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
        optimizer.step()
    torch.testing.assert_close(x[0].detach(), torch.tensor([0.125, -0.25]))
    assert x[1].tolist() != [0.0, 0.25]


def test_it_takes_no_inner_optimizer() -> None:
    for Optim, options in ((L1FrankWolfe, {}), (L1qFrankWolfe, {"q": 0.5})):
        with pytest.raises(TypeError, match=r"InnerOpt cannot be chosen: Frank-Wolfe makes the step itself"):
            Optim([leaf([1.0])], epsilon=1.0, InnerOpt=torch.optim.SGD, **options)
