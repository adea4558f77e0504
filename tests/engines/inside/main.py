"""main.py RUNTIME PART [WORD...]: runs a part's checks in the machine, one JSON record a line into /work/results."""
import importlib, os, sys

import lib

runtime, part, *wanted = sys.argv[1:]
os.environ["RUNTIME"] = runtime
module = importlib.import_module(part)
with open("/work/results", "a", buffering=1) as results:
    module.setup()
    lib.run(runtime, wanted, lambda line: results.write(line + "\n"), module.clean)
