"""What each process of a stage-2 run of two processes does; see test_caption_processes.py.

Arguments: the configuration, and the step before which the process kills itself (0 for never).
"""

from __future__ import annotations

import os
import signal
import sys

from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.config import load_config
from tokenize_anything.training.region_tokens import TokenSource


class Mortal(CaptionTrainer):
    """Dies at a step, as a machine does."""

    last_step = 0

    def train_step(self, tokens: TokenSource) -> dict[str, float]:
        if self.last_step and self.step == self.last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(tokens)


if __name__ == "__main__":
    trainer = Mortal(load_config(CaptionConfig, sys.argv[1]))
    trainer.last_step = int(sys.argv[2])
    trainer.run()
