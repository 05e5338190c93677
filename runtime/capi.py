"""Builds the C library and its header with the system's C compiler: python -m runtime.capi --out DIR"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from . import files
from .cli import DONE, make_cli_parser, option, print_json, run
from .errors import UserError

SOURCES = Path(__file__).resolve().parent / "c"
LIBRARY, HEADER, MODULE = "libblockstep.so", "blockstep.h", "_blockstep"

# Declarations that the embedded Python and library.c share, in addition to the public header.
PRIVATE = """
void tell(const char *message);
int raised(const int *flag);
blockstep_answer *new_answer(size_t text_length, size_t token_count);
blockstep_decision *new_decision(size_t text_length, size_t json_length);
extern "Python" {
    int python_attach(int chosen, char *package);
    int python_load(char *bundle, blockstep_options *options, blockstep_model **model);
    int python_verify(char *bundle, blockstep_options *options);
    int python_generate(
        blockstep_model *model, blockstep_request *request, blockstep_decoding *decoding, blockstep_answer **answer);
    int python_decide(
        blockstep_model *model, blockstep_request *request, char *schema, blockstep_deciding *deciding,
        blockstep_decision **decision);
    int python_describe(blockstep_model *model, blockstep_contract **contract);
    int python_close(blockstep_model *model);
}
"""

# The package is loaded from its folder under the name `blockstep`, whatever the folder's name, so that sys.path stays
# as it is and another `runtime` does not get in the way. An environment that BLOCKSTEP_PYTHON chose uses its own
# blockstep, if it has one.
STARTUP = f"""
from {MODULE} import ffi, lib

@ffi.def_extern(error=-1)
def python_attach(chosen, package):
    import importlib.util, os, sys
    folder = os.fsdecode(ffi.string(package))
    try:
        if "blockstep" not in sys.modules and not (chosen and importlib.util.find_spec("blockstep")):
            start = os.path.join(folder, "__init__.py")
            spec = importlib.util.spec_from_file_location("blockstep", start, submodule_search_locations=[folder])
            sys.modules["blockstep"] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        from blockstep.c.embedded import bind
        bind(ffi, lib)
    except BaseException as error:
        reason = " ".join(f"{{type(error).__name__}}: {{error}}".split())
        lib.tell(f"{{folder}} does not load in {{sys.prefix}} ({{reason}}); build the library again".encode())
        return -1
    return 0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: report(parse_options(argv)))


def report(args: argparse.Namespace) -> int:
    """Builds the library and prints the paths of its files."""
    library, header = build_library(args.out)
    if args.json:
        print_json({"library": str(library), "header": str(header), "python": sys.executable})
    else:
        print(f"{library}\n{header}")
        print(f"link: cc host.c -I{library.parent} -L{library.parent} -lblockstep -Wl,-rpath,{library.parent}")
    return DONE


def build_library(out: Path) -> tuple[Path, Path]:
    """Writes library and header into the folder; returns their paths.

    The library contains the paths of this Python and of this package. Raises UserError if cffi, a compiler, Python's
    headers or its shared library are missing.
    """
    linking, compiler = find_python_flags(), find_compiler()
    out = files.resolve_path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as folder:
        source, made = Path(folder) / "library.c", Path(folder) / LIBRARY
        write_source(source)
        line = [*compiler, "-shared", "-fPIC", "-O2", "-pthread", "-fvisibility=hidden", f"-I{SOURCES}", str(source)]
        # The library contains a running interpreter, so dlclose() must not unload it.
        line += ["-o", str(made), f"-Wl,-soname,{LIBRARY}", "-Wl,-z,nodelete", *linking, "-ldl"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{compiler[0]} fails: {done.stderr.strip()[-400:]}; see that it builds Python extensions")
        files.move(made, out / LIBRARY)  # a rename, so that a running host keeps the file that it has open
    shutil.copyfile(SOURCES / HEADER, out / HEADER)
    return out / LIBRARY, out / HEADER


def write_source(target: Path) -> None:
    """Writes the whole C source: cffi's part and library.c. Raises UserError if cffi is missing."""
    try:
        from cffi import FFI
    except ModuleNotFoundError:
        raise UserError("cffi is not installed; pip install 'blockstep[capi]'") from None
    ffi = FFI()
    ffi.cdef(read_declarations() + PRIVATE)
    ffi.embedding_api("")
    ffi.embedding_init_code(STARTUP)
    paths = {"BUILT_IN_PYTHON": sys.executable, "BUILT_IN_PACKAGE": str(SOURCES.parent)}
    defined = "".join(f"#define {name} {json.dumps(path, ensure_ascii=False)}\n" for name, path in paths.items())
    ffi.set_source(MODULE, defined + (SOURCES / "library.c").read_text(encoding="utf-8"))
    with redirect_stdout(StringIO()):  # drops cffi's progress message
        ffi.emit_c_code(str(target))


def read_declarations() -> str:
    """Returns the part of the header that cffi understands: everything between the preprocessor's conditions."""
    header = (SOURCES / HEADER).read_text(encoding="utf-8")
    declared = header.split("/* declarations */")[1].split("/* end of declarations */")[0]
    return declared.replace("BLOCKSTEP_PUBLIC ", "")


def find_python_flags() -> list[str]:
    """Returns what a compiler needs to embed this Python. Raises UserError if headers or shared library are missing."""
    if sys.platform != "linux":
        raise UserError(f"this is {sys.platform}; the C library is built on Linux alone")
    include, folder = sysconfig.get_path("include"), sysconfig.get_config_var("LIBDIR")
    if not (Path(include) / "Python.h").exists():
        raise UserError(f"{include} has no Python.h; install Python's headers (Debian: apt install python3-dev)")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise UserError(f"{sys.executable} has no shared library; use a Python configured with --enable-shared")
    return [f"-I{include}", f"-L{folder}", f"-Wl,-rpath,{folder}", f"-lpython{sysconfig.get_config_var('LDVERSION')}"]


def find_compiler() -> list[str]:
    """Returns the compiler's command: $CC, or cc. Raises UserError if there is none."""
    command = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(command[0]) is None:
        raise UserError(f"there is no C compiler {command[0]}; install one (Debian: apt install gcc), or name it in CC")
    return command


OPTIONS = (
    option("--out", type=Path, required=True, metavar="DIR", help="folder for the library and its header"),
    option("--json", action="store_true", help="print one JSON object with the paths of both"),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = f"Builds {LIBRARY} and {HEADER}. The library starts this Python inside its host; "
    what += "BLOCKSTEP_PYTHON names another environment's executable when it runs."
    return make_cli_parser(f"{__package__}.capi", what, OPTIONS).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
