"""What is in a recording, a built dataset or a checkpoint, and what is wrong with it; for `rpnt inspect`.

Nothing is changed or trained. Reports are plain values, ready for JSON.
"""
