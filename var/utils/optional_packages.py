"""Packages that only some commands need: where one is missing, a line names the extra that installs it."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType

from tokenizer.errors import InputError
from var.utils.version import PACKAGE

OURS = ("tokenizer", "var")
PYPI_NAMES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "PyYAML"}  # where they differ


@contextmanager
def optional_packages(extra: str | None = None) -> Iterator[None]:
    """Around imports of packages that may be missing: raise InputError that names the extra which installs them.

    Args:
        extra: the one that has all that the caller imports; None: the first that lists the missing package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module in OURS:
            raise
        package = PYPI_NAMES.get(module, module.replace("_", "-"))
        named = extra or find_extra(package)
        wanted = package if named is None else f"'{PACKAGE}[{named}]'"
        raise InputError(f"{package} is not installed: make develop, or pip install {wanted}") from error


def import_package(module: str) -> ModuleType:
    """Import a module of an optional package. Raises InputError: it is not installed."""
    with optional_packages():
        return importlib.import_module(module)


def find_extra(package: str) -> str | None:
    """Return the first extra of our distribution that lists the package; None: there is none."""
    try:
        listed = requires(PACKAGE) or ()
    except PackageNotFoundError:  # used from a clone, without being installed
        return "dev"
    pattern = re.compile(rf"{re.escape(package)}\b(?!-).*extra == [\"']([\w-]+)", flags=re.IGNORECASE)
    found = (pattern.match(line) for line in listed)
    return next((match[1] for match in found if match), None)
