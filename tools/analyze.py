"""What a network costs and sees: python tools/analyze.py resnet50 | configs/quickstart.yaml."""

from __future__ import annotations

import argparse

from detkit import cli
from detkit.analysis import (
    DTYPES,
    Setting,
    backbones_page,
    describe,
    describe_speed,
    find_subject,
    parse_size,
    save_plot,
)
from detkit.engine.device import pick_device
from detkit.files import write_atomically


def main(arguments: list[str]) -> None:
    """Read the command line, then print tables, draw, or write the page of all backbones."""
    parser = argparse.ArgumentParser(description="What a network costs and what it sees.")
    parser.add_argument("target", nargs="?", help="backbone, or YAML file of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. attention=se")
    parser.add_argument("--size", help="of the images: 224 or HEIGHTxWIDTH (default: as published)")
    parser.add_argument("--classes", type=int, help="of a detector (default: of the data, or 80)")
    parser.add_argument("--measure", action="store_true", help="also measure fields, time, memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument("--channels-last", action="store_true", help="memory format to measure")
    parser.add_argument("--plot", metavar="FILE", help="draw fields, anchors and sizes of objects")
    parser.add_argument("--table", metavar="FILE", help="write the page of all backbones instead")
    options = parser.parse_intermixed_args(arguments)

    if options.table:
        if options.target is not None:
            raise ValueError(f"--table is of all backbones; leave {options.target!r} out")
        command = f"python tools/analyze.py --table {options.table}"
        return write_atomically(options.table, backbones_page(command))
    if options.target is None:
        raise ValueError("nothing to analyse; name a backbone (resnet50) or a recipe (FILE.yaml)")
    size = parse_size(options.size) if options.size else None
    classes = options.classes
    subject = find_subject(options.target, options.overrides, size=size, num_classes=classes)
    print(describe(subject, gradient=options.measure))
    if options.measure:
        setting = Setting(
            pick_device(options.device), options.batch, options.dtype, options.channels_last
        )
        print(f"\n{describe_speed(subject, setting)}")
    if options.plot:
        save_plot(subject, options.plot)
        print(f"\ndrawn to {options.plot}")


if __name__ == "__main__":
    cli.run(main)
