#!/usr/bin/env python3
"""Build data/emoji-64: drawings of everyday concepts in six styles, 64 x 64 px, as Parquet.

    pip install pillow numpy pyarrow resvg-py
    python data/build_emoji.py

The drawings come from six npm packages under the Apache 2.0 and MIT licenses. `npm pack` fetches them, at fixed
versions, and their checksums are compared. The same packages and library versions give the same bytes.
"""

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = 64
OVERSAMPLING = 4  # of SVG: at the final size, filters leave edges jagged
HELD_OUT = 400  # drawings in validation.parquet
SEED = 0  # of the choice of these
MIN_DRAWINGS = 2  # concepts with fewer are left out
MIN_LEFT = 2  # drawings of a concept that stay in train.parquet
SAME = 1.0  # mean difference of two drawings, of 255, below which they are one


class Package(NamedTuple):
    """An npm package at a fixed version."""

    name: str
    version: str
    sha512: str  # of the tarball, in base64, as npm's lock files hold it

    @property
    def file(self) -> str:
        """Return the name that `npm pack` gives to the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES: Mapping[str, Package] = {
    "fluent": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "fluent-3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "fluent-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
}

# Icons of noto-v1 whose names differ from those of noto.
NOTO_V1_NAMES: Mapping[str, str] = {
    "direct-hit": "bullseye",
    "dizzy-face": "face-with-crossed-out-eyes",
    "hugging-face": "smiling-face-with-open-hands",
    "pouting-face": "enraged-face",
}

# Names that lost their punctuation.
SPELLINGS: Mapping[str, str] = {
    "e mail": "e-mail",
    "fleur de lis": "fleur-de-lis",
    "hear no evil monkey": "hear-no-evil monkey",
    "jack o lantern": "jack-o'-lantern",
    "mans shoe": "man's shoe",
    "mens room": "men's room",
    "moon viewing ceremony": "moon-viewing ceremony",
    "rescue workers helmet": "rescue worker's helmet",
    "see no evil monkey": "see-no-evil monkey",
    "snow capped mountain": "snow-capped mountain",
    "speak no evil monkey": "speak-no-evil monkey",
    "t rex": "t-rex",
    "t shirt": "t-shirt",
    "womans boot": "woman's boot",
    "womans clothes": "woman's clothes",
    "womans hat": "woman's hat",
    "womans sandal": "woman's sandal",
    "womens room": "women's room",
    "x ray": "x-ray",
    "yo yo": "yo-yo",
}

# Code points that mark a variant of another concept: skin tones, gender, hair; or part of a flag.
VARIANTS = frozenset(
    ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3"]
    + [f"{code:x}" for code in range(0x1F1E6, 0x1F200)]  # letters that spell flags
)

# Concepts that are left out.
UNWANTED = frozenset(
    [f"{code:x}" for code in range(0x1F550, 0x1F568)]  # clock faces: 24 that are alike
    + ["25fb", "25fc", "25fd", "25fe"]  # squares of further sizes
    + ["1f4c6"]  # tear-off calendar: as the calendar
    + ["1f325"]  # sun behind large cloud: as the sun behind a cloud
    + ["1f595"]  # middle finger
    + ["20e3"]  # a keycap with nothing on it
)

# How sequences begin that show a man or woman at work (the person at work is there too), or a couple or family.
GROUPS = ("1f468-", "1f469-", "1f9d1-200d-1f9d1", "1f9d1-200d-1f9d2")

# Drawings that show something else than the name says: a black square.
MISDRAWN = frozenset({("1f533", "fluent-flat")})

# Styles that are one design, rendered twice. Where one is held out, the other is too, or it would give it away.
TWINS: Mapping[str, str] = {"fluent-3d": "fluent"}


class Drawing(NamedTuple):
    """A drawing of a concept in a style."""

    code: str  # code points of the concept
    style: str
    pixels: NDArray[np.uint8]  # (64, 64, 3)


class Concept(NamedTuple):
    """What is drawn."""

    icon: str  # the name in noto: red-apple
    category: str  # in noto: Food & Drink

    @property
    def name(self) -> str:
        """Return the name in words: red apple."""
        words = self.icon.replace("-", " ").removesuffix(" blood type")
        return SPELLINGS.get(words, words)

    @property
    def group(self) -> str:
        """Return the category in words: food and drink."""
        return self.category.lower().replace("&", "and")


class BuildError(Exception):
    """What the user can put right: told in one line."""


# ---------------------------------------------------------------------------------------------------- packages


def fetch(package: Package, folder: Path) -> Path:
    """Return the tarball of a package, downloaded into the folder unless it lies there.

    Raises:
        BuildError: npm is missing or fails, or the tarball is another one.
    """
    tarball = folder / package.file
    if not tarball.exists():
        _npm_pack(package, folder)
    if not tarball.exists():
        raise BuildError(f"npm pack {package.name}@{package.version} left no {package.file}")
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise BuildError(f"{tarball} is not the tarball this script was written for: its sha512 is {found}")
    return tarball


def _npm_pack(package: Package, folder: Path) -> None:
    what = f"{package.name}@{package.version}"
    try:
        command = ["npm", "pack", what, "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"npm is missing: install Node.js, or put {package.file} into --packages") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no message"]
        raise BuildError(f"npm pack {what} failed: {lines[-1]}")


def read_members(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the files of a tarball whose names are wanted, less the leading folder."""
    files = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            opened = archive.extractfile(member) if wanted(name) else None
            if opened is not None:
                files[name] = opened.read()
    return files


def read_icons(tarball: Path) -> dict[str, Any]:
    """Return the JSON files of an icon set: icons, chars, metadata and info."""
    files = read_members(tarball, lambda name: name in ("icons.json", "chars.json", "metadata.json"))
    return {name.removesuffix(".json"): json.loads(data) for name, data in files.items()}


# ---------------------------------------------------------------------------------------------------- concepts


def plain_code(code: str) -> str:
    """Return a sequence of code points without variation selectors: 1f441-200d-1f5e8."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def is_wanted(code: str, category: str) -> bool:
    """Tell whether a sequence is a concept of its own: no flag, nor a variant of skin, gender or hair."""
    return not (
        category == "Flags"
        or VARIANTS & set(code.split("-"))
        or code in UNWANTED
        or code.startswith(GROUPS)
        or code.endswith("-27a1")  # facing right
    )


def list_concepts(noto: Mapping[str, Any]) -> dict[str, Concept]:
    """Return the wanted concepts by their code points, in the order of these."""
    categories = {icon: category for category, icons in noto["metadata"]["categories"].items() for icon in icons}
    by_code = {plain_code(code): Concept(icon, categories[icon]) for code, icon in noto["chars"].items()}
    ordered = sorted(by_code, key=lambda code: [int(part, 16) for part in code.split("-")])
    return {code: by_code[code] for code in ordered if is_wanted(code, by_code[code].category)}


def icon_codes(style: str, sets: Mapping[str, Mapping[str, Any]], codes: Mapping[str, str]) -> dict[str, str]:
    """Return the sequence of code points of each icon of a style.

    Args:
        codes: of the noto names.
    """
    if style == "noto":
        return {icon: plain_code(code) for code, icon in sets["noto"]["chars"].items()}
    if style in ("fluent", "fluent-flat"):  # fluent has the names of fluent-flat
        mirrored = {icon: codes[icon] for icon in sets[style]["icons"]["aliases"] if icon in codes}
        return mirrored | {icon: plain_code(code) for code, icon in sets["fluent-flat"]["chars"].items()}
    if style == "noto-v1":
        renamed = {name: NOTO_V1_NAMES.get(name, name) for name in sets[style]["icons"]["icons"]}
    else:
        renamed = json.loads((HERE / "fxemoji_names.json").read_text(encoding="utf-8"))
    return {name: codes[to] for name, to in renamed.items() if to in codes}


# ---------------------------------------------------------------------------------------------------- drawings


def svg_of(icons: Mapping[str, Any], name: str) -> str | None:
    """Return an icon as SVG; None where the set lacks it."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None:
        return None
    side = OVERSAMPLING * SIZE
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def on_white(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image on white, (64, 64, 3) in uint8."""
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    flat = ground.convert("RGB")
    return np.asarray(flat if flat.size == (SIZE, SIZE) else flat.resize((SIZE, SIZE), Image.Resampling.BOX))


def draw_svg(svg: str) -> NDArray[np.uint8]:
    """Return the pixels of an SVG on white.

    Raises:
        BuildError: resvg-py is missing.
    """
    try:
        import resvg_py  # type: ignore[import-not-found, unused-ignore]  # only this script needs it
    except ImportError as error:
        raise BuildError("resvg-py is missing: pip install resvg-py") from error
    return on_white(Image.open(BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))


def draw_icons(style: str, icons: Mapping[str, Any], names: Mapping[str, str], wanted: Iterable[str]) -> list[Drawing]:
    """Return the drawings of the wanted sequences.

    Args:
        names: icon -> sequence of code points.
    """
    known = {code: name for name, code in sorted(names.items())}
    found = ((code, svg_of(icons, known[code])) for code in wanted if code in known)
    return [Drawing(code, style, draw_svg(svg)) for code, svg in found if svg is not None]


def draw_images(style: str, tarball: Path, wanted: Iterable[str]) -> list[Drawing]:
    """Return the drawings of the wanted sequences of a package of images, which are named by them."""
    files = read_members(tarball, lambda name: name.startswith("assets/") and name.endswith(".webp"))
    known = {plain_code(Path(name).stem): data for name, data in sorted(files.items())}
    return [Drawing(code, style, on_white(Image.open(BytesIO(known[code])))) for code in wanted if code in known]


def draw_all(tarballs: Mapping[str, Path]) -> tuple[list[Drawing], dict[str, Concept]]:
    """Return the drawings of all styles, and the concepts by their code points."""
    sets = {style: read_icons(tarball) for style, tarball in tarballs.items() if style != "fluent-3d"}
    concepts = list_concepts(sets["noto"])
    codes = {concept.icon: code for code, concept in concepts.items()}
    drawings: list[Drawing] = []
    for style, tarball in tarballs.items():
        if style == "fluent-3d":
            drawings += draw_images(style, tarball, concepts)
        else:
            drawings += draw_icons(style, sets[style]["icons"], icon_codes(style, sets, codes), concepts)
    return drawings, concepts


# ---------------------------------------------------------------------------------------------------- choice


def choose(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Return the drawings less the misdrawn ones, repeats, and those of concepts that too few styles draw."""
    kept = drop_repeats(drawing for drawing in drawings if (drawing.code, drawing.style) not in MISDRAWN)
    count = Counter(drawing.code for drawing in kept)
    return [drawing for drawing in kept if count[drawing.code] >= MIN_DRAWINGS]


def drop_repeats(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Return the drawings less those that are as another one of their concept, or of another concept in their style."""
    kept: list[Drawing] = []
    of_concept: defaultdict[str, list[Drawing]] = defaultdict(list)
    seen: set[tuple[str, bytes]] = set()
    for drawing in drawings:
        key = (drawing.style, drawing.pixels.tobytes())
        if key in seen or any(is_repeat(drawing, other) for other in of_concept[drawing.code]):
            continue
        seen.add(key)
        of_concept[drawing.code].append(drawing)
        kept.append(drawing)
    return kept


def is_repeat(drawing: Drawing, other: Drawing) -> bool:
    """Tell whether two drawings of a concept look the same."""
    return bool(np.abs(drawing.pixels.astype(int) - other.pixels).mean() < SAME)


def hold_out(drawings: Iterable[Drawing]) -> set[tuple[str, str]]:
    """Return the pairs of code points and style that are for validation.

    A concept gives one pair, or one of twins, and keeps MIN_LEFT drawings or more. A hash of the pair decides, so
    the choice depends on no library.
    """
    designs: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    left: Counter[str] = Counter()
    for drawing in drawings:
        designs[drawing.code, TWINS.get(drawing.style, drawing.style)].append(drawing.style)
        left[drawing.code] += 1
    held: set[tuple[str, str]] = set()
    touched: set[str] = set()
    for code, design in sorted(designs, key=lambda pair: hashlib.sha256(f"{SEED} {pair}".encode()).digest()):
        styles = designs[code, design]
        fits = len(held) + len(styles) <= HELD_OUT
        if fits and code not in touched and left[code] - len(styles) >= MIN_LEFT:
            touched.add(code)
            held |= {(code, style) for style in styles}
    return held


# ---------------------------------------------------------------------------------------------------- files


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as lossless WebP."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=90, method=6)
    return buffer.getvalue()


def schema_of(names: list[str]) -> pa.Schema:
    """Return the columns, with the metadata by which the datasets library knows images and class names."""
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "concept": text,
        "category": text,
        "style": text,
    }
    columns = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "label": pa.int64(),
        "concept": pa.string(),
        "category": pa.string(),
        "style": pa.string(),
    }
    return pa.schema(list(columns.items()), {"huggingface": json.dumps({"info": {"features": features}})})


def write_table(path: Path, drawings: Iterable[Drawing], concepts: Mapping[str, Concept], schema: pa.Schema) -> None:
    """Write drawings as Parquet, in the order of their labels."""
    names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    labels = {name: label for label, name in enumerate(names)}
    rows = [
        {
            "image": {
                "bytes": encode(drawing.pixels),
                "path": f"{concepts[drawing.code].icon}_{drawing.style}.webp",
            },
            "label": labels[concepts[drawing.code].name],
            "concept": concepts[drawing.code].name,
            "category": concepts[drawing.code].group,
            "style": drawing.style,
        }
        for drawing in drawings
    ]
    rows.sort(key=lambda row: (row["label"], row["style"]))
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")


def write_classes(path: Path, names: list[str], categories: Mapping[str, str]) -> None:
    """Write the names of the labels."""
    classes = {str(label): {"name": name, "category": categories[name]} for label, name in enumerate(names)}
    path.write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")


def write_dataset(folder: Path, drawings: list[Drawing], concepts: Mapping[str, Concept]) -> set[tuple[str, str]]:
    """Write train.parquet, validation.parquet and classes.json, and return the pairs held out."""
    categories = {concepts[drawing.code].name: concepts[drawing.code].group for drawing in drawings}
    names = sorted(categories)
    schema = schema_of(names)
    held = hold_out(drawings)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        chosen = (d for d in drawings if ((d.code, d.style) in held) == (split == "validation"))
        write_table(folder / f"{split}.parquet", chosen, concepts, schema)
    write_classes(folder / "classes.json", names, categories)
    return held


def counts_table(title: str, pairs: Iterable[tuple[str, bool]]) -> str:
    """Return a table in Markdown of how many drawings each group has in train and validation.

    Args:
        pairs: group, and whether the drawing is held out.
    """
    count = Counter(pairs)
    groups = sorted({group for group, _ in count})
    rows = [f"| {group} | {count[group, False]} | {count[group, True]} |" for group in groups]
    whole = [sum(number for (_, held), number in count.items() if held is split) for split in (False, True)]
    return "\n".join(
        [f"| {title} | train | validation |", "|---|---:|---:|", *rows, f"| all | {whole[0]} | {whole[1]} |"]
    )


# ---------------------------------------------------------------------------------------------------- command


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder of the tarballs, kept there; default: a temporary one")
    parser.add_argument("--output", type=Path, default=HERE / "emoji-64", help="folder to write; default: %(default)s")
    return parser.parse_args(arguments)


def build(packages: Path, output: Path) -> None:
    """Fetch the packages, write the data set and tell how much it holds."""
    tarballs = {style: fetch(package, packages) for style, package in PACKAGES.items()}
    found, concepts = draw_all(tarballs)
    drawings = choose(found)
    held = write_dataset(output, drawings, concepts)
    print(f"{len(drawings)} drawings of {len({d.code for d in drawings})} concepts in {output}\n")
    is_held = [(d.code, d.style) in held for d in drawings]
    print(counts_table("style", zip((d.style for d in drawings), is_held, strict=True)) + "\n")
    print(counts_table("category", zip((concepts[d.code].group for d in drawings), is_held, strict=True)))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            packages = options.packages or Path(temporary)
            packages.mkdir(parents=True, exist_ok=True)
            build(packages, options.output)
    except (BuildError, OSError) as error:
        print(f"build_emoji: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
