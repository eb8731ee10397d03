"""The page of `rpnt app`: recordings, live decoding, attention and finetuning in a browser."""
