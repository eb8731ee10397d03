"""How long `import rpnt_hf` takes beside torch and transformers alone, each in processes of its own.

    python benchmarks/import_time.py --out results

The target is a ratio below 1.5 to `import torch, transformers`. What a model needs of transformers
(`PreTrainedModel`) is shown for comparison: it is imported when a model is first used.
"""

import argparse
import subprocess
import sys

from measure import make_parser, print_table, save_results, time_turns

TARGET = 1.5
VARIANTS = {
    "import torch, transformers": "import torch, transformers",
    "import rpnt_hf": "import rpnt_hf",
    "from transformers import PreTrainedModel": "import torch; from transformers import PreTrainedModel",
    "from rpnt_hf import RPNTForMotorDecoding": "from rpnt_hf import RPNTForMotorDecoding",
    "rpnt --help": "import sys; sys.argv = ['rpnt', '--help']; from rpnt_hf.cli import main; main()",
}


def compare_imports(options: argparse.Namespace) -> None:
    """Times fresh processes turn by turn."""

    def runner(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    calls = {name: (lambda code=code: runner(code)) for name, code in VARIANTS.items()}
    seconds = time_turns(calls, min_seconds=0, min_turns=3 if options.quick else 10)
    floor = seconds["import torch, transformers"]
    rows = [{"code": name, "seconds": time, "ratio": time / floor} for name, time in seconds.items()]
    print_table("Import", rows)
    ratio = seconds["import rpnt_hf"] / floor
    print(f"\nimport rpnt_hf: {ratio:.2f} times torch and transformers alone (target: below {TARGET})")
    save_results(options.out, "import_time", rows)


def main() -> None:
    """Runs the benchmark."""
    options = make_parser(__doc__, {"imports": compare_imports}).parse_args()
    compare_imports(options)


if __name__ == "__main__":
    main()
