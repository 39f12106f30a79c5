"""Same bits in every engine: known answers, golden values, and each engine against the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from common import CASE_IDS, CASES, ENGINES, FLOAT8, FLOATS, LAWS, USUAL_CASES, bits, name_of, same_bits

from fastinit import Stream
from fastinit.drawing import engines
from fastinit.kernels.arithmetic.philox import philox
from fastinit.kernels.contract import Draw, Engine
from fastinit.laws import Normal, TruncNormal, Uniform

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())

# Random123's known answers for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def engine(name: str) -> Engine:
    found = engines.load(name)
    assert not isinstance(found, str), found
    return found


def drawn(name: str, law, dtype, count=1000, first=0, seed=2**64 - 59, id=2**63 + 11) -> torch.Tensor:
    out = torch.full((count,), 77, dtype=dtype)
    engine(name).fill(out, Draw(*law.parameters(dtype), seed, id), first, None)
    return out


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers_through_the_arithmetic(name, counter, key, output):
    """The bare generator, for counters that no element index reaches."""
    if name == "reference":
        import numpy as np

        from fastinit.kernels.plain.reference import ARITHMETIC

        words = [np.array([word], np.uint32) for word in (*counter, *key)]
        with np.errstate(over="ignore"):
            got = [int(word[0]) for word in ARITHMETIC[32](philox)(*words)]
    elif name == "eager":
        from fastinit.kernels.plain.eager import ARITHMETIC

        got = [int(word) for word in ARITHMETIC[32](philox)(*(torch.tensor(word) for word in (*counter, *key)))]
    else:
        got = [word & 0xFFFFFFFF for word in compiled_philox(*counter, *key)]
    assert tuple(got) == output


def compiled_philox(*words: int) -> tuple[int, ...]:
    """The CPU engine's generator, traced and compiled, for any counter and key."""
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from fastinit.kernels.cpu import simd
    from fastinit.kernels.cpu.blocks import ARITHMETIC

    @intrinsic
    def words_of(context, arguments):
        def build(context, builder, signature, values):
            unpacked = cgutils.unpack_tuple(builder, values[0])
            counter, *others = (simd.Lanes(builder, "u64", value).cast("u32", "trunc") for value in unpacked)
            outputs = ARITHMETIC[32](philox)(simd.Counters(counter, 16), *others)
            first = [builder.extract_element(w.packed().value, ir.Constant(ir.IntType(32), 0)) for w in outputs]
            widened = [builder.zext(word, ir.IntType(64)) for word in first]
            return context.make_tuple(builder, signature.return_type, widened)

        return types.UniTuple(types.int64, 4)(arguments), build

    return njit(lambda values: words_of(values))(words)


@pytest.mark.parametrize("name", ENGINES)
def test_a_block_is_laid_out_as_the_contract_says(name):
    """Element i: block i // 64, lane i % 64 // 16, column i % 16; counter 16 block + column; the lane's word."""
    from fastinit.laws import Words

    seed, id, first = 0x299F31D0A4093822, 0x0370734413198A2E, 2**40 + 5
    got = drawn(name, Words(), torch.int32, count=200, first=first, seed=seed, id=id)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for offset in (0, 17, 63, 64, 150, 199):
        index = first + offset
        counter = 16 * (index // 64) + index % 16
        words = plain_philox((counter & 0xFFFFFFFF, counter >> 32, id & 0xFFFFFFFF, id >> 32), key)
        assert got[offset].item() & 0xFFFFFFFF == words[index % 64 // 16]


def plain_philox(counter, key):
    """Philox4x32-10 in ten lines of Python integers, written from the paper."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k0, second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k1, first & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_lanes_and_pairs_of_the_normal_are_as_the_contract_says(name, dtype):
    """Box-Muller in Python's own numbers, from the paper's generator: which word is radius, angle, cosine, sine."""
    seed, id = 0x0123456789ABCDEF, 5
    got = drawn(name, LAWS["normal"], dtype, count=320, seed=seed, id=id).double()
    for counter in (0, 1, 15, 17, 40):
        w = plain_philox((counter, 0, id, 0), (seed & 0xFFFFFFFF, seed >> 32))
        if dtype is torch.float32:
            pairs = [(w[0] / 2**32 + 2**-33, w[1], 32), (w[2] / 2**32 + 2**-33, w[3], 32)]
        else:
            pairs = [((w[1] << 32 | w[0]) / 2**64, w[3] << 32 | w[2], 64)]
        block, column = divmod(counter, 16)
        for number, (share, angle_word, width) in enumerate(pairs):
            signed = angle_word - (1 << width) if angle_word >> (width - 1) else angle_word
            angle = math.pi / 4 * signed / 2 ** (width - 1)
            cosine, sine = math.cos(angle) * (-1) ** (angle_word & 1), math.sin(angle)
            if angle_word & 2:
                cosine, sine = sine, cosine
            radius = 2.0 * math.sqrt(-2 * math.log(share))
            start = block * (32 * len(pairs)) + 32 * number + column
            for place, value in ((start, cosine), (start + 16, sine)):
                assert math.isclose(got[place].item(), 0.25 + radius * value, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("law_name", "law", "dtype"), USUAL_CASES, ids=CASE_IDS)
def test_golden_values(name, law_name, law, dtype):
    """Bits written down when the contract was made; tests/make_golden.py tells how."""
    expected = GOLDEN[f"{law_name}-{name_of(dtype)}"]
    kind, parameters = law.parameters(dtype)
    assert kind == expected["kind"]
    assert [p if isinstance(p, int) else p.hex() for p in parameters] == expected["parameters"]
    for first, patterns in expected["bits"].items():
        got = bits(drawn(name, law, dtype, count=80, first=int(first), seed=1, id=2))[expected["offsets"]]
        assert [format(value & (1 << 8 * dtype.itemsize) - 1, "x") for value in got.tolist()] == patterns


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "reference"])
@pytest.mark.parametrize("first", [0, 37, 2**32 * 64 - 100, 2**40 + 1, 2**62 - 3])
@pytest.mark.parametrize(("law_name", "law", "dtype"), USUAL_CASES, ids=CASE_IDS)
def test_engine_equals_the_reference(name, law_name, law, dtype, first):
    assert same_bits(drawn(name, law, dtype, first=first), drawn("reference", law, dtype, first=first))


@pytest.mark.parametrize("count", [1 << 16, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("law_name", "law", "dtype"), USUAL_CASES, ids=CASE_IDS)
def test_cpu_equals_the_reference_over_many_words(law_name, law, dtype, count):
    """Rare words (tails, seams, carries) want numbers."""
    assert same_bits(drawn("cpu", law, dtype, count=count), drawn("reference", law, dtype, count=count))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("name", ENGINES)
def test_torchs_default_dtype_does_not_show(name, dtype, default):
    expected = {law_name: drawn("reference", law, dtype) for law_name, law in LAWS.items()}
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        for law_name, law in LAWS.items():
            assert same_bits(drawn(name, law, dtype), expected[law_name]), law_name
    finally:
        torch.set_default_dtype(before)


def test_comparison_of_engines_can_fail():
    """The twin: another seed, and one bit of one element, are seen."""
    law, dtype = CASES[0][1], torch.float32
    a = drawn("cpu", law, dtype)
    assert not same_bits(a, drawn("reference", law, dtype, seed=3))
    b = a.clone()
    b.view(torch.int32)[500] ^= 1
    assert not same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=name_of)
@pytest.mark.parametrize("law_name", ["uniform", "uniform_inside", "normal"])
def test_half_samples_are_the_float32_samples_rounded(law_name, dtype):
    """A float32 master copy can be drawn from the same stream (where rounding crosses a bound, it stops there)."""
    law = LAWS[law_name]
    half, full = drawn("cpu", law, dtype, count=4096), drawn("cpu", law, torch.float32, count=4096)
    assert same_bits(half, full.clamp(*law.held(dtype)).to(dtype))


def test_stream_seed_and_id_all_count():
    law = CASES[0][1]
    base = drawn("cpu", law, torch.float32, seed=5, id=7)
    for seed, id in ((5 + 2**32, 7), (6, 7), (5, 8), (5, 7 + 2**32), (5 + 2**63, 7), (5, 7 + 2**63)):
        assert not same_bits(base, drawn("cpu", law, torch.float32, seed=seed, id=id))


def test_streams_of_one_seed_are_uncorrelated():
    law = CASES[4][1]
    a = drawn("cpu", law, torch.float32, count=1 << 18, seed=Stream.named("a").seed, id=Stream.named("a").id)
    b = drawn("cpu", law, torch.float32, count=1 << 18, seed=Stream.named("b").seed, id=Stream.named("b").id)
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
    assert abs(correlation) < 4 / 2**9  # four standard errors


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype is not torch.float64], ids=name_of)
@pytest.mark.parametrize(
    "law",
    [
        Normal(0.0, 3e38),
        Normal(0.0, 300.0),  # beyond float8_e4m3fn's greatest number
        Normal(1e-40, 1e-42),
        Uniform(0.0, 1e-38),
        Uniform(-3e38, 3e36),
        TruncNormal(0.0, 3e38, -1e38, 3.4e38),
        TruncNormal(0.0, 1e-41, -2e-41, 1e-41),
        TruncNormal(0.0, 1.0, 0.0, 1e-30),
        TruncNormal(1e300, 1e300, -1.0, 1.0),
    ],
    ids=str,
)
def test_engines_agree_at_the_ends_of_the_range(law, dtype):
    reference = drawn("reference", law, dtype, count=4096)
    for name in ("cpu", "eager"):
        assert same_bits(drawn(name, law, dtype, count=4096), reference)


def test_tiny_uniform_ranges_follow_their_law():
    """The lattice is scaled, not the step: a step of 2^-24 of 1e-38 would be no float32."""
    sample = drawn("cpu", Uniform(0.0, 1e-38), torch.float32, count=1 << 16).double() / 1e-38
    assert abs(sample.mean() - 0.5) < 0.01
    assert abs(sample.std() - 12**-0.5) < 0.01
