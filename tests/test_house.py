"""The house stands as the design draws it: names, layers, data files, front door."""
import ast
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from places import EMOJI, ROOT
from safetensors import safe_open

import rotescope
from rotescope import cli
from rotescope.datasets.emoji.scenes import GROUNDS, OBJECTS

LAYERS = ("datasets", "train", "mitigate", "evaluate")
distributions_of = cache(packages_distributions)  # reads the files of every package
SOURCES = sorted(file for folder in (*LAYERS, "rotescope") for file in (ROOT / folder).rglob("*.py"))
SUMS = sorted(f for folder in LAYERS for f in (ROOT / folder).rglob("SHA256SUMS"))
YAMLS = sorted(f for f in ROOT.rglob("*.y*ml") if f.relative_to(ROOT).parts[0] not in (".venv", "runs", "work", "build"))


def name_of(file):
    """train/engine/steps.py -> rotescope.train.engine.steps; rotescope/cli.py -> rotescope.cli."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in (("rotescope",) * (parts[0] != "rotescope") + parts) if p != "__init__")


def imports_of(file):
    """Every module that a file imports, wherever in it: 'torch.nn', 'rotescope.common', 'rotescope.common.errors'."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import absolutely"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module, *parents):
    return any(module == p or module.startswith(p + ".") for p in parents)


def canonical(distribution):
    return distribution.lower().replace("_", "-")


def run(*command, **environment):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


# ----- names

def test_bare_names_mean_hugging_face_in_pytest():
    import datasets
    import evaluate
    assert datasets.load_dataset.__module__ == "datasets.load"
    assert evaluate.load.__module__ == "evaluate.loading"


@pytest.mark.parametrize("how", ["-c", "script", "-m"])
def test_bare_names_mean_hugging_face_from_the_root(how, tmp_path):
    """Each way puts the root first on the path; a specification without an origin would be our bare folder."""
    code = "import sys; from importlib.util import find_spec; print(*(find_spec(n).origin for n in ('datasets', 'evaluate')))"
    (tmp_path / "probe.py").write_text(code.replace("; ", f"; sys.path[0] = {str(ROOT)!r}; ", 1) if how == "script" else code)
    command = {"-c": ("-c", code), "script": (tmp_path / "probe.py",), "-m": ("-m", "probe")}[how]
    done = run(sys.executable, *command, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert [Path(p).parts[-3:] for p in done.stdout.split()] == [
        ("site-packages", "datasets", "__init__.py"), ("site-packages", "evaluate", "__init__.py")], done.stderr


def test_folders_hold_no_init():
    assert not [f for folder in LAYERS for f in (ROOT / folder).rglob("__init__.py")]


def test_rooms_are_small_and_files_short():
    """At most 14 files of Python in a folder, and 250 lines in a file."""
    files_in = Counter(file.parent.relative_to(ROOT).as_posix() for file in SOURCES)
    assert not {folder: n for folder, n in files_in.items() if n > 14}
    lines_of = {file.relative_to(ROOT).as_posix(): len(file.read_text("utf-8").splitlines()) for file in SOURCES}
    assert not {file: n for file, n in lines_of.items() if n > 250}


CONFUSABLE = ("probe probed", "plan planned plans", "recall recalled", "detect detection detectors", "score scores scoring",
              "place places", "run runs", "table tables")  # a reader would have to open both


@pytest.mark.parametrize("words", CONFUSABLE)
def test_no_two_names_in_a_folder_are_forms_of_one_word(words):
    for folder in {file.parent for file in SOURCES}:
        names = {entry.stem for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".py"}
        assert len(names & set(words.split())) < 2, folder


def test_public_names_of_modules_are_told_apart():
    """A function or class has a name that no other module gives to another."""
    homes = defaultdict(set)
    for file in SOURCES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                homes[node.name].add(name_of(file))
    assert not {name: sorted(files) for name, files in homes.items() if len(files) > 1 and name != "main"}


def test_no_file_bears_the_name_of_a_package():
    """`python train/x.py` puts train/ first on the path: a file there would hide a package of its name from every library."""
    taken = {*distributions_of(), *sys.stdlib_module_names}
    assert not [f for folder in LAYERS for f in (ROOT / folder).glob("*.py") if f.stem in taken]


# ----- floors

FLOORS = (  # from the ground up: a file imports its own room and those of lower floors; rooms of one floor do not know each other
    ("common",), ("models",),
    ("datasets.images", "datasets.captions", "datasets.emoji"), ("datasets.geometry",),
    ("datasets.manifest",), ("datasets.trainers",), ("datasets.readers", "datasets.plans"),
    ("datasets.inspection",), ("datasets.prepare", "datasets.preflight"),
    ("train.objective", "train.base_model"), ("train.options", "train.encodings"), ("train.checkpoints",), ("train.tracking",),
    ("train.engine",), ("train.repair", "train.finetune"),
    ("mitigate.contract", "mitigate.prompts"), ("mitigate.denoiser",), ("mitigate.methods",), ("mitigate.adapters",),
    ("mitigate.sampling",), ("mitigate.embedding_search", "mitigate.detectors"),
    ("mitigate.budget", "mitigate.generate", "mitigate.calibrate", "mitigate.list_mitigations"),
    ("evaluate.options", "evaluate.inputs", "evaluate.quality"), ("evaluate.descriptors",), ("evaluate.neighbours",),
    ("evaluate.nulls",), ("evaluate.verification",), ("evaluate.statistics",), ("evaluate.verdict",),
    ("evaluate.report",), ("evaluate.measurement",),
    ("evaluate.score", "evaluate.index_images"),
    ("options",), ("procedures",), ("commands",), ("front",),
)
SIDE_BY_SIDE = ("train", "mitigate", "evaluate")  # they meet on disk, and never import each other


def room_of(module):
    """rotescope.train.engine.steps -> train.engine; rotescope.procedures.audit -> procedures; rotescope.cli -> front."""
    first, *rest = module.split(".")[1:] or ["cli"]
    if first in LAYERS:
        return f"{first}.{rest[0]}" if rest else first
    return first if first in ("common", "models", "options", "procedures", "commands") else "front"


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_run_downwards(file):
    level = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    own = room_of(name_of(file))
    for module in (m for m in imports_of(file) if within(m, "rotescope") and m not in ("rotescope", "rotescope.__version__")):
        other = room_of(module)
        if other in SIDE_BY_SIDE:  # `from rotescope.train import finetune`: the file's own name follows
            continue
        assert other == own or level[other] < level[own], f"{own} imports {module}"
        sides = {own.split(".")[0], other.split(".")[0]} & set(SIDE_BY_SIDE)
        assert len(sides) < 2, f"{own} imports {module}"


def test_every_room_stands_on_one_floor():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))
    assert {room_of(name_of(file)) for file in SOURCES} == set(rooms)


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}
    used = {m.split(".")[0] for f in SOURCES for m in imports_of(f)} - set(sys.stdlib_module_names) - {"rotescope"}
    homes = distributions_of()  # module -> the distributions that bring it
    assert not {m for m in used if not declared & {canonical(d) for d in homes.get(m, [m])}}, "add these to pyproject.toml"


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_nothing_is_unpickled(file):
    assert not [m for m in imports_of(file) if within(m, "pickle", "cPickle", "dill", "joblib", "shelve", "cloudpickle")]
    for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        options = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        assert ast.unparse(call.func) != "torch.load" or options.get("weights_only") is True
        assert options.get("allow_pickle") is not True


def test_ruff_is_content():
    pytest.importorskip("ruff")
    done = run(sys.executable, "-m", "ruff", "check", "--output-format", "concise", ".")
    assert done.returncode == 0, done.stdout


# ----- files that ship

@pytest.mark.parametrize("file", YAMLS, ids=lambda f: str(f.relative_to(ROOT)))
def test_yaml_loads(file):
    assert yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("sums", SUMS, ids=lambda f: str(f.parent.relative_to(ROOT)))
def test_shipped_files_are_what_their_sums_say(sums):
    expected = {name: sha256 for sha256, name in (line.split("  ") for line in sums.read_text().splitlines())}
    assert expected
    assert expected == {name: hashlib.sha256((sums.parent / name).read_bytes()).hexdigest() for name in expected}


def test_text_encoder_has_the_layout_that_every_transformers_reads():
    """Newer releases write other names than older ones look for, and those then start from random weights with a mere warning."""
    with safe_open(ROOT / "train/base/text_encoder/model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118  (no mapping)


def test_accelerate_takes_the_launch_file():
    launch = load_config_from_file(str(ROOT / "accelerate_config.yaml"))
    assert (launch.distributed_type, launch.num_processes, launch.mixed_precision) == ("MULTI_GPU", 2, "bf16")


@pytest.mark.parametrize(("split", "n"), [("finetune", 3000), ("heldout", 800)])
def test_splits_open_as_images(split, n, tmp_path):
    import datasets as hf_datasets
    data = hf_datasets.load_dataset(str(EMOJI), split=split, cache_dir=str(tmp_path))  # as the data card says
    assert isinstance(data.features["image"], hf_datasets.Image)
    assert data.num_rows == n
    assert data[0]["image"].size == (64, 64)
    assert all(data["caption"])


def test_data_card_counts_are_true():
    card = (EMOJI / "README.md").read_text(encoding="utf-8")
    splits = [EMOJI / "finetune.parquet", EMOJI / "heldout.parquet"]
    tables = [pq.read_table(split, columns=["objects", "ground"]).to_pylist() for split in splits]
    for word in (*OBJECTS, *GROUNDS):
        finetune, heldout = (sum(word in (*row["objects"], row["ground"]) for row in table) for table in tables)
        assert f"| {word} {finetune} / {heldout} |" in card


# ----- the front door

@pytest.mark.parametrize("module", ["rotescope.datasets.emoji.scenes", "rotescope.train.base_model.pretrain"])
def test_folders_are_packages(module):
    assert find_spec(module) is not None


def test_public_names_load_on_first_use():
    for name in rotescope.__all__:
        assert getattr(rotescope, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rotescope.nothing  # noqa: B018


def test_front_door_does_not_wait_for_torch():
    done = run(sys.executable, "-c", "import sys, rotescope.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_says_what_and_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert re.search(rf"(rotescope {command}|{command}\.py) --?\w", " ".join(capsys.readouterr().out.split()))


def test_unknown_command_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["rotoscope"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
