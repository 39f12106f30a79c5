"""What PyInstaller must know about fastinit; it asks through the entry point in pyproject.toml."""

from __future__ import annotations


def hook_folders() -> list[str]:
    return list(__path__)
