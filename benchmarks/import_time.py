"""How long `import rpnt_hf` takes beside torch and transformers alone, each in processes of its own.

    python benchmarks/import_time.py [--quick] [--out FOLDER]

The target is a ratio below 1.5 to `import torch, transformers`. What a model needs of transformers
(`PreTrainedModel`) is shown for comparison: it is imported when a model is first used.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from measure import print_table, save_results, time_turns

TARGET = 1.5
VARIANTS = {
    "import torch, transformers": "import torch, transformers",
    "import rpnt_hf": "import rpnt_hf",
    "from transformers import PreTrainedModel": "import torch; from transformers import PreTrainedModel",
    "from rpnt_hf import RPNTForMotorDecoding": "from rpnt_hf import RPNTForMotorDecoding",
    "rpnt --help": "import sys; sys.argv = ['rpnt', '--help']; from rpnt_hf.cli import main; main()",
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three turns of each instead of ten")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write import_time.json there")
    arguments = parser.parse_args()

    def runner(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    calls = {name: (lambda code=code: runner(code)) for name, code in VARIANTS.items()}
    seconds = time_turns(calls, min_seconds=0, min_turns=3 if arguments.quick else 10)
    floor = seconds["import torch, transformers"]
    rows = [{"code": name, "seconds": time, "ratio": time / floor} for name, time in seconds.items()]
    print_table("Import", rows)
    ratio = seconds["import rpnt_hf"] / floor
    print(f"\nimport rpnt_hf: {ratio:.2f} times torch and transformers alone (target: below {TARGET})")
    if arguments.out is not None:
        save_results(arguments.out, "import_time", rows)


if __name__ == "__main__":
    main()
