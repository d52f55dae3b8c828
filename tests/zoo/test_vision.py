import subprocess
import sys

import torch

from raiopt.zoo import vision


def test_the_operators_that_torchvision_registers_for_are_declared():
    assert torch.ops.torchvision.nms is not None
    assert vision.models.resnet18(num_classes=2)(torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1)).shape == (2, 2)
    assert vision.InterpolationMode("bicubic") is vision.InterpolationMode.BICUBIC


def test_importing_the_zoo_imports_no_torchvision_and_warns_of_nothing():
    code = (
        "import sys, raiopt.zoo as zoo; zoo.load_data('digits'); assert 'torchvision' not in sys.modules;"
        "from raiopt.zoo import vision; import torchvision; assert vision.models is torchvision.models"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
