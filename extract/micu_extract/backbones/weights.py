"""What a backbone's weights are: a hub's, a file's or directory's, or drawn from a seed.

`--weights pretrained` asks the hub (see `micu_extract.backbones.hubs`), a path loads
`.safetensors`, or `.pth`, `.pt` and `.bin` without running any code that they may hold, and
`random` or `random:SEED` draws weights, which is good for trying things out and for nothing else.
Whatever way they came, every tensor that the network has must be there and none may be left over.

Weights are identified by the SHA-256 over the network's loaded tensors: for each, by sorted name,
the name, dtype, shape and little-endian bytes. It does not depend on the file format, on the file's
precision (networks are float32) or on heads that are not used.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from micu.base.errors import CheckpointError, WeightsError, brief
from micu.base.files import read_json
from micu.base.process import LAST_SEED
from micu.base.tensor_files import DamagedError, load_tensor_file

if TYPE_CHECKING:
    from torch import Tensor, nn

N = TypeVar("N", bound="nn.Module")

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
KNOWN = (".safetensors", *PICKLES)
"""Suffixes of files of tensors."""
INDEX_SUFFIX = ".index.json"
"""After a usual name: which of several files has which tensor."""
MAX_INDEX_BYTES = 16 * 2**20
"""Of names and shapes in one file."""
USUAL_NAMES = ("model.safetensors", "pytorch_model.bin")
ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
"""Of protocol 2 and later; `torch.save` writes no earlier one."""


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
        """Name of a local or random source: of the file or directory, without where it lies."""
        return f"random:{self.seed}" if self.kind == "random" else self.path.resolve().name


def parse_request(weights: str, backbone: str, demo_of: str = "") -> Request:
    """Read the value of `--weights`.

    Args:
        weights: What was typed.
        backbone: Whose, for messages.
        demo_of: Of a small variant, which has no published weights: the backbone that has.

    Raises:
        WeightsError: It is neither a known word nor a path that exists, or not random for a small
            variant.
    """
    word, _, seed = weights.partition(":")
    if demo_of and word != "random":
        raise WeightsError(
            f"weights of {backbone}: expected random, got {weights!r}; this small variant has no "
            f"published weights: type --weights random, or take --backbone {demo_of}"
        )
    if word == "random" and (seed.isdecimal() or weights == word):
        if len(seed) > len(str(LAST_SEED)) or int(seed or 0) > LAST_SEED:
            raise WeightsError(
                f"weights of {backbone}: expected random:SEED with a seed up to {LAST_SEED}, got "
                f"{brief(weights)!r}"
            )
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
    found = usual or sorted(p for p in path.glob("*") if p.suffix in KNOWN and p.is_file())
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

    path = find_weights_file(path)
    if path.suffix not in KNOWN:
        raise WeightsError(
            f"{path}: expected .safetensors, {', '.join(PICKLES)}, got {path.suffix!r}"
        )
    content = _read_content(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise WeightsError(f"{path}: expected tensors by name, got something else")
    return dict(content)


def _read_content(path: Path) -> Any:
    """What a file holds; messages of the readers are not passed on, they tell how to run code."""
    from safetensors.torch import load_file

    try:
        _check_start(path)
        if path.suffix == ".safetensors":
            _check_header(path)
            return load_file(path)
        return load_tensor_file(path, repeats=True)[0]
    except WeightsError:
        raise
    except DamagedError as error:
        why = brief(str(error).removeprefix(f"{path}: "), 300)
        raise WeightsError(
            f"{path}: cannot be read as weights: {why}; if it is damaged or cut off, fetch it again"
        ) from error
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, and loading it could run code; refused. Save its "
            "state_dict alone, best as .safetensors; if it should hold nothing else, the file is "
            "damaged: fetch it again"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read as weights: {first_line(error)}") from error
    except Exception as error:  # a pickle that is not what it says can raise anything
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}); if it is damaged or cut "
            "off, fetch it again"
        ) from error


def read_index(path: Path) -> list[str]:
    """The files that the index of a network in several files names; they lie beside it.

    Raises:
        WeightsError: It is no such index.
    """
    try:
        places = read_json(path, MAX_INDEX_BYTES)["weight_map"].values()
        names = sorted({str(name) for name in places})
        if not all(Path(name).name == name and Path(name).suffix in KNOWN for name in names):
            raise ValueError("files that do not lie beside it")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected the names of files of weights, got {brief(error)}; fetch it again"
        ) from error
    return names


def _check_header(path: Path) -> None:
    """Refuse a safetensors header that is larger than any network's."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_INDEX_BYTES, path.stat().st_size - 8):
        raise WeightsError(
            f"{path}: expected a header of at most {MAX_INDEX_BYTES} bytes that the file holds, "
            f"got {length}; if it is damaged or cut off, fetch it again"
        )


def _check_start(path: Path) -> None:
    """Refuse a file that cannot be weights, whatever it is called, and say what it looks like.

    Raises:
        WeightsError: It begins otherwise than its format does.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if path.suffix == ".safetensors":
        fits = start[8:9] == b"{"  # after the header's length
    else:
        fits = start.startswith((ZIP_START, PICKLE_START))
    if not fits:
        raise WeightsError(f"{path}: not a checkpoint: {_describe_start(start)}")


def _describe_start(start: bytes) -> str:
    if not start:
        return "it is empty; fetch it again"
    if not any(start):
        return "it begins with zeros; it was not written whole, fetch it again"
    line = start.decode("ascii", "backslashreplace").strip().partition("\n")[0]
    begins = f"it begins with {line[:32].strip()!r}"
    if line.startswith("<"):
        return f"{begins}; the download gave a web page"
    if line.startswith("version https://git-lfs"):
        return f"{begins}; it is a pointer of git-lfs: type git lfs pull where it was cloned"
    return begins


def without(state: "Mapping[str, Tensor]", prefixes: tuple[str, ...]) -> "dict[str, Tensor]":
    """The tensors whose names start with none of `prefixes`."""
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def load_strictly(
    network: "nn.Module",
    state: "Mapping[str, Tensor]",
    where: str,
    told: Callable[[str], str] = str,
) -> None:
    """Load every tensor of a network, no more and no less, and all of them finite numbers.

    Args:
        network: Written to.
        state: Tensors by the network's names.
        where: Which file, for messages.
        told: From the network's name of a tensor to that in the file.

    Raises:
        WeightsError: A name is missing or left over, a shape or a kind of number differs, or a
            number is not finite.
    """
    own = network.state_dict()
    wrong = [
        describe_shapes(name, state[name].shape, own[name].shape)
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    refuse_misfits(where, own.keys() - state.keys(), state.keys() - own.keys(), wrong)
    refuse_odd_numbers(where, state, own, told=told)
    network.load_state_dict(state, strict=True)
    refuse_not_finite(where, network.state_dict(), told)


def describe_shapes(name: str, got: Iterable[int], want: Iterable[int]) -> str:
    """What to say of a tensor of another shape."""
    return f"{name} {tuple(got)} instead of {tuple(want)}"


def refuse_odd_numbers(
    where: str,
    state: "Mapping[str, Tensor]",
    own: "Mapping[str, Tensor]",
    prefixes: tuple[str, ...] = (),
    told: Callable[[str], str] = str,
) -> None:
    """Refuse tensors that would be cast in silence, or cannot be cast at all.

    Half precision is cast to the network's: it is what weights are published in.

    Args:
        where: Which file, for messages.
        state: Tensors of the file.
        own: Those of the network.
        prefixes: What names may start with in the file, and not in the network.
        told: From a name in `state` to that in the file.

    Raises:
        WeightsError: A tensor holds integers, booleans or complex numbers where the network has
            floating point ones, or the other way round; or is no plain array.
    """
    import torch

    odd = []
    for name, got in state.items():
        names = [name, *(name.removeprefix(prefix) for prefix in prefixes if prefix)]
        want = next((own[other] for other in names if other in own), None)
        plain = got.layout == torch.strided and got.device.type == "cpu" and not got.is_quantized
        if not plain:
            odd.append(f"{told(name)} is no plain array")
        elif _kind(got) != ("floating point" if want is None else _kind(want)):
            expected = "floating point numbers" if want is None else want.dtype
            odd.append(f"{told(name)}: expected {expected}, got {got.dtype}")
    if odd:
        raise WeightsError(
            f"{where}: {_some(odd)}; expected the network's own kind of numbers: take the "
            "published file"
        )


def _kind(tensor: "Tensor") -> str:
    import torch

    if tensor.is_floating_point():
        return "floating point"
    if tensor.is_complex():
        return "complex"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def refuse_not_finite(
    where: str, own: "Mapping[str, Tensor]", told: Callable[[str], str] = str
) -> None:
    """Refuse NaN and infinity in what a network has loaded.

    Args:
        where: Which file, for messages.
        own: Tensors of the network.
        told: From a name in the network to that in the file.

    Raises:
        WeightsError: There are such; some of their tensors are named.
    """
    from micu.base.tensors import is_finite

    bad = [told(name) for name, tensor in own.items() if not is_finite(tensor)]
    if bad:
        raise WeightsError(
            f"{where}: {_some(bad)}: expected finite numbers, got NaN or infinity; the file is "
            "damaged or its training had failed: fetch it again, or take another"
        )


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
    ordered = sorted(map(brief, names))
    more = f" and {len(ordered) - show} more" if len(ordered) > show else ""
    return ", ".join(ordered[:show]) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
