"""The whole sweep, unsampled: `python -m cuda.mutations --all` in tests/."""

from __future__ import annotations

import argparse
import time

from . import ptx_edits, sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--all", action="store_true", help="every edit, instead of the sample that the test runs"
    )
    parser.add_argument("--strict", action="store_true", help="only edits whose survivors need an argument")
    parser.add_argument("--kernel", choices=sweep.KERNELS, help="only this kernel")
    options = parser.parse_args()
    for kernel in [options.kernel] if options.kernel else sweep.KERNELS:
        began = time.monotonic()
        text = sweep.text_of(kernel)
        chosen = list(ptx_edits.edits(text)) if options.all else sweep.sample(kernel, text)
        if options.strict:
            chosen = [edit for edit in chosen if edit.kind in ptx_edits.STRICT]
        results = sweep.run(kernel, text, chosen)
        print(
            f"\n{kernel}: {len(results)} edits, {time.monotonic() - began:.0f} s\n\n{sweep.table(results)}\n"
        )
        for edit, layers in results:
            if not layers:
                print(f"  {edit}")


if __name__ == "__main__":
    main()
