import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import checks
from raiopt.zoo.data import ImageData, Shard, check_labels, positions

small = st.integers(-12, 12)
bound = st.none() | small


def numbered(count: int = 10, read=None, labels: Tensor | None = None) -> ImageData:
    """Image i is full of i / 100."""
    read = read or (lambda i: torch.full((1, 2, 3), i / 100))
    labels = torch.arange(count) if labels is None else labels
    return ImageData("set", list(range(count)), [f"set/{i}" for i in range(count)], labels, read)


@given(count=st.integers(1, 10), start=bound, stop=bound, step=st.none() | small.filter(bool))
def test_a_slice_as_text_agrees_with_python(count, start, stop, step):
    expected = list(range(count))[start:stop:step]
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    if expected:
        assert positions(count, indices=text) == expected
    else:
        with pytest.raises(ValueError, match=f"selects none of the {count} samples"):
            positions(count, indices=text)


@given(order=st.permutations(range(10)), limit=st.integers(1, 12), size=st.integers(1, 12))
def test_selection_keeps_order_and_ids_whatever_the_batch_size(order, limit, size):
    data = numbered().select(limit=limit, indices=order)
    batches = list(data.batches(size))
    assert [i for batch in batches for i in batch.ids] == order[:limit] == data.ids
    assert [name for batch in batches for name in batch.names] == [f"set/{i}" for i in data.ids]
    assert torch.cat([batch.labels for batch in batches if batch.labels is not None]).tolist() == data.ids
    assert torch.equal(torch.cat([batch.images for batch in batches])[:, 0, 0, 0], torch.tensor(data.ids) / 100)
    assert all(len(batch.ids) == size for batch in batches[:-1])


def test_a_selection_of_a_selection_keeps_the_first_ids():
    data = numbered().select(indices="::2").select(indices=[3, 0])
    assert data.ids == [6, 0]
    assert data.image(0)[0, 0, 0] == pytest.approx(0.06)


def test_labels_may_be_unknown():
    data = ImageData("set", [0, 1], ["a", "b"], None, lambda i: torch.zeros(1, 1, 1)).select(limit=1)
    assert data.labels is None
    assert next(data.batches(5)).labels is None


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"limit": 0}, ValueError, r"data\.limit=0 must be an integer, at least 1"),
        ({"limit": 2.5}, TypeError, r"data\.limit=2\.5 must be an integer"),
        ({"indices": []}, ValueError, r"data\.indices=\[\] selects none of the 10 samples"),
        ({"indices": [3, 10]}, ValueError, r"data\.indices contains 10, but the data set has 10 samples: 0 to 9"),
        ({"indices": [-1]}, ValueError, r"data\.indices contains -1"),
        ({"indices": [1, 2, 1]}, ValueError, r"data\.indices contains 1 twice"),
        ({"indices": [1.5]}, TypeError, r"data\.indices=1\.5 must be an integer"),
        ({"indices": "1:2:0"}, ValueError, r"data\.indices='1:2:0' must be a list"),
        ({"indices": "five"}, ValueError, r"data\.indices='five' must be a list"),
        ({"indices": "5"}, ValueError, r"data\.indices='5' must be a list"),
    ],
)
def test_bad_selections_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        numbered().select(**kwargs)


@given(count=st.integers(1, 40), shards=st.integers(1, 12), size=st.integers(1, 12))
def test_shards_partition_the_data_in_order_and_by_whole_batches_if_possible(count, shards, size):
    data = numbered(count)
    if count < shards:
        with pytest.raises(
            ValueError, match=rf"data\.num_shards={shards} must be at most {count}, the number of samples"
        ):
            Shard(0, shards).select(data, size)
        return
    parts = [Shard(index, shards).select(data, size) for index in range(shards)]
    assert [i for part in parts for i in part.ids] == data.ids
    assert [i for part in parts for i in part.labels.tolist()] == data.ids
    lengths = [len(part) for part in parts]
    if count // size >= shards:
        whole = [batch.ids for batch in data.batches(size)]
        assert [batch.ids for part in parts for batch in part.batches(size)] == whole
        lengths = [-(-length // size) for length in lengths]
    assert 1 <= min(lengths) <= max(lengths) <= min(lengths) + 1


def test_shards_divide_the_selection_and_keep_its_ids():
    data = numbered().select(indices="::-1", limit=7)
    assert [Shard(index, 3).select(data, 2).ids for index in range(3)] == [[9, 8], [7, 6], [5, 4, 3]]


@pytest.mark.parametrize(
    ("index", "count", "error", "message"),
    [
        (
            3,
            3,
            ValueError,
            r"data\.shard=3 must be an integer, at least 0, at most 2\. All of them are data\.shard=range\(3\)",
        ),
        (-1, 3, ValueError, r"data\.shard=-1 must be an integer, at least 0, at most 2"),
        (0.0, 3, TypeError, r"data\.shard=0\.0 must be an integer"),
        (True, 3, TypeError, r"data\.shard=True must be an integer"),
        (0, 0, ValueError, r"data\.num_shards=0 must be an integer, at least 1"),
        (0, "3", TypeError, r"data\.num_shards='3' must be an integer"),
        (1, None, ValueError, r"data\.shard=1 needs data\.num_shards, the number of all shards"),
        (None, 3, ValueError, r"data\.num_shards=3 needs data\.shard, as in data\.shard=range\(3\)"),
    ],
)
def test_bad_shards_are_refused(index, count, error, message):
    with pytest.raises(error, match=message):
        checks.shard(index, count)


def test_a_shard_needs_both_numbers_or_none():
    assert not checks.shard(None, None)
    assert checks.shard(0, 1)
    with pytest.raises(ValueError, match=r"batch_size=0 must be an integer, at least 1"):
        Shard(0, 1).select(numbered(), 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 3), r"set/1 has the shape \(2, 3\); an image must be \(channels, height, width\)"),
        (torch.zeros(1, 0, 3), r"set/1 has the shape \(1, 0, 3\)"),
        (torch.zeros(1, 2, 3, dtype=torch.uint8), r"set/1 has the type torch\.uint8; .* divide by 255"),
        (torch.full((1, 2, 3), 1.01), r"set/1 has values from 1\.01 to 1\.01; pixels must lie in \[0, 1\]"),
        (torch.full((1, 2, 3), -0.1), r"set/1 has values from -0\.1"),
        (torch.full((1, 2, 3), float("nan")), r"set/1 has values from nan"),
        (torch.zeros(1, 3, 2), r"set/1 has the shape \(1, 3, 2\), but set/0 has \(1, 2, 3\); .* data\.size"),
    ],
)
def test_images_that_do_not_fit_are_named(image, message):
    data = numbered(read=lambda i: image if i == 1 else torch.zeros(1, 2, 3))
    data.image(0)
    with pytest.raises(ValueError, match=message):
        data.image(1)


def test_float64_images_become_float32():
    assert numbered(read=lambda i: torch.ones(1, 2, 3, dtype=torch.float64)).image(0).dtype == torch.float32


def test_labels_must_be_classes_of_the_model():
    check_labels(numbered(), 10)
    check_labels(numbered(), None)
    with pytest.raises(
        ValueError, match=r"set/4 has the label 4; labels must lie between 0 and 3, the model's classes"
    ):
        check_labels(numbered(), 4)
    with pytest.raises(ValueError, match=r"set/0 has the label -1"):
        check_labels(numbered(labels=torch.full((10,), -1)), 4)


def test_batches_need_a_size():
    with pytest.raises(ValueError, match=r"batch_size=0 must be an integer, at least 1"):
        next(numbered().batches(0))
