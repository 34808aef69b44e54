"""Checks of the machine: installed packages and the device."""

import shutil
from importlib import metadata

import torch
from packaging.requirements import Requirement

from lora_hf.doctor.check import Findings, fault, ok, unknown
from lora_hf.memory import free_memory
from lora_hf.reporting.tables import bytes_cell
from lora_hf.system import device_name, pick_device, resolve_dtype

REPORTED = ("torch", "transformers", "accelerate", "bitsandbytes")
"""Packages whose versions are reported; all are checked."""


def versions() -> Findings:
    """Check that every required package is installed in a supported version."""
    try:
        lines = metadata.requires("lora_hf") or []
    except metadata.PackageNotFoundError:
        yield unknown("not checked: lora_hf is not installed as a package, and its requirements are unknown")
        return
    required = [Requirement(line) for line in lines]
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    for requirement in needed:
        yield from version_of(requirement)
    reported = ", ".join(f"{name} {installed_version(name)}" for name in REPORTED)
    yield ok(f"{reported}; {len(needed)} packages checked")


def version_of(requirement: Requirement) -> Findings:
    """Yield a fault if the package is missing or its version is not supported."""
    found, wanted = installed_version(requirement.name), f"{requirement.name}{requirement.specifier}"
    if found is None or not requirement.specifier.contains(found, prereleases=True):
        what = "is not installed" if found is None else f"is installed in version {found}"
        yield fault(f"{requirement.name} {what}; {wanted} is required", f"pip install '{wanted}'")


def installed_version(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device() -> Findings:
    """Check that an existing GPU is used."""
    here = pick_device()
    if here.type == "cpu" and shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remedy = "install the build of torch for this driver's CUDA (shown by nvidia-smi): see pytorch.org"
        yield fault(f"this machine has an NVIDIA driver, but torch ({built}) cannot use it", remedy)
        return
    free = free_memory(here)
    memory = "" if free is None else f", {bytes_cell(free)} free"
    dtype = str(resolve_dtype("auto", here)).removeprefix("torch.")
    yield ok(f"{device_name(here)}{memory}; {dtype} by default")
