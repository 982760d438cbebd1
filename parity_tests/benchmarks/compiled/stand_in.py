"""python -m parity_tests.benchmarks.compiled.stand_in: a worker that does as told."""

import json
import os
import sys
import time
from pathlib import Path

task = json.loads(sys.argv[1])
match task["job"]["form"]:
    case "sleeps":
        time.sleep(600)
    case "dies":
        print("what it was about to do\nF0101 no room for the kernel", file=sys.stderr)
        os.abort()
    case _:
        record = {"bound": 3.0, "variable": os.environ.get("GIVEN")}
        Path(task["out"]).write_text(json.dumps(record))
