"""What people have on their disks as training data: each layout, good, damaged and contradictory, as a tiny real tree.

A case says which files lie there, and what is understood: {picture: (copies, captions)} and the lines that are said;
or the one line of an error.
"""
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.datasets.readers.listing import list_data
from rotescope.datasets.readers.sources import read_source
from rotescope.datasets.trainers.data_options import DataOptions

P = object()   # a picture


@dataclass(frozen=True)
class Case:
    name: str
    files: dict                                   # path -> P, text, bytes, or what JSON holds
    shown: dict = field(default_factory=dict)     # path of a picture -> (copies, caption, ...)
    said: tuple = ()                              # what each of the sentences has in it, in order
    bad: tuple = ()                               # what the reasons of the pictures left out have in them
    error: str = ""
    at: str = ""                                  # what is named, below the tree
    options: dict = field(default_factory=dict)


def make(folder, files):
    for number, (name, content) in enumerate(files.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is P:
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, format=Image.registered_extensions()[file.suffix.lower()])
        elif isinstance(content, (str, bytes)):
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            file.write_text(json.dumps(content))


KOHYA = [
    Case("kohya parent with reg, log and model", {
        "img/10_sks dog/a.png": P, "img/10_sks dog/a.txt": "a dog, grass\nsecond line", "img/10_sks dog/b.PNG": P,
        "img/1_cat/c.png": P, "img/1_cat/c.caption": "a cat", "reg/1_dog/r.png": P, "reg/1_dog/s.png": P,
        "log/events": "", "model/sample/0.png": P},
        {"img/10_sks dog/a.png": (10, "a dog, grass"), "img/10_sks dog/b.PNG": (10, "sks dog"), "img/1_cat/c.png": (1, "a cat")},
        ("note: 1 picture in model/, which has no number, 2 regularisation pictures (reg/) set aside",
         "note: 1 picture has no caption file, where others of the folder do")),
    Case("kohya img itself", {"img/3_dog/a.png": P, "img/plain/b.png": P, "img/0_off/c.png": P, "img/d.png": P},
         {"img/3_dog/a.png": (3, "dog")},
         ("1 picture in plain/, which has no number, 1 picture outside of a numbered folder, 1 picture with 0 repeats (0_off/)",),
         at="img"),
    Case("one numbered folder", {"10_sks dog/a.png": P, "10_sks dog/a.txt": "a dog"}, {"10_sks dog/a.png": (10, "a dog")},
         at="10_sks dog"),
    Case("one numbered folder without words or captions", {"5_/a.png": P, "5_/b.png": P, "5_/b.txt": "b"},
         {"5_/b.png": (5, "b")}, bad=("a.png has no caption",), at="5_"),
    Case("caches, masks and deeper folders of kohya", {
        "4_dog/a.png": P, "4_dog/a.npz": b"x", "4_dog/a_te.safetensors": b"x", "4_dog/mask/a.png": P, "4_dog/notes.md": "x",
        "4_dog/metadata_cache.json": "{}", "4_dog/.hidden.png": P},
        {"4_dog/a.png": (4, "dog")},
        ("1 file is left out of {}, no part of kohya's folders: 4_dog/notes.md",
         "note: 1 hidden picture, 2 latents caches, 1 metadata cache, 1 picture in folders within a numbered folder, which kohya "
         "does not read set aside")),
    Case("a plain folder stays one", {"a.png": P, "a.txt": "a\nb", "sub/c.png": P, "sub/c.txt": "c"},
         {"a.png": (1, "a", "b"), "sub/c.png": (1, "c")}),
    Case("numbers of classes are no repeats", {"0_cat/a.png": P, "1_dog/b.png": P, "2_cow/c.png": P,
                                               "0_cat/a.txt": "a", "1_dog/b.txt": "b", "2_cow/c.txt": "c"},
         {"0_cat/a.png": (1, "a"), "1_dog/b.png": (1, "b"), "2_cow/c.png": (1, "c")}),
    Case("years are no repeats", {"2023_sea/a.png": P, "2023_sea/a.txt": "sea", "2024_sun/b.png": P, "2024_sun/b.txt": "sun"},
         {"2023_sea/a.png": (1, "sea"), "2024_sun/b.png": (1, "sun")}),
    Case("unless the user says so", {"2023_sea/a.png": P, "2023_sea/a.txt": "sea"}, {"2023_sea/a.png": (2023, "sea")},
         options={"data_layout": "kohya"}),
    Case("numbered folders as plain ones", {"10_dog/a.png": P, "10_dog/a.txt": "a"}, {"10_dog/a.png": (1, "a")},
         options={"data_layout": "folder"}),
    Case("no numbered folder where one is asked for", {"a.png": P}, error="holds no folders named as kohya has them",
         options={"data_layout": "kohya"}),
    Case("two roots of kohya", {"one/2_a/a.png": P, "two/3_b/b.png": P}, error=r"several folders .* \(one, two\): name one"),
    Case("kohya with a broken picture", {"2_dog/a.png": P, "2_dog/b.png": b"no picture"}, {"2_dog/a.png": (2, "dog")},
         bad=("b.png cannot be read as an image",)),
    Case("a TOML beside kohya's folders", {"img/2_dog/a.png": P, "dataset.toml": "x = 1"}, {"img/2_dog/a.png": (2, "dog")},
         ("1 file is left out", "note: dataset.toml lies beside the folders and is not read")),
    Case("empty numbered folders", {"10_dog/readme.md": "x"}, error="holds no images"),
    Case("all lines of kohya", {"2_dog/a.png": P, "2_dog/a.txt": "one\n\ntwo\n"}, {"2_dog/a.png": (2, "one", "two")},
         options={"caption_lines": "all"}),
    Case("a prompt for kohya's folders", {"2_dog/a.png": P}, error="leave out --instance_prompt",
         options={"instance_prompt": "a dog"}),
]

SIDE_FILES = [
    Case("three kinds of caption files", {
        "a.png": P, "a.txt": "a", "b.png": P, "b.caption": "b", "c.png": P,
        "c.json": {"caption": "a cat", "tags": ["cat", "rug"]}, "d.png": P, "d.json": {"tags": "dog, grass"}},
        {"a.png": (1, "a"), "b.png": (1, "b"), "c.png": (1, "a cat, cat, rug"), "d.png": (1, "dog, grass")}),
    Case("caption files that differ", {"a.png": P, "a.txt": "a cat", "a.caption": "a dog"}, {"a.png": (1, "a cat")},
         ("note: 1 picture has .txt and .caption beside it that say different things: .txt counts; --caption_extension names",)),
    Case("caption files that agree", {"a.png": P, "a.txt": "a cat", "a.caption": "a cat\n"}, {"a.png": (1, "a cat")}),
    Case("an extension named", {"a.png": P, "a.txt": "a cat", "a.caption": "a dog"}, {"a.png": (1, "a dog")},
         options={"caption_extension": ".caption"}),
    Case("joined lines", {"a.png": P, "a.txt": "one\ntwo\n"}, {"a.png": (1, "one\ntwo")}, options={"caption_lines": "joined"}),
    Case("first line", {"a.png": P, "a.txt": "\none\ntwo\n"}, {"a.png": (1, "one")}, options={"caption_lines": "first"}),
    Case("Windows and old Macintosh lines, marks and UTF-16", {
        "a.png": P, "a.txt": b"\xef\xbb\xbfone\r\ntwo\r\n", "b.png": P, "b.txt": "größe\r猫".encode("utf-16"),
        "c.png": P, "c.txt": "a plain one".encode("utf-16-le"), "d.JPG": P, "d.TXT": "loud"},
        {"a.png": (1, "one", "two"), "b.png": (1, "größe", "猫"), "c.png": (1, "a plain one"), "d.JPG": (1, "loud")}),
    Case("legacy encodings are named", {
        "a.png": P, "a.txt": "ein schöner Bär".encode("cp1252"), "b.png": P, "b.txt": "赤い背景の猫です".encode("shift_jis"),
        "c.png": P, "c.txt": "红色背景上的猫".encode("gbk"), "d.png": P, "d.txt": "fine"},
        {"d.png": (1, "fine")},
        bad=("a.txt is no UTF-8; it looks like cp1252: save it as UTF-8, or pass --caption_encoding cp1252",
             "b.txt is no UTF-8; it looks like shift_jis", "c.txt is no UTF-8; it looks like gbk")),
    Case("a legacy encoding that the user names", {"a.png": P, "a.txt": "ein schöner Bär".encode("cp1252")},
         {"a.png": (1, "ein schöner Bär")}, options={"caption_encoding": "cp1252"}),
    Case("no JSON beside a picture", {"a.png": P, "a.json": "{", "b.png": P, "b.txt": "b"}, {"b.png": (1, "b")},
         bad=("a.json is no JSON",)),
    Case("masks, control pictures and caches", {
        "a.png": P, "a.txt": "a", "a-masklabel.png": P, "a-condlabel.png": P, "mask/a.png": P, "conditioning_depth/a.png": P,
        "a.npz": b"x", ".ipynb_checkpoints/a-checkpoint.png": P, "carnival/masks/x.png": P, "carnival/masks/x.txt": "a mask"},
        {"a.png": (1, "a"), "carnival/masks/x.png": (1, "a mask")},
        ("note: 2 control pictures, 1 hidden picture, 1 latents cache, 2 masks set aside",)),
    Case("AVIF, and capitals", {"a.AVIF": P, "a.txt": "a", "b.Jpeg": P, "b.txt": "b"}, {"a.AVIF": (1, "a"), "b.Jpeg": (1, "b")}),
    Case("only masks", {"a-masklabel.png": P}, error="holds no images, only 1 mask:"),
    Case("DreamBooth", {"dog/a.png": P, "dog/a.txt": "not this", "class/r.png": P, "class/s.png": P},
         {"dog/a.png": (1, "sks dog")},
         ("note: 2 class pictures (--class_data_dir) set aside",
          "note: all pictures are taken for trained under 'sks dog': their caption files are not read"),
         options={"instance_prompt": "sks dog", "class_data_dir": "{}/class"}),
    Case("a class folder that is not there", {"a.png": P}, error="no folder of class pictures at",
         options={"instance_prompt": "sks dog", "class_data_dir": "{}/class"}),
]

TOML = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
[[datasets]]
resolution = 1024
num_repeats = 2
  [[datasets.subsets]]
  image_dir = "10_dog"
  class_tokens = "sks dog"
  caption_prefix = "photo,"
  caption_suffix = ", best"
  [[datasets.subsets]]
  image_dir = "cat"
  num_repeats = 7
  shuffle_caption = false
  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
"""


def subset(**settings):
    return {"datasets": [{"subsets": [{"image_dir": "dog", **settings}]}]}


KOHYA_CONFIGS = [
    Case("kohya's TOML", {"set.toml": TOML, "10_dog/a.png": P, "10_dog/a.txt": "dog, grass", "10_dog/b.png": P, "cat/c.png": P,
                          "cat/c.txt": "a cat, rug", "reg/r.png": P},
         {"10_dog/a.png": (2, "photo, dog, grass , best", "photo, grass, best, dog"),
          "10_dog/b.png": (2, "photo, sks dog , best", "photo, best, sks dog"), "cat/c.png": (7, "a cat, rug")},
         ("note: 1 regularisation picture (is_reg) set aside",
          "note: 1 folder has another number in its name than num_repeats, which counts here"), at="set.toml"),
    Case("kohya's JSON with metadata", {
        "set.json": subset(metadata_file="dog/meta.json", num_repeats=3),
        "dog/meta.json": {"a.png": {"caption": "a dog", "tags": "dog, grass"}, "b": {"tags": "only, tags"},
                          "c.png": {"caption": "c"}, "../out.png": {"caption": "out"}, "/etc/hostname": {"caption": "x"}},
        "dog/a.png": P, "dog/b.JPG": P, "out.png": P},
        {"dog/a.png": (3, "a dog,dog, grass"), "dog/b.JPG": (3, "only, tags")},
        bad=("meta.json: there is no picture c.png", "meta.json: ../out.png leads out of", "/etc/hostname leads out of"),
        at="set.json"),
    Case("kohya's metadata alone", {"meta.json": {"a.png": {"caption": "one\ntwo"}}, "a.png": P}, {"a.png": (1, "one")},
         at="meta.json"),
    Case("a folder twice in a TOML", {
        "set.json": {"datasets": [{"subsets": [{"image_dir": "dog", "num_repeats": 2}, {"image_dir": "dog", "num_repeats": 3}]}]},
        "dog/a.png": P, "dog/a.txt": "a dog"},
        {"dog/a.png": (2, "a dog")}, ("subset 2 of data set 1, names dog again: the first counts",), at="set.json"),
    Case("a folder in two data sets", {
        "set.json": {"datasets": [{"subsets": [{"image_dir": "dog", "num_repeats": n}]} for n in (2, 3)]},
        "dog/a.png": P, "dog/a.txt": "a dog"},
        {"dog/a.png": (5, "a dog")}, ("note: 1 picture is listed twice: the repeats are added",), at="set.json"),
    Case("no image_dir", {"set.toml": "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2"}, at="set.toml",
         error=r"subset 1 of data set 1, has no image_dir: name the folder"),
    Case("an image_dir that is not there", {"set.json": subset()}, at="set.json",
         error="names the folder 'dog', and there is none"),
    Case("an image_dir on another system", {"set.json": {"datasets": [{"subsets": [{"image_dir": "C:\\train\\dog"}]}]}},
         at="set.json", error="it is a path of Windows", options={"allow_outside_paths": True}),
    Case("an image_dir outside", {"in/set.json": {"datasets": [{"subsets": [{"image_dir": "../dog"}]}]}, "dog/a.png": P},
         error=r"'\.\./dog', which lies outside of its own folder: pass --allow_outside_paths", at="in/set.json"),
    Case("an image_dir outside, allowed", {
        "in/set.json": {"datasets": [{"subsets": [{"image_dir": "../dog", "class_tokens": "dog"}]}]}, "dog/a.png": P},
        {"in/../dog/a.png": (1, "dog")}, at="in/set.json", options={"allow_outside_paths": True}),
    Case("repeats that are no number", {"set.json": subset(num_repeats="many"), "dog/a.png": P}, at="set.json",
         error="subset 1 of data set 1, has num_repeats 'many': write a number"),
    Case("no repeats", {"set.json": subset(num_repeats=0), "dog/a.png": P}, at="set.json",
         error="holds no images, only 1 picture with 0 repeats"),
    Case("captions of another extension", {"set.json": subset(caption_extension=".caption"), "dog/a.png": P, "dog/a.txt": "a"},
         error=r"a\.png has no caption", at="set.json"),
    Case("a TOML cut short", {"set.toml": "[[datasets"}, error=r"set\.toml is no TOML", at="set.toml"),
    Case("a folder without pictures", {"set.json": subset(), "dog/deep/a.png": P}, error="holds no images", at="set.json"),
    Case("an unknown configuration", {"set.yaml": "a: 1"}, error="is no configuration of data that is known", at="set.yaml"),
    Case("YAML that would build objects", {"set.yaml": "!!python/object/apply:os.system [ls]"}, at="set.yaml",
         error="is no YAML"),
]


def concept(path="dog", text=None, **settings):
    return {"path": path, "enabled": True, "include_subdirectories": False, "balancing": 1.0, "balancing_strategy": "REPEATS",
            "text": text or {"prompt_source": "sample"}, **settings}


ONETRAINER = [
    Case("OneTrainer's concepts", {
        "concepts.json": [concept(balancing=1.5), concept("cat", {"prompt_source": "filename"}, include_subdirectories=True),
                          concept("bird", {"prompt_source": "concept", "prompt_path": "birds.txt"}, balancing_strategy="SAMPLES",
                                  balancing=4), concept("off", enabled=False), concept("val", validation_concept=True)],
        "birds.txt": "a bird\none bird", "dog/a.png": P, "dog/a.txt": "a dog\nsome dog", "dog/a-masklabel.png": P,
        "dog/deep/no.png": P, "cat/b.png": P, "cat/deep/c cat.png": P, "bird/d.png": P, "bird/e.png": P, "bird/f.png": P,
        "off/o.png": P, "val/v.png": P},
        {"dog/a.png": (1.5, "a dog", "some dog"), "cat/b.png": (1, "b"), "cat/deep/c cat.png": (1, "c cat"),
         **{f"bird/{n}.png": (4 / 3, "a bird", "one bird") for n in "def"}},
        ("note: 1 held-out picture (validation concepts), 1 mask, 1 picture of concepts that are not enabled set aside",),
        at="concepts.json"),
    Case("OneTrainer's shuffled tags, from its training configuration", {
        "config.json": {"concept_file_name": "concepts.json", "batch_size": 1},
        "concepts.json": [concept(text={"prompt_source": "sample", "enable_tag_shuffling": True, "keep_tags_count": 1})],
        "dog/a.png": P, "dog/a.txt": "sks, b, c"}, {"dog/a.png": (1, "sks, b, c", "sks, c, b")}, at="config.json"),
    Case("a concept without a path", {"concepts.json": [concept("")]}, error="concept 1, has no path", at="concepts.json"),
    Case("an unknown source of prompts", {"concepts.json": [concept(text={"prompt_source": "dream"})], "dog/a.png": P},
         error="prompt_source 'dream': OneTrainer knows sample, concept, filename", at="concepts.json"),
    Case("an unknown balancing", {"concepts.json": [concept(balancing_strategy="LUCK")], "dog/a.png": P}, at="concepts.json",
         error="balancing_strategy 'LUCK'"),
]


def ai_toolkit(**settings):
    return {"config": {"process": [{"trigger_word": "sks", "datasets": [{"folder_path": "dog", **settings}]}]}}


AI_TOOLKIT = [
    Case("ai-toolkit's YAML", {
        "train.yaml": """
job: extension
config:
  name: dog
  process:
    - type: sd_trainer
      trigger_word: sks
      datasets:
        - folder_path: dog
          caption_ext: txt
          num_repeats: 3
          control_path: dog/control
          resolution: [512, 768]
        - folder_path: reg
          is_reg: true
""", "dog/a.png": P, "dog/a.txt": "a [trigger] dog\non grass", "dog/b.png": P, "dog/b.txt": "a dog", "dog/c.png": P,
        "dog/control/a.png": P, "dog/_latent_cache/a.safetensors": b"x", "reg/r.png": P},
        {"dog/a.png": (3, "a sks dog\non grass"), "dog/b.png": (3, "sks a dog"), "dog/c.png": (3, "sks")},
        ("note: 2 control pictures, 1 latents cache, 1 regularisation picture (is_reg) set aside",), at="train.yaml"),
    Case("ai-toolkit's JSON", {"train.json": ai_toolkit(num_repeats=2, default_caption="[trigger] dog"), "dog/a.png": P},
         {"dog/a.png": (2, "sks dog")}, at="train.json"),
    Case("ai-toolkit without a folder", {"train.json": ai_toolkit(folder_path=None)}, error="data set 1, has no folder_path",
         at="train.json"),
    Case("ai-toolkit with its pictures for control", {"train.json": ai_toolkit(control_path="dog"), "dog/a.png": P},
         error="has the folder of its pictures for its control_path too", at="train.json"),
    Case("ai-toolkit on another disk", {"train.json": ai_toolkit(folder_path="/data/dog")}, at="train.json",
         error="'/data/dog', which lies outside of its own folder"),
]


def backend(**settings):
    return [{"id": "dog", "type": "local", "instance_data_dir": "dog", "repeats": 4, **settings},
            {"id": "text", "dataset_type": "text_embeds", "type": "local", "cache_dir": "cache"}]


SIMPLETUNER = [
    Case("SimpleTuner's backends", {
        "multidatabackend.json": [
            *backend(), {"id": "c", "dataset_type": "conditioning", "type": "local", "instance_data_dir": "cond"},
            {"id": "n", "type": "local", "instance_data_dir": "cat", "caption_strategy": "filename"},
            {"id": "i", "type": "local", "instance_data_dir": "bird", "caption_strategy": "instanceprompt",
             "instance_prompt": "a bird", "repeats": 1}, {"id": "x", "instance_data_dir": "x", "disabled": True}],
        "dog/a.png": P, "dog/a.txt": "a dog\nthe dog", "dog/deep/b.png": P, "dog/deep/b.txt": "b", "cond/a.png": P,
        "cat/my_cat_1.png": P, "bird/z.png": P, "dog/aspect_ratio_bucket_indices_dog.json": "{}"},
        {"dog/a.png": (5, "a dog", "the dog"), "dog/deep/b.png": (5, "b"), "cat/my_cat_1.png": (1, "my cat 1"),
         "bird/z.png": (2, "a bird")},
        ("note: 1 control picture, 1 metadata cache set aside", "backend x, is disabled"), at="multidatabackend.json"),
    Case("SimpleTuner in a bucket", {"m.json": backend(type="aws")}, error="is of type 'aws', and only local folders are read",
         at="m.json"),
    Case("SimpleTuner without a prompt", {"m.json": backend(caption_strategy="instanceprompt"), "dog/a.png": P}, at="m.json",
         error="no instance_prompt: write it"),
]

HUGGING_FACE = [
    Case("nested metadata, of two splits train", {
        "data/train/metadata.jsonl": '{"file_name": "a.png", "text": "a dog"}\n{"file_name": "deep/b.png", "text": "a cat"}\n',
        "data/train/a.png": P, "data/train/deep/b.png": P, "data/test/metadata.csv": "file_name,text\nc.png,a cow\n",
        "data/test/c.png": P, "README.md": "x"},
        {"data/train/a.png": (1, "a dog"), "data/train/deep/b.png": (1, "a cat")},
        ("1 file is left out of {}, not named in data/train/metadata.jsonl: README.md",
         "note: 1 picture of other splits set aside")),
    Case("the only split", {"data/test/metadata.csv": "file_name,text\nc.png,a cow\n", "data/test/c.png": P},
         {"data/test/c.png": (1, "a cow")}),
    Case("metadata of several folders", {"x/metadata.csv": "file_name,text\na.png,a\n", "x/a.png": P,
                                         "y/metadata.csv": "file_name,text\nb.png,b\n", "y/b.png": P},
         {"x/a.png": (1, "a"), "y/b.png": (1, "b")}),
    Case("splits without train", {"val/metadata.csv": "file_name,text\n", "test/metadata.csv": "file_name,text\n"},
         error="has the splits test, val: name the folder of the one to train on"),
    Case("metadata that leave their folder", {
        "set/metadata.jsonl": '{"file_name": "../a.png", "text": "a"}\n{"file_name": "b.png", "text": "b"}\n', "a.png": P,
        "set/b.png": P}, {"set/b.png": (1, "b")}, bad=("entry 1: ../a.png leads out of {}, and is not followed",), at="set"),
]
ODD = [
    Case("metadata say more than numbered folders", {"metadata.csv": "file_name,text\n10_dog/a.png,a dog\n", "10_dog/a.png": P},
         {"10_dog/a.png": (1, "a dog")}),
    Case("tags kept by a mark of kohya's", {
        "set.json": subset(shuffle_caption=True, keep_tokens_separator="|||"), "dog/a.png": P, "dog/a.txt": "sks, dog ||| x, y"},
        {"dog/a.png": (1, "sks, dog, x, y", "sks, dog, y, x")}, at="set.json"),
    Case("SimpleTuner's table of captions", {
        "m.json": backend(caption_strategy="parquet", parquet={
            "path": "c.jsonl", "filename_column": "id", "caption_column": "said", "fallback_caption_column": "alt"}),
        "c.jsonl": '{"id": "a", "said": ["one", "two"], "alt": ""}\n{"id": "b.png", "said": null, "alt": "b"}\n',
        "dog/a.png": P, "dog/b.png": P, "dog/c.png": P}, {"dog/a.png": (5, "one", "two"), "dog/b.png": (5, "b")},
        bad=("c.png has no caption",), at="m.json"),
    Case("SimpleTuner's table without its column", {
        "m.json": backend(caption_strategy="parquet", parquet={"path": "c.jsonl", "filename_column": "file"}),
        "c.jsonl": '{"id": "a"}', "dog/a.png": P}, error="correct filename_column and caption_column", at="m.json"),
    Case("lines that SimpleTuner keeps together", {
        "m.json": backend(disable_multiline_split=True, prepend_instance_prompt=True, instance_prompt="sks"),
        "dog/a.png": P, "dog/a.txt": "one\ntwo"}, {"dog/a.png": (5, "sks one\ntwo")}, at="m.json"),
    Case("the job's name in a path of ai-toolkit", {
        "a.json": {"config": {"name": "dog", "process": [{"datasets": [{"folder_path": "data/[name]"}]}]}}, "data/dog/a.png": P,
        "data/dog/a.txt": "a [trigger] dog"}, {"data/dog/a.png": (1, "a  dog")}, at="a.json"),
    Case("a TOML in UTF-16", {"set.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "größe"\nclass_tokens = "x"'.encode(
        "utf-16"), "größe/a.png": P}, {"größe/a.png": (1, "x")}, at="set.toml"),
    Case("a caption file that is none", {"a.png": P, "a.txt": "x" * 1_000_001, "b.png": P, "b.txt": "b"}, {"b.png": (1, "b")},
         bad=("a.txt has 1,000,001 bytes, more than captions take",)),
]
MUSUBI = [
    Case("musubi-tuner's TOML", {
        "set.toml": '''[general]
caption_extension = ".txt"
[[datasets]]
image_directory = "dog"
control_directory = "edges"
num_repeats = 4
[[datasets]]
image_jsonl_file = "cats.jsonl"
[[datasets]]
video_directory = "film"
''', "dog/a.png": P, "dog/a.txt": "a dog\non grass", "dog/deep/no.png": P, "edges/a.png": P, "cats/c.png": P,
        "cats.jsonl": '{"image_path": "cats/c.png", "caption": "a cat"}\n{"image_path": "/etc/x.png", "caption": "x"}\nno\n'},
        {"dog/a.png": (4, "a dog\non grass"), "cats/c.png": (1, "a cat")},
        ("note: 1 control picture set aside", "note: {}, data set 3, is of film, and left out: only pictures are read"),
        bad=("cats.jsonl, line 2: /etc/x.png leads out of", "cats.jsonl, line 3: Expecting value"), at="set.toml"),
    Case("musubi-tuner without a directory", {"set.toml": '[[datasets]]\nimage_directory = "a"\n[[datasets]]\nnum_repeats = 1\n',
                                              "a/a.png": P}, error="data set 2, has no image_directory", at="set.toml"),
]
CASES = [*ODD, *MUSUBI, *KOHYA, *SIDE_FILES, *KOHYA_CONFIGS, *ONETRAINER, *AI_TOOLKIT, *SIMPLETUNER, *HUGGING_FACE]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layout_is_understood_or_refused_in_one_line(case, tmp_path):
    make(tmp_path, case.files)
    options = DataOptions(**{k: v.format(tmp_path) if isinstance(v, str) else v for k, v in case.options.items()})
    options.check()
    named = tmp_path / case.at
    if case.error:
        with pytest.raises(InputError, match=case.error) as told:
            read_source(named, options=options)
        assert "\n" not in str(told.value)
        return
    source = read_source(named, options=options)
    assert {str(e.file).removeprefix(f"{tmp_path}/"): (e.copies, *e.captions) for e in source.manifest} == case.shown
    assert len(source.manifest) == len(case.shown)
    said = tuple(s for s in source.unused if not s.startswith(f"note: {source.layout}: ") and "several lines" not in s)
    for told, expected in [(said, case.said), (tuple(q.reason for q in source.quarantined), case.bad)]:
        assert len(told) == len(expected), told
        for sentence, part in zip(told, expected, strict=True):
            assert re.search(re.escape(part.replace("{}", str(named))), sentence), sentence


CONFIGURATIONS = {
    "kohya.json": {"general": {"shuffle_caption": True}, "datasets": [{"resolution": 512, "num_repeats": 2, "subsets": [
        {"image_dir": "dog", "class_tokens": "a", "keep_tokens": 1, "is_reg": False, "caption_prefix": "p",
         "caption_extension": ".txt", "caption_separator": ",", "enable_wildcard": False, "conditioning_data_dir": "control"},
        {"image_dir": ".", "metadata_file": "meta.json"}]}]},
    "meta.json": {"a.png": {"caption": "a", "tags": "b"}},
    "onetrainer.json": [concept(validation_concept=False, text={
        "prompt_source": "sample", "prompt_path": "", "enable_tag_shuffling": True, "tag_delimiter": ",", "keep_tags_count": 1})],
    "aitoolkit.json": ai_toolkit(caption_ext="txt", num_repeats=2, is_reg=False, control_path="control", default_caption="d",
                                 shuffle_tokens=True),
    "musubi.json": {"general": {"caption_extension": ".txt"}, "datasets": [
        {"image_directory": "dog", "num_repeats": 2, "control_directory": "control"}, {"image_jsonl_file": "meta.json"}]},
    "simpletuner.json": backend(
        dataset_type="image", caption_strategy="textfile", instance_prompt="i", disabled=False, probability=1,
        prepend_instance_prompt=True, caption_shuffle={"enable": True, "position_start": 1}),
}
WRONG = (None, 3, -1, 0.5, float("inf"), "x", "", [], {}, True, [None], {"a": 1}, "../..", "a\0b", 10**400)


def spoilt(value):
    """A JSON value -> the same with each of its parts replaced by each of WRONG, one at a time."""
    yield from WRONG
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for part in spoilt(value[key]):
            copy = value.copy()
            copy[key] = part
            yield copy


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_wrong_value_of_a_configuration_is_more_than_bad_input(name, tmp_path):
    make(tmp_path, {"dog/a.png": P, "dog/a.txt": "a, b, c", "a.png": P, "control/a.png": P,
                    "meta.json": CONFIGURATIONS["meta.json"], name: CONFIGURATIONS[name]})
    assert list_data(tmp_path / name, DataOptions()).entries
    for number, wrong in enumerate(spoilt(CONFIGURATIONS[name])):
        file = tmp_path / f"{number}-{name}"
        file.write_text(json.dumps(wrong))
        with suppress(InputError):
            list_data(file, DataOptions())
