"""What a benchmark without a folder of its own leaves: its rows on stdout, and in --output_file how they were made."""
import json
from pathlib import Path

from rotescope.common.outputs import versions, write_json
from rotescope.common.settings import plain


def keep_rows(config, rows, **about):
    """Print `rows` as JSON; write them into config.output_file, where one is named, beside the config, versions and `about`."""
    if config.output_file:
        Path(config.output_file).parent.mkdir(parents=True, exist_ok=True)
        write_json(config.output_file, {"config": plain(config), "versions": versions(), **about, "rows": rows})
    print(json.dumps(rows))
