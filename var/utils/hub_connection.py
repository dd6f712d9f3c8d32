"""Whether the Hugging Face hub answers: asked once, as its client and `datasets` would try for half a minute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizer.errors import InputError

HUB_TIMEOUT = 5  # seconds for its first answer


class UnreachableError(InputError):
    """The hub did not answer."""


@contextmanager
def offline_if_unreachable(
    file: str, repository: str, kind: str = "model", others: tuple[Any, ...] = ()
) -> Iterator[UnreachableError | None]:
    """Keep the hub's client to its own files if the hub does not answer; gives the reason, or None where it does.

    Args:
        file: one that such a repository may have.
        kind: of the repository: model or dataset.
        others: modules with a copy of the client's setting HF_HUB_OFFLINE.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    holders, unreachable = (constants, *others), None
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        if not constants.HF_HUB_OFFLINE:
            has_file(file, repository, kind=kind)
    except UnreachableError as error:
        unreachable = error
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
    except HfHubHTTPError:  # an answer: what it means for the download, the download says
        pass
    try:
        yield unreachable
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def has_file(file: str, repository: str, token: str | None = None, kind: str = "model") -> bool:
    """Return whether a repository, a model or a dataset, shows a file.

    Raises UnreachableError: no answer within HUB_TIMEOUT; HfHubHTTPError: one that says neither yes nor no.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind), token=token, timeout=HUB_TIMEOUT)
    except HfHubHTTPError as error:
        # Who is not logged in gets 401 for a repository that is not there; a gated one is there.
        if error.response.status_code == 404 or type(error) is RepositoryNotFoundError:
            return False
        raise
    except Exception as error:  # the HTTP library's errors, which differ by version
        raise UnreachableError(describe_unreachable(error)) from error
    return True


def describe_unreachable(error: Exception) -> str:
    """Return in words that the hub is not used, or does not answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the Hugging Face hub is not used: there is no connection, or HF_HUB_OFFLINE is set"
    return f"the Hugging Face hub at {constants.ENDPOINT} does not answer ({type(error).__name__})"
