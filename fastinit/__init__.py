"""torch.nn.init, compiled: `import fastinit as init`."""

import importlib
from typing import TYPE_CHECKING, Any

from . import initialisers, random, shards
from .drawing.batch import batch
from .drawing.flags import flag, use_engine
from .drawing.ranks import check_ranks
from .drawing.regions import shard
from .drawing.streams import CONTRACT, Stream
from .init import (
    _calculate_correct_fan as _calculate_correct_fan,
    _calculate_fan_in_and_fan_out as _calculate_fan_in_and_fan_out,
    _make_deprecate as _make_deprecate,
    _no_grad_fill_ as _no_grad_fill_,
    _no_grad_normal_ as _no_grad_normal_,
    _no_grad_trunc_normal_ as _no_grad_trunc_normal_,
    _no_grad_uniform_ as _no_grad_uniform_,
    _no_grad_zero_ as _no_grad_zero_,
    bits_,
    calculate_gain,
    constant,
    constant_,
    dirac,
    dirac_,
    eye,
    eye_,
    kaiming_normal,
    kaiming_normal_,
    kaiming_uniform,
    kaiming_uniform_,
    normal,
    normal_,
    ones_,
    orthogonal,
    orthogonal_,
    sparse,
    sparse_,
    trunc_normal_,
    uniform,
    uniform_,
    xavier_normal,
    xavier_normal_,
    xavier_uniform,
    xavier_uniform_,
    zeros_,
)
from .models.accelerate import accelerate
from .models.audit import audit
from .models.build import build
from .samplers import bernoulli_, cauchy_, exponential_, geometric_, log_normal_, random_
from .scaled import (
    depth_scaled_normal_,
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    lecun_normal_,
    lecun_uniform_,
    mup_normal_,
    uniform_unit_scaling_,
    variance_scaling_,
)
from .structured import convolution_orthogonal_, delta_orthogonal_, identity_
from .version import VERSION

if TYPE_CHECKING:
    from .models import recipes
    from .models.apply import apply
    from .models.checkpoint import write_checkpoint
    from .models.initialize import initialize
    from .models.meta import meta
    from .models.regenerate import regenerate
    from .models.rules import Rule, RulesError

__version__ = VERSION

__all__ = [
    "CONTRACT", "Rule", "RulesError", "Stream", "accelerate", "apply", "audit", "batch", "bernoulli_", "bits_",
    "build", "calculate_gain", "cauchy_", "check_ranks", "constant", "constant_", "convolution_orthogonal_",
    "delta_orthogonal_", "depth_scaled_normal_", "dirac", "dirac_", "exponential_", "eye", "eye_", "flag",
    "geometric_", "glorot_normal_", "glorot_uniform_", "he_normal_", "he_uniform_", "identity_", "initialize",
    "kaiming_normal", "kaiming_normal_", "kaiming_uniform", "kaiming_uniform_", "lecun_normal_", "lecun_uniform_",
    "log_normal_", "meta", "mup_normal_", "normal", "normal_", "ones_", "orthogonal", "orthogonal_", "random",
    "random_", "recipes", "regenerate", "shard", "shards", "sparse", "sparse_", "trunc_normal_", "uniform", "uniform_",
    "uniform_unit_scaling_", "use_engine", "variance_scaling_", "write_checkpoint", "xavier_normal", "xavier_normal_",
    "xavier_uniform", "xavier_uniform_", "zeros_",
]  # fmt: skip

# Every public function that fills a tensor has a value of its name; bits_ is no initialiser.
initialisers.functions |= {name: globals()[name] for name in __all__ if name[-1] == "_" and name != "bits_"}

# Imported when they are asked for, since few programs do.
_LATER = {
    "Rule": "models.rules",
    "RulesError": "models.rules",
    "apply": "models.apply",
    "initialize": "models.initialize",
    "meta": "models.meta",
    "recipes": "models.recipes",
    "regenerate": "models.regenerate",
    "write_checkpoint": "models.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name]}", __name__)
    found = module if name == "recipes" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *_LATER.keys() - globals().keys()]
