"""Pre-training by masked patches that the encoder sees as one learned embedding, as in BEiT and SimMIM.

B batch, N patches, n of them predicted, D width of the encoder, C numbers that describe a patch.
"""

import torch
from torch import Tensor, nn

from var.models.aim import EncoderConfig, initialize, select_patches
from var.models.pretraining import Pretrainer


class MaskedPretrainer(Pretrainer):
    """An encoder with the embedding of masked patches and a linear head (arXiv 2111.09886, section 3).

    Args:
        outputs: C, numbers that the head predicts for a patch.
    """

    def __init__(self, encoder: EncoderConfig, outputs: int) -> None:
        super().__init__(encoder)
        self.mask_embedding = nn.Parameter(torch.empty(encoder.width))
        nn.init.trunc_normal_(self.mask_embedding, std=0.02)
        self.predict = nn.Linear(encoder.width, outputs)
        initialize(self.predict)

    def forward(self, images: Tensor, masked: Tensor, predicted: Tensor | None = None) -> Tensor:
        """Predictions of patches: (B, n, C).

        Args:
            images: (B, 3, S, S), normalized.
            masked: (B, N) bool, true where the patch is not seen; (N,) for the same patches of every image.
            predicted: (B, n) int64, indices of the patches to predict; None: all, row by row.

        Raises InputError: images of another size.
        """
        x = self.encoder.embed_patches(images)  # (B, N, D)
        x = torch.where(masked[..., None], self.mask_embedding.to(x.dtype), x)
        x = self.encoder.encode(self.encoder.add_position(x))
        return self.predict(x if predicted is None else select_patches(x, predicted))
