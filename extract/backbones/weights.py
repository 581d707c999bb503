"""Where a backbone's weights come from: a hub, a file or directory, or a seed.

`--weights pretrained` asks the hub (a copy in the hub's cache is used without asking), a path loads
`.safetensors`, or `.pth`, `.pt` and `.bin` without running any code that they may hold, and
`random` or `random:SEED` draws weights, which is good for trying things out and for nothing else.
Whatever way they came, every tensor that the network has must be there and none may be left over.

Weights are identified by the SHA-256 over the network's loaded tensors: for each, by sorted name,
the name, dtype, shape and little-endian bytes. It does not depend on the file format, on the file's
precision (networks are float32) or on heads that are not used.

A hub name stands for the newest revision that the cache has, or else the hub: a revision cannot be
looked up without network. What pins a run is the SHA-256 in its shards.
"""

import hashlib
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from micu.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
N = TypeVar("N", bound="nn.Module")

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
USUAL_NAMES = ("model.safetensors", "pytorch_model.bin")
PROBE_S = 5.0
"""How long the hub may take to answer at all, s."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What is loaded."""

    source: str
    """A hub name, the name of a file or directory (without where it lies), or `random:SEED`."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for with `--weights`."""

    kind: Literal["pretrained", "local", "random"]
    path: Path = Path()
    """Of `local`."""
    seed: int = 0
    """Of `random`."""

    @property
    def source(self) -> str:
        """Name of a local or random source."""
        return f"random:{self.seed}" if self.kind == "random" else self.path.resolve().name


def parse_request(weights: str, backbone: str) -> Request:
    """Read the value of `--weights`.

    Raises:
        WeightsError: It is neither a known word nor a path that exists.
    """
    word, _, seed = weights.partition(":")
    if word == "random" and (seed.isdecimal() or weights == word):
        return Request("random", seed=int(seed or 0))
    if weights == "pretrained":
        return Request("pretrained")
    path = Path(weights)
    if not path.exists():
        raise WeightsError(
            f"weights of {backbone}: expected pretrained, random, random:SEED or a path that "
            f"exists, got {weights!r}"
        )
    return Request("local", path=path)


def parse_demo_request(weights: str, backbone: str, real: str) -> Request:
    """Read the value of `--weights` for a small variant, which has no published weights.

    Raises:
        WeightsError: It is not `random` or `random:SEED`.
    """
    request = parse_request(weights, backbone)
    if request.kind != "random":
        raise WeightsError(
            f"weights of {backbone}: expected random, got {weights!r}; this small variant has no "
            f"published weights: type --weights random, or take --backbone {real}"
        )
    return request


def seeded(build: Callable[[], N], seed: int) -> N:
    """Build a network with weights drawn from `seed`; the global random state stays as it is."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def tensors_sha256(network: "nn.Module") -> str:
    """SHA-256 over a network's tensors; see the module's docstring for what is hashed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


# --- local files -----------------------------------------------------------------------------


def find_weights_file(path: Path) -> Path:
    """The file with the weights: `path` itself, or the one in that directory.

    Raises:
        WeightsError: There is none, or more than one could be meant.
    """
    if path.is_file():
        return path
    usual = [path / name for name in USUAL_NAMES if (path / name).is_file()]
    found = usual or sorted(p for p in path.glob("*") if p.suffix in (".safetensors", *PICKLES))
    if not found or (len(found) > 1 and not usual):
        names = ", ".join(p.name for p in found) or "none"
        raise WeightsError(
            f"{path}: expected one file of weights, got {names}; type the path of the file"
        )
    return found[0]


def read_state(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a file, by name.

    A checkpoint that wraps them as `state_dict` or `model` is unwrapped.

    Raises:
        WeightsError: The file is not one of tensors by name, or holds objects that only code
            could rebuild.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find_weights_file(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif path.suffix in PICKLES:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsError(
                f"{path}: expected .safetensors, {', '.join(PICKLES)}, got {path.suffix!r}"
            )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, and loading it could run code; refused. Save its "
            f"state_dict alone, best as .safetensors ({_first_line(error)})"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as weights: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise WeightsError(f"{path}: expected tensors by name, got something else")
    return dict(content)


def without(state: "Mapping[str, Tensor]", prefixes: tuple[str, ...]) -> "dict[str, Tensor]":
    """The tensors whose names start with none of `prefixes`."""
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def load_strictly(network: "nn.Module", state: "Mapping[str, Tensor]", where: str) -> None:
    """Load every tensor of a network, no more and no less.

    Raises:
        WeightsError: A name is missing or left over, or a shape differs.
    """
    own = network.state_dict()
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    refuse_misfits(where, own.keys() - state.keys(), state.keys() - own.keys(), wrong)
    network.load_state_dict(state, strict=True)


def refuse_misfits(
    where: str, missing: Iterable[str], extra: Iterable[str], wrong: Iterable[str] = ()
) -> None:
    """Raise one error that names some of what does not fit.

    Raises:
        WeightsError: Any of the three holds something.
    """
    kinds = {"missing": missing, "not expected": extra, "of another shape": wrong}
    parts = [f"{_some(names)} {kind}" for kind, names in kinds.items() if list(names)]
    if parts:
        raise WeightsError(f"{where}: not the weights of this network: {'; '.join(parts)}")


def _some(names: Iterable[str], show: int = 3) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - show} more" if len(ordered) > show else ""
    return ", ".join(ordered[:show]) + more


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0][:200]


# --- hubs ------------------------------------------------------------------------------------


def from_hub(what: str, url: str, fetch: Callable[[bool], T], remedy: str) -> T:
    """Take something from a hub's cache, or from the hub.

    The hub is probed once before its client is let loose, which would retry for most of a minute
    on a machine without network.

    Args:
        what: File or repository, for the message.
        url: Where it comes from.
        fetch: Called with True to look in the cache only, then with False to download. Raises
            where there is nothing.
        remedy: What to type to have it by hand.

    Raises:
        WeightsError: It is in neither, or the cached copy is broken, or a package is missing.
    """
    try:
        return fetch(True)
    except FileNotFoundError:
        cache = "not in the cache"
    except OSError as error:  # transformers says the same of files that are absent and unreadable
        cache = f"no usable copy in the cache ({_first_line(error)})"
    except ImportError as error:
        raise WeightsError(f"{what}: a package is missing: {_first_line(error)}") from error
    except Exception as error:
        raise WeightsError(
            f"{what}: the copy in the cache is broken ({type(error).__name__}: "
            f"{_first_line(error)}); delete it from the cache and type the same command again"
        ) from error
    try:
        _probe(url)
        return fetch(False)
    except Exception as error:
        raise WeightsError(
            f"{what}: {cache}, and {url} did not give it ({_first_line(error)}). On a "
            f"machine with network type: {remedy}; copy it here and type --weights PATH. To try "
            "things out without it type --weights random"
        ) from error


def _probe(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return  # it answered, that is all that is asked


def hub_state(repo: str, filenames: Sequence[str]) -> "dict[str, Tensor]":
    """The tensors of the first of `filenames` that a Hugging Face repository has.

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

    return read_state(from_hub(repo, constants.ENDPOINT, fetch, f"hf download {repo}"))


def url_state(url: str) -> "dict[str, Tensor]":
    """The tensors of a file on the web, whose name ends in the start of its SHA-256.

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
            prefix = name.rsplit("-", 1)[-1].split(".")[0]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        return path

    return read_state(from_hub(name, url, fetch, f"curl -LO {url}"))


def from_transformers(loader: Any, name: str | Path, **settings: Any) -> Any:
    """`loader.from_pretrained` for a hub name or a directory, in cache before network.

    Args:
        loader: A class of transformers: a model, a configuration or a tokenizer.
        name: Hub name, or directory, which never asks the hub.
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
                f"{name}: not a directory that {loader.__name__} can load: {_first_line(error)}"
            ) from error
    return from_hub(str(name), constants.ENDPOINT, fetch, f"hf download {name}")


def load_transformer(
    loader: Any,
    name: str | Path,
    unused: tuple[str, ...],
    prefix: str = "",
) -> Any:
    """Load a network of transformers in float32, with every tensor accounted for.

    Args:
        loader: Class of the network.
        name: Hub name or directory.
        unused: Starts of the names of tensors that may be missing or left over.
        prefix: What the names of the network's tensors may start with in a larger checkpoint.

    Raises:
        WeightsError: It cannot be had, or does not fit.
    """
    import torch
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report lists every tensor of the towers left out
    try:
        network, report = from_transformers(
            loader,
            name,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping={f"^{re.escape(prefix)}": ""} if prefix else None,
        )
    finally:
        logging.set_verbosity(verbosity)
    refuse_misfits(
        str(name),
        [key for key in report["missing_keys"] if not key.startswith(unused)],
        [key for key in report["unexpected_keys"] if not key.startswith(unused)],
        [str(entry[0]) for entry in report["mismatched_keys"]],
    )
    return network
