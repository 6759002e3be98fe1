"""Two threads, deterministic kernels, no network: for every test."""
import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg",
               "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

import torch  # noqa: E402  (libraries read the variables above when they load)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
torch.use_deterministic_algorithms(True)
