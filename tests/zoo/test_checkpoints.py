import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raiopt.zoo.checkpoints import load_weights, published_weights, read_checkpoint


def small(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, classes))


class Code:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def as_safetensors(state, file):
    file = file.with_suffix(".safetensors")
    save_file(state, file)
    return file


def as_torch(state, file):
    torch.save(state, file)
    return file


def as_old_torch(state, file):
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file


def as_parallel_run(state, file):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    return file


def as_model_entry(state, file):
    torch.save({"model": state}, file)
    return file


@pytest.mark.parametrize("write", [as_safetensors, as_torch, as_old_torch, as_parallel_run, as_model_entry])
def test_every_form_gives_the_same_weights(tmp_path, write):
    source, copy = small(), small()
    state = read_checkpoint(write(source.state_dict(), tmp_path / "weights.pt"))
    load_weights(copy, state, model="small", source="weights.pt")
    for name, tensor in source.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor)


def test_counters_of_batch_norm_may_be_missing():
    source, copy = small(), small()
    state = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    load_weights(copy, state, model="small", source="weights.pt")
    assert torch.equal(copy.state_dict()["0.weight"], source.state_dict()["0.weight"])


@pytest.mark.parametrize("wrap", [lambda code: code, lambda code: {"state_dict": small().state_dict(), "note": code}])
def test_code_in_a_file_is_not_run(tmp_path, wrap):
    mark, file = tmp_path / "mark", tmp_path / "weights.pt"
    torch.save(wrap(Code(mark)), file)
    with pytest.raises(
        ValueError, match=r"weights\.pt contains Python objects or code .* which raiopt does not load\. Save"
    ):
        read_checkpoint(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_plain_pickles_are_not_run(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(Code(mark), protocol=2))
    with pytest.raises(ValueError, match="contains Python objects or code"):
        read_checkpoint(file)
    assert not mark.exists()


@pytest.mark.parametrize("write", [as_safetensors, as_torch, as_old_torch])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path, write, share):
    file = write(small().state_dict(), tmp_path / "weights.pt")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"weights\.\w+ cannot be read as weights; it may be truncated"):
        read_checkpoint(file)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3)])
def test_other_contents_are_not_accepted_as_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt contains no state dict"):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.checkpoint='.*gone\.pt' is not a file"):
        read_checkpoint(tmp_path / "gone.pt")


def test_another_number_of_classes_has_a_remedy():
    with pytest.raises(ValueError, match=r"2\.weight \(7, 2\) instead of \(4, 2\).* give model\.num_classes=7"):
        load_weights(small(4), small(7).state_dict(), model="small", source="weights.pt")


def test_another_architecture_names_the_first_keys_that_differ():
    state = small().state_dict() | {"extra.weight": torch.zeros(1), "0.bias": torch.zeros(9)}
    del state["2.weight"], state["2.bias"]
    message = (
        r"weights\.pt does not fit small: missing in the file: 2\.weight, 2\.bias; "
        r"unexpected in the file: extra\.weight; "
        r"with a different shape: 0\.bias \(9,\) instead of \(2,\)\. Is it a different architecture\?"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(small(), state, model="small", source="weights.pt")
    with pytest.raises(ValueError, match=r"missing in the file: 0\.weight, 0\.bias, 1\.weight and 5 more"):
        load_weights(small(), {"a": torch.zeros(1)}, model="small", source="weights.pt")


class Published(SimpleNamespace):
    """Stands for a member of torchvision's weights: a URL, and torch's own loader."""

    def get_state_dict(self, **kwargs):
        return torch.hub.load_state_dict_from_url(self.url, **kwargs)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(cache: Path, state, name: str | None = None) -> Published:
    file = as_torch(state, cache / "new.pth")
    name = name or f"net-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(cache / name)
    return Published(url=f"https://example.org/models/{name}")


def test_a_cached_file_is_loaded_without_output(cache):
    source = small().state_dict()
    state = published_weights(put(cache, source))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(state[name], tensor) for name, tensor in source.items())


def test_a_hash_that_does_not_fit_is_a_warning(cache):
    weights = put(cache, small().state_dict(), "net-0123abcd.pth")
    with pytest.warns(
        UserWarning, match=r"net-0123abcd\.pth is not the published file: .* not 0123abcd\. .* delete it"
    ):
        state = published_weights(weights)  # pyright: ignore[reportArgumentType]
    assert len(state) == 9


def test_code_in_the_cache_is_not_run(cache, tmp_path):
    weights = put(cache, Code(tmp_path / "mark"))
    with pytest.raises(ValueError, match=r"net-\w+\.pth contains Python objects or code .* Delete it"):
        published_weights(weights)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "mark").exists()


def test_without_network_the_error_names_the_expected_file(cache, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        published_weights(Published(url="https://example.org/models/net-0123abcd.pth"))  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    assert "no route to host" in message
    assert f"needs the file {cache / 'net-0123abcd.pth'}" in message
    assert "https://example.org/models/net-0123abcd.pth" in message
    assert "set TORCH_HOME to a folder that contains hub/checkpoints/net-0123abcd.pth" in message
