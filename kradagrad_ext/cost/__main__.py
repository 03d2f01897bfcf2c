"""``python -m kradagrad_ext.cost``: the costs of training with the optimizer, as a table or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from kradagrad_ext.config import GRAFTS

from . import estimate_cost
from .models import MODELS, Model, parse_shapes
from .parameters import DTYPES, make_config
from .time_model import TOKENS


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _shapes(text: str) -> Model:
    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    defaults = make_config()
    parser = argparse.ArgumentParser(
        prog="python -m kradagrad_ext.cost",
        description="State, work, traffic and predicted time of a step on every rank, from shapes alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=MODELS, default="7b", help="its embeddings and heads have no blocks")
    what.add_argument("--shapes", type=_shapes, help="shapes of parameters, such as 2304x768,768x768*12")
    parser.add_argument("--world-size", type=_count, default=1, help="ranks that share state and work")
    parser.add_argument("--replicated", action="store_true", help="all ranks hold all parameters, not shards")
    parser.add_argument("--block-size", type=_count, help="128 on cuda and 256 on cpu, unless given")
    parser.add_argument("--max-factor-dim", type=_count, default=defaults.max_factor_dim)
    parser.add_argument("--root-every", type=_count, default=defaults.root_every)
    parser.add_argument("--root-steps", type=_count, help="5 to 8; 6 with --root-every 1, else 8")
    parser.add_argument("--root-dtype", choices=DTYPES, default="float32", help="dtype of stored roots")
    parser.add_argument("--factor-dtype", choices=DTYPES, default="float32", help="dtype of stored factors")
    parser.add_argument("--packed", action="store_true", help="roots, and on a CPU factors, as triangles")
    parser.add_argument("--graft", choices=GRAFTS, default=defaults.graft)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device of the state")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="that of parameters and gradients")
    parser.add_argument("--tokens", type=_count, default=TOKENS, help="those of a training step on all ranks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the estimate for command-line arguments."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    name, shapes, as_json = (options.pop(key) for key in ("model", "shapes", "json"))
    model = shapes or MODELS[name]
    groups = [{"params": model.shapes}, {"params": model.plain_shapes, "precondition": False}]
    for key in ("dtype", "root_dtype", "factor_dtype"):
        options[key] = None if key != "dtype" and options[key] == "float32" else DTYPES[options[key]]
    given = {key: value for key, value in options.items() if value is not None}
    try:
        estimate = estimate_cost([group for group in groups if group["params"]], **given)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(estimate.as_dict(), indent=1) if as_json else estimate)


if __name__ == "__main__":
    main()
