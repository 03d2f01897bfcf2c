"""A worker without torch that answers like bench/gpu/check/worker.py, for tests of the driver."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time

DEVICE = {"device": "stub", "torch": "0", "cuda": "0", "backends": {"native": "usable", "triton": "usable"}}


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def answer(request: dict) -> None:
    work = request["work"]
    print(f"printed by {os.getpid()} for {work}", file=sys.stderr, flush=True)
    if work == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if work == "hang":
        time.sleep(600)
    if work == "machine":
        say(facts=DEVICE)
    if work == "compile" and int(request["case"]) > 3:
        say(end={"verdict": "skip", "text": "", "exhausted": True})
        return
    if "STUB_FAILS" in os.environ and request.get("backend") == os.environ["STUB_FAILS"]:
        say(end={"verdict": "FAIL", "text": "an illegal access", "last": True})
        sys.exit(1)
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
    fields = {"op": work, "backend": request.get("backend"), "recipe": f"process {os.getpid()}"}
    say(row={**fields, "metric": "error of x", "p20": 0.1, "p50": 0.25, "p80": 0.5, "bound": 1.0})
    wrong = work == "wrong"
    say(end={"verdict": "WRONG" if wrong else "pass", "text": "made wrong" if wrong else ""})


faulthandler.register(signal.SIGUSR1)
if os.environ.get("STUB_DOES_NOT_START"):
    sys.exit("no torch")
say(ready=True)
print("what a library prints", flush=True)
for line in sys.argv[1:] or sys.stdin:
    answer(json.loads(line))
