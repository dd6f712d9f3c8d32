"""EfficientNet-Lite as an extractor of torch-fidelity. Import it through `extractors.register_extractors`.

B batch, H and W height and width.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase

from var.networks.backbones import load_network
from var.networks.efficientnet_lite import EFFICIENTNET_LITE, fuse, layers_of

SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
SPATIAL_CHANNELS = 7  # as many as ADM uses of Inception's feature map


class EfficientNetLite(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """EfficientNet-Lite on uint8 images of any size, resized to a square (bicubic, antialiased).

    - pool: 1280 numbers, the average-pooled input of the classifier.
    - logits: of ImageNet-1k's 1000 classes, in the usual order.
    - spatial: the first seven channels of the last feature map at stride 16 (14x14 for lite0), flattened position by
      position, as ADM's sFID uses Inception's at 17x17.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        self.side = SIDES[name]
        self.dtype = torch.float64 if feature_extractor_internal_dtype == "float64" else torch.float32
        network: Any = load_network(
            name, Path(feature_extractor_weights_path) if feature_extractor_weights_path else None
        )
        strides = [block._depthwise_conv.stride[0] for block in network._blocks]
        halvings = [index for index, stride in enumerate(strides) if stride == 2]
        layers = layers_of(network)  # the stem, then the blocks
        self.to_spatial = nn.Sequential(*layers[: 1 + halvings[-1]])  # up to the last layer at stride 16
        self.to_pool = nn.Sequential(
            *layers[1 + halvings[-1] :],
            *fuse(network._conv_head, network._bn1),
            nn.ReLU6(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.to_logits = network._fc
        self.to(self.dtype).requires_grad_(False).eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the requested features of (B, 3, H, W) uint8 images, float32."""
        images = F.interpolate(x.to(self.dtype), (self.side, self.side), mode="bicubic", antialias=True)
        normal = images.clamp(0, 255) / 127.5 - 1
        mean, std = (normal.new_tensor(values)[:, None, None] for values in EFFICIENTNET_LITE)
        spatial = self.to_spatial((normal - mean) / std)
        pool = self.to_pool(spatial)
        found = {
            "pool": pool,
            "logits": self.to_logits(pool),
            "spatial": spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),
        }
        return tuple(found[feature].float() for feature in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pool", "logits", "spatial"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
