"""Names the packages to install: everything under `fxfuse/`, and `patterns/` as `fxfuse_patterns`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["fxfuse", "fxfuse.*"]),
        "fxfuse_patterns",
        *(f"fxfuse_patterns.{name}" for name in find_packages("patterns")),
    ],
)
