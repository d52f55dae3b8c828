"""Untrusted image files: no external program, only listed formats, no size beyond the limits."""

import hashlib
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from raiopt.zoo import picture_files
from raiopt.zoo.datasets import torchvision_data
from raiopt.zoo.folders import image_folder
from raiopt.zoo.picture_files import FORMATS, open_picture

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 6
%%EndComments
(out) (w) file closefile
showpage
"""
OTHERS = {
    "eps": EPS,
    "postscript": b"%!PS\n(out) (w) file closefile\nshowpage\n",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00"
    + struct.pack("<4hHI", 0, 0, 8, 6, 72, 0)
    + bytes(2)
    + b"\x01\x00\t\x00"
    + bytes(40),
    "iptc": b"\x1c\x03\x3c\x00\x02\x01\x00" + bytes(40),
    "fpx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512),
    "psd": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 6, 8, 8, 3) + bytes(200),
    "tga": bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 6, 0, 24, 0]) + bytes(8 * 6 * 3),
    "pcx": b"\x0a\x05\x01\x08" + bytes(124) + bytes(400),
}


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """The file that a fake Ghostscript creates if it is started."""
    folder, marker = tmp_path / "bin", tmp_path / "ran"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\necho 10.0\necho $* >> {marker}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return marker


def header_alone(width: int, height: int) -> bytes:
    """Returns a PNG that says how large it is, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", OTHERS)
def test_a_png_that_is_something_else_is_refused_and_no_program_runs(tmp_path, marker, kind):
    root = tmp_path / "images"
    root.mkdir()
    (root / "x.png").write_bytes(OTHERS[kind])
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image \(it is not PNG, JPEG, .* or PPM"):
        image_folder(str(root), labels="predicted")
    assert not marker.exists()


def test_a_file_that_became_a_program_after_the_check_is_refused_too(tmp_path, marker):
    root = tmp_path / "images"
    root.mkdir()
    Image.new("RGB", (8, 6)).save(root / "x.png")
    data = image_folder(str(root), labels="predicted")
    (root / "x.png").write_bytes(EPS)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        data.image(0)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["Imagenette", "OxfordIIITPet"])
def test_the_data_sets_of_torchvision_open_files_likewise(tmp_path, marker, name):
    if name == "Imagenette":
        from raiopt.zoo.vision import datasets

        for wnid in datasets.Imagenette._WNID_TO_CLASS:
            for part in ("val", "train"):
                (tmp_path / "imagenette2" / part / wnid).mkdir(parents=True)
            (tmp_path / "imagenette2" / "val" / wnid / "x.JPEG").write_bytes(EPS)
        split = "val"
    else:
        root = tmp_path / "oxford-iiit-pet"
        (root / "images").mkdir(parents=True)
        (root / "annotations").mkdir()
        (root / "images" / "a_cat_1.jpg").write_bytes(EPS)
        (root / "annotations" / "test.txt").write_text("a_cat_1 1 1 1\n")
        split = "test"
    before = Image.open
    with pytest.raises(ValueError, match=r"\.(JPEG|jpg) cannot be read as an image"):
        torchvision_data(name, str(tmp_path), split=split, size=8).image(0)
    assert Image.open is before
    assert not marker.exists()


@pytest.mark.parametrize("side", [9_500, 12_000, 40_000])
def test_a_header_that_promises_too_many_pixels_is_refused_before_decoding(tmp_path, monkeypatch, side):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    (tmp_path / "x.png").write_bytes(header_alone(side, side))
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image \(.*pixels"):
        image_folder(str(tmp_path), labels="predicted")


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "_open", lambda *_, **__: pytest.fail("opened"))
    with open(tmp_path / "x.png", "wb") as stream:
        stream.truncate(picture_files.MAX_BYTES + 1)
        with pytest.raises(ValueError, match=r"x\.png cannot be read as an image \(it has 536,870,913 bytes"):
            image_folder(str(tmp_path), labels="predicted")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image \(it is not a regular file"):
        image_folder(str(tmp_path), labels="predicted")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_opened(tmp_path, kind):
    file = tmp_path / "picture"
    Image.new("RGB", (4, 3), "white").save(file, kind)
    with open_picture(file) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with open(file, "rb") as stream, open_picture(stream) as image:
        assert image.size == (4, 3)


def test_files_are_hashed_only_when_it_is_asked_for_and_once(tmp_path, monkeypatch):
    Image.new("RGB", (4, 3), "white").save(tmp_path / "x.png")
    expected = hashlib.sha256(f"x.png {hashlib.sha256((tmp_path / 'x.png').read_bytes()).hexdigest()}\n".encode())
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *words: hashed.append(words) or digest(*words))
    data = image_folder(str(tmp_path), labels="predicted").select(limit=1)
    assert data.image(0).shape == (3, 3, 4)
    assert hashed == []
    assert data.files_hash is not None
    assert [data.files_hash(), data.files_hash()] == [expected.hexdigest()] * 2
    assert len(hashed) == 1
