"""Convert annotations: python tools/convert_data.py SOURCE [...] --to coco|voc|yolo|csv FOLDER.

Sources of any format are recognised, with all their splits: python tools/convert_data.py
data.yaml --to coco out; python tools/convert_data.py train.json val.json --to yolo out.
"""

from __future__ import annotations

import argparse

from detkit import cli
from detkit.data.auto import PARSERS
from detkit.data.convert import SourceOptions, convert
from detkit.data.writers import WRITERS


def main(arguments: list[str]) -> None:
    """Read the command line, convert, and say what is lost and how to read the result."""
    parser = argparse.ArgumentParser(
        description="Write annotations of COCO JSON, Pascal VOC, YOLO or CSV in another format."
    )
    add = parser.add_argument
    what = "a file or folder of annotations; train=PATH says of which split it is"
    add("sources", nargs="+", metavar="SOURCE", help=what)
    add("folder", metavar="FOLDER", help="to write to")
    add("--to", required=True, choices=WRITERS, help="format to write")
    add("--from", dest="format", choices=PARSERS, help="format to read (default: recognised)")
    add("--split", action="append", help="of several, only this one; may be given again")
    add("--images", metavar="FOLDER", help="the pictures, of COCO JSON and CSV")
    add("--classes", metavar="A,B,...", help="of VOC and CSV, in the order of their labels")
    based = "corners of VOC are pixels counted from 1 (default: as its <source> says)"
    add("--one-based", action=argparse.BooleanOptionalAction, help=based)
    placement = parser.add_mutually_exclusive_group()
    for name, does in (("copy", "copy the pictures"), ("link", "make symbolic links to them")):
        placement.add_argument(
            f"--{name}", dest="placement", action="store_const", const=name, help=does
        )
    add("--overwrite", action="store_true", help="replace an earlier conversion")
    options = parser.parse_intermixed_args(arguments)
    source_options = SourceOptions(
        format=options.format,
        splits=None if options.split is None else tuple(options.split),
        images=options.images,
        classes=None if options.classes is None else tuple(options.classes.split(",")),
        one_based=options.one_based,
    )
    conversion = convert(
        options.sources,
        options.folder,
        to=options.to,
        options=source_options,
        placement=options.placement,
        overwrite=options.overwrite,
    )
    print(conversion)


if __name__ == "__main__":
    cli.run(main)
