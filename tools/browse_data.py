"""Look at data: python tools/browse_data.py SOURCE|RECIPE --augmented --out sheet.jpg."""

from __future__ import annotations

import argparse

from detkit import cli
from detkit.engine.browse import check_sheet_name, draw_sheet, find_recipe, save_sheet
from detkit.files import check_writable


def main(arguments: list[str]) -> None:
    """Read the command line, draw, and name the pictures on the sheet."""
    parser = argparse.ArgumentParser(
        description="Draw samples with their boxes, before and after augmentation, on one sheet."
    )
    add = parser.add_argument
    add("source", help="YAML file of a recipe, or annotations of any format")
    add("--images", metavar="FOLDER", help="of the pictures (default: one of the usual places)")
    add("--split", help="train, val or test of a recipe (default: train); any of annotations")
    add("--count", type=int, default=16, help="pictures on the sheet (default: 16)")
    add("--augmented", action="store_true", help="each beside what training sees of it")
    add("--seed", type=int, default=0, help="of which, and of their augmentation (default: 0)")
    add("--side", type=int, default=400, help="longer side of each in pixels (default: 400)")
    add("--out", metavar="FILE", required=True, help="of the sheet: .jpg, .png or .webp")
    options = parser.parse_args(arguments)
    check_sheet_name(options.out)
    check_writable(options.out)

    recipe = find_recipe(options.source, images=options.images, split=options.split)
    sheet = draw_sheet(
        recipe,
        count=options.count,
        augmented=options.augmented,
        seed=options.seed,
        side=options.side,
    )
    save_sheet(sheet, options.out)
    print(sheet.report, *sheet.files, f"drawn to {options.out}", sep="\n")


if __name__ == "__main__":
    cli.run(main)
