"""A Ray Train on this machine that has nothing to do: prints the time at which its worker began."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from pipelines.cluster import RAY_SETTINGS

if __name__ == "__main__":
    os.environ |= {**RAY_SETTINGS, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    import ray
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import ScalingConfig

    with tempfile.TemporaryDirectory() as folder:
        began = Path(folder, "began")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        TorchTrainer(
            lambda config: Path(config["began"]).write_text(str(time.time())),
            train_loop_config={"began": str(began)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(storage_path=folder),
        ).fit()
        print(began.read_text())
