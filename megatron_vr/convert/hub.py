"""Upload a Hugging Face folder to a repository of the hub, in one commit. Knows nothing of runs."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_vr.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"

# A model's weights are safetensors, and it has no code; these are of other formats or a training's.
_FOREIGN = (
    *("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.distcp"),
    *("*.npy", "*.npz", "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.so", "*.py", "*.pyc"),
    *("*.safetensors", "optimizer*", "scheduler*", "rng_state*", "trainer_state.json"),
)
_FOLDERS = ("additional_chat_templates",)
_LEFT_OUT = (".*", "*.tmp")
_ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a valid token",
    403: "use a token that may write there, or another ORG/NAME",
    404: "check ORG/NAME, and that the token may see it",
    409: "it exists, but the token may not see it: use another token, or another ORG/NAME",
    412: "it changed meanwhile: run the same command again",
}


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool,
    extra: Mapping[str, bytes],
    message: str,
    endpoint: str | None = None,
) -> str:
    """Upload the model in `folder` to the repository `repo`; returns the address of the commit.

    One commit holds the files of the folder and of `extra` (name → content, which takes the place
    of a file of that name), and removes weights of an earlier model that are no part of this one.
    A repository that is missing is made, private or public as asked; an existing one keeps its
    visibility. `endpoint` is the hub's address, by default HF_ENDPOINT or the hub's own.

    Raises SettingsError, before anything is sent, for a bad name and without a token, and where
    the repository exists with another visibility than asked; CheckpointError for a folder that is
    not a finished model, and when the hub refuses or cannot be reached: then there is no commit,
    or (when its answer got lost) a whole one.
    """
    check_repo(repo)
    contents: dict[str, Path | bytes] = {**model_files(folder), **extra}
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = _api(endpoint)
    with _explained(f"pushing to {repo}"):
        name = _full_name(api, repo)
        before = _open_repo(api, name, private)
        stale = [file for file in _names(before) if _is_weights(file) and file not in contents]
        operations = [
            *(CommitOperationAdd(file, content) for file, content in contents.items()),
            *(CommitOperationDelete(file) for file in stale),
        ]
        commit = api.create_commit(
            name, operations, commit_message=message, parent_commit=before.sha
        )
        missing = contents.keys() - _names(api.model_info(name, revision=commit.oid))
    if missing:
        raise CheckpointError(
            f"{name} did not take {', '.join(sorted(missing))}: its .gitignore may exclude them; "
            "correct it and run the same command again"
        )
    return str(commit.commit_url)


def check_repo(repo: str) -> None:
    """Raise SettingsError unless `repo` is `org/name` or `name` and there is a token; offline."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingsError(
            f"{repo!r} is no name of a repository: {_one_line(error)} Give ORG/NAME, or NAME alone "
            "for one of your own"
        ) from None
    _token()


def full_name(repo: str, *, endpoint: str | None = None) -> str:
    """`org/name` of `repo`, the token's own user standing in for a missing org.

    Raises as `push_folder` does.
    """
    check_repo(repo)
    with _explained(f"looking up the owner of {repo}"):
        return _full_name(_api(endpoint), repo)


def model_metadata(repo: str, *, endpoint: str | None = None) -> dict[str, Any]:
    """The front matter of the model card of `repo`; empty where it has none.

    Raises CheckpointError when the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(f"reading the model card of {repo}"):
        card = HfApi(endpoint=endpoint).model_info(repo).card_data
    return dict(card.to_dict()) if card is not None else {}


def model_files(folder: Path) -> dict[str, Path]:
    """Name → file of the finished model in `folder`; hidden files and *.tmp are left out.

    Raises CheckpointError without config.json or whole safetensors weights, and for anything else
    that is no part of a model: a folder, a link, a pickle, an optimizer's state.
    """
    from megatron_vr.convert.hf_reader import HFWeights

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a finished model: it has no config.json")
    weights = {path.name for path in HFWeights(folder).files}
    found = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        foreign = name not in weights and _matches(path, _FOREIGN)
        if foreign or path.is_symlink() or not path.is_file():
            raise CheckpointError(
                f"{path} is no part of a model, so nothing is uploaded; move it elsewhere"
            )
        found[name] = path
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """What is to be uploaded, and what stands in the way."""
    for path in sorted(folder.iterdir()):
        if path.name in _FOLDERS and path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif not _matches(path, _LEFT_OUT):
            yield path


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name.lower(), pattern) for pattern in patterns)


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise SettingsError(
            "there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN"
        )
    return str(token)


def _api(endpoint: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=_token())


def _full_name(api: HfApi, repo: str) -> str:
    # The hub has old repositories without an owner: a bare name would find those.
    return repo if "/" in repo else f"{api.whoami()['name']}/{repo}"


def _open_repo(api: HfApi, repo: str, private: bool) -> Any:
    """What is known of `repo`, which is made where it is missing."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError) or error.response.status_code != 404:
            raise
        api.create_repo(repo, private=private, repo_type="model")
        info = api.model_info(repo)
    if info.private and not private:
        raise SettingsError(
            f"{repo} is private, and a push never changes that: leave out --public, or make it "
            "public on the hub first"
        )
    if private and not info.private:
        raise SettingsError(
            f"{repo} is public, and a push is private by default: pass --public to put the model "
            "where everyone can read it, or choose another ORG/NAME"
        )
    return info


def _names(info: Any) -> list[str]:
    return [file.rfilename for file in info.siblings or ()]


def _is_weights(file: str) -> bool:
    return "/" not in file and file.endswith((".safetensors", ".safetensors.index.json"))


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """What the hub's client raises, as a CheckpointError of one line."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the errors of the HTTP library, which differs between the client's versions.
    failures = (*HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError)
    try:
        yield
    except failures as error:
        # Uploads of large files fail as a RuntimeError that hides why.
        hidden = error.__cause__ if isinstance(error, RuntimeError) else None
        raise CheckpointError(f"{doing} failed: {_why(hidden or error)}") from error


def _why(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = _one_line(error.server_message or http.client.responses.get(status, ""))
        return f"HTTP {status}: {said}; {_ADVICE.get(status, 'run the same command again later')}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    said = _one_line(error).rstrip(".") or type(error).__name__
    return f"{said}; run the same command again when that is mended"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
