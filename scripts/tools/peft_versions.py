"""Exchange adapters with older versions of PEFT, each in an environment of its own.

    python scripts/tools/peft_versions.py [--only 0.4.0 ...] [--golden tests/adapters/golden]

Each version writes adapters that lora_hf loads, and loads adapters that lora_hf wrote; the logits must be
equal. An environment holds PEFT and the Transformers of its time, and takes everything else, such as torch,
from the environment that runs this command. The command ends with status 1 if anything differs, or if an
environment cannot be installed: the oldest versions need packages that exist for Python up to 3.12.
`--golden` keeps what the versions wrote, in the folder that `tests/adapters/test_golden.py` reads.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support import old_peft  # noqa: E402

from lora_hf import LoraConfig, inject_adapters, load_adapter, save_adapter  # noqa: E402

ENVIRONMENTS = ROOT / ".venv-peft"
OF_2023 = "transformers==4.36.2 tokenizers==0.15.2 huggingface_hub==0.20.3 accelerate==0.25.0"
VERSIONS = {
    "0.4.0": OF_2023,
    "0.7.1": OF_2023,
    "0.10.0": "transformers==4.40.2 tokenizers==0.19.1 huggingface_hub==0.23.4 accelerate==0.30.1",
    "0.13.2": "transformers==4.45.2 tokenizers==0.20.3 huggingface_hub==0.25.2 accelerate==1.0.1",
    "0.17.1": "transformers==4.56.2 tokenizers==0.22.1 huggingface_hub==0.35.3 accelerate==1.10.1",
}
"""Version of PEFT -> packages that it was released for."""


def environment(version: str) -> Path:
    """Create the environment of a version, unless it exists, and return its Python."""
    folder = ENVIRONMENTS / version
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        packages = [f"peft=={version}", *VERSIONS[version].split()]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", site, *packages], check=True)
        (folder / "installed").touch()
    return python


def write_ours(folder: Path, version: str) -> list[Path]:
    """Write adapters with lora_hf whose fields this version of PEFT has."""
    written = []
    for name, (since, fields) in old_peft.CASES.items():
        if name not in ("pattern", "head") and since <= tuple(map(int, version.split(".")[:2])):
            known = {key: value for key, value in fields.items() if not key.endswith("_pattern")}
            patterns = {"rank_pattern": {"v": 3}, "alpha_pattern": {"q": 7}} if name == "ranks" else {}
            model = inject_adapters(old_peft.base(), LoraConfig(r=2, lora_alpha=5, **known, **patterns))
            old_peft.move(model, 2)
            written.append(save_adapter(model, folder / name))
            torch.save(old_peft.logits(model), folder / f"{name}.pt")
    return written


def check(version: str, golden: Path | None) -> list[str]:
    """Return the differences between one version and lora_hf."""
    try:
        python, script = environment(version), old_peft.__file__
    except subprocess.CalledProcessError:
        print(
            f"PEFT {version}: not tested, its packages could not be installed: see the messages of pip above"
        )
        return [version]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ""}
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = Path(scratch, "theirs"), Path(scratch, "ours")
        subprocess.run([python, script, "write", theirs], check=True, env=quiet)
        for folder in sorted(theirs.iterdir()):
            expected = load_file(folder / old_peft.LOGITS)["logits"]
            found = old_peft.logits(load_adapter(old_peft.base(), folder))
            faults += [f"{version} -> lora_hf: {folder.name}"] * (
                not torch.allclose(found, expected, atol=1e-4)
            )
        folders = write_ours(ours, version)
        subprocess.run([python, script, "read", *folders], check=True, env=quiet)
        for folder in folders:
            expected = torch.load(ours / f"{folder.name}.pt", weights_only=True)
            found = load_file(folder / old_peft.LOGITS)["logits"]
            faults += [f"lora_hf -> {version}: {folder.name}"] * (
                not torch.allclose(found, expected, atol=1e-4)
            )
        print(
            f"PEFT {version}: {len(list(theirs.iterdir()))} read, {len(folders)} written, {faults or 'equal'}"
        )
        if golden:
            shutil.copytree(theirs, golden / version, dirs_exist_ok=True)
    return faults


def main() -> int:
    """Check every version; return the exit status."""
    parser = argparse.ArgumentParser(description="Exchange adapters with older versions of PEFT.")
    parser.add_argument("--only", choices=VERSIONS, nargs="+", help="some versions; the default is all")
    parser.add_argument("--golden", type=Path, help="folder that keeps what the versions wrote")
    options = parser.parse_args()
    chosen = options.only or list(VERSIONS)
    return int(any([check(version, options.golden) for version in chosen]))


if __name__ == "__main__":
    sys.exit(main())
