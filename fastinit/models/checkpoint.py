"""A model's initial weights as a checkpoint on disk, drawn part by part: never more than a part of them in memory."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..drawing.batch import at_once, settle, unseen
from ..drawing.dtensor import is_dtensor
from ..drawing.regions import shard
from ..drawing.streams import CONTRACT, Stream
from ..drawing.tell import bar, quiet
from ..initialisers.operators import whole as drawn_whole
from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer
from ..version import VERSION
from . import files
from .entries import Entry
from .initialize import draw, drawing, floating, is_torchs, judge, pad
from .memory import changed, place_in
from .recipe import Recipe
from .rules import Match, Matched, Rules, described, matched, shown
from .walk import alike, walk

Module = torch.nn.Module
FORMAT, ABOUT, METADATA = "format", "fastinit", "__metadata__"  # names in a header
COMPUTED = "is computed from other parameters; initialize the model and save it, or have rules name these"
PART = 1 << 25  # bytes that are drawn at a time: all threads have work, and a few of them fit into the caches
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Item(NamedTuple):
    """A tensor of the checkpoint, and what its numbers are: of a rule, or those that it has (None)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    entry: Entry
    by: Match | None

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    model: Module,
    rules: Rules,
    folder: str | Path,
    *,
    seed: int,
    dtype: torch.dtype | str | None = None,
    shard_size: int | str = "5GB",
    progress: bool | None = None,
) -> list[Path]:
    """Write what `initialize(model, rules, seed=seed, dtype=dtype)` makes of a model as safetensors; returns the files.

    The model may be on the meta device or sharded (one rank writes all of it, without the others), and is left as it
    is: tensors are drawn part by part, straight into the files.
    As a whole, one at a time, are drawn those of `orthogonal` and its like, of functions, and what torch draws (complex
    numbers, flags). `model.safetensors`, or shards of at most `shard_size` with their index, as transformers and
    safetensors read them; tied parameters once, by their first name; persistent buffers as they are. transformers'
    configurations of the model are written, too. The metadata says contract, seed, version, rules, and of each tensor
    its initialiser, or a digest of what no initialiser can make again (what is kept, what functions drew).

    A file has its final name when it is complete. What an earlier call with the same arguments has finished is
    left, so that the next call resumes one that was killed. Raises `RulesError` and what else `initialize`
    raises (also for weights that parametrisations compute), `FileExistsError` where other weights lie in the folder,
    `BlockingIOError` where another process writes there, `OSError` where the disk is full: before anything is written,
    or with what was unfinished removed.
    """
    seed, kind, folder = Stream(seed).seed, floating(dtype), Path(folder)
    found = matched(model, rules, saved=True)
    found.problems += [f"{described(one.entry)}: {COMPUTED}" for one in found.assigned if one.entry.assign is not None]
    found.problems += unknown_to_safetensors(found, kind)
    judge(model, found, torch.device("cpu"), kind)
    about = {"version": VERSION, "contract": CONTRACT, "seed": seed, "rules": rules_text(rules, found)}
    shards = [*sharded([*items_of(found, kind)], bytes_in(shard_size))]
    with files.locked(folder):
        return write(model, shards, about, aliases_of(found), folder, seed, kind, progress)


def write(
    model: Module,
    shards: Sequence[list[Item]],
    about: dict[str, Any],
    aliases: dict[str, str],
    folder: Path,
    seed: int,
    dtype: torch.dtype | None,
    progress: bool | None,
) -> list[Path]:
    """Write what of these shards the folder does not have yet."""
    planned = [file_of(model, items, name, about, aliases, seed) for name, items in file_names(shards)]
    texts = {**configurations(model, dtype), **index(shards, planned, about)}
    left = files.unfinished(folder, planned, texts)
    total = sum(file.size - len(file.head) for file in left)
    with bar(total, "writing", progress, "B") as meter:
        for file, items in zip(planned, shards, strict=True):
            if file in left:
                with files.written(folder, file, PART, meter.update) as writer:
                    for item in items:
                        send(model, item, seed, writer)
    for name, content in texts.items():  # the index last: without it there is no checkpoint
        files.put(folder, name, content)
    return [folder / name for name in (*(file.name for file in planned), *texts)]


def rules_text(rules: Any, found: Matched) -> Any:
    """The rules, for the metadata: a recipe's name and hyperparameters, or each rule."""
    if isinstance(rules, (str, Recipe)):
        return str(rules)
    return [repr(rule) for rule in found.rules]


# --- what is written -----------------------------------------------------------------------------


def unknown_to_safetensors(found: Matched, dtype: torch.dtype | None) -> Iterator[str]:
    """What of a model a file cannot hold."""
    drawn = {id(one.entry) for one in found.assigned if not isinstance(one.what, Keep)}
    for entry in found.entries:
        if not entry.saved_name:
            continue
        if is_lazy(entry.tensor):
            yield f"{entry.name} is lazy, and gets its shape from the first batch: run one"
        elif is_dtensor(entry.tensor) and id(entry) not in drawn:
            yield f"{described(entry)} is a DTensor that no rule draws: one rank does not have all of it"
        elif dtype_in_file(entry, dtype) not in DTYPES:
            yield f"{described(entry)} has the dtype {dtype_in_file(entry, dtype)}, which safetensors does not know"
        elif entry.saved_name == METADATA:
            yield f"{METADATA} is no name for a tensor: safetensors has its metadata there"


def dtype_in_file(entry: Entry, dtype: torch.dtype | None) -> torch.dtype:
    return changed(entry.tensor, dtype if entry.is_parameter else None)


def items_of(found: Matched, dtype: torch.dtype | None) -> Iterator[Item]:
    """The tensors of a model's `state_dict`, tied ones once."""
    by = {id(one.entry): one for one in found.assigned}
    for entry in found.entries:
        if name := entry.saved_name:
            yield Item(name, tuple(entry.tensor.shape), dtype_in_file(entry, dtype), entry, by.get(id(entry)))


def aliases_of(found: Matched) -> dict[str, str]:
    """The other names of tied tensors, each with the one in the file; as the `save_model` of safetensors has them."""
    names = {home.name: one.saved_name for one in found.entries for home in one.homes if one.saved_name}
    return {alias: name for alias, name in names.items() if alias != name and alias not in (FORMAT, ABOUT)}


def bytes_in(size: int | str) -> int:
    """A size as a number of bytes: 5GB is 5 * 10^9, 5GiB 5 * 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?)(i?)B", str(size) if isinstance(size, str) else f"{size}B")
    if found is None or not (number := float(found[1])):
        raise ValueError(f"a shard's size is a number of bytes above 0, or such as 5GB or 500MiB; got {size!r}")
    return int(number * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def sharded(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """The items in order, in as few files of at most so many bytes; a larger one has a file of its own."""
    together: list[Item] = []
    size = 0
    for item in items:
        if together and size + item.size > most:
            yield together
            together, size = [], 0
        together.append(item)
        size += item.size
    yield together


def file_names(shards: Sequence[list[Item]]) -> Iterator[tuple[str, list[Item]]]:
    """The shards with the names of their files; in each, wide dtypes come first, so that all lie on whole words."""
    for number, items in enumerate(shards, 1):
        items.sort(key=lambda item: -item.dtype.itemsize)
        yield "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors", items


def file_of(
    model: Module, items: Sequence[Item], name: str, about: dict[str, Any], aliases: dict[str, str], seed: int
) -> files.File:
    """The file of these items: its header says where each begins and ends, and from what it was drawn."""
    own = {item.name for item in items}
    ours = {**about, "initialisers": [*initialisers(model, items, seed)]}
    metadata = {
        FORMAT: "pt",
        ABOUT: as_json(ours),
        **{alias: first for alias, first in aliases.items() if first in own},
    }
    header: dict[str, Any] = {METADATA: metadata}
    begin = 0
    for item in items:
        offsets = [begin, begin + item.size]
        header[item.name] = {"dtype": DTYPES[item.dtype], "shape": [*item.shape], "data_offsets": offsets}
        begin += item.size
    head = files.head_of(as_json(header).encode())
    return files.File(name, head, len(head) + begin)


def as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def initialisers(model: Module, items: Sequence[Item], seed: int) -> Iterator[dict[str, Any]]:
    """Each initialiser with the names of its tensors; those with a row for padding say which.

    What none can make again has a digest, so that a checkpoint of other values is not taken for this one.
    """
    groups: dict[str, list[str]] = {}
    for item in items:
        what = Keep() if item.by is None else item.by.what
        if isinstance(what, (Initializer, Gates)):
            row = item.entry.padding()
            config = what.to_config() | ({} if row is None else {"padding": row})
        else:
            with whole(model, item, seed) as tensor:
                digest = files.digest_of(tensor)
            config = (what.to_config() if isinstance(what, Keep) else {"function": shown(what)}) | {"sha256": digest}
        groups.setdefault(as_json(config), []).append(item.name)
    for text, names in groups.items():
        yield {**json.loads(text), "tensors": names}


def index(shards: Sequence[list[Item]], planned: Sequence[files.File], about: dict[str, Any]) -> dict[str, bytes]:
    """The index of more than one file, as transformers writes it."""
    if len(planned) == 1:
        return {}
    items = [item for shard in shards for item in shard]
    metadata = {
        "total_parameters": sum(math.prod(item.shape) for item in items if item.entry.is_parameter),
        "total_size": sum(item.size for item in items),
        "fastinit": about,
    }
    where = {item.name: file.name for file, shard in zip(planned, shards, strict=True) for item in shard}
    content = {"metadata": metadata, "weight_map": where}
    return {"model.safetensors.index.json": (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()}


def configurations(model: Module, dtype: torch.dtype | None) -> dict[str, bytes]:
    """transformers' configurations of a model, as `save_pretrained` writes them."""
    import tempfile

    texts: dict[str, bytes] = {}
    for prefix, module in walk(model):
        if not prefix and hasattr(getattr(module, "config", None), "save_pretrained"):
            config: Any = copy.deepcopy(module.config)
            config.architectures = [type(module).__name__]
            setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype or module.dtype)
            with tempfile.TemporaryDirectory() as folder:
                config.save_pretrained(folder)
                generation: Any = getattr(module, "generation_config", None)
                if generation is not None:
                    generation.save_pretrained(folder)
                texts = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
            break
    return texts


# --- drawing -------------------------------------------------------------------------------------


def send(model: Module, item: Item, seed: int, writer: files.Writer) -> None:
    """Have a writer write a tensor."""
    what = None if item.by is None else item.by.what
    if isinstance(what, (Initializer, Gates)) and in_parts(what) and not is_torchs(item.entry.tensor, item.dtype, None):
        stream = Stream.named(item.entry.name, seed)
        for offset, size in boxes(item.shape, PART // item.dtype.itemsize):
            fill = functools.partial(fill_box, item, what, stream, offset, size)
            writer.draw(math.prod(size) * item.dtype.itemsize, fill)
        return
    with whole(model, item, seed) as tensor:
        for part in files.bytes_of(tensor, PART):
            writer.send(part)


def in_parts(what: Initializer | Gates) -> bool:
    """Whether a part can be drawn without the whole."""
    if isinstance(what, Gates):
        return all(map(in_parts, (what.value, *(value for _, value in what.others))))
    return f"{what.name}_" not in drawn_whole


@contextmanager
def whole(model: Module, item: Item, seed: int) -> Iterator[Tensor]:
    """A tensor as a whole: as it is, or drawn as `initialize` does, in memory that the model has for this context."""
    if item.by is None or isinstance(item.by.what, Keep):
        settle(item.entry.tensor)
        yield item.entry.tensor.detach().to(item.dtype)
        return
    entry, before = item.entry, item.entry.tensor
    memory = torch.empty(item.shape, dtype=item.dtype, device="cpu")
    try:
        place_in(entry, alike(before, memory))
        with drawing(model, seed) as (block, _):
            draw(block, [item.by], seed, None, False)
        yield entry.tensor.detach()
    finally:
        place_in(entry, before)


@unseen
def fill_box(
    item: Item,
    what: Initializer | Gates,
    stream: Stream,
    offset: tuple[int, ...],
    size: tuple[int, ...],
    memory: Tensor,
) -> None:
    """Fill memory with a part of a tensor."""
    part = shard(memory.view(item.dtype).view(size), item.shape, offset)
    with quiet():
        at_once(what.fill, part, stream=stream)  # whatever blocks are open: another thread reads it
        at_once(pad, item.entry, part)


def boxes(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A tensor in parts of at most so many neighbours in row-major order: where each begins, and its shape."""
    if math.prod(shape) <= most:
        yield (0,) * len(shape), shape
        return
    inner = math.prod(shape[1:])
    if inner > most:
        for row in range(shape[0]):
            for offset, size in boxes(shape[1:], most):
                yield (row, *offset), (1, *size)
        return
    step = most // inner
    for row in range(0, shape[0], step):
        yield (row, *(0 for _ in shape[1:])), (min(step, shape[0] - row), *shape[1:])
