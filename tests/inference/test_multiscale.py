"""Reading an image at several sizes: geometry, mirror image, fusion."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brnf.config import CamConfig, ReadOutConfig
from brnf.inference.multiscale import (
    MOST_CELLS,
    MOST_PIXELS,
    Scores,
    label_map,
    most_images,
    read_out,
    read_outs,
    scaled_size,
)
from brnf.models.cam import CamOutput

STRIDE = 16
SHAPE = (117, 171)


class Reader(nn.Module):
    """Stands for Brnf: cells are means of pixels, class c answers to colour channel c - 1."""

    num_classes = 4
    cam_config = CamConfig(background_factor=1.0)

    def __init__(self, texture: bool = False) -> None:
        super().__init__()
        kernel = torch.randn(3, 3, STRIDE, STRIDE, generator=torch.Generator().manual_seed(0))
        self.kernel = nn.Parameter(kernel if texture else torch.eye(3)[:, :, None, None].expand_as(kernel) / STRIDE**2)
        self.sizes: list[tuple[int, ...]] = []

    def network(self, images: Tensor) -> CamOutput:
        assert images.dtype == torch.uint8
        self.sizes.append(tuple(images.shape))
        cam = F.conv2d(images.float() / 255, self.kernel, stride=STRIDE)
        features = torch.cat([cam, 1 - cam], dim=1)
        return CamOutput(features, features, cam, cam.mean((2, 3)))

    def posterior(self, features: Tensor, allowed: Tensor) -> Tensor:
        logits = torch.cat([torch.zeros_like(features[:, :1]), features[:, :3]], dim=1)
        return logits.masked_fill(~allowed[:, :, None, None], -torch.inf).softmax(dim=1)


def read(image: np.ndarray, labels: tuple[int, ...] = (1, 3), model: Reader | None = None, **options: Any) -> Scores:
    size = options.pop("size", None)
    return read_out(cast(Any, model or Reader()), image, labels, ReadOutConfig(**options), stride=STRIDE, size=size)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


@pytest.mark.parametrize("maps", ["classifier", "prototype", "posterior", "fusion"])
def test_scores_are_of_the_present_classes_in_the_size_asked_for(noise: np.ndarray, maps: str) -> None:
    scores = read(noise, maps=maps)
    assert scores.keys == (0, 1, 3) and scores.maps.shape == (3, *SHAPE)
    assert scores.maps.dtype == torch.float32 and scores.maps.min() >= 0 and 0.2 < scores.maps.max() <= 1
    assert read(noise, maps=maps, size=(30, 43)).maps.shape == (3, 30, 43)


@pytest.mark.parametrize("options", [{"scales": (1.0,)}, {"scales": (0.5, 2.0)}, {"long_side": 192}])
@pytest.mark.parametrize("centre", [(40, 50), (60, 120), (75, 90)])
def test_an_object_is_found_where_it_is(centre: tuple[int, int], options: dict[str, Any]) -> None:
    image = np.zeros((*SHAPE, 3), np.uint8)
    rows, columns = (slice(c - 12, c + 12) for c in centre)
    image[rows, columns, 2] = 255
    scores = read(image, labels=(3,), maps="classifier", **options)
    weight = scores.maps[1].numpy()
    found = [np.average(axis, weights=weight) for axis in np.indices(SHAPE)]
    assert np.abs(np.subtract(found, centre)).max() < 4
    labels = label_map(scores)
    assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 3} and labels[centre] == 3


def test_mirror_image_gives_mirrored_scores_only_if_averaged(noise: np.ndarray) -> None:
    mirrored = np.ascontiguousarray(noise[:, ::-1])
    for flip, same in ((True, True), (False, False)):
        straight, back = (
            read(image, model=Reader(texture=True), flip=flip, maps="fusion").maps for image in (noise, mirrored)
        )
        assert torch.allclose(straight, back.flip(2), atol=1e-4) is same


def test_posterior_is_averaged_and_sums_to_one(noise: np.ndarray) -> None:
    total = read(noise, maps="posterior").maps.sum(dim=0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_other_maps_reach_one_over_all_scales_together_unless_nothing_was_found(noise: np.ndarray) -> None:
    assert read(noise, maps="classifier").maps.amax(dim=(1, 2)) == pytest.approx(1, abs=1e-3)
    peaks = read(noise, maps="prototype").maps.amax(dim=(1, 2))
    assert peaks[peaks > 0] == pytest.approx(1, abs=1e-3) and (peaks > 0).sum() >= 2


def test_fusion_is_the_weighted_mean_of_its_parts(noise: np.ndarray) -> None:
    weights = {"prototype": 1.0, "classifier": 0.25, "posterior": 0.75}
    parts = sum(weight * read(noise, maps=maps).maps for maps, weight in weights.items())
    fused = read(noise, maps="fusion", fusion=tuple(weights.values())).maps
    torch.testing.assert_close(fused, parts / 2)


def test_several_ways_at_once__are_what_each_is_alone_from_one_pass_a_scale(noise: np.ndarray) -> None:
    ways = [
        ReadOutConfig(maps="prototype", background_factor=0.6),
        ReadOutConfig(maps="fusion", fusion=(1.0, 0.0, 0.5), posterior_background=0.02),
        ReadOutConfig(maps="posterior", posterior_background=4.0),
        ReadOutConfig(maps="classifier"),
    ]
    model = Reader(texture=True)
    [together] = read_outs(cast(Any, model), [noise], [(1, 3)], ways, stride=STRIDE)
    assert len(model.sizes) == 2 * len(ways[0].scales)
    alone = [read_out(cast(Any, Reader(texture=True)), noise, (1, 3), way, stride=STRIDE) for way in ways]
    for found, expected in zip(together, alone, strict=True):
        assert found.keys == expected.keys
        torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=0)
    assert not torch.equal(together[0].maps, together[1].maps)


def test_images_together__are_read_as_each_is_alone(noise: np.ndarray) -> None:
    """Their labels differ, and a class of one is no class of the next."""
    images = [noise, noise[::-1].copy(), 255 - noise]
    labels = [(1, 3), (), (2,)]
    ways = [ReadOutConfig(maps="fusion", fusion=(1.0, 0.5, 0.5)), ReadOutConfig(maps="prototype", flip=True)]
    model = cast(Any, Reader(texture=True))
    together = list(read_outs(model, images, labels, ways, stride=STRIDE, size=(60, 80)))
    keys = [[scores.keys for scores in readings] for readings in together]
    assert keys == [[(0, 1, 3)] * 2, [(0,)] * 2, [(0, 2)] * 2]
    for image, own, readings in zip(images, labels, together, strict=True):
        for found, way in zip(readings, ways, strict=True):
            alone = read_out(model, image, own, way, stride=STRIDE, size=(60, 80))
            torch.testing.assert_close(found.maps, alone.maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height,width,scales,long_side", [
    (375, 500, (1.0, 2.0), None), (375, 500, (1.0,), None), (1536, 2048, (1.0,), None), (3000, 4000, (1.0,), 320),
    (20000, 30000, (1.0,), None),
])  # fmt: skip
def test_most_images__take_no_more_than_one_large_image(
    height: int, width: int, scales: tuple[float, ...], long_side: int | None
) -> None:
    config = ReadOutConfig(scales=scales, long_side=long_side)
    most = most_images(height, width, config, STRIDE)
    factor = max(scales) * (long_side / max(height, width) if long_side else 1)
    cells = height * factor * width * factor / STRIDE**2

    def fit(images: int) -> bool:
        return images * cells**2 <= 1.1 * MOST_CELLS**2 and images * height * width <= MOST_PIXELS

    assert most == 1 or fit(most)
    assert not fit(2 * most + 2)


def test_background_factor_tightens_maps_and_none_keeps_the_one_trained_with() -> None:
    ramp = np.zeros((*SHAPE, 3), np.uint8)
    ramp[..., 2] = np.linspace(0, 255, SHAPE[1])
    ramp[..., 0] = 255 - ramp[..., 2]
    shares = [
        (label_map(read(ramp, labels=(3,), background_factor=factor)) > 0).mean() for factor in (0.7, 1.0, 1.4, None)
    ]
    assert shares[0] > shares[1] > shares[2] > 0 and shares[3] == shares[1]


def test_network_sees_image_and_mirror_once_a_scale_in_whole_cells__one_by_one_on_the_cpu(noise: np.ndarray) -> None:
    model = Reader()
    read(noise, model=model, scales=(1.0, 0.1, 2.0))
    assert model.sizes == [(1, 3, *size) for size in [(112, 176), (32, 32), (240, 336)] for _ in range(2)]


@pytest.mark.parametrize("height,width,scale,long_side,expected", [
    (375, 500, 1.0, None, (368, 496)), (375, 500, 1.0, 320, (240, 320)), (375, 500, 0.5, 320, (128, 160)),
    (20, 500, 1.0, None, (32, 496)), (3000, 4000, 2.0, 320, (480, 640)),
])  # fmt: skip
def test_scaled_size(
    height: int, width: int, scale: float, long_side: int | None, expected: tuple[int, int]
) -> None:
    assert scaled_size(height, width, scale, long_side, STRIDE) == expected


def test_an_image_too_large_for_pixel_correlation_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="long_side"):
        scaled_size(3000, 4000, 2.0, None, STRIDE)


def test_an_image_without_labels_is_background(noise: np.ndarray) -> None:
    scores = read(noise, labels=(), maps="fusion")
    assert scores.keys == (0,) and not label_map(scores).any()
