"""Ships the top-level folder kernels/ as fastinit.kernels; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["fastinit", "fastinit.kernels", "fastinit.pyinstaller"],
    package_dir={"fastinit": "fastinit", "fastinit.kernels": "kernels"},
    package_data={"fastinit": ["py.typed"]},
)
