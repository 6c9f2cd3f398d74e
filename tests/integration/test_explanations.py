"""Class activation maps, gates and comparisons through the whole service, held against PyTorch."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eca_build import checkpoint
from eca_build.gate_taps import tap
from eca_service.contract import read
from PIL import Image, ImageOps

from tests.integration.conftest import DEMO, FRESH, MODEL, ROOT, Service, golden_png

DOG = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
JSON = {"accept": "application/json"}
every_model = pytest.mark.parametrize("weights", DEMO, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


@pytest.fixture(scope="module")
def repository(demo: Path) -> Path:
    """All networks."""
    return demo


def wide_jpeg(orientation: int = 1) -> bytes:
    """A dog between two gray margins, that lies as `orientation` says: the crop is not the whole image."""
    with Image.open(DOG) as dog:
        upright = Image.new("RGB", (240, 120), "gray")
        upright.paste(dog.resize((120, 120)), (60, 0))
    turned = {1: upright, 6: upright.transpose(Image.Transpose.ROTATE_90)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    turned.save(out, "PNG", exif=exif)
    return out.getvalue()


def explained(service: Service, model: str, image: bytes, **query: Any) -> dict[str, Any]:
    answer = FRESH.post(f"{service.url}/v1/models/{model}/explain", params=query, content=image, headers=JSON)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@every_model
def test_the_map_adds_up_to_pytorch_s_logit(service: Service, repository: Path, weights: Path) -> None:
    contract = read(repository / weights.stem / "1")
    recipe = contract.preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
    pixels = torch.from_numpy(np.load(repository / weights.stem / "1" / "golden.npy")[:1])
    network = checkpoint.load(weights).network
    with torch.inference_mode():
        logits = network((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std)[0]
    bias = network.head.bias.detach()
    image = golden_png(repository, weights.stem)
    for index in range(contract.classes):
        found = explained(service, weights.stem, image, **{"class": index})
        values = np.array(found["map"])
        assert values.shape == contract.features_shape[1:]
        assert values.sum() == pytest.approx(float(logits[index] - bias[index]), abs=2e-5)
        assert found["class"]["logit"] == pytest.approx(float(logits[index]), abs=2e-5)
        assert found["class"]["bias"] == pytest.approx(float(bias[index]))
        assert found["class"]["label"] == contract.labels[index]
        assert found["class"]["score"] == pytest.approx(float(logits.softmax(0)[index]), abs=1e-5)
    best = explained(service, weights.stem, image)
    assert best["class"]["index"] == int(logits.argmax())
    assert np.ptp(best["map"]) > 0.01


@every_model
def test_gates_are_pytorch_s(service: Service, repository: Path, weights: Path) -> None:
    contract = read(repository / weights.stem / "1")
    image = golden_png(repository, weights.stem)
    if contract.attention == "none":
        answer = FRESH.post(
            f"{service.url}/v1/models/{weights.stem}/explain?gates=true", content=image, headers=JSON
        ).json()
        assert (answer["code"], "no attention" in answer["detail"]) == ("bad_parameter", True)
        return
    recipe = contract.preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
    pixels = torch.from_numpy(np.load(repository / weights.stem / "1" / "golden.npy")[:1])
    network = checkpoint.load(weights).network
    taken: dict[str, torch.Tensor] = {}
    tap(network, taken)
    with torch.inference_mode():
        network((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std)
    found = explained(service, weights.stem, image, gates="true")["gates"]
    assert [gates["block"] for gates in found] == list(taken)
    for gates in found:
        np.testing.assert_allclose(gates["values"], taken[gates["block"]][0], atol=1e-4)
    assert "gates" not in explained(service, weights.stem, image)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_crop_s_box(service: Service, orientation: int) -> None:
    found = explained(service, MODEL, wide_jpeg(orientation))
    assert found["upright"] == {
        "width": 240, "height": 120, "crop": {"left": 60.0, "top": 0.0, "right": 180.0, "bottom": 120.0},
    }  # fmt: skip
    stored = {1: (240, 120, 60, 0, 180, 120), 6: (120, 240, 0, 60, 120, 180)}[orientation]
    width, height, *edges = stored
    assert found["image"] == {"width": width, "height": height, "orientation": orientation}
    assert list(found["crop"].values()) == edges
    assert found["class"]["label"] == "dog"
    assert found["warnings"] == ([] if orientation == 1 else ["exif_rotated"])


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_overlay_is_drawn_on_the_original(service: Service, orientation: int) -> None:
    """The right way round, over what the network saw and nothing else."""
    image = wide_jpeg(orientation)
    answer = FRESH.post(f"{service.url}/v1/models/{MODEL}/explain", params={"class": "dog"}, content=image)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert (answer.headers["x-class-index"], answer.headers["x-class-label"]) == ("5", "dog")
    assert "infer;dur=" in answer.headers["server-timing"]
    with Image.open(io.BytesIO(image)) as before, Image.open(io.BytesIO(answer.content)) as after:
        assert after.size == before.size
        one, other = (np.asarray(ImageOps.exif_transpose(each)).astype(int) for each in (before, after))
    changed = np.abs(one - other).max(2)
    assert changed[:, :60].max() == changed[:, 180:].max() == 0
    values = np.array(explained(service, MODEL, image)["map"])
    row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
    size = 120 // len(values)
    strongest = changed[row * size : (row + 1) * size, 60 + column * size : 60 + (column + 1) * size]
    assert strongest.mean() > changed[:, 61:179].mean()
    small = FRESH.post(f"{service.url}/v1/models/{MODEL}/explain", params={"side": 48}, content=image)
    with Image.open(io.BytesIO(small.content)) as shrunk:
        assert max(shrunk.size) == 48


def test_to_draw_the_overlay_counts_as_time(service: Service) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((2400, 3200, 3), np.uint8)).save(out, "JPEG")
    began = time.monotonic()
    answer = FRESH.post(f"{service.url}/v1/models/{MODEL}/explain", params={"side": 3200}, content=out.getvalue())
    took_ms = 1000 * (time.monotonic() - began)
    told_ms = float(answer.headers["server-timing"].rpartition("total;dur=")[2])
    assert 0.7 * took_ms < told_ms <= took_ms


def test_explanations_and_classifications_at_once(service: Service, repository: Path) -> None:
    """Neither gets the other's answer, nor another image's."""
    images = [golden_png(repository, MODEL, index) for index in range(4)]
    scores = [
        FRESH.post(f"{service.url}/v1/models/{MODEL}/classify", content=image).json()["results"][0]["predictions"]
        for image in images
    ]

    def ask(turn: int) -> bool:
        image, expected = images[turn % 4], scores[turn % 4]
        if turn % 3:
            answer = FRESH.post(f"{service.url}/v1/models/{MODEL}/classify", content=image, timeout=30)
            got = answer.json()["results"][0]["predictions"]
        else:
            got = explained(service, MODEL, image)["predictions"]
        return [p["index"] for p in got] == [p["index"] for p in expected] and np.allclose(
            [p["score"] for p in got], [p["score"] for p in expected], atol=1e-5
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(120)))


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        (f"/v1/models/{MODEL}/explain", b"hello", {}, 415, "unsupported_image_format"),
        (f"/v1/models/{MODEL}/explain", b"", {}, 400, "bad_request"),
        (f"/v1/models/{MODEL}/explain?class=unicorn", None, {}, 400, "bad_parameter"),
        (f"/v1/models/{MODEL}/explain?class=10", None, {}, 400, "bad_parameter"),
        (f"/v1/models/{MODEL}/explain?opacity=2", None, {}, 400, "bad_parameter"),
        (f"/v1/models/{MODEL}/explain?side=9999", None, {}, 400, "bad_parameter"),
        (f"/v1/models/{MODEL}/explain?top_k=0", None, {}, 400, "bad_parameter"),
        ("/v1/models/nobody/explain", None, {}, 404, "model_not_found"),
        (f"/v1/models/{MODEL}/explain", None, {"x-request-timeout-ms": "0.001"}, 504, "deadline_exceeded"),
        ("/v1/compare", b"hello", {}, 415, "unsupported_image_format"),
        (f"/v1/compare?models={MODEL},nobody", None, {}, 404, "model_not_found"),
        ("/v1/compare?models=,", None, {}, 400, "bad_parameter"),
        ("/v1/compare?top_k=0", None, {}, 400, "bad_parameter"),
        ("/v1/compare", None, {"x-request-timeout-ms": "0.001"}, 504, "deadline_exceeded"),
    ],
)
def test_errors(
    service: Service, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    content = DOG.read_bytes() if body is None else body
    answer = FRESH.post(service.url + path, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_one_image_a_request(service: Service) -> None:
    files = [("file", ("a.jpg", DOG.read_bytes(), "image/jpeg"))]
    for route in (f"/v1/models/{MODEL}/explain", "/v1/compare"):
        assert FRESH.post(service.url + route, files=files, headers=JSON).status_code == 200
        answer = FRESH.post(service.url + route, files=2 * files, headers=JSON)
        assert (answer.status_code, "holds 2 images" in answer.json()["detail"]) == (400, True)


def decoded(service: Service) -> float:
    """How many images the service has decoded."""
    text = FRESH.get(service.url + "/metrics").text
    return sum(float(n) for n in re.findall(r'eca_stage_seconds_count{[^}]*stage="decode"[^}]*} (\S+)', text))


def test_a_comparison_gives_each_model_s_own_answer_and_decodes_once(service: Service) -> None:
    image, before = wide_jpeg(), decoded(service)
    answer = FRESH.post(service.url + "/v1/compare", params={"top_k": 3}, content=image)
    assert answer.status_code == 200
    assert decoded(service) - before == 1
    found = answer.json()
    family = [weights.stem for weights in DEMO if weights.stem.startswith(MODEL.partition("-")[0])]
    assert {row["model"] for row in found["results"]} == set(family)
    order = [row["attention"] for row in found["results"]]
    assert order == [kind for kind in ("none", "se", "eca") if kind in order]
    for row in found["results"]:
        alone = FRESH.post(f"{service.url}/v1/models/{row['model']}/classify?top_k=3", content=image).json()
        expected = alone["results"][0]["predictions"]
        assert [p["label"] for p in row["predictions"]] == [p["label"] for p in expected]
        np.testing.assert_allclose([p["score"] for p in row["predictions"]], [p["score"] for p in expected], atol=1e-5)
        assert row["upright"]["crop"] == {"left": 60.0, "top": 0.0, "right": 180.0, "bottom": 120.0}
        assert set(row["timing_ms"]) == {"decode", "queue", "infer", "total"}
    named = FRESH.post(service.url + "/v1/compare", params={"models": f"{MODEL}, {MODEL}"}, content=image)
    assert [row["model"] for row in named.json()["results"]] == [MODEL]
    several = {"models": [family[-1], f"{MODEL},{family[0]}", family[-1]]}
    named = FRESH.post(service.url + "/v1/compare", params=several, content=image)
    assert [row["model"] for row in named.json()["results"]] == list(dict.fromkeys([family[-1], MODEL, family[0]]))
