"""`make gpu-check`: what this project has to run on a GPU. So far nothing: say so, and fail not."""

import json
import shutil
import sys


def main() -> int:
    """Print one JSON object; exit 0."""
    report = {
        "schema": "gear.gpu-check/1",
        "gpu": shutil.which("nvidia-smi") is not None,
        "nvcc": shutil.which("nvcc") is not None,
        "kernels": [],
        "note": "gear_trt has no CUDA kernels yet: nothing was built, tested or measured",
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
