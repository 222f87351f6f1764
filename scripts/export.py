"""Write a model for other runtimes: ONNX, TorchScript, its weights as safetensors, stable-baselines3."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.compat.export import SUFFIXES, export
from drl_agents.compat.sb3_zip import export_sb3
from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.registry import Registry
from drl_agents.training.commandline import OutputOptions, run
from environments.errors import InputError

FORMATS = (*SUFFIXES, "sb3")


@dataclass(frozen=True)
class Options:
    """What is written is read back first, and what it computes compared with the model's actions on 64 observations, to
    1e-5. These are within the limit that a model has for observations and sb3 has no place for (a warning says so)."""

    format: str = "onnx"
    """onnx, torchscript, safetensors, or sb3 (stable-baselines3's PPO)"""
    bundle: Path | None = None
    """folder of a bundle; default: the champion promoted last"""
    slot: str | None = None
    """which market's champion; default: the one promoted last"""
    out: Path | None = None
    """file to write; default: the bundle's id, here"""
    logs: Path = Path("logs")
    """folder the champions are under"""
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    if options.format not in FORMATS:
        raise InputError(f"--format {options.format}: accepted are {', '.join(FORMATS)}")
    if options.bundle is not None:
        bundle = load_bundle(options.bundle)
    else:
        registry = Registry(options.logs)
        slot = options.slot or registry.newest_slot()
        bundle = registry.champion(slot)
        if bundle is None:
            raise InputError(f"slot {slot!r} has no champion")
    out = options.out or Path(bundle.id[:16])
    if options.format == "sb3":
        path = export_sb3(out, bundle.policy)
    else:
        path = export(out, bundle.policy, options.format)
    spec = bundle.policy.spec
    print(f"{path}: {spec.network}, observations of {spec.size} numbers, {spec.action} of {spec.action_size}")
    return 0


if __name__ == "__main__":
    run(Options, main)
