"""The machine and the versions that a result was made with."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("hf_interp", "transformers", "accelerate", "datasets", "evaluate", "peft", "torch", "numpy")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers; those not installed are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


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
