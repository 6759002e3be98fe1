"""The command `rotescope detect`: mitigate/detect.py scores, evaluate/detection.py says how well that tells prompts apart."""
import json
import sys
from pathlib import Path

from rotescope.errors import exit_cleanly
from rotescope.evaluate.detection import detection_table
from rotescope.mitigate import detect as scoring
from rotescope.settings import parse


@exit_cleanly
def main(argv=None):
    config = parse(scoring.DetectConfig, sys.argv[1:] if argv is None else argv, prog="rotescope detect",
                   description=scoring.__doc__)
    table = detection_table(scoring.detect(config))
    print(json.dumps({"scores": str(Path(config.output_dir) / "scores.parquet"), "detection": table}))


if __name__ == "__main__":
    main()
