"""A LoRA trained on kohya's folders, saved under kohya's names, audited against those folders: the tenfold pictures leak."""
import json

import pyarrow.parquet as pq
import pytest
from places import ROOT
from safetensors import safe_open

from rotescope.cli import main
from rotescope.models.adapters.header import read_header

BASE = str(ROOT / "train/base")
HELDOUT = str(ROOT / "datasets/emoji/heldout.parquet")
LAYERS = ("to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")


def kohya_folders(folder):
    """`10_emoji scene` with 8 scenes and `1_emoji scene` with 32 others, each with a caption file; `reg` beside."""
    rows = pq.read_table(ROOT / "datasets/emoji/finetune.parquet").slice(0, 132).to_pylist()
    for name, some in (("img/10_emoji scene", rows[:8]), ("img/1_emoji scene", rows[100:132]), ("reg/1_scene", rows[50:54])):
        (folder / name).mkdir(parents=True)
        for i, row in enumerate(some):
            (folder / name / f"{i:03d}.png").write_bytes(row["image"]["bytes"])
            (folder / name / f"{i:03d}.txt").write_text(row["caption"])
    return folder


@pytest.mark.slow
def test_the_tenfold_pictures_leak(tmp_path, capsys):
    data, lora, out = kohya_folders(tmp_path / "kohya"), tmp_path / "lora", tmp_path / "audit"
    main(["finetune", "--train_data", str(data), "--lora", "true", "--lora_format", "kohya", "--rank", "32",
          "--lora_layers", *LAYERS, "--train_batch_size", "32", "--max_train_steps", "300", "--learning_rate", "2e-3",
          "--lr_scheduler", "cosine",
          "--caption_dropout", "0.02", "--snr_gamma", "5", "--lr_warmup_steps", "20", "--output_dir", str(lora)])
    file = next(lora.glob("*.safetensors"))
    with safe_open(file, "pt") as opened:
        assert all(key.startswith("lora_unet_") for key in opened.keys())  # noqa: SIM118
    alone = tmp_path / "mine.safetensors"      # as it is handed on: no manifest beside it
    alone.write_bytes(file.read_bytes())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "--model", BASE, "--lora", str(alone), "--train_data", str(data), "--heldout_data", HELDOUT,
              "--base", "auto", "--output_dir", str(out)])
    said = capsys.readouterr()
    assert stopped.value.code == 1
    assert "4 regularisation pictures" in said.err
    report = json.loads((out / "report.json").read_text())
    groups = report["methods"]["none"]["groups"]
    tenfold, once = groups["duplicated"], groups["control"]
    assert (tenfold["n"], once["n"]) == (32, 128)
    assert tenfold["copy_rate"] > 0.6 > 0.25 > once["copy_rate"]
    assert tenfold["leaked_prompts"] >= 6
    assert report["verdict"]["outcome"] == "failed"
    header = read_header(alone)
    assert (header.pictures, header.shown) == (40, 112)
    assert "the header of mine.safetensors counts 40 pictures, and the data hold 40, both shown 112 times in an epoch" in said.err
