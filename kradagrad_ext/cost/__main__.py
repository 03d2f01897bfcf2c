"""``python -m kradagrad_ext.cost``: what training with the optimizer costs, as a table or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from kradagrad_ext.config import GRAFTS

from . import cost
from .gpus import TOKENS
from .models import MODELS, Model, parse_shapes
from .parameters import DTYPES, make_config


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
    what.add_argument("--model", choices=MODELS, default="7b", help="embeddings and heads without blocks")
    what.add_argument("--shapes", type=_shapes, help="of parameters, such as 2304x768,768x768*12")
    parser.add_argument("--world-size", type=_count, default=1, help="ranks that share out state and work")
    parser.add_argument(
        "--replicated", action="store_true", help="parameters lie on all ranks, not in shards"
    )
    parser.add_argument("--block-size", type=_count, help="128 on cuda and 256 on cpu, unless given")
    parser.add_argument("--max-factor-dim", type=_count, default=defaults.max_factor_dim)
    parser.add_argument("--root-every", type=_count, default=defaults.root_every)
    parser.add_argument("--root-steps", type=_count, help="5 to 8; 6 with --root-every 1, else 8")
    parser.add_argument("--root-dtype", choices=DTYPES, default="float32", help="of roots, as stored")
    parser.add_argument("--factor-dtype", choices=DTYPES, default="float32", help="of factors, as stored")
    parser.add_argument("--packed", action="store_true", help="roots as triangles, on a CPU factors, too")
    parser.add_argument("--graft", choices=GRAFTS, default=defaults.graft)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the state lies")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of parameters and gradients")
    parser.add_argument("--tokens", type=_count, default=TOKENS, help="of a training step, over all ranks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the estimate that the arguments ask for."""
    parser = _parser()
    given = parser.parse_args(arguments)
    model = given.shapes or MODELS[given.model]
    groups = [{"params": model.shapes}, {"params": model.plain_shapes, "precondition": False}]
    stored = [None if text == "float32" else DTYPES[text] for text in (given.factor_dtype, given.root_dtype)]
    try:
        estimate = cost(
            [group for group in groups if group["params"]],
            world_size=given.world_size,
            replicated=given.replicated,
            dtype=DTYPES[given.dtype],
            tokens=given.tokens,
            **({} if given.block_size is None else {"block_size": given.block_size}),
            max_factor_dim=given.max_factor_dim,
            root_every=given.root_every,
            root_steps=given.root_steps,
            factor_dtype=stored[0],
            root_dtype=stored[1],
            packed=given.packed,
            graft=given.graft,
            device=given.device,
        )
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(estimate.as_dict(), indent=1) if given.json else estimate)


if __name__ == "__main__":
    main()
