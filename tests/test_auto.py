"""A fresh process that knows transformers and `import rpnt_hf` loads everything by its Auto class, twice."""

import subprocess
import sys

import pytest

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor
from rpnt_hf.auto import register

SCRIPT = """
import sys
import numpy as np
import transformers
import rpnt_hf

folder = sys.argv[1]
for _ in range(2):
    model = transformers.AutoModelForTimeSeriesPrediction.from_pretrained(folder)
    same = rpnt_hf.AutoModelForMotorDecoding.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(transformers.AutoConfig.from_pretrained(folder)).__name__ == "RPNTConfig"
    assert type(transformers.AutoModel.from_pretrained(folder)).__name__ == "RPNTModel"
    inputs = processor(np.eye(4, dtype=np.uint8), session_id="today")
    assert (model(**inputs).predictions == same(**inputs).predictions).all()
print(type(model).__name__, type(same).__name__, type(processor).__name__, processor.bin_size)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_fresh_process_loads_decoder_and_processor_by_their_auto_classes(tmp_path):
    RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=4)).save_pretrained(tmp_path)
    RPNTProcessor(bin_size=0.02, sessions={"today": ["a", "b", "c", "d"]}).save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["RPNTForMotorDecoding", "RPNTForMotorDecoding", "RPNTProcessor", "0.02"]


def test_registering_again_is_harmless():
    register()
    register()
