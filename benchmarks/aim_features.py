"""How far AIM's features are from their matrix products: `python benchmarks/aim_features.py --model aim-600M`.

One image of 224 px, random weights, all blocks and the probe, no gradients. The products are counted, and what they
would take at the speed that one large product reaches in the same run is set against the time of the whole call.
"""

import statistics
from itertools import pairwise
from typing import Annotated

import torch
import typer
from products import SIDE, counted, product_speed, seconds

from var.cli.run import run
from var.hub.presets import AIM_SIZES, choose_layers, encoder_sizes
from var.models.aim import AIM, AIMConfig, EncoderConfig
from var.utils.device import choose_device, choose_dtype


def aim_features(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(AIM_SIZES)}.")] = "aim-600M",
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Calls that are timed.", min=1)] = 7,
) -> None:
    """Time the features and logits of images against their matrix products."""
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    torch.manual_seed(0)
    sizes = EncoderConfig(**encoder_sizes(model))  # type: ignore[arg-type]  # it checks their types
    layers = choose_layers("last", sizes.depth, None)
    with place:
        network = AIM(AIMConfig(**sizes.to_dict(), probe_layers=layers)).eval().cast(number)  # type: ignore[arg-type]  # as above
        images = torch.randn(batch, 3, sizes.image_size, sizes.image_size)

    @torch.inference_mode()
    def call() -> None:
        network(images)

    products = sum(counted(call).values())
    call()
    speeds, times = [product_speed(place, number)], []
    for _ in range(repeats):
        times.append(seconds(call, place))
        speeds.append(product_speed(place, number))
    around = [(before + after) / 2 for before, after in pairwise(speeds)]
    ratios = [time * speed / products for time, speed in zip(times, around, strict=True)]
    threads = torch.get_num_threads()
    typer.echo(
        f"{model}, {batch} x {sizes.image_size} px, {str(number).removeprefix('torch.')}, {place}, {threads} threads"
    )
    typer.echo(
        f"product of {SIDE} x {SIDE}: {statistics.median(speeds) / 1e9:.1f} GFLOP/s; "
        f"products of the call: {products / 1e9:.1f} GFLOP"
    )
    typer.echo(f"call: {statistics.median(times):.3f} s, median of {min(times):.3f} to {max(times):.3f}")
    typer.echo(f"call / products: {statistics.median(ratios):.3f}, median of {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    run(aim_features)
