from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch

from raiopt.zoo import load_model, pretrained
from raiopt.zoo.pretrained import torchvision_model, torchvision_models
from raiopt.zoo.vision import models

TINY = "shufflenet_v2_x0_5"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts the weights of a network under the published name into torch's cache, with no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(weights, net: torch.nn.Module) -> None:
        file = tmp_path / "hub" / "checkpoints" / Path(urlparse(weights.url).path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)

    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("no download"))
    return put


@pytest.fixture
def checkpoint(tmp_path) -> str:
    torch.save(models.get_model(TINY, num_classes=7).state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def test_published_weights_come_from_the_cache_with_their_preset(cached):
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    net = models.resnet18()
    cached(weights, net)
    with pytest.warns(UserWarning, match="is not the published file"):
        model = load_model("resnet18")
    preset = weights.transforms()
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        normalised = (x - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
        torch.testing.assert_close(model(x), net.eval()(normalised))
    assert model.preset == "ResNet18_Weights.IMAGENET1K_V1"
    assert model.geometry == pretrained.Geometry(resize=256, crop=224, interpolation="bilinear", antialias=True)
    assert model.classes == tuple(weights.meta["categories"])
    assert model.num_classes == 1000
    assert not model.training
    assert model is torchvision_model("resnet18", weights="DEFAULT")
    assert "get_state_dict" not in vars(weights)


def test_options_that_belong_to_the_weights_are_set(monkeypatch):
    """googlenet's published weights expect its own input transform and have heads that are dropped after loading."""
    state = models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(pretrained, "published_weights", lambda _: state)
    model = torchvision_model("googlenet", weights="DEFAULT", mean=0.5)
    assert model.net.transform_input
    assert model.net.aux1 is None
    assert model.mean.flatten().tolist() == [0.5]
    assert model.preset == "GoogLeNet_Weights.IMAGENET1K_V1, mean given"


def test_a_cached_file_of_another_network_is_refused(monkeypatch):
    state = models.get_model("shufflenet_v2_x1_0").state_dict()
    monkeypatch.setattr(pretrained, "published_weights", lambda _: state)
    with pytest.raises(
        ValueError, match=f"ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 does not fit {TINY}: .*size mismatch"
    ):
        torchvision_model(TINY, weights="DEFAULT")


def test_a_checkpoint_loads_with_its_own_normalisation(checkpoint):
    model = torchvision_model(TINY, checkpoint=checkpoint, num_classes=7, mean=[0.1, 0.2, 0.3], std=0.5)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
    assert (model.preset, model.num_classes, model.classes, model.geometry) == ("given", 7, None, None)
    assert model.mean.shape == (3, 1, 1)
    assert torchvision_model(TINY, checkpoint=checkpoint, num_classes=7).preset == "identity (none given)"


def test_a_checkpoint_that_changed_is_loaded_again(checkpoint):
    first = torchvision_model(TINY, checkpoint=checkpoint, num_classes=7)
    assert first is torchvision_model(TINY, checkpoint=checkpoint, num_classes=7)
    torch.save({"model": models.get_model(TINY, num_classes=7).state_dict()}, checkpoint)
    assert first.weights_hash() != torchvision_model(TINY, checkpoint=checkpoint, num_classes=7).weights_hash()


@pytest.mark.parametrize("heads", [True, False])
def test_checkpoints_of_googlenet_load_with_and_without_heads(tmp_path, heads):
    file = str(tmp_path / "googlenet.pt")
    torch.save(models.googlenet(num_classes=5, aux_logits=heads, init_weights=False).state_dict(), file)
    model = torchvision_model("googlenet", checkpoint=file, num_classes=5)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, rf"The model {TINY} has no weights: give model\.weights=DEFAULT or model\.checkpoint=FILE"),
        ({"weights": "DEFAULT", "checkpoint": "FILE"}, "cannot be combined"),
        ({"weights": "IMAGENET1K_V9"}, r"model\.weights='IMAGENET1K_V9' must be one of .*Did you mean 'IMAGENET1K_V1'"),
        ({"weights": "DEFAULT", "num_classes": 10}, r"model\.num_classes=10 does not fit .* has 1000 classes"),
        ({"checkpoint": "FILE"}, r"model\.num_classes=7"),
        ({"checkpoint": "FILE", "num_classes": 0}, r"model\.num_classes=0 must be an integer, at least 1"),
        ({"checkpoint": "nowhere.pt"}, r"model\.checkpoint='nowhere\.pt' is not a file"),
    ],
)
def test_bad_arguments_are_refused(checkpoint, kwargs, message):
    given = {key: checkpoint if value == "FILE" else value for key, value in kwargs.items()}
    with pytest.raises(ValueError, match=message):
        torchvision_model(TINY, **given)


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match=r"model\.name='resnet19' must be one of .*Did you mean 'resnet1?\d+'"):
        torchvision_model("resnet19", weights="DEFAULT")


def test_weights_without_a_classifier_are_not_offered():
    with pytest.raises(
        ValueError, match=r"model\.weights='IMAGENET1K_FEATURES' must be one of 'IMAGENET1K_V1', 'DEFAULT'"
    ):
        torchvision_model("vgg16", weights="IMAGENET1K_FEATURES")


@pytest.mark.parametrize("name", torchvision_models())
def test_every_classifier_publishes_a_readable_preset(name):
    for weights in models.get_model_weights(name):
        geometry = pretrained.preset_geometry(weights.transforms())
        assert geometry.resize >= geometry.crop >= 100
