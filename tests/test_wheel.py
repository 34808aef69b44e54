"""The built wheel, outside the clone: the package, its model and its configs are in it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_a_shipped_config_outside_the_clone(tmp_path: Path) -> None:
    wheels, site, elsewhere = tmp_path / "wheels", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    known = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")

    def leave_out(folder: str, names: list[str]) -> set[str]:
        return known(folder, names) | ({"runs", "site"} if Path(folder) == ROOT else set())

    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=leave_out)  # building leaves files behind
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", wheels, clone], check=True)
    wheel = next(wheels.glob("lora_hf-*.whl"))
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
    where = run(sys.executable, "-c", "import lora_hf; print(lora_hf.__file__)", cwd=elsewhere, path=site)
    assert where.startswith(str(site))
    small = (
        "training.max_steps=2",
        "data.max_train_samples=64",
        "data.max_test_samples=4",
        "data.max_eval_samples=8",
        "retention={}",
    )
    printed = run(
        sys.executable, "-m", "lora_hf", "train", "--config", "quickstart", *small, cwd=elsewhere, path=site
    )
    assert "rouge1" in printed
    assert (elsewhere / "runs" / "quickstart" / "adapter" / "adapter_model.safetensors").is_file()
    pushing = ("push", "--adapter", "runs/quickstart", "--repo-id", "anna/dialogues", "--dry-run")
    card = run(sys.executable, "-m", "lora_hf", *pushing, cwd=elsewhere, path=site)
    assert "# dialogues" in card  # its template is in the wheel
