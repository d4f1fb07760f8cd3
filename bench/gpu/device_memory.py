"""Peak memory of the first GPU, as nvidia-smi sees it from outside: the same measure for ballast and for its peer."""

import os
import subprocess
import threading


def used():
    """Bytes in use on the first visible GPU, by all processes; None where nvidia-smi cannot tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    command = ["nvidia-smi", f"--id={visible}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(answer.strip()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


class Peak:
    """The most memory in use while it is entered, above what was in use before; `None` without nvidia-smi. Asked five
    times a second, which allocators that keep what they have once taken make enough."""

    def __init__(self):
        self.before, self.most, self.over = used(), None, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self):
        if self.before is not None:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.before is not None:
            self.thread.join()

    @property
    def bytes(self):
        """The peak in bytes."""
        return None if self.most is None else self.most - self.before

    def _watch(self):
        while not self.over.wait(0.2):
            now = used()
            if now is not None:
                self.most = max(self.most or 0, now)
