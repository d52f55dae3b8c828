import sys

import numpy as np
import pytest
import torch
from PIL import Image

from raiopt.zoo import Geometry
from raiopt.zoo.factories import imported, python_data, python_model

SOURCE = """
import torch
from PIL import Image
from torch import nn

number = 3

def make(classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes) if classes is None else nn.Linear(12, classes))

def give(thing=None):
    return thing

def tensors(count=5, scale=1.0, dtype="float32", labels=True):
    images = (torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 10 * scale).to(getattr(torch, dtype))
    return images, torch.arange(count) if labels else None

class Pictures:
    def __init__(self, label=int):
        self.label = label

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return Image.new("L", (12, 8), 51 * i), self.label(i)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch) -> str:
    """A module in the current directory, under a new name each time."""
    name = "mine_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / f"{name}_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    return name


def test_a_user_defined_model_is_wrapped(mine):
    model = python_model(f"{mine}:make", kwargs={"classes": 6}, mean=0.5, std=[1, 2, 4])
    x = torch.rand(2, 3, 2, 2)
    by_hand = model.net((x - 0.5) / torch.tensor([1.0, 2, 4]).view(3, 1, 1))
    torch.testing.assert_close(model(x), by_hand)
    assert model(x).shape == (2, 6)
    assert (model.name, model.preset, model.num_classes) == (f"{mine}:make", "given", None)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert python_model(f"{mine}:make", kwargs={"classes": 6}, mean=0.5, std=[1, 2, 4]) is model


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("make", r'model\.factory=\'make\' must be "package\.module:function"'),
        (":make", r'must be "package\.module:function"'),
        ("nowhere_at_all:make", "there is no module 'nowhere_at_all'. Install it, or run from the folder"),
        ("torch.nowhere_at_all:make", "there is no module 'torch.nowhere_at_all'"),
        ("{mine}:mak", r"mine_.*\.py has no function 'mak'"),
        ("{mine}:number", "has no function 'number'"),
    ],
)
def test_invalid_factory_paths_are_explained(mine, path, message):
    with pytest.raises(ValueError, match=message):
        imported("model.factory", path.format(mine=mine))


def test_a_failure_inside_a_user_module_is_not_hidden(mine):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        imported("model.factory", f"{mine}_broken:make")


def test_the_current_folder_is_first_only_while_its_own_module_is_imported(mine, tmp_path):
    order = "import sys\nfirst = sys.path[0]\ndef make(): return first\n"
    (tmp_path / f"{mine}_order.py").write_text(order)
    assert imported("model.factory", f"{mine}_order:make")() == str(tmp_path)
    assert sys.path[-1] == str(tmp_path)
    assert str(tmp_path) not in sys.path[:-1]


def test_an_installed_module_is_imported_before_one_of_the_current_folder(tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    installed.mkdir()
    monkeypatch.syspath_prepend(installed)
    name = f"raiopt_test_{tmp_path.name.replace('-', '_')}"
    (installed / f"{name}.py").write_text(f"import {name}_needed\ndef make(): return {name}_needed.__file__\n")
    (installed / f"{name}_needed.py").touch()
    (tmp_path / f"{name}_needed.py").touch()
    assert imported("model.factory", f"{name}:make")() == str(installed / f"{name}_needed.py")


def test_a_model_must_be_a_module(mine):
    with pytest.raises(TypeError, match=r"model\.factory='.*:give' must return a torch\.nn\.Module, not NoneType"):
        python_model(f"{mine}:give")


def test_tensors_are_taken_as_they_are(mine):
    data = python_data(f"{mine}:tensors", kwargs={"dtype": "float64"}, indices="::-1", limit=2, num_classes=5)
    assert data.ids == [4, 3]
    assert data.names == [f"{mine}:tensors/4", f"{mine}:tensors/3"]
    assert data.labels is not None
    assert data.labels.tolist() == [4, 3]
    assert data.labels.dtype == torch.int64
    assert torch.equal(data.image(1), torch.full((3, 2, 2), 0.3))


def test_arrays_and_missing_labels_are_fine(mine):
    images = np.linspace(0, 1, 24).reshape(2, 3, 2, 2)
    data = python_data(f"{mine}:give", kwargs={"thing": (images, None)})
    assert data.labels is None
    torch.testing.assert_close(data.image(1), torch.from_numpy(images[1]).float())


def test_pictures_follow_size_then_the_models_geometry(mine):
    path = f"{mine}:Pictures"
    assert python_data(path).image(0).shape == (3, 8, 12)
    assert python_data(path, geometry=Geometry(6, 4)).image(0).shape == (3, 4, 4)
    data = python_data(path, size=5, geometry=Geometry(6, 4))
    assert torch.equal(data.image(2), torch.full((3, 5, 5), 0.4))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("function", "kwargs", "arguments", "error", "message"),
    [
        (
            "tensors",
            {"scale": 5.0},
            {},
            ValueError,
            r"tensors/3 has values from 1\.5 to 1\.5; pixels must lie in \[0, 1\]",
        ),
        ("tensors", {"scale": 10, "dtype": "uint8"}, {}, ValueError, r"tensors/0 has the type torch\.uint8"),
        ("tensors", {}, {"num_classes": 3}, ValueError, r"tensors/3 has the label 3; labels must lie between 0 and 2"),
        ("tensors", {}, {"size": 8}, ValueError, r"data\.size=8 has no effect: .*returns tensors"),
        ("tensors", {}, {"limit": 0}, ValueError, r"data\.limit=0"),
        ("give", {"thing": (torch.zeros(2, 3, 4), torch.zeros(2))}, {}, ValueError, r"\(2, 3, 4\), not \(N, C, H, W\)"),
        ("give", {"thing": (torch.zeros(2, 1, 3, 4), torch.zeros(3))}, {}, ValueError, r"\(3,\), not \(2,\)"),
        ("give", {"thing": (torch.zeros(2, 1, 3, 4), torch.zeros(2))}, {}, TypeError, r"give/0 has the label tensor"),
        ("give", {"thing": None}, {}, TypeError, r"must return \(images, labels\) or a data set .*, not NoneType"),
        ("give", {"thing": [1, 2, 3]}, {}, TypeError, r"must contain pairs \(image, label\), not int"),
        ("Pictures", {"label": str}, {}, TypeError, "Pictures/0 has the label '0'; a label must be one integer"),
        ("Pictures", {"label": float}, {}, TypeError, "has the label 0.0"),
        ("Pictures", {"label": bool}, {}, TypeError, "has the label False"),
    ],
)
def test_data_that_do_not_fit_are_explained(mine, function, kwargs, arguments, error, message):
    with pytest.raises(error, match=message):
        python_data(f"{mine}:{function}", kwargs=kwargs, **arguments)


def test_images_of_a_data_set_are_checked_when_read(mine):
    samples = [(torch.zeros(1, 2, 2), 0), (torch.full((1, 2, 2), 2.0), 1)]
    data = python_data(f"{mine}:give", kwargs={"thing": samples})
    with pytest.raises(ValueError, match=r"give/1 has values from 2 to 2"):
        data.image(1)


def test_labels_of_any_integer_type_are_fine(mine):
    samples = [
        (Image.new("L", (2, 2)), label) for label in (1, np.int32(2), np.array(3), torch.tensor(4, dtype=torch.uint8))
    ]
    data = python_data(f"{mine}:give", kwargs={"thing": samples})
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2, 3, 4]
