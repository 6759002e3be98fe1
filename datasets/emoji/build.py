"""Build the embedded data from Debian's Noto Color Emoji: sprites, then the fixed splits. Needed once; the results ship.

    apt-get install fonts-noto-color-emoji && pip install emoji
    python -m rotescope.datasets.emoji.build --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""
import argparse
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from rotescope.datasets.emoji.scenes import HERE, OBJECTS, SPRITES, scenes

SPLITS = {"finetune": (3000, 101), "heldout": (800, 202)}  # name -> scenes, seed; the base model's seeds are others
STRIKE, SIDE = 109, 96                                      # the font's only bitmap size; the sprites' side, in pixels


def draw_sprite(font, char):
    """One emoji character -> square RGBA image, cropped to what is drawn."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), char, font=font, embedded_color=True)
    drawn = canvas.crop(canvas.getbbox())
    square = Image.new("RGBA", (max(drawn.size),) * 2)
    square.alpha_composite(drawn, ((square.width - drawn.width) // 2, (square.height - drawn.height) // 2))
    return square.resize((SIDE, SIDE), Image.LANCZOS)


def build_sprites(font_file):
    import emoji  # names and characters: github.com/carpedm20/emoji, after Unicode CLDR
    font = ImageFont.truetype(font_file, STRIKE)
    SPRITES.mkdir(exist_ok=True)
    for name, alias in OBJECTS.items():
        char = emoji.emojize(f":{alias}:")
        if char.startswith(":"):
            raise SystemExit(f"the package emoji knows no {alias!r}")
        draw_sprite(font, char.rstrip("️")).save(SPRITES / f"{name.replace(' ', '_')}.png", optimize=True)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def build_split(name, n, seed):
    """n scenes -> NAME.parquet with an Image column that Hugging Face datasets decodes by itself."""
    rows = [{"image": {"bytes": png(s.image), "path": f"{name}-{i:05d}.png"}, "caption": s.caption,
             "objects": list(s.objects), "ground": s.ground} for i, s in enumerate(scenes(n, seed))]
    features = {"info": {"features": {
        "image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"},
        "objects": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        "ground": {"dtype": "string", "_type": "Value"}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, HERE / f"{name}.parquet", compression="zstd")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", help="NotoColorEmoji.ttf; without it, the sprites that ship are used as they are")
    font = parser.parse_args().font
    if font:
        build_sprites(font)
    for name, (n, seed) in SPLITS.items():
        build_split(name, n, seed)
    files = sorted([*SPRITES.glob("*.png"), *HERE.glob("*.parquet")])
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(HERE).as_posix()}\n" for f in files)
    Path(HERE / "SHA256SUMS").write_text(sums)


if __name__ == "__main__":
    main()
