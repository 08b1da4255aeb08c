"""What a killed process leaves behind: no other process."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

_LOAD = """
import numpy as np
from gdkd_cache.data.loader import ViewLoader
from gdkd_cache.data.recipes.presets import open_recipe
from gdkd_cache.data.source import ArraySource
from gdkd_cache.data.views import ViewRenderer, requests_for

if __name__ == "__main__":
    images = np.zeros((64, 3, 8, 8), np.uint8)
    keys = [str(row) for row in range(64)]
    source = ArraySource(name="zeros", images=images, labels=np.arange(64) % 2, keys=keys, classes=["a", "b"])
    renderer = ViewRenderer(source, open_recipe("crop-flip", 8, 8), seed=0)
    for batch in ViewLoader(renderer, num_workers=2).stream(requests_for(0, np.arange(10**6) % 64, 1)):
        print("loaded", flush=True)
"""


def test_workers_end_with_the_process_that_loads(tmp_path: Path) -> None:
    """Killed in the midst: whatever holds its output still, its workers and their servers, goes within seconds."""
    script = tmp_path / "load.py"
    script.write_text(_LOAD)
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"loaded\n"
        time.sleep(random.random())
        process.kill()
        process.communicate(timeout=10)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == -signal.SIGKILL
