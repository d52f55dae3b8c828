"""The device that runs the model."""

import platform

import torch

from raiopt import checks


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    kind, _, number = name.partition(":")
    checks.choice("device", kind, ["auto", "cpu", "cuda", "mps"])
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if not (number or "0").isdigit() or int(number or 0) >= count:
        raise ValueError(
            f"device={name} does not exist: this machine has {count or 'no'} {kind} device. Use device=auto."
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Returns the hardware that determines rounding: the GPU, or the type of CPU and the kernels torch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kernels = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
    return f"{platform.machine()} {kernels}"
