"""Write docs/models.md from the matrix of families in the tests, or check that it is up to date.

python scripts/tools/models_page.py [--check]
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/models.md"
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if the page is out of date")
    check = parser.parse_args().check
    from support.matrix import page

    text = page()
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is out of date: run python scripts/tools/models_page.py")
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
