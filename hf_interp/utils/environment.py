"""The machine and the versions that a result was made with."""

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("hf_interp", "transformers", "accelerate", "datasets", "evaluate", "peft", "torch", "numpy")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers; those not installed are left out."""
    found = ((package, _version(package)) for package in PACKAGES)
    return {"python": platform.python_version(), **{package: version for package, version in found if version}}


@cache  # some milliseconds each
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """Processor, number of usable cores and system; nothing that names the host or its user."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": usable, "system": platform.system(), "architecture": platform.machine()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
