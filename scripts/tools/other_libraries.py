"""Read a run's merged and exported folders with the libraries that they are for, without lora_hf.

    python scripts/tools/other_libraries.py runs/quickstart/lora [--examples 200] [--only onnx]

The folders are written by `lora-hf merge` and `lora-hf export`. The code in each folder's README then writes
the test split in an environment that has the library and no lora_hf. Prints how many texts are those of
lora_hf with the same folder, and those of the run in float32. The command ends with status 1 if a folder's
texts differ from lora_hf's.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support import readme_code  # noqa: E402

import lora_hf  # noqa: E402
from lora_hf.config.load import load_config  # noqa: E402
from lora_hf.data.splits import load_split  # noqa: E402
from lora_hf.models.plain_folder import EXAMPLE  # noqa: E402
from lora_hf.run_files import CONFIG  # noqa: E402
from lora_hf.saved.export import export  # noqa: E402
from lora_hf.saved.merge import merge  # noqa: E402
from lora_hf.saved.source import find_source  # noqa: E402

ENVIRONMENT = ROOT / ".venv-libraries"
PACKAGES = (
    "transformers==4.57.3",
    "tokenizers==0.22.1",
    "huggingface_hub==0.36.0",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
)
"""The last Transformers 4, which Optimum needs. torch, CTranslate2 and onnxruntime are this environment's."""
KINDS = {
    "transformers": ("float32",),
    "ctranslate2": ("float32", "int8"),
    "onnx": ("float32", "int8"),
}
"""What a folder is written for -> its types of weights."""


def environment() -> Path:
    """Create the environment, unless it exists, and return its Python."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", ENVIRONMENT], check=True)
        (site,) = ENVIRONMENT.glob("lib/python3*/site-packages")
        (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", site, *PACKAGES], check=True)
        (ENVIRONMENT / "installed").touch()
    return python


def written_without_lora_hf(python: Path, folder: Path, dialogues: list[str]) -> list[str]:
    """Return what the code in a folder's README writes, in a process of this Python."""
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ""}
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch, "asked.json")
        asked.write_text(json.dumps({"example": EXAMPLE, "dialogues": dialogues}), encoding="utf-8")
        done = subprocess.run(
            [python, readme_code.__file__, folder, asked],
            check=True,
            env=quiet,
            stdout=subprocess.PIPE,
            text=True,
            cwd=scratch,
        )
    written: list[str] = json.loads(done.stdout.splitlines()[-1])
    return written


def main() -> int:
    """Check each kind of folder; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--examples", type=int, default=200, help="of the test split")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    given = parser.parse_args()
    python = environment()
    source = find_source(given.run, None, "RUN")
    test = load_split(load_config(Path(given.run, CONFIG)).data, "test")[: given.examples]
    dialogues = [example.dialogue for example in test]
    whole = lora_hf.load(given.run).generate(dialogues)
    differ = False
    with tempfile.TemporaryDirectory() as scratch:
        for library in given.only:
            for kind in KINDS[library]:
                folder = Path(scratch, f"{library}-{kind}")
                if library == "transformers":
                    merge(given.run, folder, None, None)
                else:
                    export(source, folder, library, kind, examples=1, allow_loss=True)
                ours = lora_hf.load(folder).generate(dialogues, batch_size=1)
                theirs = written_without_lora_hf(python, folder, dialogues)
                same, plain = (
                    sum(a == b for a, b in zip(theirs, texts, strict=True)) for texts in (ours, whole)
                )
                differ |= same < len(test)
                print(
                    f"{library}, {kind}: of {len(test)} texts {same} are lora_hf's with the same folder, "
                    f"{plain} are the run's in float32",
                    flush=True,
                )
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
