"""The transformer that VAR and models to compare it with share: blocks modulated by a class, and a head on tokens.

B batch, L tokens, C latent channels, D width, V codebook size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, check_types
from tokenizer.scales import SCALES_256, Scales
from tokenizer.vqvae import Regularization
from var.models.int8 import Int8Linear, quantize
from var.models.masks import Mask
from var.models.packed import unpack
from var.models.transformer import (
    AdaLN,
    AdaLNBlock,
    AdaLNOffset,
    BlockConfig,
    KVCache,
    Modulation,
    check_mlp_ratio,
    modulate,
    run_blocks,
    stochastic_depth,
)
from var.utils.device import dtype_beside_int8


@dataclass(frozen=True)
class TransformerSizes:
    """The sizes that a recipe chooses; width = 64 * depth and heads = depth unless given.

    Attributes:
        depth: number of blocks.
        width: D; 0 for 64 * depth.
        heads: 0 for depth.
        mlp_ratio: hidden width of the MLP over D.
        qk_norm: q and k on the unit sphere with a learned temperature for each head.
        shared_adaln: one AdaLN for all blocks plus an offset for each block (512 px model).
        drop_path: rate of stochastic depth at the last block, rising linearly from 0; None for 0.1 * depth / 24.
    """

    depth: int
    width: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    drop_path: float | None = None


@dataclass(frozen=True)
class TransformerConfig(TransformerSizes):
    """All sizes of a transformer on tokens.

    Attributes:
        scales: sides of the token maps, the tokenizer's.
        latent_dim: C, the tokenizer's.
        num_classes: labels are 0..num_classes - 1; num_classes itself is the null class.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    regularization: ClassVar[Regularization] = "vq"  # of the tokenizer
    of_tokenizer: ClassVar[tuple[str, ...]] = ("scales", "latent_dim")  # the sizes that are the tokenizer's

    depth: int = 16
    scales: tuple[int, ...] = SCALES_256.sides
    latent_dim: int = 32
    num_classes: int = 1000

    def __post_init__(self) -> None:
        check_types(
            self,
            at_least_one=("depth", "latent_dim", "num_classes"),
            at_most={"depth": DEEPEST, "width": 2**16, "latent_dim": 2**16},
        )
        object.__setattr__(self, "scales", Scales(tuple(self.scales)).sides)
        object.__setattr__(self, "width", self.width or 64 * self.depth)
        object.__setattr__(self, "heads", self.heads or self.depth)
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise InputError(f"width={self.width} must be a positive multiple of heads={self.heads}")
        check_mlp_ratio(self.mlp_ratio)
        if not 0 <= self.drop_rates[-1] < 1:
            raise InputError(f"drop_path={self.drop_rates[-1]} must be in [0, 1)")

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Rate of stochastic depth of each block."""
        last = 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path
        return tuple(last * i / max(self.depth - 1, 1) for i in range(self.depth))

    @property
    def block(self) -> BlockConfig:
        """Sizes of its blocks."""
        return BlockConfig(
            self.width, self.heads, self.mlp_ratio, self.qk_norm, logit_scale=0.25
        )  # as in the released code

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class CodebookTransformerConfig(TransformerConfig):
    """All sizes of a transformer that predicts indices of a codebook.

    Attributes:
        vocab_size: V, the tokenizer's.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    of_tokenizer: ClassVar[tuple[str, ...]] = (*TransformerConfig.of_tokenizer, "vocab_size")

    vocab_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, at_least_one=("vocab_size",))


class Condition(NamedTuple):
    """All that depends on the labels alone: computed once per image, used at every scale."""

    start: Tensor  # (B, 1, D), the class embedding: the content of the first token
    modulations: list[Modulation]  # one per block
    head_scale: Tensor  # (B, 1, D) float32
    head_shift: Tensor

    def select(self, rows: slice) -> "Condition":
        """Return the part of some rows of the batch, as views."""
        modulations = [Modulation(*(part[rows] for part in modulation)) for modulation in self.modulations]
        return Condition(self.start[rows], modulations, self.head_scale[rows], self.head_shift[rows])


def compute_logits(head: nn.Linear, x: Tensor) -> Tensor:
    """Return the logits (B, L, V) of the head's input (B, L, D)."""
    logits: Tensor = head(x)
    return logits


class ConditionalTransformer(nn.Module):
    """Class embedding, learned positions, blocks and head; a subclass makes the head, and the input of the blocks.

    A subclass's `__init__` adds its own embeddings, then the blocks, and initializes the whole.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(config.scales)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.width)
        self.start_position = nn.Parameter(torch.empty(1, 1, config.width))
        self.position = nn.Parameter(torch.empty(1, self.scales.total, config.width))

    def _add_blocks(self) -> None:
        config, width = self.config, self.config.width
        self.feature_in = nn.Linear(config.latent_dim, width)
        self.shared_adaln = AdaLN(width, 6) if config.shared_adaln else None
        self.blocks: Sequence[AdaLNBlock] = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList names no type
            AdaLNBlock(config.block, config.shared_adaln) for _ in range(config.depth)
        )
        self.head_adaln = AdaLN(width, 2)
        self.head = self._build_head()

    def _build_head(self) -> nn.Module:
        """Build what predicts tokens from hidden states (B, L, D); its weights are always in float32."""
        raise NotImplementedError  # every kind of transformer has its own

    def cast(self, dtype: torch.dtype) -> Self:
        """Hold the weights in dtype, those of the head in float32: logits are always computed in float32.

        With int8 the linear maps of attention and MLP become `Int8Linear`, for good; all else is in bfloat16 where the
        processor is fast at it, in float32 elsewhere. A packed model is unpacked.

        Raises InputError: from int8 to another type.
        """
        if self.dtype == torch.int8 != dtype:
            raise InputError(f"weights in int8 were rounded: for {dtype} load the model again, with that dtype")
        unpack(self.blocks)
        if dtype == torch.int8:
            if self.dtype == dtype:
                return self
            self._quantize()  # the weights as they are, before the others are rounded
            dtype = dtype_beside_int8()
        head = {*self.head_adaln.parameters(), *self.head.parameters()}
        for parameter in self.parameters():  # never through dtype and back, which would round the head
            parameter.data = parameter.data.to(torch.float32 if parameter in head else dtype)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a packed model that is to be trained is unpacked.

        Raises InputError: training of a model in int8, of which nothing is changed.
        """
        if mode:
            unpack(self.blocks)
            for part in self.modules():
                if isinstance(part, Int8Linear):
                    part.train()  # refuses
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast as any module; a packed one is unpacked first."""
        unpack(self.blocks)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not type it

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load as any module; a packed one is unpacked first."""
        unpack(self.blocks)
        return super().load_state_dict(*arguments, **options)

    def _quantize(self) -> None:
        for block in self.blocks:
            quantize(block)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the blocks hold their linear maps in."""
        return torch.int8 if any(isinstance(part, Int8Linear) for part in self.modules()) else self.position.dtype

    def count_blind(self, known: Tensor) -> int:
        """Count the unknown tokens that are drawn without a look at any known one, of known (L,) bool."""
        return 0

    def condition(self, labels: Tensor) -> Condition:
        """(B,) int64 labels, num_classes for the null class -> embeddings and modulations."""
        embedding = self.class_embedding(labels)  # (B, D)
        shared = embedding if self.shared_adaln is None else self.shared_adaln(embedding)  # (B, D) or (B, 6, 1, D)
        modulations = [block.modulation(shared) for block in self.blocks]
        with torch.autocast(labels.device.type, enabled=False):
            head_scale, head_shift = self.head_adaln(embedding.float()).unbind(dim=1)  # (B, 1, D) each
        return Condition(embedding[:, None], modulations, head_scale, head_shift)

    def _contents(self, condition: Condition, teacher_forcing_input: Tensor) -> Tensor:
        """Return the content of the start token and of the others, whose features are (B, L - 1, C), (B, L, D)."""
        tokens = self.feature_in(teacher_forcing_input.to(self.feature_in.weight.dtype))  # (B, L - 1, D)
        return torch.cat([condition.start + self.start_position, tokens.to(condition.start.dtype)], dim=1)

    def _run(self, x: Tensor, condition: Condition, mask: Mask, path_noise: Tensor | None, checkpoint: bool) -> Tensor:
        """Run the blocks in training, (B, L, D) -> (B, L, D); path_noise and checkpoint as `VAR.forward` has them."""
        modulations = condition.modulations
        if path_noise is not None:
            modulations = stochastic_depth(modulations, self.config.drop_rates, path_noise)
        return run_blocks(self.blocks, x, modulations, mask, recompute=checkpoint)

    def _modulate(self, x: Tensor, condition: Condition) -> Tensor:
        """Return what the head takes, (B, L, D) float32, of the blocks' output (B, L, D)."""
        with torch.autocast(x.device.type, enabled=False):
            return modulate(x.float(), condition.head_scale, condition.head_shift)

    def _check_path_noise(self, batch: int, path_noise: Tensor | None) -> None:
        branches = (batch, 2 * self.config.depth)
        if path_noise is not None and path_noise.shape != branches:
            raise InputError(f"path noise of shape {tuple(path_noise.shape)} given, {branches} needed for these labels")


class CodebookTransformer(ConditionalTransformer):
    """One whose head gives the logits of a codebook's indices, each predicted from earlier ones."""

    config: CodebookTransformerConfig
    head: nn.Linear

    def _build_head(self) -> nn.Module:
        return nn.Linear(self.config.width, self.config.vocab_size)

    def _read(self, x: Tensor, condition: Condition, read: Callable[[nn.Linear, Tensor], Any]) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return read(self.head, self._modulate(x, condition))

    def _logits(self, x: Tensor, condition: Condition) -> Tensor:
        logits: Tensor = self._read(x, condition, compute_logits)  # (B, L, V)
        return logits

    def _check_shapes(self, batch: int, length: int, teacher_forcing_input: Tensor, path_noise: Tensor | None) -> None:
        expected = (batch, length - 1, self.config.latent_dim)
        if teacher_forcing_input.shape != expected:
            given = tuple(teacher_forcing_input.shape)
            raise InputError(f"teacher forcing input of shape {given} given, {expected} needed for these labels")
        self._check_path_noise(batch, path_noise)

    def new_cache(self, batch: int) -> KVCache:
        """Allocate a cache of the keys and values of all L tokens of a batch."""
        c = self.config
        head_dim = c.width // c.heads
        return KVCache.allocate(c.depth, batch, c.heads, self.scales.total, head_dim, like=self.position)


def gate_init(depth: int) -> float:
    """Factor on the initial AdaLN gate rows: deeper models start closer to the identity."""
    if depth > 30:
        return 5e-6
    if depth > 24:
        return 1e-5
    return 1e-4 if depth > 20 else 1e-3


@torch.no_grad()
def initialize(model: ConditionalTransformer) -> None:
    """Draw the initial weights as the released code does; small gates let every block start near the identity."""
    depth, width = model.config.depth, model.config.width
    std = math.sqrt(1 / (3 * width))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for position in model.parameters(recurse=False):
        nn.init.trunc_normal_(position, std=std)

    factors = torch.tensor([gate_init(depth)] * 2 + [0.5] * 4)  # two gates, two scales, two shifts, as in Modulation
    for block in model.blocks:
        block.attention.proj.weight.div_(math.sqrt(2 * depth))
        block.mlp.down.weight.div_(math.sqrt(2 * depth))
        if isinstance(block.adaln, AdaLNOffset):  # the layer that all blocks share is drawn like any other
            nn.init.normal_(block.adaln.offset, std=1 / math.sqrt(width))
            block.adaln.offset.mul_(factors[:, None])
        else:
            block.adaln.linear.weight.mul_(factors.repeat_interleave(width)[:, None])
    model.head_adaln.linear.weight.mul_(0.5)
    if isinstance(model, CodebookTransformer):
        model.head.weight.mul_(0.02)
