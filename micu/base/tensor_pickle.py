"""The pickle in a file that torch wrote: its opcodes are followed, and none of its objects made.

Of every tensor it is known at the end that its storage is as large as the tensor takes it to be,
and of everything else how deep it is nested, and that it does not hold itself over and over.
"""

import math
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from micu.base.errors import CheckpointError, brief

MAX_OPCODES = 500_000
"""In the pickles of one file, and objects in them, shared ones counted wherever they are."""
MAX_DEPTH = 100
"""Containers within containers."""
MAX_DIMS = 64
"""Of a tensor; torch computes with no more."""
MAX_SHARING = 8
"""How many times its size the tensors of a file may claim, since several may share a storage."""
MAX_REPEATED_BYTES = 2**30
"""What they may claim at least, where tensors may repeat the numbers of a smaller storage."""

_ITEM_BYTES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "QInt8": 1,
    "QUInt8": 1,
    "QInt32": 4,
    "QUInt4x2": 1,
    "QUInt2x4": 1,
    "Untyped": 1,
}
"""Of a storage by its class, `Storage` left out."""
_STORAGE = re.compile(r"torch(?:\.cuda|\.storage)? (\w+)Storage")
_TENSOR = re.compile(
    r"torch(?:\.cuda)? (?:Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Tensor"
)
_PLAIN = re.compile(
    r"torch (?:u?int\d+|float\d+\w*|b?complex\d+|bfloat16|bool|bits\w+|qu?int\w+|per_\w+)"
    r"|torch Tensor"
)
"""Types of numbers and the like: nothing that is called."""
_PARAMETER = "torch.nn.parameter Parameter"
_REBUILD = "torch._utils _rebuild_"
_ODD = {
    f"{_REBUILD}sparse_tensor": "sparse",
    f"{_REBUILD}qtensor": "quantized",
    f"{_REBUILD}meta_tensor_no_storage": "without data (meta)",
    f"{_REBUILD}nested_tensor": "nested",
    f"{_REBUILD}tensor_v3": "of a type of number that is not read",
    f"{_REBUILD}wrapper_subclass": "of a class of its own",
    f"{_REBUILD}device_tensor_from_numpy": "of another device",
    f"{_REBUILD}device_tensor_from_cpu_tensor": "of another device",
}
"""What makes tensors that are not plain arrays, and what is said of them."""
_CALLED = {
    "collections OrderedDict": "dict",
    "collections Counter": "dict",
    "builtins set": "set",
    "builtins complex": "number",
    "torch device": "device",
    "torch.serialization _get_layout": "layout",
}
"""What else is called, and what comes out; none takes more memory than its arguments."""
_ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_LEAF = object()


@dataclass(slots=True, eq=False)
class _Node:
    """What a pickle would make: a container and what it holds."""

    kind: str
    items: list[Any] = field(default_factory=list)
    """Of `dict` keys and values in turn."""
    flaw: str = ""
    """Why a tensor is refused."""


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that a pickle asks for."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers that tensors are views of."""

    numel: int
    item_bytes: int


class PickleWalk:
    """Follows pickles without making their objects.

    Args:
        where: For messages.
        size: Of the file, bytes.
        arrays: Let arrays of NumPy through.
        repeats: Let tensors be larger than their storage, the same numbers over and over.

    Attributes:
        record_sizes: Bytes of each storage by key, where the file says so apart; to be set.
        claimed: Bytes that each storage is said to have, by key.
    """

    def __init__(  # noqa: D107
        self,
        where: str,
        size: int,
        *,
        arrays: bool = False,
        repeats: bool = False,
    ) -> None:
        self._where = where
        self._left = max(MAX_SHARING * size, MAX_REPEATED_BYTES if repeats else 0)
        self._size = size
        self._arrays = arrays
        self._repeats = repeats
        self.record_sizes: Mapping[str, int] | None = None
        self._opcodes = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self.claimed: dict[object, int] = {}

    def follow(self, stream: BinaryIO) -> Any:
        """What one pickle would make: numbers, texts, and `_Node`s.

        Raises:
            CheckpointError: It has too many opcodes, or a tensor claims more than is there.
            pickle.UnpicklingError: It has opcodes or names that tensors have no need of.
            ValueError: It is cut off or damaged; or `LookupError`, `TypeError`.
        """
        self._stack, self._marks = [], []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._opcodes += 1
            if self._opcodes > MAX_OPCODES:
                raise CheckpointError(
                    f"{self._where}: expected at most {MAX_OPCODES} steps to its content, got "
                    "more; refused"
                )
            if opcode.name in ("BINPUT", "LONG_BINPUT"):
                memo[argument or 0] = self._stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                self._stack.append(memo[argument or 0])
            elif opcode.name == "STOP":
                break
            else:
                self._take(opcode.name, argument)
        return self._stack.pop()

    def _take(self, opcode: str, argument: Any) -> None:
        """One opcode, of those that torch reads."""
        stack = self._stack
        match opcode:
            case "PROTO":
                if argument != 2:
                    raise pickle.UnpicklingError(f"protocol {argument}")
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINFLOAT" | "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_LEAF if argument is not None else None)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_Node(opcode.removeprefix("EMPTY_").lower()))
            case "TUPLE":
                self._to_mark("tuple")
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                items = stack[-count:]
                if len(items) < count:
                    raise ValueError("expected more before a tuple")
                stack[-count:] = [_Node("tuple", items)]
            case "APPEND" | "SETITEM":
                count = 1 if opcode == "APPEND" else 2
                items = [stack.pop() for _ in range(count)][::-1]
                self._extend("list" if count == 1 else "dict", items)
            case "APPENDS" | "SETITEMS":
                items = self._pop_mark()
                self._extend("list" if opcode == "APPENDS" else "dict", items)
            case "GLOBAL":
                stack.append(self._find(argument))
            case "BINPERSID":
                stack.append(self._find_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._call(called, _items(arguments, "tuple")))
            case "BUILD":
                self._build(stack.pop())
            case _:
                raise pickle.UnpicklingError(f"opcode {opcode}")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _to_mark(self, kind: str) -> None:
        items = self._pop_mark()
        self._stack.append(_Node(kind, items))

    def _extend(self, kind: str, items: list[Any]) -> None:
        target = self._stack[-1]
        if kind == "dict":
            if len(items) % 2:
                raise ValueError("a key without a value")
            self._check_keys(items[::2])
        _items(target, kind).extend(items)

    def _check_keys(self, keys: Sequence[Any]) -> None:
        """Refuse keys that may take for ever to hash, or are chosen to have all the same hash."""
        for key in keys:
            if isinstance(key, _Node) or (type(key) is int and key.bit_length() > 63):
                raise CheckpointError(
                    f"{self._where}: expected names as keys, got containers or huge numbers; "
                    "refused"
                )

    def _find(self, name: str) -> _Global:
        """A name that the pickle asks for, if it may have it."""
        name = re.sub("^__builtin__ ", "builtins ", name)
        known = (
            name in _CALLED
            or name in _ODD
            or name.startswith(_REBUILD)
            or name in ("_codecs encode", "builtins bytearray", "torch Size", _PARAMETER)
            or name == "torch._tensor _rebuild_from_type_v2"
            or _PLAIN.fullmatch(name)
            or _TENSOR.fullmatch(name)
            or _STORAGE.fullmatch(name)
            or (self._arrays and name in (*_ARRAYS, "numpy ndarray", "numpy dtype"))
        )
        if not known:
            raise pickle.UnpicklingError(f"asks for {brief(name)}")
        return _Global(name)

    def _find_storage(self, asked: Any) -> _Storage:
        """The storage that a persistent id stands for."""
        parts = _items(asked, "tuple")
        kind, storage_class, key, _, numel, *more = parts
        match_ = _STORAGE.fullmatch(getattr(storage_class, "name", ""))
        item_bytes = _ITEM_BYTES.get(match_[1]) if match_ else None
        if kind != "storage" or item_bytes is None or type(key) not in (str, int):
            raise pickle.UnpicklingError("asks for something that is no storage")
        if len(parts) != (6 if self.record_sizes is None else 5):
            raise ValueError("a storage of another layout")
        claimed = _count(numel) * item_bytes
        known = self.claimed.setdefault(key, claimed)
        if self.record_sizes is not None:
            known = self.record_sizes.get(str(key), -1)
        if claimed != known or claimed > self._size:
            raise CheckpointError(
                f"{self._where}: a storage claims {claimed} bytes, more than is there or than it "
                "has; refused"
            )
        if more and more[0] is not None:
            _, offset, view = _items(more[0], "tuple")
            if _count(offset) + _count(view) > numel:
                raise self._overclaims((view,))
            numel = view
        return _Storage(numel, item_bytes)

    # --- what is called ----------------------------------------------------------------------

    def _call(self, called: Any, given: list[Any]) -> Any:
        """What a function of torch's makes of its arguments."""
        name = called.name if isinstance(called, _Global) else ""
        if name in _ODD:
            return _Node("tensor", given, _ODD[name])
        if name in (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2"):
            return self._tensor(*given[:4], rest=given[4:])
        if name in (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state", _PARAMETER):
            return _Node("tensor", [_node(given[0], "tensor"), *given[1:]])
        if name == "torch._tensor _rebuild_from_type_v2":
            inner, kind, arguments, state = given
            if kind not in (_Global("torch Tensor"), _Global(_PARAMETER)):
                return _Node("tensor", given, "of a class of its own")
            return _Node("tensor", [self._call(inner, _items(arguments, "tuple")), state])
        if name in _CALLED:
            return self._call_plain(_CALLED[name], given)
        if name == "torch Size":
            return _Node("tuple", _items(given[0], "tuple"))
        if name in ("_codecs encode", "builtins bytearray") and isinstance(given[0], str):
            return given[0]
        if _TENSOR.fullmatch(name) and not given:
            return _Node("bare tensor")
        if self._arrays and name in _ARRAYS:
            kind, shape, _ = given
            if kind == _Global("numpy ndarray") and _items(shape, "tuple") == [0]:
                return _Node("array")
        if self._arrays and name == "numpy dtype" and given[0] in ("f4", "f8", "<f4", "<f8"):
            return _Node("array")
        raise pickle.UnpicklingError(f"calls {brief(name) or 'what is no function'}")

    def _call_plain(self, kind: str, given: list[Any]) -> Any:
        if kind == "set":
            self._check_keys(_items(given[0], "list") if given else [])
        if kind != "dict":
            return _Node(kind, given)
        node = _Node("dict")
        if given:  # pairs, or another dictionary
            pairs = given[0]
            if isinstance(pairs, _Node) and pairs.kind == "dict":
                node.items.extend(pairs.items)
            else:
                for pair in _items(pairs, "list"):
                    key, value = pair.items
                    self._check_keys([key])
                    node.items += [key, value]
        return node

    def _build(self, state: Any) -> None:
        """Give the object on top of the stack its state."""
        target = self._stack[-1]
        if not isinstance(target, _Node) or target.kind not in ("dict", "bare tensor", "array"):
            raise pickle.UnpicklingError("gives a state to what has none")
        if target.kind == "bare tensor":
            made = self._tensor(*_items(state, "tuple"), rest=[])
            target.kind, target.items, target.flaw = made.kind, made.items, made.flaw
        else:  # of a dictionary, what is known beside its entries; it has no name
            target.items += [None, state]

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *, rest: list[Any]
    ) -> _Node:
        """A view of a storage, if that is as large as the view takes it to be."""
        sizes = [_count(length) for length in _items(size, "tuple")]
        strides = [_count(step) for step in _items(stride, "tuple")]
        if not isinstance(storage, _Storage) or len(sizes) != len(strides):
            raise ValueError("a tensor of no storage")
        if len(sizes) > MAX_DIMS:
            raise self._overclaims(sizes)
        numel = math.prod(sizes)
        last = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if numel else -1
        repeats = numel > storage.numel and not self._repeats
        if _count(offset) + last >= storage.numel or repeats:
            raise self._overclaims(sizes)
        self._left -= numel * storage.item_bytes
        if self._left < 0:
            raise self._overclaims(sizes)
        return _Node("tensor", rest)

    def _overclaims(self, shape: Sequence[int]) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: holds tensors that claim more than is there, one of shape "
            f"{brief(tuple(shape))}; refused"
        )

    # --- the whole ---------------------------------------------------------------------------

    def check_tree(self, root: Any) -> None:
        """Refuse what is nested too deep, holds itself, or holds the same thing again and again.

        Raises:
            CheckpointError: It does, or one of its tensors is no plain array.
        """
        root = _Node("list", [root])
        # Every node once, those that it holds first; what it weighs counts them wherever they are.
        measured: dict[int, tuple[int, int]] = {}
        open_: dict[int, str] = {id(root): ""}
        waiting: list[tuple[_Node, Iterator[tuple[str, _Node]]]] = [(root, _held(root))]
        while waiting:
            node, rest = waiting[-1]
            step = next(rest, None)
            if step is None:
                waiting.pop()
                del open_[id(node)]
                inner = [measured[id(i)] for i in node.items if isinstance(i, _Node)]
                weight = 1 + len(node.items) + sum(weight for weight, _ in inner)
                measured[id(node)] = weight, 1 + max((depth for _, depth in inner), default=0)
                continue
            name, child = step
            if child.flaw:
                path = ".".join([n for n in (*open_.values(), name) if n])
                raise CheckpointError(
                    f"{self._where}: {brief(path)}: expected a plain array of numbers, got a "
                    f"tensor that is {child.flaw}; refused"
                )
            if id(child) in open_:
                raise self._too_nested("holds itself")
            if id(child) not in measured:
                open_[id(child)] = name
                waiting.append((child, _held(child)))
                if len(waiting) > MAX_DEPTH:
                    raise self._too_nested(f"is nested more than {MAX_DEPTH} deep")
        weight, depth = measured[id(root)]
        if weight > MAX_OPCODES:
            raise self._too_nested("holds the same containers again and again")
        if depth > MAX_DEPTH:
            raise self._too_nested(f"is nested more than {MAX_DEPTH} deep")

    def _too_nested(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: expected tensors and settings, got content that {how}; refused"
        )


def _held(node: _Node) -> Iterator[tuple[str, _Node]]:
    """What a node holds, each with its name."""
    keys: Any = node.items[::2] if node.kind == "dict" else ()
    for place, item in enumerate(node.items):
        if isinstance(item, _Node):
            key = keys[place // 2] if place % 2 and place // 2 < len(keys) else None
            yield str(key) if isinstance(key, str | int) else "", item


def _node(value: Any, kind: str) -> _Node:
    if not isinstance(value, _Node) or value.kind != kind:
        raise ValueError(f"expected a {kind}")
    return value


def _items(value: Any, kind: str) -> list[Any]:
    return _node(value, kind).items


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("expected a count")
    return value
