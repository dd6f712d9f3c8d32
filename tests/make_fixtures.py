"""Write tests/fixtures, when one must change: `VAR_GOLDEN=FOLDER PYTHONPATH=. python tests/make_fixtures.py`.

golden_tokens: what the token-level golden tests need of the reference implementation's outputs, without the weights of
the convolutions. golden_aim: the reference AIM's patch embedding, first block and head. own_tokenizer: a small
tokenizer of ours with its outputs, from code that reproduces the golden pictures; it guards encoder and decoder where
those are absent.
"""

import json
import lzma
import re

import safetensors.torch
import torch
from helpers import FIXTURES, GOLDEN, GOLDEN_MODELS, Tensors, normal, read_tensors, small_vqvae

TOKEN_LEVEL = ("labels", "logits", "tokens", "teacher_forcing_input", "greedy_labels", "greedy_tokens", "filter")
EDITING = ("edit_mask", "edit_labels", "edit_sampled_tokens")


def token_level(name: str) -> bool:
    """Whether a golden tensor is kept: the transformer, the quantizer, and inputs and outputs on tokens."""
    return name.startswith(("var.", "vae.quantize.", *(f"io.{io}" for io in TOKEN_LEVEL + EDITING)))


def golden_tokens() -> None:
    kept: Tensors = {}
    shapes: dict[str, dict[str, list[int]]] = {}
    for model in GOLDEN_MODELS:
        tensors = read_tensors(GOLDEN / f"{model}.safetensors.xz")
        kept |= {f"{model}.{name}": value for name, value in tensors.items() if token_level(name)}
        shapes[model] = {name: list(value.shape) for name, value in tensors.items() if name.startswith("vae.")}
    write("golden_tokens", safetensors.torch.save(kept))
    # Names and shapes of the whole tokenizer, so that the conversion of every key is tested without its weights.
    (FIXTURES / "golden_tokenizer_shapes.json").write_text(
        json.dumps(shapes["var_small"], separators=(",", ":")) + "\n"
    )
    assert shapes["var_small"] == shapes["var_small_shared_adaln"]


def golden_aim() -> None:
    """One of the two images, and no weights of the later blocks; every block's output stays, as the head reads two."""
    tensors = read_tensors(GOLDEN / "aim_small.safetensors.xz")
    kept = {name: value for name, value in tensors.items() if not re.match(r"aim\.trunk\.blocks\.[1-9]", name)}
    write("golden_aim", safetensors.torch.save(kept | {"io.image": kept["io.image"][:1].contiguous()}))


@torch.no_grad()
def own_tokenizer() -> None:
    vqvae = small_vqvae(seed=3)
    state = {name: value.bfloat16() for name, value in vqvae.state_dict().items()}
    vqvae.load_state_dict({name: value.float() for name, value in state.items()})
    images = normal(2, 3, 8, 8, seed=4).clamp(-1, 1)
    outputs = {"images": images, "features": vqvae.features(images), "tokens": vqvae.encode(images)}
    outputs |= {f"reconstruction_{k}": picture for k, picture in enumerate(vqvae.reconstruct(images))}
    entries = {f"weights.{name}": value for name, value in state.items()}
    entries |= {f"io.{name}": value.contiguous() for name, value in outputs.items()}
    write("own_tokenizer", safetensors.torch.save(entries))


def write(name: str, content: bytes) -> None:
    path = FIXTURES / f"{name}.safetensors.xz"
    path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(path, path.stat().st_size)


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    golden_tokens()
    golden_aim()
    own_tokenizer()
