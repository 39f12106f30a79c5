"""A model's initial weights as a checkpoint on disk, drawn part by part: never more than a part of them in memory."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..drawing.batch import at_once, settle, unseen
from ..drawing.regions import rows, shard
from ..drawing.streams import CONTRACT, Stream
from ..drawing.tell import quiet
from ..init import zeros_
from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer
from ..kernels.dtypes import FORMATS
from ..version import VERSION
from . import files
from .entries import Entry
from .initialize import changed, draw, drawing, judge, place
from .names import walk
from .recipe import Recipe
from .rules import Assigned, Matched, Rules, RulesError, described, matched, shown

Module = torch.nn.Module
PART = 1 << 25  # bytes that are drawn at a time: all threads have work, and a few of them fit into the caches
# Initialisers of which a part cannot be drawn alone: these tensors are made as a whole.
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
WHOLE = ("convolution_orthogonal", "delta_orthogonal", "orthogonal", "sparse")


class Item(NamedTuple):
    """A tensor of the checkpoint, and what its numbers are: of a rule, or those that it has (None)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    entry: Entry
    by: Assigned | None

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
    dtype: torch.dtype | None = None,
    shard_size: int | str = "5GB",
    progress: bool | None = None,
) -> list[Path]:
    """Write what `initialize(model, rules, seed=seed, dtype=dtype)` makes of a model as safetensors; returns the files.

    The model may be on the meta device, and is left as it is: tensors are drawn part by part, straight into the files
    (those of `orthogonal` and its like, of functions and of computed weights one at a time). `model.safetensors`, or
    shards of at most `shard_size` with their index, as transformers and safetensors read them; tied parameters once, by
    their first name; persistent buffers as they are. transformers' configurations of the model are written, too.
    The metadata says contract, seed, version, rules, and of each tensor its initialiser.

    A file has its final name when it is complete. What an earlier call with the same arguments has finished is
    left, so that a call that was killed is taken up by the next one. Raises `RulesError` and what else `initialize`
    raises, `FileExistsError` where other weights lie in the folder, `OSError` where the disk is full: before anything
    is written, or with what was unfinished removed.
    """
    seed, folder = Stream(seed).seed, Path(folder)
    found = matched(model, rules, saved=True)
    judge(model, found, torch.device("cpu"), dtype)
    about = {"version": VERSION, "contract": CONTRACT, "seed": seed, "rules": said(rules, found)}
    shards = [*sharded([*items_of(found, dtype)], bytes_in(shard_size))]
    aliases = {home.name: entry.name for entry in found.entries for home in entry.homes[1:] if entry.assign is None}
    planned = [file_of(items, name, about, aliases) for name, items in named(shards)]
    texts = {**configurations(model, dtype), **index(shards, planned, about)}
    left = files.unfinished(folder, planned, texts)
    total = sum(file.size - len(file.head) for file in left)
    disable = None if progress is None else not progress
    with tqdm(total=total, delay=2, disable=disable, unit="B", unit_scale=True, desc="writing") as bar:
        for file, items in zip(planned, shards, strict=True):
            if file in left:
                with files.written(folder, file, PART, bar.update) as writer:
                    for item in items:
                        send(model, item, seed, writer)
    for name, content in texts.items():  # the index last: without it there is no checkpoint
        files.put(folder, name, content)
    return [folder / name for name in (*(file.name for file in planned), *texts)]


def said(rules: Any, found: Matched) -> Any:
    """The rules, for the metadata: a recipe's name and hyperparameters, or each rule."""
    if isinstance(rules, (str, Recipe)):
        return str(rules)
    return [repr(rule) for rule in found.rules]


# --- what is written -----------------------------------------------------------------------------


def items_of(found: Matched, dtype: torch.dtype | None) -> Iterator[Item]:
    """The tensors of a model's `state_dict`, tied ones once."""
    by: dict[int, Assigned] = {}
    for one in found.assigned:
        by |= {id(entry): one for entry in (one.entry, *one.entry.parts)}
    for entry in found.entries:
        if entry.is_saved:
            kind = changed(entry.tensor, dtype if entry.is_parameter else None)
            if kind not in DTYPES:
                raise RulesError(f"{described(entry)} has the dtype {kind}, which safetensors does not know")
            yield Item(entry.name, tuple(entry.tensor.shape), kind, entry, by.get(id(entry)))


def bytes_in(size: int | str) -> int:
    """A size as a number of bytes: 5GB is 5 * 10^9, 5GiB 5 * 2^30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kKMGT]?)(i?)B", str(size) if isinstance(size, str) else f"{size}B")
    if found is None or not (number := float(found[1])):
        raise ValueError(f"a shard's size is a number of bytes above 0, or such as 5GB or 500MiB; got {size!r}")
    return int(number * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def sharded(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """The items in order, in as few files of at most so many bytes; a larger one has a file of its own."""
    shard: list[Item] = []
    for item in items:
        if shard and sum(one.size for one in shard) + item.size > most:
            yield shard
            shard = []
        shard.append(item)
    yield shard


def named(shards: Sequence[list[Item]]) -> Iterator[tuple[str, list[Item]]]:
    """The shards with the names of their files; in each, wide dtypes come first, so that all lie on whole words."""
    for number, items in enumerate(shards, 1):
        items.sort(key=lambda item: -item.dtype.itemsize)
        yield "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors", items


def file_of(items: Sequence[Item], name: str, about: dict[str, Any], aliases: dict[str, str]) -> files.File:
    """The file of these items: its header says where each begins and ends, and from what it was drawn."""
    ours = {**about, "initialisers": [*initialisers(items)]}
    own = {item.name for item in items}
    metadata = {"format": "pt", "fastinit": as_json(ours)}
    metadata |= {alias: first for alias, first in aliases.items() if first in own}  # as safetensors' save_model has it
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for item in items:
        offsets = [begin, begin + item.size]
        header[item.name] = {"dtype": DTYPES[item.dtype], "shape": [*item.shape], "data_offsets": offsets}
        begin += item.size
    head = files.head_of(as_json(header).encode())
    return files.File(name, head, len(head) + begin)


def as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def initialisers(items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Each initialiser with the names of its tensors; those with a row for padding say which."""
    groups: dict[str, list[str]] = {}
    for item in items:
        config: dict[str, Any] = {"name": "keep"}
        if item.by is not None:
            what = item.by.what
            config = what.to_config() if isinstance(what, (Initializer, Gates, Keep)) else {"function": shown(what)}
            computed = item.by.entry if item.by.entry.parts else None
            config |= {} if computed is None else {"computed_from": computed.name}
            row = item.by.entry.padding()
            config |= {} if row is None or isinstance(what, Keep) else {"padding": row}
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
    texts: dict[str, bytes] = {}
    for _, module in walk(model):
        if hasattr(getattr(module, "config", None), "save_pretrained"):
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
    if item.by is None or isinstance(what, Keep):
        send_all(item.entry.tensor.detach().to(item.dtype), writer)
    elif isinstance(what, Initializer) and what.name not in WHOLE and item.dtype in FORMATS and not item.by.entry.parts:
        stream, row = Stream.named(item.name, seed), item.entry.padding()
        for offset, size in boxes(item.shape, PART // item.dtype.itemsize):
            fill = functools.partial(fill_box, item, what, stream, row, offset, size)
            writer.draw(math.prod(size) * item.dtype.itemsize, fill)
    else:
        with real(item.by, item.dtype):
            with drawing(model, seed) as (block, _):
                draw(block, [item.by], seed, None, False)
            send_all(item.entry.tensor, writer)


def send_all(tensor: Tensor, writer: files.Writer) -> None:
    settle(tensor)
    for part in files.bytes_of(tensor, PART):
        writer.send(part)


@unseen
def fill_box(
    item: Item,
    what: Initializer,
    stream: Stream,
    row: int | None,
    offset: tuple[int, ...],
    size: tuple[int, ...],
    memory: Tensor,
) -> None:
    """Fill memory with a part of a tensor."""
    part = shard(memory.view(item.dtype).view(size), item.shape, offset)
    with quiet():
        at_once(what.fill, part, stream=stream)  # whatever blocks are open: another thread reads it
        if row is not None:
            at_once(zeros_, rows(part, row, row + 1))


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


@contextmanager
def real(one: Assigned, dtype: torch.dtype) -> Iterator[None]:
    """Within the context a tensor, or what it is computed from, has memory of its own; then it is as it was."""
    before = [(entry, entry.tensor) for entry in one.entry.parts or [one.entry]]
    try:
        for entry, old in before:
            kind = dtype if old.is_floating_point() else old.dtype
            place(entry, torch.nn.Parameter(torch.empty(old.shape, dtype=kind, device="cpu"), old.requires_grad))
        yield
    finally:
        for entry, old in before:
            place(entry, old)
