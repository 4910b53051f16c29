"""Builds the engine, a plain C library that Python loads by its path: one wheel serves every Python of a platform.

Everything else about the package is in ``pyproject.toml``. Without a C compiler the build goes on without the
engine, and torch's generator serves.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

PACKAGE = "weightnoise._random"  # Its sources are in the folder `csrc`, and the library comes to lie beside that.
SOURCES = Path(*PACKAGE.split("."), "csrc")
# No contraction: the numbers are the same on every machine.
OPTIONS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

ENGINE = Extension(
    f"{PACKAGE}._philox",
    sources=sorted(path.as_posix() for path in SOURCES.glob("*.c")),
    depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
    extra_compile_args=OPTIONS,
    libraries=["m"],  # Without optimisation a square root is a function.
    optional=True,
)


class BuildEngine(build_ext):
    """Gives the library a name without a version of Python, and builds it with GCC on Windows."""

    def get_ext_filename(self, fullname):
        """The path of the library, from the folder that holds the package."""
        return os.path.join(*fullname.split(".")) + (".dll" if sys.platform == "win32" else ".so")

    def build_extension(self, ext):
        """Build the library."""
        if sys.platform != "win32":
            return super().build_extension(ext)
        compiler = shutil.which(os.environ.get("CC", "gcc"))
        if compiler is None:  # MSVC does not know the vectors that the engine is written with.
            raise CompileError("the engine needs GCC, which is not on the PATH; torch's generator will serve")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        libraries = ["-static-libgcc", "-Wl,--export-all-symbols"]
        try:
            subprocess.run([compiler, *OPTIONS, "-shared", "-o", target, *ext.sources, *libraries], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error


class PlatformWheel(bdist_wheel):
    """Tags the wheel for a platform and for no version of Python."""

    def get_tag(self):
        """The tags of Python, of its binary interface, and of the platform."""
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[ENGINE], cmdclass={"build_ext": BuildEngine, "bdist_wheel": PlatformWheel})
