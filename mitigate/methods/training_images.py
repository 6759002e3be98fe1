"""The training images that a mitigation is given: a folder, a file, a manifest's file, or a manifest."""
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import read_source


def identity_of(training):
    """What tells one set of training images from another: the manifest, or the path and when it changed.

    InputError where nothing is there.
    """
    if isinstance(training, Manifest):
        return training
    path = Path(training).absolute()
    if not training or not path.exists():
        raise InputError(f"training={training} holds no images: name the training images' folder or their "
                         "manifest, as in training=runs/demo/checkpoint/manifest.parquet")
    return path, path.stat().st_mtime_ns


def different_images(identity):
    """What identity_of gave -> Examples of the readable images, each content once."""
    given = isinstance(identity, Manifest)
    manifest = identity if given else read_source(identity[0], need_captions=False).manifest
    return list({e.sha256: e for e in manifest}.values())
