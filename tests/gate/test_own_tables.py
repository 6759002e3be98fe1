"""What rotescope found out is never read as training data, and no two sets of data have one hash."""
from dataclasses import replace
from itertools import combinations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from instruments import leave, samples_folder, training_folder

from rotescope import cli
from rotescope.common.errors import InputError
from rotescope.common.parquet import kind_of, read_schema
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.readers.sources import load_source, read_source
from rotescope.evaluate.inputs.samples import Record, Samples
from rotescope.mitigate.detectors.scores import SCORES, TOKENS
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.run_description import hashes_of
from rotescope.mitigate.sampling.sampler import RECORD_SCHEMA, merge_shards
from rotescope.models.model_options import BASE, ModelOptions

PARTS = ("|", "\t", "\n", "\\", "a", "")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of training pictures, and what commands found out about them."""
    folder = tmp_path_factory.mktemp("results")
    photos = training_folder(folder / "photos", 6)
    samples_folder(folder / "samples", load_source(photos), lambda *_: True)
    merge_shards(folder, [])
    (folder / "unmarked").mkdir()
    for name, schema in (("scores", SCORES), ("tokens", TOKENS), ("records", RECORD_SCHEMA)):  # as older releases wrote them
        pq.write_table(schema.empty_table(), folder / f"unmarked/{name}.parquet")
    assert leave(cli.main, ["preflight", photos, "--output_dir", folder / "before", "--verify", "false"]) == 0
    assert leave(cli.main, ["score", "--generated", folder / "samples", "--train_data", photos,
                            "--output_dir", folder / "report", "--verify", "false"]) == 1
    images = pq.read_table(folder / "before/images.parquet").replace_schema_metadata()
    pq.write_table(images, folder / "unmarked/images.parquet")
    return folder


def test_each_table_says_what_it_is(results):
    kinds = {name: kind_of(read_schema(results / name)) for name in (
        "records.parquet", "before/images.parquet", "report/pairs.parquet", "samples/records.parquet",
        *(f"unmarked/{kind}.parquet" for kind in ("scores", "tokens", "records", "images")))}
    assert list(kinds.values()) == ["records", "images", "pairs", *["results"] * 5]


def test_none_of_them_is_read_as_data(results):
    files = sorted(results.rglob("*.parquet"))
    assert len(files) == 8
    for file in files:
        with pytest.raises(InputError, match=r"found out \(\w+\), no training data"):
            read_source(file, need_captions=False)


def test_among_the_data_they_are_passed_over(results, tmp_path):
    photos, known = training_folder(tmp_path / "photos", 6), load_source(results / "photos")
    for file in results.rglob("*.parquet"):
        (photos / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    known.save(photos / "manifest.parquet")
    found = read_source(photos)
    assert [e.sha256 for e in found.manifest] == [e.sha256 for e in known]
    assert not found.unused
    assert len(read_source(photos / "manifest.parquet").manifest) == 6  # by its own name


def test_a_table_of_somebody_else_is_data_whatever_its_columns_are_called(tmp_path):
    file = training_folder(tmp_path / "photos", 1) / "000.png"
    row = {"image": {"bytes": file.read_bytes(), "path": None}, "caption": "a cat", "prompt": "a", "seed": 1, "score": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    assert len(load_source(tmp_path / "data.parquet")) == 1


# ----- hashes

def test_captions_and_groups_are_hashed_apart():
    """Every list of one or two captions out of separators and letters, in every group: no two have one hash."""
    texts = [first + second for first in PARTS for second in PARTS]
    lists = {(t,) for t in texts} | set(combinations(texts, 2))
    manifests = [Manifest((Example("id", captions, "f", None, "0" * 64, group=group, matched=matched),))
                 for captions in lists for group, matched in (("", ""), ("duplicated", ""), ("control", "a"), ("control\ta", ""))]
    different = {(m[0].captions, m[0].group, m[0].matched) for m in manifests}
    assert len({m.hash for m in manifests}) == len(different)


def test_rows_are_hashed_apart():
    one, other = Example("a", ("x",), "f", None, "0" * 64), Example("b", ("y",), "f", None, "1" * 64)
    joined = replace(one, captions=("x\nb\t1\ty",))
    assert Manifest((one, other)).hash != Manifest((joined,)).hash


def test_plain_captions_keep_the_hash_that_they_had():
    """sha256sum of the lines "a<TAB>3<TAB>one|two" and "b<TAB>1<TAB>three"."""
    examples = (Example("a", ("one", "two"), "f", None, "0" * 64, 3), Example("b", ("three",), "f", None, "1" * 64))
    assert Manifest(examples).hash == "f409f781b027f404fb0ef29ce2871d356403f387024430cb3041fe7531af2f9f"


def test_samples_and_prompts_are_hashed_apart(tmp_path):
    records = [Record("i", prompt=prompt, group=group, image_id=image)
               for prompt in PARTS for group in PARTS for image in PARTS]
    held = [Samples(tmp_path, (r,)) for r in records]
    for samples in held:
        vars(samples)["sha256"] = ["0" * 64]
    assert len({s.hash for s in held}) == len(records)
    config = ModelOptions(model=str(BASE))
    prompts = [[Prompt(r.prompt, r.group, r.image_id)] for r in records[::9]]
    assert len({hashes_of(config, p)["prompts"] for p in prompts}) == len(prompts)
