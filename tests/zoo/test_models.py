import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raiopt.zoo import Classifier, load_model
from raiopt.zoo.models import Classifier as Same


def linear(**kwargs) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), name="linear", **kwargs)


def test_normalisation_is_part_of_the_model():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    model = linear(mean=mean, std=std)
    x = torch.rand(5, 3, 2, 2)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert_close(model(x), model.net(by_hand))
    assert Same is Classifier


def test_preset_says_where_the_normalisation_comes_from():
    x = torch.rand(2, 3, 2, 2)
    plain = linear()
    assert plain.preset == "identity (none given)"
    assert torch.equal(plain(x), plain.net(x))
    assert linear(mean=0.5).preset == "given"
    assert linear(mean=0.5, preset="mine").preset == "mine"


def test_classes_decide_their_number():
    assert linear(classes=("a", "b")).num_classes == 2
    assert linear(num_classes=7).num_classes == 7
    assert linear().num_classes is None


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"mean": [0.1, 0.2]}, ValueError, r"model\.mean=\[0\.1, 0\.2\] must be one number, or three"),
        ({"mean": float("nan")}, ValueError, r"model\.mean=nan"),
        ({"std": 0}, ValueError, r"model\.std=0 must be a finite number, above 0"),
        ({"std": [1, 1, -1]}, ValueError, r"model\.std=-1"),
        ({"std": "wide"}, TypeError, r"model\.std='wide'"),
    ],
)
def test_bad_mean_and_std_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        linear(**kwargs)


def test_hash_depends_on_every_value_and_on_nothing_else():
    model = linear(mean=0.5)
    before = model.weights_hash()
    assert linear(mean=0.5).weights_hash() == before
    assert linear(mean=0.25).weights_hash() != before
    assert model.double().weights_hash() != before
    assert model.float().weights_hash() == before
    with torch.no_grad():
        model.net.get_parameter("1.weight")[0, 0] += 1
    assert model.weights_hash() != before


def test_hash_distinguishes_shapes():
    flat, tall = (Classifier(nn.Module(), name="x") for _ in range(2))
    flat.net.register_buffer("w", torch.zeros(1, 6))
    tall.net.register_buffer("w", torch.zeros(6, 1))
    assert flat.weights_hash() != tall.weights_hash()


def test_an_output_that_is_not_a_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match=r"The model pair must return a tensor of logits \(N, classes\), not .*tuple"):
        Classifier(Pair(), name="pair")(torch.zeros(1, 3, 2, 2))


def test_loaded_models_are_frozen_in_eval_mode_and_shared():
    model = load_model("digits_robust")
    assert model is load_model("digits_robust")
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_near_names_are_suggested():
    with pytest.raises(
        ValueError, match=r"name='resnet5O' must be one of .*'digits_robust'.* Did you mean 'resnet50'\?"
    ):
        load_model("resnet5O")
