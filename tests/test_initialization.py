"""How a model to be trained comes out of a checkpoint."""

import logging

from small_corpus import build_small_corpus
from transformers.utils import logging as transformers_logging

from rpnt_hf import RPNTForMotorDecoding
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.initialization import from_checkpoint


def test_a_new_head_on_pretrained_weights_is_no_cause_for_alarm(tmp_path):
    rows = view_rows(load_rows(build_small_corpus(tmp_path / "corpus"), split="train"))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logging.add_handler(handler)
    verbosity = transformers_logging.get_verbosity()
    try:
        model, _, new = from_checkpoint(
            RPNTForMotorDecoding, "rpnt-tiny-synthetic", {"num_targets": 2}, rows, window_bins=40
        )
    finally:
        transformers_logging.remove_handler(handler)
    assert not said and transformers_logging.get_verbosity() == verbosity
    assert isinstance(model, RPNTForMotorDecoding) and new == sorted({row["session_id"] for row in rows})
