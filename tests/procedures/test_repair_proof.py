"""The proof of a repair: the statuses and the sentence by hand, and from end to end the same search before and after."""
import json

import pytest
from instruments import leave, training_folder
from test_repair import FILE, leaking_while_strong, place, with_data  # noqa: F401  (place is a fixture)

from rotescope.commands import repair as repair_command
from rotescope.common.outputs import sha256
from rotescope.evaluate.inputs.samples import Record
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.statistics.retrigger_tally import ROUTES, Shot, image_figures, tally
from rotescope.procedures import audit
from rotescope.procedures.repair.proof import LEAKING, weighed


def found_by(returns, n=4, heldout=0):
    """What a search finds that brings back, of n leaking pictures and n held-out ones, as many as `returns` has by each route,
    and `heldout` held-out ones by each."""
    shots = [Shot(route, Record(**dict.fromkeys(Record.__annotations__) | {
        "method": "none", "group": group, "image_id": f"{group}-{i}", "image": "", "prompt": "", "prompt_index": i, "seed": 0}),
        0.5, i < (returns.get(route, 0) if group == LEAKING else heldout))
        for route in ROUTES for group in (LEAKING, "heldout") for i in range(n)]
    names = dict.fromkeys((s.record.group, s.record.image_id) for s in shots)
    return {"results": tally(shots), "budget": {"steps": 50, "draws": 8}, "images": [
        {"group": group, "image_id": image_id, "routes": image_figures([s for s in shots if s.record.image_id == image_id])}
        for group, image_id in names]}


ALL = {"caption": 4, "paraphrase": 4, "embedding": 4}


@pytest.mark.parametrize(("before", "after", "counts", "says"), [
    (ALL, {}, (0, 0, 4), "nothing of them is found any more"),
    (ALL, {"embedding": 1}, (0, 1, 3), "may be chance, which does not show that nothing is left"),
    (ALL, {"caption": 1, "embedding": 2}, (1, 1, 2), "may be chance"),
    (ALL, {"embedding": 4}, (0, 4, 0), "found embeddings bring back 4 of 4 leaking and 0 of 4 never-seen pictures"),
    ({"caption": 4}, {}, (0, 0, 4), "has no power here"),
    ({}, {}, (0, 0, 4), "has no power here"),
])
def test_the_proof_by_hand(before, after, counts, says):
    """All of four against none of four has p = 1/70, times three routes .043; two of four against none p = 15/70."""
    proof = weighed(found_by(before), found_by(after))
    assert tuple(proof.counts.values()) == counts
    assert says in proof.sentence
    assert proof.unfound == (counts[2] if "embedding" not in before else 0)
    assert ("not gone" in proof.sentence) == (after == {"embedding": 4})
    if before == ALL:
        assert proof.before[LEAKING]["embedding"]["p_adjusted"] == pytest.approx(3 / 70)
    assert json.dumps(as_json(proof))


def test_pictures_that_never_seen_ones_match_prove_nothing():
    """A budget that brings everything back shows no power; without never-seen pictures there is no comparison."""
    assert "no power" in weighed(found_by(ALL, heldout=4), found_by({}, heldout=0)).sentence
    alone = found_by(ALL)
    del alone["results"]["none"]["heldout"]
    assert weighed(alone, found_by({})).sentence.endswith("without them this proves nothing.")


def test_a_picture_is_suppressed_if_only_other_words_bring_it_back():
    proof = weighed(found_by(ALL), found_by({"caption": 1, "paraphrase": 2, "embedding": 3}))
    assert [p.status for p in proof.pictures] == ["untouched", "suppressed", "suppressed", "erased"]
    assert (proof.pictures[1].before, proof.pictures[2].after) == (tuple(ROUTES), ("embedding",))
    assert proof.counted == "Of 4 leaking pictures: 1 untouched, 2 suppressed, 1 erased."


@pytest.mark.slow
def test_leaking_pictures_are_sought_before_and_after(place, tmp_path, monkeypatch):  # noqa: F811
    """The search and its samples are real, on a model that remembers nothing: the proof says that it has no power. No file names
    the draft in which it was made."""
    leaking_while_strong(place, monkeypatch, 0.5)
    held = training_folder(tmp_path / "held", 6, 40)
    for i, file in enumerate(sorted(held.glob("*.txt"))):
        file.write_text(f"a picture {i} that no model saw")
    out = tmp_path / "out"
    argv = with_data(place, out, "--heldout_data", held, "--retrigger", "4", "--num_inference_steps", "2")
    assert leave(repair_command.main, argv) == 4
    told = json.loads((out / "repair.json").read_text(encoding="utf-8"))
    assert sum(told["proof"]["counts"].values()) == len(told["proof"]["pictures"]) == 4
    assert told["proof"]["counts"]["erased"] == told["proof"]["unfound"] == 4
    assert "no power here" in told["proof"]["sentence"]
    before, after = (json.loads((out / f"retrigger/{name}/retrigger.json").read_text(encoding="utf-8"))
                     for name in ("before", "after"))
    assert [i["image_id"] for i in before["images"]] == [i["image_id"] for i in after["images"]]
    assert {i["group"] for i in after["images"]} == {LEAKING, "heldout"}
    assert before["budget"] == after["budget"]
    assert before["images"][0]["searches"] != after["images"][0]["searches"]   # on other weights
    for text in ((out / "repair.html").read_text(encoding="utf-8"), (out / "model_card.md").read_text(encoding="utf-8")):
        assert "4 leaking pictures: 0 untouched, 0 suppressed, 4 erased" in text
        assert "no power here" in text
    assert not [f for f in out.rglob("*") if f.suffix in (".json", ".html", ".md", ".yaml") and ".part" in f.read_text("utf-8")]
    report = json.loads((out / "after/report.json").read_text(encoding="utf-8"))
    assert str(out / "mine-repaired.safetensors") in json.dumps(report["config"])
    assert told["hashes"]["repaired"] == sha256(out / "mine-repaired.safetensors")


@pytest.mark.slow
def test_samples_of_an_audit_that_fails_stay_beside_the_output(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    """And the line that says so can be run."""
    leaking_while_strong(place, monkeypatch, 0.5)

    def fail(*_, **__):
        raise MemoryError("no room")
    monkeypatch.setattr(audit, "score_samples", fail)
    assert leave(repair_command.main, with_data(place, tmp_path / "out")) == 3
    kept = tmp_path / "out-before.samples"
    assert (kept / "records.parquet").is_file()
    said = capsys.readouterr().err
    assert f"--generated {kept}" in said
    assert ".part" not in said.split("go on with")[1]
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize(("more", "said"), [
    (["--retrigger", "3", "--heldout_data", "photos"], "fewer pictures prove nothing"),
    (["--retrigger", "-1"], "take 0, or 4 or more"), (["--retrigger", "8"], "name both, --train_data and --heldout_data")])
def test_wrong_retrigger_is_one_line(place, tmp_path, capsys, more, said):  # noqa: F811
    more = [place / word if word == "photos" else word for word in more]
    assert leave(repair_command.main, with_data(place, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert (place / FILE).is_file()
