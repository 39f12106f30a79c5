"""Checkpoints: the bits of `initialize`, read by safetensors and transformers; whole or not there, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from common import digests, python, same_bits
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn
from torch.nn.utils import parametrizations

import fastinit
from fastinit import RulesError, Stream, initialize, recipes, write_checkpoint
from fastinit.drawing.regions import rows, shard
from fastinit.initialisers import (
    Initializer,
    constant,
    delta_orthogonal,
    gates,
    get,
    keep,
    normal,
    ones,
    orthogonal,
    sparse,
    uniform,
    zeros,
)
from fastinit.models import checkpoint, files
from fastinit.models.checkpoint import boxes, bytes_in, in_parts

SEED = 20261128


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 16, padding_idx=7)
        self.layers = nn.ModuleList([nn.Linear(16, 64) for _ in range(3)])
        self.experts = nn.Parameter(torch.empty(2, 3, 40, 50))
        self.lstm = nn.LSTM(16, 8)
        self.norm = nn.BatchNorm1d(16)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.head = nn.Linear(16, 300, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("hidden", torch.ones(3), persistent=False)


RULES = [
    ((nn.Embedding, "weight"), normal(std=0.02)),
    ("head.weight", normal(std=0.02)),
    ("layers.0.weight", orthogonal()),
    ("layers.1.weight", lambda weight: nn.init.uniform_(weight, -1, 1)),
    ("layers.2.weight", uniform(-0.5, 0.5)),
    ("layers.*.bias", zeros()),
    ("experts", normal(std=0.1)),
    ("lstm.weight*", gates("ifgo", normal(), f=uniform())),
    ("lstm.bias*", gates("ifgo", zeros(), f=ones())),
    ("norm.weight", constant(2.0)),
    ("norm.bias", zeros()),
    ("scale", keep()),
]


def made() -> Net:
    """On the meta device, but for what is kept."""
    with fastinit.meta():
        model = Net()
    model.scale = nn.Parameter(torch.tensor(3.0))
    return model


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(checkpoint, "PART", 4096)


def loaded(paths: list[Path]) -> dict[str, torch.Tensor]:
    return {name: one for path in paths if path.suffix == ".safetensors" for name, one in load_file(path).items()}


# --- what is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", ["5GB", "40kB", 1])
def test_it_holds_what_initialize_makes(tmp_path, dtype, size):
    model, expected = made(), made()
    before = dict(model.named_parameters())
    found = loaded(write_checkpoint(model, RULES, tmp_path, seed=SEED, dtype=dtype, shard_size=size))
    assert all(one is before[name] for name, one in model.named_parameters())
    initialize(expected, RULES, seed=SEED, device="cpu", dtype=dtype)
    state = {name: one for name, one in expected.state_dict().items() if name != "head.weight"}
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert same_bits(found[name], tensor), name
    assert not found["embedding.weight"][7].any()


def test_a_model_with_memory_is_left_as_it_is(tmp_path):
    model = Net()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    write_checkpoint(model, RULES, tmp_path, seed=SEED)
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor, before[name]), name


@pytest.mark.parametrize("block", [fastinit.accelerate, fastinit.batch])
def test_inside_blocks_that_put_off_draws(tmp_path, block):
    write_checkpoint(made(), RULES, tmp_path / "outside", seed=SEED)
    with block():
        model = made()
        fastinit.constant_(model.scale, 3.0)
        write_checkpoint(model, RULES, tmp_path / "inside", seed=SEED)
    assert digests(tmp_path / "inside") == digests(tmp_path / "outside")


def test_safetensors_loads_it_with_its_ties(tmp_path):
    write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    model, expected = Net(), made()
    load_model(model, tmp_path / "model.safetensors")
    initialize(expected, RULES, seed=SEED, device="cpu")
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_buffers(tmp_path):
    model = nn.BatchNorm1d(7)
    model.running_mean.fill_(2)
    found = loaded(write_checkpoint(model, "torch_default", tmp_path, seed=SEED))
    assert found.keys() == model.state_dict().keys()
    assert (found["running_mean"] == 2).all()


def test_computed_weights_are_refused(tmp_path):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(9, 7)))
    with pytest.raises(RulesError, match=r"0\.weight \(7, 9\): is computed from other parameters"):
        write_checkpoint(model, "torch_default", tmp_path, seed=SEED)
    original = "*.weight.original"
    rules = {f"{original}0": ones(), f"{original}1": normal(), "*.bias": zeros()}
    found = loaded(write_checkpoint(model, rules, tmp_path, seed=SEED))
    initialize(model, rules, seed=SEED)
    assert all(same_bits(found[name], one) for name, one in model.state_dict().items())


def test_odd_tensors_that_are_kept(tmp_path):
    model = nn.Module()
    model.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    model.register_buffer("one", torch.ones(1, 2)[:, 0])
    model.register_buffer("conjugate", torch.tensor([1 + 2j]).conj())
    model.register_buffer("negative", torch.tensor([1 + 2j]).conj().imag)
    model.register_buffer("none", torch.empty(0, 3))
    model.register_buffer("flags", torch.tensor([True, False]))
    found = loaded(write_checkpoint(model, {"*": keep()}, tmp_path, seed=SEED))
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_a_buffer_has_the_name_under_which_it_is_saved(tmp_path):
    model, table = nn.Module(), torch.arange(6.0)
    model.register_buffer("a", table, persistent=False)
    model.b = nn.Module()
    model.b.register_buffer("b", table)
    found = loaded(write_checkpoint(model, [], tmp_path, seed=SEED))
    assert found.keys() == model.state_dict().keys() == {"b.b"}


def test_flags_are_obeyed(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fastinit.flag(model[1], False)
    found = loaded(write_checkpoint(model, "torch_default", tmp_path, seed=SEED))
    initialize(model, "torch_default", seed=SEED)
    for name, tensor in model.state_dict().items():
        assert same_bits(found[name], tensor), name


def test_what_is_drawn_in_parts():
    assert in_parts(normal())
    assert in_parts(gates("ab", normal(), b=zeros()))
    for value in (orthogonal(), sparse(0.1), delta_orthogonal(), gates("ab", normal(), b=orthogonal())):
        assert not in_parts(value)


def test_names_that_a_header_has_already(tmp_path):
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(3))
    model.format = model.fastinit = model.other = model.a
    write_checkpoint(model, {"*": normal()}, tmp_path, seed=SEED)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["fastinit"])["seed"] == SEED
        assert file.metadata()["other"] == "a"
    model.register_parameter("__metadata__", nn.Parameter(torch.ones(3)))
    with pytest.raises(RulesError, match="__metadata__ is no name for a tensor"):
        write_checkpoint(model, {"*": normal()}, tmp_path / "other", seed=SEED)


def test_lazy_parameters(tmp_path):
    with pytest.raises(RulesError, match="weight is lazy, and gets its shape from the first batch"):
        write_checkpoint(nn.LazyLinear(3), {"*": keep()}, tmp_path, seed=SEED)


def test_any_part_can_be_made_again_from_the_metadata(tmp_path):
    """Years later: from the file's own words, without the model."""
    write_checkpoint(made(), RULES, tmp_path, seed=SEED, shard_size="40kB")
    again = 0
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["fastinit"])
            assert (about["contract"], about["seed"], about["version"]) == (1, SEED, fastinit.__version__)
            assert len(about["rules"]) == len(RULES)
            for how in about["initialisers"]:
                for name in how["tensors"]:
                    if "sha256" in how:
                        assert name in ("layers.1.weight", "scale") or name.startswith("norm.")
                        continue
                    tensor = file.get_tensor(name)
                    config = {key: value for key, value in how.items() if key not in ("tensors", "padding")}
                    half = torch.empty_like(tensor[len(tensor) // 2 :])
                    target = shard(half, tensor.shape, (len(tensor) // 2, *[0] * (tensor.dim() - 1)))
                    get(config).fill(target, stream=Stream.named(name, about["seed"]))
                    if "padding" in how:
                        fastinit.zeros_(rows(target, how["padding"], how["padding"] + 1))
                    assert same_bits(half, tensor[len(tensor) // 2 :].contiguous()), name
                    again += 1
    assert again == 13


def test_the_header_is_as_safetensors_wants_it(tmp_path):
    """Offsets in order and without holes, wide dtypes first, the beginning on a whole word."""
    model = made()
    model.small = nn.Parameter(torch.ones(3, dtype=torch.float16))
    model.register_buffer("flags", torch.tensor([True, False]))
    (path,) = write_checkpoint(model, [("small", ones()), *RULES], tmp_path, seed=SEED)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__")["format"] == "pt"
    place = 0
    for one in header.values():
        assert one["data_offsets"][0] == place
        place = one["data_offsets"][1]
    assert 8 + length + place == len(data)
    assert [one["dtype"] for one in header.values()][-2:] == ["F16", "BOOL"]
    assert load_file(path)["flags"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("40kB", 40_000), ("3GiB", 3 << 30), ("7B", 7), (9, 9)],
)
def test_sizes(text, size):
    assert bytes_in(text) == size


@pytest.mark.parametrize("size", ["0GB", "GB", "-1GB", "5 bananas", 0, -3, "1TBB", "8"])
def test_bad_sizes(tmp_path, size):
    with pytest.raises(ValueError, match="a shard's size is"):
        write_checkpoint(made(), RULES, tmp_path, seed=SEED, shard_size=size)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (3, 4, 5), (2, 3, 4, 5), (1, 1, 50), (50, 1)])
@pytest.mark.parametrize("most", [1, 3, 4, 7, 20, 1000])
def test_boxes_are_the_tensor_in_order(shape, most):
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [whole[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].reshape(-1) for box in boxes(shape, most)]
    assert torch.equal(torch.cat(parts), whole.reshape(-1))
    assert max(map(len, parts)) <= most


# --- transformers ----------------------------------------------------------------------------------

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
}
T5 = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 500}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "pad_token_id": 3}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 50300}),
    "bert": ("BertForMaskedLM", "BertConfig", LLAMA),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
}


@pytest.mark.usefixtures("their_imports")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", MODELS)
def test_from_pretrained(tmp_path, recipe, dtype):
    transformers = pytest.importorskip("transformers", minversion="5", reason="pip install -e '.[libraries]'")
    model_class, config_class, settings = MODELS[recipe]
    kind, config = getattr(transformers, model_class), getattr(transformers, config_class)(**settings)
    with fastinit.meta():
        model = kind(config)
    paths = write_checkpoint(model, recipe, tmp_path, seed=SEED, dtype=dtype, shard_size="100kB")
    assert {"config.json", "model.safetensors.index.json"} <= {path.name for path in paths}
    assert write_checkpoint(model, recipe, tmp_path, seed=SEED, dtype=dtype, shard_size="100kB") == paths
    result, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = kind(config)
    initialize(expected, recipe, seed=SEED, dtype=dtype)
    assert result.dtype is (dtype or torch.float32)
    ours, theirs = result.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert same_bits(ours[name], tensor), name
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["fastinit"]["rules"] == recipe
    assert index["metadata"]["total_parameters"] == sum(one.numel() for one in model.parameters())


# --- whole, or not there ---------------------------------------------------------------------------


WRITE = """
import time, torch, fastinit
from pathlib import Path
from fastinit.models import checkpoint
checkpoint.PART = 512
def write(folder, layers):
    model = torch.nn.Sequential(*[torch.nn.Linear(40, 60) for _ in range(layers)])
    fastinit.write_checkpoint(model, "torch_default", folder, seed=0, shard_size="20kB")
write({ready!r} + "-warm", 2)  # what a process does once takes longer than all that follows
Path({ready!r}).touch()
begin = time.perf_counter()
write({folder!r}, 200)
print(time.perf_counter() - begin)
"""


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    """Ten times, wherever it is then; the last run finds what the others have finished. (Slow: the command, twenty.)"""
    folder, ready = tmp_path / "killed", tmp_path / "ready"
    moments, finished, kills, counts = random.Random(3), set(), 0, []
    taken = float(python(WRITE.format(ready=str(ready), folder=str(tmp_path / "whole"))))
    for _ in range(10):
        ready.unlink()
        process = forked.start(WRITE.format(ready=str(ready), folder=str(folder)), {**os.environ}, tmp_path)
        while not ready.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, taken / 4))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        final = {path.name for path in folder.glob("[!.]*")} if folder.exists() else set()
        assert finished <= final
        assert all((folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in final)
        finished = final
        counts.append(len(final))
    assert kills >= 5
    assert len({*counts}) >= 3, counts  # some were in the middle
    python(WRITE.format(ready=str(ready), folder=str(folder)))
    assert digests(folder) == digests(tmp_path / "whole")
    assert len(digests(folder)) == 101


def test_what_is_finished_is_not_written_again(tmp_path):
    first = write_checkpoint(made(), RULES, tmp_path, seed=SEED, shard_size="40kB")
    before = {path: path.stat().st_mtime_ns for path in first[:-2]}
    first[-2].unlink()
    assert write_checkpoint(made(), RULES, tmp_path, seed=SEED, shard_size="40kB") == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


CHANGES = {
    "seed": {"seed": SEED + 1},
    "dtype": {"dtype": torch.float16},
    "shards": {"shard_size": "80kB"},
    "rules": {"rules": [("norm.weight", constant(3.0)), *RULES[:9], *RULES[10:]]},
    "function": {"rules": [*RULES[:3], ("layers.1.weight", lambda weight: nn.init.ones_(weight)), *RULES[4:]]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_not_overwritten(tmp_path, change):
    named = {"rules": RULES, "seed": SEED, "shard_size": "40kB"}
    write_checkpoint(made(), folder=tmp_path, **named)
    before = digests(tmp_path)
    with pytest.raises(FileExistsError, match="move it, or write to another folder"):
        write_checkpoint(made(), folder=tmp_path, **named | CHANGES[change])
    assert digests(tmp_path) == before


@pytest.mark.parametrize("change", ["kept", "buffer", "model", "version"])
def test_another_model_is_not_taken_for_the_one_that_is_there(tmp_path, change, monkeypatch):
    write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    before, model, rules = digests(tmp_path), made(), RULES
    if change == "kept":
        model.scale.data.fill_(4)
    elif change == "buffer":
        model.norm.running_mean[3] = 1
    elif change == "model":
        model.more, rules = nn.Parameter(torch.ones(3)), [("more", zeros()), *RULES]
    else:
        monkeypatch.setattr(checkpoint, "VERSION", "0.0.0")
    with pytest.raises(FileExistsError, match="exists, of another model, seed, rules or version"):
        write_checkpoint(model, rules, tmp_path, seed=SEED)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "pytorch_model.bin"])
def test_somebody_else_s_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=name):
        write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_checkpoint(made(), RULES, tmp_path / "file", seed=SEED)


def test_a_process_that_writes_there_is_not_disturbed(tmp_path):
    with files.locked(tmp_path):
        (tmp_path / ".model.safetensors.partial").write_bytes(b"theirs")
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            write_checkpoint(made(), RULES, tmp_path, seed=SEED)
        with pytest.raises(AssertionError, match="another process is writing there"):
            python(WRITE.format(ready=str(tmp_path.parent / "ready"), folder=str(tmp_path)))
        assert (tmp_path / ".model.safetensors.partial").read_bytes() == b"theirs"
    write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_our_own_unfinished_files_are_removed(tmp_path):
    (tmp_path / ".my.thesis.partial").write_bytes(b"mine")
    (tmp_path / ".model-00001-of-00002.safetensors.partial").write_bytes(b"of a killed process")
    write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    assert {path.name for path in tmp_path.iterdir()} == {".my.thesis.partial", "model.safetensors"}


@pytest.mark.parametrize("when", ["a value", "a function"])
def test_what_fails_leaves_nothing(tmp_path, monkeypatch, when):
    rules = RULES
    if when == "a value":
        monkeypatch.setattr(Initializer, "fill", interrupted)
        monkeypatch.setattr("fastinit.models.checkpoint.judge", lambda *_: None)
    else:
        rules = [("layers.1.weight", lambda weight: 1 / 0), *RULES[:3], *RULES[4:]]
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        write_checkpoint(made(), rules, tmp_path, seed=SEED)
    assert not [*tmp_path.iterdir()]


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_rules_are_judged_first(tmp_path):
    model = made()
    model.extra = nn.Parameter(torch.ones(3))
    with pytest.raises(RulesError, match="extra"):
        write_checkpoint(model, RULES, tmp_path / "new", seed=SEED)
    assert not (tmp_path / "new").exists()


def test_a_disk_without_room_is_found_before(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(OSError, match="are to be written, and 50,000 are free; nothing was") as caught:
        write_checkpoint(made(), RULES, tmp_path, seed=SEED)
    assert caught.value.errno == errno.ENOSPC
    assert not [*tmp_path.iterdir()]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    """The system's own error, in the middle of a file: a limit on the size of files."""
    pytest.importorskip("resource", reason="Windows has none")
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
"""
    limited = WRITE.replace("begin =", limit + "begin =", 1)
    with pytest.raises(AssertionError, match=r"File too large: .*\.safetensors"):
        python(limited.format(ready=str(tmp_path / "ready"), folder=str(tmp_path / "out")))
    assert not [*(tmp_path / "out").iterdir()]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """A real one, small and in memory."""
    (disk := tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match="bytes are to be written") as caught:
            write_checkpoint(made(), RULES, disk, seed=SEED)
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
        with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors") as caught:
            write_checkpoint(made(), RULES, disk, seed=SEED)
        assert caught.value.errno == errno.ENOSPC
        assert not [*disk.iterdir()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_buffers_that_are_not_saved_need_no_values(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(3, 3)
        model.register_buffer("frequencies", torch.ones(3), persistent=False)
    found = loaded(write_checkpoint(model, "torch_default", tmp_path, seed=SEED))
    assert found.keys() == {"weight", "bias"}
    model.register_buffer("frequencies", model.frequencies)
    with pytest.raises(RulesError, match=r"frequencies \(3,\): no rule names it"):
        write_checkpoint(model, "torch_default", tmp_path, seed=SEED)


def test_dtypes_that_safetensors_does_not_know(tmp_path):
    model = nn.Module()
    model.odd = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(
        RulesError, match=r"odd \(3,\) has the dtype torch\.complex128, which safetensors does not know"
    ):
        write_checkpoint(model, {"*": zeros()}, tmp_path, seed=SEED)


def test_little_memory_whatever_the_size(tmp_path):
    """Parts only: a tensor that is a hundred times as large is never there as a whole."""
    code = f"""
import torch, fastinit
from fastinit.commands.compare import forget_peak, resident
from fastinit.models import checkpoint
checkpoint.PART = 1 << 20
with fastinit.meta():
    model = torch.nn.Linear(4096, 8192, bias=False)  # 128 MiB
fastinit.write_checkpoint(torch.nn.Linear(1, 1), "torch_default", {str(tmp_path / "warm")!r}, seed=0)
forget_peak()
before = resident("VmRSS")
fastinit.write_checkpoint(model, "torch_default", {str(tmp_path / "large")!r}, seed=0)
print((resident("VmHWM") - before) >> 20)
"""
    assert int(python(code)) < 32


def test_recipes_stand_in_the_metadata(tmp_path):
    write_checkpoint(nn.Linear(3, 3), recipes.torch_default(), tmp_path, seed=SEED)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fastinit"])["rules"] == "torch_default()"
