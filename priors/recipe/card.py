"""Writes errors by family into a manifest: `python -m recipe.card FOLDER FIGURES.json...`, the latter from
`fwi prior evaluate --json`. Entries that the manifest has are replaced."""

import argparse
import json
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a prior's folder")
    parser.add_argument("figures", type=Path, nargs="+", help="what fwi prior evaluate --json wrote")
    args = parser.parse_args()
    manifest = args.folder / "manifest.toml"
    text = manifest.read_text().split("[[mae]]")[0].rstrip() + "\n"
    for path in args.figures:
        for row in json.loads(path.read_text())["families"]:
            maps = "real" if row["maps"] == "given" else "synthetic"
            text += f'\n[[mae]]\nfamily = "{row["family"]}"\nmaps = "{maps}"\ncount = {row["count"]}\nmae = {row["mae"]:.1f}\n'
    manifest.write_text(text)


if __name__ == "__main__":
    main()
