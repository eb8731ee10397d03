"""The page of `rpnt app` as a Space: visitors bring a file or an id on the Hub, never a folder."""

import os

from rpnt_hf.app.page import launch, make_page

launch(
    make_page(checkpoints=os.environ.get("RPNT_CHECKPOINTS", "").split(), allow_folders=False, max_steps=600),
    host="0.0.0.0",
    port=int(os.environ.get("PORT", "7860")),
    max_upload=os.environ.get("RPNT_MAX_UPLOAD", "200mb"),
)
