"""Ships the top-level folder kernels/ as fastinit.kernels, and in the sdist what its tests need; everything else is in
pyproject.toml."""

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class SourceDistribution(sdist):
    """With all that a checkout has, so that its tests run."""

    def make_distribution(self) -> None:
        for folder in (".ci", "bench", "tests"):
            self.filelist.graft(folder)
        self.filelist.include("CHANGELOG.md")
        self.filelist.global_exclude("*.py[cod]")
        super().make_distribution()


setup(
    packages=[
        "fastinit",
        "fastinit.kernels",
        *(f"fastinit.{name}" for name in find_packages("fastinit")),
        *(f"fastinit.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"fastinit": "fastinit", "fastinit.kernels": "kernels"},
    package_data={
        "fastinit": ["py.typed", "README.md"],
        "fastinit.initialisers": ["README.md"],
        "fastinit.models": ["README.md"],
        "fastinit.kernels": ["README.md"],
    },
    cmdclass={"sdist": SourceDistribution},
)
