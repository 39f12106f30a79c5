"""PyInstaller's hook: engines, and parts of `models`, are imported by name when they are asked for, unseen by it."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("fastinit.kernels") + collect_submodules("fastinit.models")
