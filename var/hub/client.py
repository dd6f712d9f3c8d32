"""The Hugging Face hub: files and whole repositories of ours from it, and to it."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizer.errors import InputError, one_line
from var.hub.checkpoint import CONFIG, TOKENIZER, TRANSFORMER, WEIGHTS
from var.utils.hub_connection import UnreachableError, describe_unreachable, has_file, offline_if_unreachable

CARD = "README.md"
# All that is read of a repository: what `save_model` and `save_pipeline` write.
FILES = [f"{folder}{file}" for folder in ("", f"{TOKENIZER}/", f"{TRANSFORMER}/") for file in (CONFIG, WEIGHTS)]
TOKENIZER_FILES = [file for file in FILES if not file.startswith(TRANSFORMER)]  # as far as a tokenizer alone needs them

_REPOSITORY = re.compile(r"\w[\w.-]{0,94}/\w[\w.-]{0,94}", re.ASCII)


def is_repository(name: str) -> bool:
    """Return whether a name is a repository's, user/model, and not the path of something in a folder that exists."""
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).parent.exists()


def fetch_repository(repository: str, revision: str | None = None, files: Sequence[str] = tuple(FILES)) -> Path:
    """Return the folder in which the hub's client keeps these files of a repository, downloaded if need be.

    Args:
        repository: user/model.
        revision: branch, tag or commit; None: the newest state, or without a connection that of the last download.
        files: those that are downloaded of what the repository has.

    Raises InputError: no connection and no earlier download; no such repository or revision, or a private one; one
    without these files.
    """
    from huggingface_hub import snapshot_download

    try:
        with offline_if_unreachable(CONFIG, repository):
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*files]))
    except Exception as error:  # the HTTP library's errors, which differ by version
        raise _refusal(repository, error, f"model {repository!r} is no folder here") from error
    if not any((folder / file).is_file() for file in files):
        raise InputError(
            f"{repository} on the Hugging Face hub holds no model of this project: it has no {CONFIG} and {WEIGHTS}, "
            f"nor {TOKENIZER} and {TRANSFORMER} with them"
        )
    return folder


def download(file: str, repository: str) -> Path:
    """A file of the hub, where its client keeps it. Raises InputError: it could not be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with offline_if_unreachable(file, repository):
            return Path(hf_hub_download(repository, file))
    except Exception as error:  # the HTTP library's errors, which differ by version
        kind = UnreachableError if isinstance(error, LocalEntryNotFoundError) else InputError
        raise kind(f"{file} could not be downloaded ({type(error).__name__})") from error


def push_folder(
    folder: Path,
    repository: str,
    card: str,
    replace_card: bool = False,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Make a model's folder the state of a repository, in one commit, and return the address of the commit.

    Args:
        folder: what `save_model` or `save_pipeline` wrote. Files of that kind that the repository has beyond it are
            removed; all others stay.
        repository: user/model; made if there is none.
        card: text of README.md, written where the repository has none, or always with replace_card.
        private: of a repository that is made; None: as the user's account has it.
        token: of the hub; None: HF_TOKEN, or that of `hf auth login`.
        commit_message: None: a plain one.

    Raises InputError: no such name, no connection, no right to write there.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    failed = f"{repository!r} could not be pushed"
    try:
        if replace_card or not has_file(CARD, repository, token):
            (folder / CARD).write_text(card)
        hub = HfApi(token=token)
        hub.create_repo(repository, private=private, exist_ok=True)
        message = commit_message or "Push model"
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=[*FILES]
        )
    except UnreachableError as error:
        raise UnreachableError(f"{failed}: {error}") from error
    except Exception as error:  # the HTTP library's errors, which differ by version
        raise _refusal(repository, error, failed) from error
    return str(commit.commit_url)


def check_repository(name: object) -> None:
    """Raise InputError unless a repository can be called so."""
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        raise InputError(f"repository={name!r} must be user/model, of letters, digits, '-', '_' and '.'")


def _refusal(repository: str, error: Exception, failed: str) -> InputError:
    """Return what the user reads where the hub's client fails; `failed` says what was to be done."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    log_in = "set HF_TOKEN, or log in by `hf auth login`"
    if isinstance(error, LocalEntryNotFoundError):
        return UnreachableError(f"{failed}, and {describe_unreachable(error)}")
    if isinstance(error, GatedRepoError):
        return InputError(f"{failed}: {repository} is gated: accept its terms on the Hugging Face hub, and {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{failed}: {repository} on the Hugging Face hub has no such revision")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{failed}, and the Hugging Face hub shows no repository of that name: correct it; for a private one "
            f"{log_in}"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return InputError(f"{failed}: the Hugging Face hub does not allow it ({one_line(error)}): {log_in}")
    return InputError(f"{failed}: {type(error).__name__}, {one_line(error)}")
