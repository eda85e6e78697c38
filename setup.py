"""Reads everything about the package from settings.ini, which lies beside this file."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
package = cfg["lib_path"]
extras = [key for key in cfg if key.endswith("_requirements")]
pythons = [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    license_expression=cfg["license"],
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Framework :: Jupyter",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
        *pythons,
    ],
    package_dir={"": "."},  # an editable install is then a path, which type checkers read too
    packages=find_packages(include=[package, package + ".*"]),
    package_data={package: ["py.typed", "flags.json", "ticket.schema.json", "workbench/static/*"]},
    include_package_data=True,
    zip_safe=False,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={key.removesuffix("_requirements"): cfg[key].split() for key in extras},
    entry_points={
        "console_scripts": cfg["console_scripts"].splitlines(),
        "nbdev": [f"{cfg['lib_name']}={package}._modidx:d"],
    },
)
