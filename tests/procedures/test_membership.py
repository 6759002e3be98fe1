"""Was this set used? A model that was overfitted on it says so, one that never saw it does not; the command; bad input."""
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from instruments import training_folder
from PIL import Image
from places import EMOJI
from tiny import NOUNS, image_folder, tiny_pipeline

from rotescope.commands import membership as membership_command
from rotescope.common.errors import InputError
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.statistics.set_inference import FEWEST
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.detectors.loss_profile import loss_profiles
from rotescope.mitigate.detectors.training_image_recall import caption_losses
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.options.membership import FEWEST_IMAGES, MembershipConfig
from rotescope.procedures.membership import set_membership as front
from rotescope.procedures.membership.conclusions import told_of_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve scenes in question; ten others, one scene of the set and one picture without a caption."""
    place = tmp_path_factory.mktemp("data")
    used, others = training_folder(place / "used", 12, seed=7), training_folder(place / "others", 10, seed=8)
    (others / "known.png").write_bytes((used / "003.png").read_bytes())
    (others / "known.txt").write_text("a scene that is in the set, too")
    (others / "wordless.png").write_bytes((image_folder(place / "noise", 1) / "0.png").read_bytes())
    return used, others


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_the_command_leaves_the_answer_and_the_signals(family, bases, data, tmp_path, capsys):
    out = tmp_path / "out"
    membership_command.main(["--model", str(bases(family)), "--train_data", str(data[0]), "--heldout_data", str(data[1]),
                             "--noises", "1", "--max_images", "9", "--device", "cpu", "--output_dir", str(out)])
    printed = capsys.readouterr()
    answer, found = json.loads(printed.out), json.loads((out / "membership.json").read_text())
    assert answer == {"membership": str(out / "membership.json"), **{key: found[key] for key in ("outcome", "p", "auc")}}
    assert found["conclusions"][0] in printed.err
    assert (found["n_set"], found["n_heldout"], found["noises"], found["timesteps"]) == (9, 9, 1, [100, 300, 500, 700, 900])
    assert found["outcome"] == ("used" if found["p"] <= 0.05 else "not shown")
    assert found["denoiser_rows"] == 18 * 10
    assert [item["name"].rsplit("/", 1)[-1] for item in found["left_out"]] == ["known.png", "wordless.png"]
    assert {"model", "prompts"} <= found["hashes"].keys()
    rows = pq.read_table(out / "signals.parquet").to_pylist()
    assert [row["group"] for row in rows] == ["training"] * 9 + ["heldout"] * 9
    signals = np.array([[v for k, v in row.items() if k.startswith("log_error")] for row in rows])
    again = told_of_set(signals[:9], signals[9:], 1000)
    assert (again["p"], again["auc"]) == (found["p"], found["auc"])


def captioned_noise(n, folder):
    """n pictures of noise, each under a caption of its own."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {NOUNS[i % 8]} on a {('red', 'blue', 'green')[i // 8]} background")
    return tuple(load_source(folder))


@pytest.mark.slow
def test_a_model_that_was_overfitted_on_the_set_says_so_and_before_it_does_not(tmp_path):
    """Pictures of noise, of which only a model that was trained on them knows anything."""
    pipe, everyone = tiny_pipeline(), captioned_noise(24, tmp_path / "noise")
    used, others = everyone[::2], everyone[1::2]
    spread = image_latents(pipe, [e.open() for e in everyone]).std(0).mean().item()
    pipe.vae.register_to_config(scaling_factor=pipe.vae.config.scaling_factor / spread)   # as after a trained VAE
    untouched = told_of_set(*(loss_profiles(pipe, some, n=1) for some in (used, others)))
    assert untouched["outcome"] == "not shown"
    assert untouched["conclusions"][0].startswith("nothing shows that the set was used")
    with torch.no_grad():
        latents, (_, loss) = caption_losses(pipe, [e.captions[0] for e in used], [e.open() for e in used], EncodedTexts())
    optimizer, generator = torch.optim.Adam(pipe.unet.requires_grad_(True).parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        noise, timesteps = torch.randn(latents.shape, generator=generator), torch.randint(1000, (len(used),), generator=generator)
        loss(latents, noise, timesteps).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    overfitted = told_of_set(*(loss_profiles(pipe, some, n=1) for some in (used, others)))
    assert (overfitted["outcome"], overfitted["n_set"]) == ("used", 12), overfitted
    assert overfitted["auc"] > 0.8
    assert overfitted["conclusions"][0].startswith("the set was used in training, provided that")


def test_pictures_that_differ_by_themselves_are_hinted_at():
    rng = np.random.default_rng(0)
    used, others = rng.normal(size=(40, 10)), rng.normal(size=(40, 10))
    assert len(told_of_set(used, others)["conclusions"]) == 1
    used[:, 5:] += 2
    found = told_of_set(used, others)
    assert (found["outcome"], found["auc_without_captions"] > 0.9) == ("used", True)
    assert found["conclusions"][1].startswith("hint: the errors without a caption tell the two apart alone (AUC ")


def test_what_gave_no_numbers_leaves_it_undecided():
    signals = np.random.default_rng(0).normal(size=(20, 10))
    lost = signals.copy()
    lost[7:] = np.nan
    found = told_of_set(lost, signals)
    assert (found["outcome"], found["p"], found["auc_without_captions"]) == ("undecided", None, None)
    assert found["conclusions"] == [
        "undecided: too few pictures gave numbers, and 8 of the set and 8 held-out ones are the fewest that can tell"]


@pytest.fixture
def config(base, data, tmp_path):
    return MembershipConfig(model=str(base), train_data=str(data[0]), heldout_data=str(data[1]), output_dir=str(tmp_path / "out"))


def test_a_picture_counts_once_and_too_few_are_refused(config, data, images, tmp_path):
    twice = load_source(data[0])
    twice.save(tmp_path / "once.parquet")
    type(twice)((*twice, replace(twice[0], image_id="again"))).save(tmp_path / "twice.parquet")
    (one, _), (other, _) = (front.pictures_of_both(replace(config, train_data=str(file)))
                            for file in (tmp_path / "once.parquet", tmp_path / "twice.parquet"))
    assert [e.image_id for e in one["training"]] == [e.image_id for e in other["training"]]
    with pytest.raises(InputError, match=r"6 different pictures, and 8 of each .* name more by --train_data"):
        front.run_membership(replace(config, train_data=str(images)))
    with pytest.raises(InputError, match=r"0 different pictures \(12 are in the set too, 0 have no caption\)"):
        front.run_membership(replace(config, heldout_data=str(data[0])))
    assert not (tmp_path / "out").exists()


def test_wrong_options_and_families_are_refused_before_anything_is_loaded(config, data, tmp_path):
    assert FEWEST_IMAGES == FEWEST
    for changes, message in (({"noises": 0}, "noises=0"), ({"batch_size": 0}, "batch_size=0"),
                             ({"max_images": 7}, "give 8 or more"),
                             ({"model": "gone"}, "no model at gone"), ({"lora": "gone"}, "no LoRA at gone"),
                             ({"output_dir": str(data[0] / "out")}, "lies in it")):
        with pytest.raises(InputError, match=message):
            front.run_membership(replace(config, **changes))
    other = tmp_path / "hidream"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "HiDreamImagePipeline", "text_encoder": [None, None]}))
    with pytest.raises(InputError, match="HiDreamImagePipeline is of none of the families whose loss is known"):
        front.run_membership(replace(config, model=str(other)))


@pytest.mark.slow
def test_the_embedded_model_never_saw_the_splits(tmp_path):
    found = front.run_membership(MembershipConfig(
        train_data=str(EMOJI / "finetune.parquet"), heldout_data=str(EMOJI / "heldout.parquet"), output_dir=str(tmp_path / "out"),
        noises=1, max_images=40, device="cpu"))
    assert (found["outcome"], found["n_set"], found["n_heldout"]) == ("not shown", 40, 40)
    assert 0.35 < found["auc"] < 0.65
