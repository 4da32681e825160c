"""The sample is frozen: the same random seed draws the same pixels; the dial sets how often context comes along."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from brnf.data import storage
from brnf.data.scene_drawings import GROUNDS, KINDS
from brnf.data.scenes import CLASS_NAMES, Scene, render_sample, render_scene
from brnf.data.transforms import decode_image, decode_mask
from brnf.data.voc import VocTree

GOLDEN = {
    (0, 0.9): "676b4dec6734a71d",
    (1, 0.9): "6ec8796ff0a9c1d6",
    (2, 0.0): "2212f9e83d38348c",
}
"""First digits of the hash of image, mask and context by (random seed, bias). If they change, so do all results on
the sample: raise GENERATOR_VERSION and say why in CHANGELOG.md."""


@pytest.fixture(scope="module")
def biased() -> list[Scene]:
    return [render_scene(np.random.default_rng(i), 0.9) for i in range(80)]


@pytest.fixture(scope="module")
def unbiased() -> list[Scene]:
    return [render_scene(np.random.default_rng(i), 0.0) for i in range(60)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "tree"
    render_sample(str(out), num_train=6, num_val=3, image_size=96)
    return out


def digest(scene: Scene) -> str:
    arrays = (scene.image, scene.mask, scene.context)
    return hashlib.sha256(b"".join(repr(a.shape).encode() + a.tobytes() for a in arrays)).hexdigest()[:16]


def share_on_own_context(scenes: list[Scene]) -> float:
    """Share of the tags whose context is in the image."""
    found = [(scene.context == label).any() for scene in scenes for label in scene.labels]
    return float(np.mean(found))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("random_seed, bias", GOLDEN)
def test_the_generator_is_frozen(random_seed: int, bias: float) -> None:
    assert digest(render_scene(np.random.default_rng(random_seed), bias)) == GOLDEN[random_seed, bias]


def test_the_dial_sets_how_often_context_comes_along(biased: list[Scene], unbiased: list[Scene]) -> None:
    assert 0.8 < share_on_own_context(biased) < 0.99
    # With two objects the other one's ground may be this one's context, hence not 0.
    assert share_on_own_context(unbiased) < 0.1
    assert share_on_own_context([render_scene(np.random.default_rng(i), 1.0) for i in range(20)]) == 1


def test_maps_agree(biased: list[Scene], unbiased: list[Scene]) -> None:
    for scene in biased + unbiased:
        assert scene.image.dtype == scene.mask.dtype == scene.context.dtype == np.uint8
        assert scene.image.shape == (*scene.mask.shape, 3) and scene.context.shape == scene.mask.shape
        assert max(scene.mask.shape) == 144 and min(scene.mask.shape) >= 100
        assert set(np.unique(scene.mask)) - {0, 255} == set(scene.labels)
        assert scene.labels == tuple(sorted(scene.labels))
        assert not scene.context[scene.mask != 0].any(), "objects are no context"
        assert scene.context.max() <= len(KINDS)


def test_every_class_and_count_of_objects_occurs(biased: list[Scene]) -> None:
    shares = np.bincount([label for scene in biased for label in scene.labels], minlength=len(KINDS) + 1)[1:]
    assert shares.min() >= 5
    assert 0.15 < np.mean([len(scene.labels) == 2 for scene in biased]) < 0.5


def test_context_outweighs_the_object(biased: list[Scene]) -> None:
    """Otherwise there is nothing to be tempted by; and no object is lost."""
    own = [(s.context == label).sum() for s in biased for label in s.labels if (s.context == label).any()]
    objects = [(s.mask == label).sum() for s in biased for label in s.labels]
    assert np.median(own) > 3 * np.median(objects)
    assert min(objects) > 60


def test_a_border_of_a_pixel_or_two_is_ignored(biased: list[Scene]) -> None:
    for scene in biased:
        ignored = scene.mask == 255
        assert 0.005 < ignored.mean() < 0.15
        interior = cv2.erode(ignored.astype(np.uint8), np.ones((5, 5), np.uint8))
        assert interior.mean() < 0.002, "no blobs of 255, but where thin parts meet"


def test_grounds_and_objects_can_be_told_apart_by_colour() -> None:
    """What makes contexts tempting and objects learnable: their mean colours lie apart."""
    drawn = [[ground(np.random.default_rng(i), (64, 64)) for i in range(4)] for ground in GROUNDS]
    colours = np.mean(drawn, axis=(1, 2, 3))
    for i, one in enumerate(colours[: len(KINDS)]):
        others = [np.abs(one - other).max() for j, other in enumerate(colours) if j != i]
        assert min(others) > 0.04


def test_the_tree_reads_back(tree: Path) -> None:
    voc = VocTree.open(str(tree), "train")
    entries, refused = voc.list_entries()
    assert voc.class_names[1:] == CLASS_NAMES and len(entries) == 6 and not refused
    for entry in entries:
        record, source = voc.read_record(entry)
        expected = render_scene(np.random.default_rng([0, 0, int(entry.id[-5:])]), 0.9, 96)
        assert source == "xml" and record.image_labels == expected.labels
        assert record.mask is not None and np.array_equal(decode_mask(record.mask), expected.mask)
        assert record.context is not None and np.array_equal(decode_mask(record.context), expected.context)
        assert np.abs(decode_image(record.image).astype(int) - expected.image).mean() < 8, "RGB, not BGR"
    assert len(VocTree.open(str(tree), "val").list_entries()[0]) == 3


def test_an_interrupted_sample_is_completed_with_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    whole = snapshot(tree)
    for name, content in whole.items():
        storage.write_bytes(str(tmp_path / name), content)
    (tmp_path / "Annotations" / "train_00003.xml").unlink()
    render_sample(str(tmp_path), num_train=6, num_val=3, image_size=96)
    assert not (tmp_path / "Annotations" / "train_00003.xml").exists(), "complete: nothing to do"
    marker = str(tmp_path / "sample.json")
    storage.write_json(marker, {**storage.read_json(marker), "complete": False})
    render_sample(str(tmp_path), num_train=6, num_val=3, image_size=96)
    assert snapshot(tmp_path) == whole


def test_other_contents_are_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other parameters.*another directory"):
        render_sample(str(tree), bias=0.5, num_train=6, num_val=3, image_size=96)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(ValueError, match="no sample"):
        render_sample(str(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"bias": 1.2}, {"num_train": 0}, {"num_val": 0}, {"image_size": 8}, {"random_seed": -1}]
)
def test_impossible_values_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        render_sample(str(tmp_path / "new"), **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
