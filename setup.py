"""Build of the compiled modules; everything that can be said declaratively stands in pyproject.toml.

Environment
-----------
AIFLOW_DEBUG=1
    ``-O0 -g`` and assertions on.
AIFLOW_SANITIZE=address,undefined
    GCC's sanitizers; run the tests of such a build through ``make sanitize``, which preloads the run-time library.
AIFLOW_WERROR=1
    Warnings of the C compiler are errors (CI).
AIFLOW_DPDK=private:FILE
    Link with a private DPDK that ``tools/private_dpdk.py`` has made, and carry it in the package (``make wheel``).
AIFLOW_LIMITED_API=1
    Use only the stable part of Python's C API: one wheel for Python 3.11 and later (``make wheel``).
CC, CFLAGS, LDFLAGS, PKG_CONFIG, PKG_CONFIG_PATH
    As everywhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))  # a PEP 517 build does not put the project on sys.path

from dpdk_flags import dpdk_flags, private_library  # noqa: E402

DEBUG = os.environ.get("AIFLOW_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("AIFLOW_SANITIZE", "")
WERROR = os.environ.get("AIFLOW_WERROR", "0") not in ("", "0")
LIMITED_API = os.environ.get("AIFLOW_LIMITED_API", "0") not in ("", "0")
PRIVATE_DPDK = private_library()

# The wire format and its state machines are plain C: modules over them must load where no DPDK is.
WITHOUT_DPDK = ("_element", "_encode", "_runs", "_waits", "_wire")

DIRECTIVES = {"language_level": 3, "embedsignature": True}
# Only where every index is computed by our own loops: elsewhere a wrong one must raise, not read foreign memory.
UNCHECKED = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}
DATA_PLANE = ("_dp", "_wire")

# -Wextra complains about what Cython writes by design, not by mistake: unused parameters of slots, casts between the
# C API's function types, structs filled from the front.
COMPILE_ARGS = [
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror=implicit-function-declaration",  # what the limited API lacks would fail at import only
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
    "-Wno-unused-const-variable",  # Cython's docstrings of special methods, with the limited API
]


def flavour() -> str:
    """Name of this kind of build; each has object files of its own, so that flags never mix."""
    chosen = {"sanitize": SANITIZE, "debug": DEBUG, "private": PRIVATE_DPDK, "abi3": LIMITED_API}
    return "-".join(name for name, wanted in chosen.items() if wanted)


def build_dir() -> str:
    """Build directory, relative to the project's root."""
    return f"build/{flavour()}" if flavour() else "build"


def optimisation() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of this kind of build."""
    compile_args = ["-O0", "-g3"] if DEBUG else ["-O3", "-g1"]
    link_args: list[str] = []
    if SANITIZE:
        compile_args = ["-O0" if DEBUG else "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
        # GCC's manual: with sanitizers, warnings that rest on data flow have false positives.
        compile_args += ["-Wno-stringop-overread", "-Wno-stringop-overflow", "-Wno-maybe-uninitialized"]
        if "undefined" in SANITIZE.split(","):
            compile_args.append("-fno-sanitize-recover=undefined")
        link_args.append(f"-fsanitize={SANITIZE}")
    elif WERROR:
        compile_args.append("-Werror")
    return compile_args, link_args


def module_name(ext: Extension) -> str:
    """Name without the packages: ``_eal``."""
    return ext.name.rpartition(".")[2]


def extension(source: Path, headers: list[str]) -> Extension:
    """One compiled module for one .pyx file."""
    relative = source.relative_to(ROOT)
    return Extension(
        ".".join(relative.with_suffix("").parts),
        [str(relative)],
        include_dirs=["include"],
        depends=[*headers, *([str(PRIVATE_DPDK)] if PRIVATE_DPDK else [])],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
        py_limited_api=LIMITED_API,
        undef_macros=["NDEBUG"] if DEBUG or SANITIZE else [],
    )


class BuildWithCython(build_ext):
    """Ask pkg-config and run Cython only when something is compiled: an sdist needs neither DPDK nor a compiler."""

    def run(self) -> None:
        """Set the flags, translate to C, compile."""
        from Cython.Build import cythonize

        dpdk = None
        compile_args, link_args = optimisation()
        for ext in self.extensions:
            ext.extra_compile_args = [*COMPILE_ARGS, *compile_args]
            ext.extra_link_args = list(link_args)
            if module_name(ext).startswith(WITHOUT_DPDK):
                continue
            dpdk = dpdk or dpdk_flags()
            ext.include_dirs += dpdk.include_dirs
            ext.define_macros += dpdk.define_macros
            ext.undef_macros += dpdk.undef_macros
            ext.library_dirs += dpdk.library_dirs
            ext.libraries += dpdk.libraries
            ext.extra_compile_args[:0] = dpdk.compile_args
            ext.extra_link_args += dpdk.link_args
        self.link_args_first = dpdk.link_args if dpdk else []
        for ext in self.extensions:
            unchecked = UNCHECKED if module_name(ext).startswith(DATA_PLANE) else {}
            (translated,) = cythonize(
                [ext],
                build_dir=f"{build_dir()}/cython",
                compiler_directives={**DIRECTIVES, **unchecked},
                include_path=["."],
                quiet=True,
            )
            # setuptools has already noted file names on its own object: keep that, take the C source.
            ext.sources = translated.sources
            ext.depends = sorted({*ext.depends, *translated.depends})
        if not self.parallel:
            self.parallel = os.cpu_count() or 1
        super().run()

    def build_extensions(self) -> None:
        """Put --as-needed and its like in front of the libraries it governs (distutils puts extra arguments last)."""
        self.compiler.linker_so = [*self.compiler.linker_so, *self.link_args_first]
        super().build_extensions()


class BuildByFlavour(build):
    """A debug or sanitizer build keeps to its own directory."""

    def initialize_options(self) -> None:
        """Choose the directory before --build-base may override it."""
        super().initialize_options()
        self.build_base = build_dir()


class BuildWithHeaders(build_py):
    """The C headers go into the package, and so does a private DPDK.

    `package_dir` could map them to it, but then no editable install is a plain path any more: see `package_dir` below.
    """

    def run(self) -> None:
        """Copy the packages, then the headers and the library."""
        if self.editable_mode and PRIVATE_DPDK:
            raise SystemExit("aiflow: AIFLOW_DPDK=private: is for wheels; an editable install uses the system's DPDK")
        super().run()
        if self.editable_mode:
            return
        for header in c_headers:
            target = Path(self.build_lib, "aiflow", header)
            self.mkpath(str(target.parent))
            self.copy_file(header, str(target))
        if PRIVATE_DPDK:
            self.copy_file(str(PRIVATE_DPDK), str(Path(self.build_lib, "aiflow", PRIVATE_DPDK.name)))


sources = sorted((ROOT / "aiflow").rglob("*.pyx"))
c_headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "include").rglob("*.h"))

setup(
    packages=find_namespace_packages(include=["aiflow", "aiflow.*"]),
    # Every package lies where its name says: an editable install is then a path in a .pth file. Its other kind, a
    # finder, comes after folders of the current directory that are called aiflow, and no type checker asks it.
    package_dir={"": "."},
    include_package_data=False,
    package_data={"": ["py.typed", "*.pyi", "*.pxd"]},
    ext_modules=[extension(source, c_headers) for source in sources],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
    cmdclass={"build": BuildByFlavour, "build_ext": BuildWithCython, "build_py": BuildWithHeaders},
)
