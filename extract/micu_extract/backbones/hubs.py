"""Fetching weights: hubs, their caches, and what to type where there is no network.

A copy in the hub's cache is used without asking the hub. A hub name stands for the newest revision
that the cache has, or else the hub: a revision cannot be looked up without network. What pins a run
is the SHA-256 in its shards.
"""

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from micu.base.errors import WeightsError
from micu_extract.backbones.weights import (
    INDEX_SUFFIX,
    USUAL_NAMES,
    describe_shapes,
    first_line,
    read_index,
    read_state,
    refuse_misfits,
    refuse_not_finite,
    refuse_odd_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PROBE_S = 5.0
"""How long the hub may take to answer at all, s."""


def by_hand(command: str, take: str = "PATH", *, option: str = "--weights") -> str:
    """What to type where there is no network: to have weights by hand, or to do without.

    Args:
        command: Fetches them, on another machine.
        take: What stands for what was fetched.
        option: Which option takes it, and `random` as well.
    """
    return (
        f"On a machine with network type: {command}; copy it here and type {option} {take}. To try "
        f"things out without it type {option} random"
    )


def download(name: str | Path) -> str:
    """Command that fetches a repository of Hugging Face as a directory."""
    return f"hf download {name} --local-dir DIR"


def by_hand_folder(name: str | Path) -> str:
    """`by_hand` for a repository of Hugging Face whose directory `--weights` takes."""
    return by_hand(download(name), "DIR")


def from_hub(what: str, url: str, fetch: Callable[[bool], T], remedy: str) -> T:
    """Take something from a hub's cache, or from the hub unless `HF_HUB_OFFLINE` is set.

    The hub is probed once before its client is let loose, which would retry for most of a minute
    on a machine without network.

    Args:
        what: File or repository, for the message.
        url: Where it comes from.
        fetch: Called with True to look in the cache only, then with False to download. Raises
            where there is nothing.
        remedy: What to type where there is no network: see `by_hand`.

    Raises:
        WeightsError: It is in neither, or the cached copy is broken, or a package is missing.
    """
    from huggingface_hub import constants

    try:
        return fetch(True)
    except FileNotFoundError:
        cache = "not in the cache"
    except OSError as error:  # transformers says the same of files that are absent and unreadable
        cache = f"no usable copy in the cache ({first_line(error)})"
    except ImportError as error:
        raise WeightsError(f"{what}: a package is missing: {first_line(error)}") from error
    except Exception as error:
        raise WeightsError(
            f"{what}: the copy in the cache is broken ({type(error).__name__}: "
            f"{first_line(error)}); delete it from the cache and type the same command again"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"{what}: {cache}, and {url} is not asked, since HF_HUB_OFFLINE is set. {remedy}"
        )
    try:
        _probe(url)
        return fetch(False)
    except Exception as error:
        raise WeightsError(
            f"{what}: {cache}, and {url} did not give it ({first_line(error)}). {remedy}"
        ) from error


def _probe(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return  # it answered, that is all that is asked


def hub_file(repo: str, filenames: Sequence[str], remedy: str = "") -> Path:
    """The first of `filenames` that a Hugging Face repository has.

    Args:
        repo: Its name.
        filenames: The first one is fetched, if there is nothing.
        remedy: What to type where there is no network; by default, to fetch that file.

    Raises:
        WeightsError: It cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(local_files_only: bool) -> Path:
        for name in filenames:
            try:
                return Path(hf_hub_download(repo, name, local_files_only=local_files_only))
            except EntryNotFoundError:
                continue
        raise FileNotFoundError(f"{repo} has none of {', '.join(filenames)}")

    file = filenames[0]
    remedy = remedy or by_hand(f"hf download {repo} {file} --local-dir .")
    return from_hub(f"{repo}: {file}", constants.ENDPOINT, fetch, remedy)


def url_file(url: str, *, md5: str = "", remedy: str = "") -> Path:
    """A file on the web, from the cache of `torch.hub` where it is there, checked either way.

    Args:
        url: Where it is; unless `md5` is given, its name ends in the start of its SHA-256.
        md5: Of the file.
        remedy: What to type where there is no network; by default, to fetch this file.

    Raises:
        WeightsError: It cannot be had.
    """
    import torch

    name = url.rsplit("/", 1)[-1]

    def fetch(local_files_only: bool) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if not path.is_file():
            if local_files_only:
                raise FileNotFoundError(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            unchecked = path.with_name(f"{name}.unchecked")
            try:
                torch.hub.download_url_to_file(url, str(unchecked), progress=False)
                check_digest(unchecked, name, md5)
                unchecked.replace(path)
            finally:
                unchecked.unlink(missing_ok=True)
        check_digest(path, name, md5)
        return path

    return from_hub(name, url, fetch, remedy or by_hand(f"curl -LO {url}"))


def check_digest(path: Path, name: str, md5: str = "") -> None:
    """Check a file against its MD5, or else against the start of a SHA-256 that `name` ends in.

    Raises:
        ValueError: It is another file.
    """
    kind, expected = ("MD5", md5) if md5 else ("SHA-256", name.rsplit("-", 1)[-1].split(".")[0])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5" if md5 else "sha256").hexdigest()
    if not found.startswith(expected):
        raise ValueError(f"{name}: expected {kind} {expected}, got {found[: len(expected)]}")


def url_state(url: str, *, remedy: str = "") -> "dict[str, Tensor]":
    """The tensors of a file on the web, whose name ends in the start of its SHA-256.

    Args:
        url: Where it is.
        remedy: As of `url_file`.

    Raises:
        WeightsError: It cannot be had.
    """
    return read_state(url_file(url, remedy=remedy))


def from_transformers(loader: Any, name: str | Path, remedy: str = "", **settings: Any) -> Any:
    """`loader.from_pretrained` for a hub name or a directory, in cache before network.

    Args:
        loader: A class of transformers: a model, a configuration or a tokenizer.
        name: Hub name, or directory, which never asks the hub.
        remedy: What to type where there is no network; by default, to fetch the directory.
        **settings: Passed on.

    Raises:
        WeightsError: It cannot be had.
    """
    from huggingface_hub import constants

    def fetch(local_files_only: bool) -> Any:
        loaded = loader.from_pretrained(
            name, local_files_only=local_files_only, trust_remote_code=False, **settings
        )
        # Where only the configuration is there, a tokenizer is made that knows no word.
        if hasattr(loaded, "all_special_ids") and len(loaded) <= len(loaded.all_special_ids):
            raise FileNotFoundError(f"{name} has no vocabulary")
        return loaded

    if Path(name).is_dir():
        try:
            return fetch(True)
        except Exception as error:
            raise WeightsError(
                f"{name}: not a directory that {loader.__name__} can load: {first_line(error)}"
            ) from error
    return from_hub(str(name), constants.ENDPOINT, fetch, remedy or by_hand_folder(name))


def load_transformer(
    loader: Any,
    name: str | Path,
    unused: tuple[str, ...],
    prefix: str = "",
    remedy: str = "",
    *,
    leave_out: bool = False,
) -> Any:
    """Load a network of transformers in float32, with every tensor accounted for.

    Args:
        loader: Class of the network.
        name: Hub name or directory.
        unused: Starts of the names of tensors that may be missing or left over.
        prefix: What the names of the network's tensors may start with in a larger checkpoint.
        remedy: As of `from_transformers`.
        leave_out: Leave out whatever the checkpoint has beside the network, such as heads, and a
            pooler that it has not.

    Raises:
        WeightsError: It cannot be had, or does not fit.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    config = from_transformers(getattr(loader, "config_class", None) or AutoConfig, name, remedy)
    state = _transformer_state(name, remedy)
    if not hasattr(loader, "config_class"):  # one that stands for any, by the configuration
        with torch.device("meta"):
            loader = type(loader.from_config(config))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report lists every tensor of the towers left out
    try:
        # What is read is what was checked: the library opens no file of weights by itself.
        network, report = loader.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
            key_mapping={f"^{re.escape(prefix)}": ""} if prefix else None,
        )
    except Exception as error:
        raise WeightsError(
            f"{name}: not weights that {loader.__name__} can load: {first_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    refuse_misfits(
        str(name),
        [key for key in report["missing_keys"] if not key.startswith(unused)],
        [key for key in report["unexpected_keys"] if not (leave_out or key.startswith(unused))],
        [describe_shapes(*entry) for entry in report["mismatched_keys"]],
    )
    own, prefixes = network.state_dict(), (prefix, f"{network.base_model_prefix}.")
    left_out = {*report["unexpected_keys"]}
    used = {
        key: tensor
        for key, tensor in state.items()
        if key not in left_out
        and not any(key.removeprefix(start).startswith(unused) for start in ("", *prefixes))
    }
    refuse_odd_numbers(str(name), used, own, prefixes)
    refuse_not_finite(str(name), own)
    if leave_out and any(key.startswith("pooler.") for key in report["missing_keys"]):
        network.pooler = None  # what it would give is random
    return network


def _transformer_state(name: str | Path, remedy: str) -> "dict[str, Tensor]":
    """The tensors of a network of transformers, which may be spread over several files."""
    names = [file + part for file in USUAL_NAMES for part in ("", INDEX_SUFFIX)]
    folder = Path(name)
    if not folder.is_dir():
        path = hub_file(str(name), names, remedy or by_hand_folder(name))
    else:
        path = next((folder / file for file in names if (folder / file).is_file()), folder)
    if path.suffix != ".json":
        return read_state(path)
    state: dict[str, Tensor] = {}
    for file in read_index(path):
        is_here = folder.is_dir()
        state |= read_state(folder / file if is_here else hub_file(str(name), (file,), remedy))
    return state
