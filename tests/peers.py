"""What other libraries draw for the rows of fastinit/initialisers/README.md.

Each library runs in a process of its own: importing them takes seconds, starts threads, prints, warns, and replaces
functions. The rows' own text is executed, so their names and defaults are those of the library that is installed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import re
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

# Numbers that the rows' lines use by name.
NUMBERS = {"layers": 3, "layer_id": 2, "dim": 192, "d_model": 128, "d_kv": 32, "heads": 4, "d_ff": 256, "width_mult": 4}


class Row(NamedTuple):
    """A line of the page: `setup` is the import that stands above its table."""

    library: str
    setup: str
    theirs: str
    ours: str


def rows(page: str) -> list[Row]:
    """All rows of all tables. Raises `ValueError` for a line that looks like one and is none."""
    found = []
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        library, _, text = section.partition("\n")
        setup = re.search(r"`((?:from|import) .*?)`", text)
        for line in re.findall(r"^\|.*$", text, re.M):
            if re.match(r"\| (?:theirs|---) ", line):
                continue
            cells = re.fullmatch(r"\| `([^`|]+)` \| `([^`|]+)` \| [^|]*\|", line)
            if cells is None or setup is None:
                raise ValueError(f"no row of a table of {library}: {line}")
            found.append(Row(library, setup[1], cells[1], cells[2]))
    return found


class Peer(NamedTuple):
    """`package` has to be installed. `file` is read alone where it needs nothing else of its package; it may need more
    than is installed. `names` is what the rows use besides the import above them, made once; `draw` makes numbers of
    an initialiser and a shape, where calling it with nothing more is not how it is done."""

    package: str
    file: str | None = None
    names: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    draw: Callable[[Any, tuple[int, ...]], Any] | None = None
    environment: dict[str, str] = {}  # noqa: RUF012  (of the process)


def models(imported: dict[str, Any]) -> dict[str, Any]:
    """transformers' classes with small configurations."""
    import transformers

    small = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4}
    t5 = {key: NUMBERS[key] for key in ("d_model", "d_kv", "d_ff")}
    configurations = {
        "GPT2": {"n_embd": 96, "n_layer": NUMBERS["layers"], "n_head": 4, "vocab_size": 200},
        "Bert": {**small, "vocab_size": 200},
        "Llama": {**small, "vocab_size": 200},
        "T5": {**t5, "num_layers": 1, "num_heads": NUMBERS["heads"], "vocab_size": 200},
        "ViT": small,
    }

    def model(name: str) -> Callable[[Any], nn.Module]:
        configuration = getattr(transformers, f"{name}Config")(**configurations[name])
        return functools.cache(lambda config: imported[f"{name}Model"](configuration))

    return {f"{name}Model": model(name) for name in configurations} | {"config": None}


def policies(imported: dict[str, Any]) -> dict[str, Any]:
    import gymnasium

    observations = gymnasium.spaces.Box(-1.0, 1.0, (48,))
    actions = gymnasium.spaces.Discrete(6)
    return {"policy": imported["ActorCriticPolicy"](observations, actions, lambda progress: 1e-3)}


def widths(imported: dict[str, Any]) -> dict[str, Any]:
    """Weights that know how many times as wide they are as those of the base model."""
    grown = SimpleNamespace(width_mult=lambda: NUMBERS["width_mult"])
    hidden, embedding = nn.Parameter(torch.empty(96, 192)), nn.Parameter(torch.empty(96, 192))
    hidden.infshape = SimpleNamespace(ninf=lambda: 2, **vars(grown))
    embedding.infshape = SimpleNamespace(ninf=lambda: 1, **vars(grown))
    return {"hidden": hidden, "embedding": embedding}


def by_jax(initializer: Any, shape: tuple[int, ...]) -> Any:
    import jax

    return initializer(jax.random.key(zlib.crc32(repr(shape).encode())), shape)


def by_keras(initializer: Any, shape: tuple[int, ...]) -> Any:
    import keras

    keras.utils.set_random_seed(1)
    return initializer(shape)


def by_tensorflow(initializer: Any, shape: tuple[int, ...]) -> Any:
    """In a graph, as in version 1."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        return session.run(initializer(list(shape)))


# By the headings of the page. Those that draw by calling shape their weights [..., in, out].
PEERS = {
    "PyTorch": Peer("torch"),
    "TensorFlow 1": Peer("tensorflow", draw=by_tensorflow, environment={"TF_CPP_MIN_LOG_LEVEL": "3"}),
    # Keras on torch cuts normals by choosing among four samples, of which all may lie outside.
    "Keras": Peer("keras", draw=by_keras, environment={"KERAS_BACKEND": "jax"}),
    "JAX": Peer("jax", draw=by_jax),
    "timm": Peer("timm", "layers/weight_init.py"),
    "Transformers": Peer("transformers", names=models),
    "Megatron-LM": Peer("megatron"),
    "torchtitan": Peer("torchtitan", "models/common/param_init.py"),
    "mup": Peer("mup", "init.py", widths),
    "mmcv and MMEngine": Peer("mmengine"),
    "fvcore and Detectron2": Peer("fvcore", "nn/weight_init.py"),
    "Stable-Baselines3": Peer("stable_baselines3", names=policies),
}


def missing(peer: Peer) -> bool:
    return importlib.util.find_spec(peer.package) is None


def module_alone(peer: Peer) -> ModuleType:
    (folder,) = importlib.util.find_spec(peer.package).submodule_search_locations
    spec = importlib.util.spec_from_file_location(f"{peer.package}_alone", Path(folder) / peer.file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports(peer: Peer, setup: str) -> dict[str, Any]:
    """What a library's import statement brings."""
    namespace: dict[str, Any] = {}
    if peer.file is None:
        exec(setup, namespace)
    else:
        module = module_alone(peer)
        for alias in ast.parse(setup).body[0].names:
            namespace[alias.name] = getattr(module, alias.name)
    return namespace


def module_for(shape: tuple[int, ...]) -> nn.Module:
    """A module with a weight of this shape: a linear layer or a convolution."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2:])


def their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in, ...] as [..., in, out]."""
    return (*shape[2:], *reversed(shape[:2]))


def as_torch_has_it(weight: np.ndarray) -> np.ndarray:
    """[..., in, out] as [out, in, ...]."""
    return np.moveaxis(weight, (-1, -2), (0, 1)) if weight.ndim > 1 else weight


def numbers(row: Row, names: dict[str, Any], shape: tuple[int, ...], native: bool) -> dict[str, np.ndarray]:
    """What their line draws: its weight, and its bias where it fills one. `native` shapes are theirs as they are."""
    peer = PEERS[row.library]
    torch.manual_seed(zlib.crc32(row.theirs.encode()))
    if peer.draw is not None:
        drawn = np.asarray(peer.draw(eval(row.theirs, names), shape if native else their_shape(shape)))
        return {"w": drawn if native else as_torch_has_it(drawn)}
    w = nn.Parameter(torch.empty(shape)) if "m" not in re.findall(r"\w+", row.theirs) else None
    m = None if w is not None else module_for(shape)
    with torch.no_grad():
        value = eval(row.theirs, names, {"w": w, "m": m})
    if m is not None:
        return {"w": m.weight.detach().numpy(), "b": m.bias.detach().numpy()}
    return {"w": (w if value is None else value).detach().clone().numpy()}  # rows may share a tensor


def main(library: str, page: str, shapes: dict[str, tuple[tuple[int, ...], bool]], out: str) -> None:
    """Write what every row of the library draws, for these shapes by row, or the error that it raises.

    Where the library is installed and does not import, that is every row's error.
    """
    root = Path(__file__).parents[1]
    # They would take the checkout's folder kernels/ for the package of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != root]
    warnings.simplefilter("ignore")
    peer = PEERS[library]
    wanted = [row for row in rows(page) if row.library == library]
    names = {"math": math, "partial": functools.partial, "nn": nn, "torch": torch, **NUMBERS}
    drawn: dict[str, np.ndarray | str] = {}
    try:
        imported = imports(peer, wanted[0].setup)
        names |= imported | (peer.names(imported) if peer.names else {})
    except Exception as error:  # of a library that is broken here, or too old for the page, or the page is wrong
        why_not = f"{peer.package} is installed and does not import: {type(error).__name__}: {error}"
        drawn, wanted = {f"w {row.theirs}": why_not for row in wanted}, []
    for row in wanted:
        try:
            for name, values in numbers(row, names, *shapes[row.theirs]).items():
                drawn[f"{name} {row.theirs}"] = values
        except Exception as error:  # whatever it raises belongs to this row alone
            drawn[f"w {row.theirs}"] = f"{type(error).__name__}: {error}"
    np.save(out, np.array(drawn, dtype=object), allow_pickle=True)
