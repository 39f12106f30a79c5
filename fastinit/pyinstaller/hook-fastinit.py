"""PyInstaller's hook: engines are imported by name, when they are first asked for, so it cannot see them."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("fastinit.kernels")
