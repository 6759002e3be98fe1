"""The seven figures, what comparing methods shows, and the curves of a training, as PNGs, through matplotlib."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

RED, BLUE, GREY = "#b3261e", "#2f5fa8", "#777777"
SHOWN = 8  # pictures a row


def draw_all(curves, drawn, found, folder, examples, threshold):
    """Write figure1.png … figure7.png into `folder`; each title says whether its claim held."""
    figures = {
        1: (_gaps, curves), 2: (_fall_by_seed, drawn), 3: (_switched_on, curves, drawn, examples),
        4: (_convergence, curves, examples), 5: (_basin, drawn), 6: (_moved, drawn), 7: (_tradeoff, drawn, threshold)}
    for claim in found:
        draw, *data = figures[claim.number]
        figure = draw(*data)
        verdict = "held" if claim.held else "did not hold"
        figure.suptitle(f"{claim.says}\n{verdict}: {claim.evidence}", fontsize=8, x=0.02, ha="left")
        figure.savefig(folder / f"figure{claim.number}.png", dpi=130)
        plt.close(figure)


def _axes(x, y, size=(7, 4.2)):
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _gaps(curves):
    figure, axes = _axes("timestep (noise to image)", "prediction gap ‖eps_cond − eps_uncond‖₂")
    for group, colour in (("control", BLUE), ("duplicated", RED)):
        gaps, timesteps = curves.gaps("unguided", group)
        axes.plot(timesteps, gaps.T, color=colour, alpha=0.08, linewidth=0.7)
        axes.plot(timesteps, np.median(gaps, 0), color=colour, linewidth=2, label=f"{group}, {len(gaps)} images, median in bold")
    axes.invert_xaxis()
    axes.legend(frameon=False)
    return figure


def _fall_by_seed(drawn):
    n = len(drawn["likeness"][0])
    timesteps = drawn["unguided"].reshape(n, -1)
    figure, axes = _axes("duplicated caption", "timestep of the steepest fall")
    for seed in range(timesteps.shape[1]):
        axes.plot(range(n), timesteps[:, seed], "o", color=RED, alpha=0.6, markersize=4)
    axes.vlines(range(n), timesteps.min(1), timesteps.max(1), color=GREY, linewidth=0.7)
    return figure


def _most_copied(curves, examples):
    """Duplicated prompts, at most four, from different parts of the list, with their training images."""
    firsts = {r.prompt_index: r for r in curves.of("none")}
    chosen = list(firsts.values())[::max(1, len(firsts) // 4)][:4]
    return [(r, examples[r.image_id].open()) for r in chosen]


def _grid(rows, titles):
    """rows: lists of PIL images -> a figure; titles over the columns."""
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(0.85 * len(titles), 0.85 * len(rows) + 0.9), squeeze=False,
                                layout="constrained")
    for line, images in zip(axes, rows, strict=True):
        for place, image in zip(line, images, strict=True):
            place.imshow(image)
            place.set_axis_off()
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=7)
    return figure


def _switched_on(curves, drawn, examples):
    taus = [p["transition_timestep"] for p in drawn["delayed"]]
    rows = []
    for record, training in _most_copied(curves, examples):
        same = [next(r for r in curves.of(m) if (r.prompt_index, r.seed) == (record.prompt_index, record.seed))
                for m in ("none", *(f"delayed-{t}" for t in taus))]
        rows.append([training, *(curves.samples.open(r) for r in same)])
    return _grid(rows, ["training", "plain", *(f"τ {t}" for t in taus)])


def _convergence(curves, examples):
    seeds, rows = min(4, len({r.seed for r in curves.of("none")})), []
    for record, training in _most_copied(curves, examples):
        pictures = [[curves.samples.open(r) for r in curves.of(m) if r.prompt_index == record.prompt_index][:seeds]
                    for m in ("none", "unguided")]
        rows.append([training, *pictures[0], *pictures[1]])
    return _grid(rows, ["training", *["guided"] * seeds, *["unguided"] * seeds])


def _basin(drawn):
    figure, axes = _axes("guidance from this timestep on", "share of copies")
    for name, colour, label in (("delayed", BLUE, "delayed (no guidance before)"), ("opposite", RED, "opposite guidance before")):
        label += f", n = {drawn[name][0]['n']} each, 95 % interval"
        _band(axes, [p["transition_timestep"] for p in drawn[name]], drawn[name], colour, label)
    axes.axhline(drawn["plain"]["copy_rate"], color=GREY, linestyle=":", label="guidance from the start")
    axes.set_ylim(0, 1.02)
    axes.invert_xaxis()
    axes.legend(frameon=False)
    return figure


def _band(axes, x, cells, colour, label):
    low, high = zip(*(c["copy_rate_interval"] for c in cells), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, [c["copy_rate"] for c in cells], "o-", color=colour, label=label, markersize=4)


def draw_dose(curves, caption, chance, file):
    """Copy rate against copies, a panel a curve with its band and controls; the first curve in grey in the others' panels."""
    columns, rows = min(4, len(curves)), -(-len(curves) // 4)
    figure, panels = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
                                  figsize=(max(2.6 * columns, 5), 2.3 * rows + 0.6))
    first = next(iter(curves.values()))["points"]
    doses = [p["dose"] for p in first]
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=0.8)
        if curve["points"] is not first:
            axes.plot(doses, [p["duplicated"]["copy_rate"] for p in first], color=GREY, linewidth=1)
        _band(axes, doses, [p["duplicated"] for p in curve["points"]], RED, name)
        axes.plot(doses, [p["control"]["copy_rate"] for p in curve["points"]], "--", color=BLUE, linewidth=1)
        axes.set_title(name, fontsize=8)
    for hidden in panels.flat[len(curves):]:
        hidden.set_visible(False)
    for lowest in panels.flat[len(curves) - columns:len(curves)]:  # of each column: below it there may be no panel
        lowest.tick_params(labelbottom=True)
    axes.set_xscale("log", base=2)
    axes.set_xticks(doses[::2], doses[::2])
    axes.set_ylim(-0.02, 1.02)
    figure.supylabel("share of copies", fontsize=9)
    marks = f"copies of the image in an epoch. Dashed: controls; dotted: chance; grey: {next(iter(curves))}"
    figure.supxlabel(f"{marks}\n{caption}", fontsize=7, wrap=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _moved(drawn):
    figure, axes = _axes("timestep of the steepest fall", "images")
    bins = np.linspace(0, 1000, 26)
    for values, colour, label in ((drawn["unguided"], BLUE, "unguided"), (drawn["against"], RED, "opposite guidance")):
        axes.hist(values, bins, color=colour, alpha=0.5, label=f"{label}, n = {len(values)}")
    axes.invert_xaxis()
    axes.legend(frameon=False)
    return figure


def _tradeoff(drawn, threshold):
    figure, axes = _axes("95th percentile of similarity to the nearest training image", "alignment with the caption")
    for name, colour in (("delayed", BLUE), ("opposite", RED)):
        points = drawn[name]
        axes.plot([p["sim95"] for p in points], [p["alignment"] for p in points], "o-", color=colour, label=name, markersize=4)
        for p in points:
            axes.annotate(p["transition_timestep"], (p["sim95"], p["alignment"]), (3, 3), textcoords="offset points", fontsize=6)
    axes.plot(drawn["plain"]["sim95"], drawn["plain"]["alignment"], "D", color="black", label="plain guidance")
    axes.axvline(threshold, color=GREY, linestyle=":", label=f"copy threshold {threshold:.2f}")
    axes.legend(frameon=False)
    return figure


def draw_pareto(rows, file):
    """Copy rate against alignment on duplicated captions, the front joined. Names where there is room, the front's first."""
    figure, axes = _axes("copy rate, duplicated captions", "alignment, duplicated captions", (8, 6))
    points = {name: (row["duplicated"]["copy_rate"], row["duplicated"]["alignment"]) for name, row in rows.items()}
    front = sorted(points[name] for name, row in rows.items() if row["front"])
    axes.plot(*zip(*front, strict=True), color=RED, linewidth=0.8)
    for name, row in rows.items():
        axes.plot(*points[name], "o", color=RED if row["front"] else GREY, markersize=4)
    placed: list = []
    for name in sorted(rows, key=lambda name: not rows[name]["front"]):
        _name(axes, name, points[name], RED if rows[name]["front"] else GREY, placed)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _name(axes, name, point, colour, placed):
    """Write a name right or left of its point, above or below, off the boxes of those in `placed`; nowhere if all is taken."""
    for x, y in ((5, 3), (5, -9), (-5, 3), (-5, -9)):
        text = axes.annotate(name, point, (x, y), textcoords="offset points", fontsize=7, color=colour,
                             ha="left" if x > 0 else "right")
        box = text.get_window_extent(axes.figure.canvas.get_renderer())
        if not any(box.overlaps(other) for other in placed):
            placed.append(box)
            return
        text.remove()


MONITORED = {"duplicated": (RED, "-"), "control": (BLUE, "-"), "heldout": (GREY, "--")}


def draw_monitor(lines, file, wanted=None):
    """Copy rate and prediction gap over steps, a curve a group. lines: of monitor.jsonl; wanted: the copy rate that stops."""
    figure, (rates, gaps) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    last = lines[-1]
    for axes, name in ((rates, "copy_rate"), (gaps, "prediction_gap")):
        axes.spines[["top", "right"]].set_visible(False)
        for group in last["groups"]:
            _curve(axes, group, name, [(line["step"], line["groups"][group]) for line in lines])
    if wanted:
        rates.axhline(wanted, color="black", linewidth=0.8, linestyle=":", label=f"stop at {wanted:g}")
    rates.set(ylabel="share of images that are copies", ylim=(-0.02, 1.02))
    gaps.set(ylabel="prediction gap ‖eps_cond − eps_uncond‖₂\nat the first step, mean", xlabel="optimizer step")
    gaps.set(xlim=(0, None), ylim=(0, None))
    for axes, band in ((rates, "Clopper-Pearson"), (gaps, "bootstrap of the mean")):
        axes.legend(frameon=False, fontsize=8, title=f"bands: 95 %, {band}", title_fontsize=8, alignment="left")
    figure.suptitle(f"Guidance {last['guidance_scale']:g}, {last['num_inference_steps']} denoising steps. A copy's similarity is "
                    f"{last['copy_threshold']:.3f} or more:\n{last['threshold_rule']}", fontsize=7, x=0.02, ha="left")
    draft = file.with_name(f".{file.name}.part")
    figure.savefig(draft, format="png", dpi=130)
    plt.close(figure)
    draft.replace(file)


def _curve(axes, group, name, points):
    colour, style = MONITORED[group]
    steps, cells = zip(*points, strict=True)
    low, high = zip(*(cell[f"{name}_interval"] for cell in cells), strict=True)
    axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.vlines(steps, low, high, color=colour, alpha=0.25, linewidth=1)
    axes.plot(steps, [cell[name] for cell in cells], "o", linestyle=style, color=colour, markersize=4,
              label=f"{group.replace('heldout', 'held-out')}, n = {cells[-1]['n']}")


def draw_returns(rows, titles, file):
    """rows: (label, [(PIL image, text, framed in red) or None]); a line of pictures each, titles over the columns."""
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.25 * len(titles) + 0.6, 1.35 * len(rows) + 0.5), squeeze=False,
                                layout="constrained")
    for line, (label, cells) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for place, cell in zip(line, cells, strict=True):
            place.set_xticks([], [])
            place.set_yticks([], [])
            image, text, framed = cell or (Image.new("RGB", (1, 1), "white"), "not possible", False)
            place.imshow(image)
            place.set_xlabel(text, fontsize=7, color=RED if framed else "black")
            place.spines[:].set(color=RED if framed else "white", linewidth=2.5)
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=7)
    figure.savefig(file, dpi=130)
    plt.close(figure)
