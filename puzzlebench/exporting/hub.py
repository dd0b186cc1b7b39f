"""Uploading an exported folder to the Hugging Face Hub. Knows no formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puzzlebench.errors import first_line

_LOGIN = "log in with `hf auth login` or set HF_TOKEN to a token that may write"


def check_repo(repo: str) -> None:
    """Raise ValueError, before the work, for what cannot be uploaded after it: a wrong name, or no token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be a repository of the Hub: {first_line(error)}") from None
    if get_token() is None:
        raise ValueError(f"there is no token of the Hub to push to {repo} with; {_LOGIN}")


def push_folder(folder: Path, repo: str, *, private: bool = False, message: str, api: Any = None) -> str:
    """Make the repository where there is none, and commit the folder's files to it; its address comes back.

    Args:
        private: of a repository that is made; one that exists keeps what it is.
        api: an HfApi; by default one with the token of this machine.

    Raises:
        ValueError: there is no token or it may not write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = api or HfApi()
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type="model", folder_path=str(folder), commit_message=message)
    except LocalTokenNotFoundError:
        reason = f"there is no token; {_LOGIN}"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE forbids it"
    except Exception as error:  # the HTTP client's errors differ by version of huggingface_hub
        reason = _reason(error)
    else:
        return str(url)
    raise ValueError(f"{folder} is written, but pushing it to {repo} failed: {reason}")


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the Hub does not know the token; {_LOGIN}"
    if status == 403:
        return f"the token may not write there; {_LOGIN}, or give a repository of your own"
    if status is not None:
        return f"the Hub answered {status}: {first_line(error)}"
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or names & {"ConnectError", "TransportError"}:
        return f"the Hub cannot be reached ({first_line(error)})"
    return first_line(error)
