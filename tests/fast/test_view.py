"""The faster model against the plain one: outputs, unmodified inputs, refusals."""

import json
import logging
import math
import shutil
import sys
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf, ValidationError
from torch import nn
from torch.testing import assert_close

from raiopt import experiment
from raiopt.config.jobs import build
from raiopt.config.options import store
from raiopt.fast import view as inference
from raiopt.fast.equivalence import answer
from raiopt.fast.view import Inference, ModelView
from raiopt.sweep.job_key import register_resolvers
from raiopt.zoo import torchvision_model
from tests.attacks.networks import lively, network, small

IMAGES = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(3))
PLAIN = {"fold": False, "channels_last": False, "compile": False, "precision": "float32"}


def prepared(model, images=IMAGES, known=None, **options):
    view: Any = ModelView(model, Inference(**options))
    view.prepare(images, known)
    json.dumps(view.about)
    return view


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_the_search_sees_the_same_model(name, channels_last, caplog):
    net = network(name)
    images = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    view = prepared(net, images, channels_last=channels_last)
    assert view.about == {**PLAIN, "fold": True, "channels_last": channels_last}
    assert view.fast is not view.plain
    assert view.plain is net
    assert not warnings_of(caplog)
    found = answer(view.fast, images)
    for got, expected in zip(found, answer(network(name).double(), images.double()), strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-4
    assert found[0].dtype == torch.float32


def test_weights_and_images_become_channels_last():
    net, seen = small(), []
    view = prepared(net, channels_last=True)
    last = torch.channels_last
    conv = view.fast.net[0]
    assert conv.weight.is_contiguous(memory_format=last)
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous(memory_format=last)))
    view.fast(IMAGES)
    assert seen == [True]


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"precision": "bfloat16"}])
def test_the_model_is_left_as_it_was(options):
    net = small()
    net[4].requires_grad_(True)
    net[2].train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    parts = dict(net.named_modules())
    view = prepared(net, **options)
    answer(view.fast, IMAGES)
    assert dict(net.named_modules()) == parts
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [part.training for part in net] == [False, False, True, False, False]
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    assert all(p.grad is None and p.is_contiguous() for p in net.parameters())
    assert not any(p.requires_grad or any(p is own for own in net.parameters()) for p in view.fast.net.parameters())


@pytest.mark.parametrize(("times", "taken"), [([1.0, 0.9], True), ([1.0, 1.04], True), ([1.0, 1.1], False)])
def test_a_layout_is_used_unless_it_is_slower(monkeypatch, times, taken):
    timed = []
    monkeypatch.setattr(inference, "seconds", lambda models, images: timed.append(images) or times)
    view = prepared(small(), IMAGES.repeat(10, 1, 1, 1))
    assert view.about["channels_last"] is taken
    assert view.fast.channels_last is taken
    assert len(timed[0]) == inference.MAX_PROBE_IMAGES


def test_fewer_large_images_are_timed_on_a_processor():
    sizes = [(64, 16), (224, 4), (300, 2), (4000, 2)]
    assert [len(inference._probe(torch.empty(1).expand(40, 3, side, side))) for side, _ in sizes] == [
        n for _, n in sizes
    ]
    assert len(inference._probe(torch.empty(40, 3, 4000, 4000, device="meta"))) == 16


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("fold", [False, True])
def test_known_decisions_are_reused(monkeypatch, fold, channels_last):
    monkeypatch.setattr(inference, "seconds", lambda *_: pytest.fail("was measured"))
    known = {**PLAIN, "fold": fold, "channels_last": channels_last}
    view = prepared(small(), known=known)
    assert view.about == known
    again = prepared(small(), known=view.about)
    assert torch.equal(view.fast(IMAGES), again.fast(IMAGES))


def test_without_a_faster_form_the_model_itself_is_used():
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 5)).requires_grad_(False)
    view = prepared(net, channels_last=False)
    assert view.fast is view.plain is net
    assert view.about == PLAIN
    view = prepared(small(), fold=False, channels_last=False)
    assert view.fast is view.plain


def test_a_function_runs_unchanged(caplog):
    caplog.set_level(logging.INFO, "raiopt")
    net = small()
    view = prepared(lambda x: net(x))
    assert view.fast is view.plain
    assert view.about == PLAIN
    assert "no nn.Module" in caplog.text
    with pytest.raises(ValueError, match=r"channels_last=True is not possible: it is no nn\.Module"):
        prepared(lambda x: net(x), channels_last=True)


def test_a_model_that_cannot_be_copied_runs_unchanged(caplog):
    caplog.set_level(logging.INFO, "raiopt")
    net = small()
    net.lock = (_ for _ in ())  # a generator
    view = prepared(net)
    assert view.fast is view.plain
    assert "cannot be copied (TypeError: cannot pickle 'generator' object)" in caplog.text


class Untraceable(nn.Module):
    """Two branches, each traced alone; with `shared`, one convolution is in both, once without a batch norm."""

    def __init__(self, *, shared):
        super().__init__()
        conv = nn.Conv2d(3, 4, 3)
        self.one = nn.Sequential(conv, nn.BatchNorm2d(4))
        self.two = nn.Sequential(conv if shared else nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x):
        return (self.one(x) if x.mean() > 2 else self.two(x) - self.one(x)).flatten(1)


def test_known_results_are_not_compared_again(caplog):
    view = prepared(lively(Untraceable(shared=True)), known={**PLAIN, "fold": True})
    assert view.about["fold"]
    assert not warnings_of(caplog)


@pytest.mark.parametrize("shared", [False, True])
def test_a_fold_that_changes_the_model_is_dropped(shared, caplog):
    caplog.set_level(logging.INFO, "raiopt")
    net = lively(Untraceable(shared=shared))
    view = prepared(net, channels_last=False)
    assert view.about["fold"] is not shared
    assert (view.fast is view.plain) is shared
    warned = warnings_of(caplog)
    assert len(warned) == shared
    assert not shared or "fold: the changed model is not equivalent (logits differ by" in warned[0]
    assert_close(prepared(net, precision="bfloat16").fast(IMAGES), net(IMAGES), rtol=0.05, atol=0.05)


class Branch(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.mean() > 0 else -x.flatten(1)


@pytest.mark.parametrize(
    ("net", "why_not"),
    [
        (Branch(), "torch.fx cannot trace it: Branch: TraceError: symbolically traced variables cannot be used"),
        (nn.Flatten(), "no batch norm follows a convolution"),
    ],
)
def test_why_nothing_was_folded_is_logged(net, why_not, caplog):
    caplog.set_level(logging.INFO, "raiopt")
    view = prepared(net.eval(), channels_last=False)
    assert view.fast is view.plain
    assert f"fold: nothing was folded: {why_not}" in caplog.text
    assert not warnings_of(caplog)


class Layout(nn.Conv2d):
    """Returns logits that depend on the memory layout of its weights."""

    def forward(self, x):
        return super().forward(x).flatten(1) * (1 if self.weight.is_contiguous() else 2)


def test_a_layout_that_changes_the_model_is_dropped(caplog):
    view = prepared(Layout(3, 4, 3).requires_grad_(False), channels_last=True)
    assert view.fast is view.plain
    assert "channels_last: the changed model is not equivalent (logits differ by" in warnings_of(caplog)[0]


class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.net, self.noise = small(), noise
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        logits = self.net(x)
        return logits + self.noise * torch.rand(logits.shape, generator=self.generator)


def test_outputs_that_differ_are_refused_or_warned_of(caplog):
    with pytest.raises(ValueError, match=r"logits for the same 6 images differ by .*deterministic=False"):
        prepared(Noisy(0.1))
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(432, 5))
    with pytest.raises(ValueError, match="Is dropout on"):
        prepared(dropping)
    assert not warnings_of(caplog)
    view = prepared(Noisy(0.1), deterministic=False)
    assert "differ by" in warnings_of(caplog)[0]
    first, second = Noisy(0.1)(IMAGES), small()(IMAGES)
    assert 0 < view.about.pop("nondeterministic") <= 0.1 / float((first - second).abs().max())
    assert view.about == PLAIN
    assert view.fast is view.plain


def test_rounding_does_not_count_as_noise(caplog):
    assert "nondeterministic" not in prepared(Noisy(1e-6)).about
    assert not warnings_of(caplog)


def test_differences_are_relative_to_the_largest_logit():
    logits = iter([torch.tensor([[4.0, -8.0]] * 6), torch.tensor([[5.0, -7.0]] * 6), torch.zeros(6, 2)])
    view = ModelView(lambda x: next(logits), Inference(deterministic=False))
    view.prepare(IMAGES)
    assert view.about["nondeterministic"] == 0.125


@given(
    logits=st.lists(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), min_size=2, max_size=8),
    total=st.sampled_from([None, 1.0, 0.9992, 1.0008, 0.998, 1.002, 3.0]),
)
def test_probabilities_are_distinguished_from_logits(logits, total):
    rows = torch.tensor(logits)
    rows = rows if total is None else total * rows.softmax(1)
    read = "probabilities" in prepared(lambda x: rows, torch.zeros(len(rows), 3, 2, 2)).about
    assert read is all(min(row) >= 0 and max(row) <= 1 and abs(sum(row) - 1) < 1e-3 for row in rows.tolist())


def test_probabilities_are_warned_of(caplog):
    view = prepared(nn.Sequential(small(), nn.Softmax(1)))
    assert view.about["probabilities"] is True
    assert "probabilities, whose gradients vanish" in warnings_of(caplog)[0]


def test_one_image_is_tried_together_with_its_negative():
    seen = []
    prepared(lambda x: (seen.append(x), x.flatten(1))[1], IMAGES[:1])
    assert torch.equal(seen[0], torch.cat([IMAGES[:1], 1 - IMAGES[:1]]))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: [1], TypeError, "must return a tensor of logits .* not list"),
        (lambda x: x.flatten(1).argmax(1), TypeError, r"not torch\.int64"),
        (lambda x: x.flatten(1).sum(1), ValueError, r"6 images gave the shape \(6,\)"),
        (lambda x: x.sum(0).flatten(1), ValueError, r"a row for each image: 6 images gave the shape \(3, 144\)"),
        (lambda x: x[0].flatten()[None], ValueError, r"shape \(1, 432\)"),
        (lambda x: x, ValueError, r"shape \(6, 3, 12, 12\)"),
        (lambda x: x.flatten(1)[:, :0], ValueError, r"shape \(6, 0\)"),
    ],
)
def test_a_model_that_is_not_a_classifier_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        prepared(model)


def test_logits_that_are_not_finite_are_accepted(caplog):
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    net.get_parameter("0.weight")[1] = math.nan
    assert prepared(net).about["fold"]
    assert not warnings_of(caplog)


def test_bfloat16_is_close_to_the_model_and_returns_float32():
    net = small()
    view = prepared(net, precision="bfloat16")
    assert view.about["precision"] == "bfloat16"
    logits, gradient = answer(view.fast, IMAGES)
    expected, expected_gradient = answer(net, IMAGES)
    assert (logits.dtype, gradient.dtype) == (torch.float32, torch.float32)
    assert 1e-6 < float((logits - expected).norm() / expected.norm()) < 0.02
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 0.1
    assert torch.equal(view.plain(IMAGES), net(IMAGES))


def test_float16_needs_cuda():
    with pytest.raises(ValueError, match=r"precision=float16 needs CUDA, not cpu; bfloat16"):
        prepared(small(), precision="float16")


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e8])
def test_float16_keeps_gradients_that_it_cannot_hold(factor):
    net = small()
    fast, sizes = inference._Fast(net, False, "float16"), torch.tensor([1.0, 1e-9, 1e-3, 0.0, 1e3, 1.0])[:, None]

    def gradient(model):
        images = IMAGES.clone().requires_grad_()
        (model(images) * sizes * factor).sum().backward()
        return images.grad

    expected, found = gradient(net), gradient(fast)
    assert found is not None
    for got, wanted in zip(found, expected, strict=True):
        assert float((got - wanted).norm()) <= 0.01 * float(wanted.norm())
    with torch.no_grad():
        assert fast(IMAGES).dtype == torch.float32


def test_float16_leaves_gradients_alone_that_are_not_finite():
    fast = inference._Fast(small(), False, "float16")
    images = IMAGES.clone().requires_grad_()
    sizes = torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0, 1.0])[:, None]
    (fast(images) * sizes).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).isfinite().all(1).tolist() == [True, False, True, True, True, True]


class Overflowing(nn.Module):
    def forward(self, x):
        return x.flatten(1) / (0 if torch.is_autocast_enabled("cpu") else 1)


def test_a_precision_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"precision=bfloat16 gives logits that are not finite: use float32"):
        prepared(Overflowing(), precision="bfloat16")


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform == "win32", reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same_for_any_number_of_images():
    net = small()
    view = prepared(net, compile=True, channels_last=False)
    assert view.about == {**PLAIN, "fold": True, "compile": True}
    for images in (IMAGES, IMAGES[:3]):
        for found, expected in zip(answer(view.fast, images), answer(net, images), strict=True):
            assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_compiled_is_refused(monkeypatch):
    def compiled(net):
        return lambda x: (_ for _ in ()).throw(RuntimeError("no compiler\nat all"))

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ValueError, match=r"^compile=True: .*\(RuntimeError: no compiler\)"):
        prepared(small(), compile=True)


def test_a_compiled_model_with_other_outputs_is_dropped(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda net: lambda x: net(x) * 2)
    view = prepared(small(), compile=True, channels_last=False)
    assert view.about == {**PLAIN, "fold": True}
    assert "compile: the changed model is not equivalent" in warnings_of(caplog)[0]
    assert_close(view.fast(IMAGES), view.plain(IMAGES), rtol=1e-4, atol=1e-5)


def test_compilation_reuses_known_decisions(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: lambda x: net(x) * 2)
    for known in (False, True):
        view = prepared(small(), compile=True, fold=False, known={**PLAIN, "compile": known})
        assert view.about == {**PLAIN, "compile": known}
        assert_close(view.fast(IMAGES), view.plain(IMAGES) * (1 + known))


def test_nondeterministic_outputs_do_not_prevent_compilation(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: lambda x: net(x))
    view = prepared(Noisy(0.1), compile=True, deterministic=False)
    assert view.about.pop("nondeterministic") > 0
    assert view.about == {**PLAIN, "compile": True}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "float17"}, ValueError, "precision='float17' must be one of .* Did you mean 'float16'"),
        ({"fold": None}, TypeError, "fold=None must be True or False"),
        ({"compile": 1}, TypeError, "compile=1 must be True or False"),
        ({"channels_last": "yes"}, TypeError, "channels_last='yes' must be True or False"),
        ({"deterministic": "no"}, TypeError, "deterministic='no' must be True or False"),
    ],
)
def test_options_without_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Inference(**options)


def test_every_option_of_model_lists_them_with_their_defaults_and_types():
    ours = {field.name: field.default for field in fields(Inference)}
    for node in [entry["node"] for entry in store if entry["group"] == "model"]:
        config = OmegaConf.structured(node)
        assert {name: config[name] for name in ours} == ours
        for name in ("fold", "channels_last", "compile", "deterministic"):
            with pytest.raises(ValidationError):
                config[name] = "perhaps"


def test_the_command_hands_them_over_and_the_loader_does_not_get_them(monkeypatch):
    monkeypatch.setattr(experiment, "Job", lambda **parts: SimpleNamespace(**parts))
    words = ["model=torchvision", "model.name=resnet18", "model.fold=false", "model.precision=bfloat16"]
    register_resolvers()
    store.add_to_hydra_store(overwrite_ok=True)
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        config = compose("raiopt", overrides=words)
    job = build(config, {"optim": "linf_projected", "perturbation": "additive"})
    assert job.inference == Inference(fold=False, precision="bfloat16")
    assert job.model.func is torchvision_model
    assert job.model.keywords == {
        "name": "resnet18",
        **dict.fromkeys(["weights", "checkpoint", "num_classes", "mean", "std"]),
    }
