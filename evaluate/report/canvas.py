"""Shapes and labels in pixels -> one <svg>, whose colours come from the page's stylesheet."""

import math
from html import escape
from itertools import pairwise

CHARACTER = 6.7  # pixels: mean width of a character of a label


class Canvas:
    """Shapes in pixels -> one <svg>."""

    def __init__(self, width, height, title, about):
        self.width, self.height, self.title, self.about = width, height, title, about
        self.parts, self.taken = [], []  # taken: boxes (left, top, right, bottom) that labels keep clear of
        self.texts = []  # boxes of all text, so that a test sees what is clipped

    def add(self, tag, text=None, **attributes):
        told = {
            k.rstrip("_").replace("_", "-"): escape(_short(v)) for k, v in attributes.items() if v is not None
        }
        listed = "".join(f' {k}="{v}"' for k, v in told.items())
        self.parts.append(f"<{tag}{listed}/>" if text is None else f"<{tag}{listed}>{escape(text)}</{tag}>")

    def line(self, x1, y1, x2, y2, style):
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)

    def path(self, points, style, closed=False):
        if len(points) > 1:
            self.add(
                "path",
                d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + ("Z" if closed else ""),
                class_=style,
            )

    def text(self, x, y, text, style="tick", anchor="middle"):
        self.texts.append(self._box(text, x, y, anchor))
        self.add("text", text, x=x, y=y, class_=style, text_anchor=None if anchor == "start" else anchor)

    def keep_clear(self, points, step=5):
        """Labels keep clear of the line through the points."""
        for (x1, y1), (x2, y2) in pairwise(points):
            n = max(1, math.ceil(math.dist((x1, y1), (x2, y2)) / step))
            self.taken += [
                (x - 2, y - 2, x + 2, y + 2)
                for x, y in ((x1 + (x2 - x1) * i / n, y1 + (y2 - y1) * i / n) for i in range(n + 1))
            ]

    def label(self, x, y, text, style):
        """Text beside a point, as near as it is free, with a thin line to the point where it is not near."""
        near = [
            (x + 10, y + 4, "start"),
            (x - 10, y + 4, "end"),
            (x, y - 11, "middle"),
            (x, y + 20, "middle"),
        ]
        far = [
            (x + across, y + way * down, anchor)
            for down in range(18, 120, 13)
            for way in (-1, 1)
            for across, anchor in ((0, "middle"), (10, "start"), (-10, "end"), (34, "start"), (-34, "end"))
        ]
        boxes = [self._box(text, *side) for side in (*near, *far)]
        i = next((i for i, box in enumerate(boxes) if self._is_free(box)), 0)
        to_x, to_y, anchor = (*near, *far)[i]
        if i >= len(near):
            left, top, right, bottom = boxes[i]
            end = min(max(x, left + 3), right - 3), top + 3 if to_y > y else bottom
            self.line(x, y, *end, "leader")
            self.keep_clear([(x, y), end])
        self.taken.append(boxes[i])
        self.text(to_x, to_y, text, style, anchor)

    def _box(self, text, x, y, anchor):
        width = CHARACTER * len(text)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        return left - 3, y - 11, left + width + 3, y + 3

    def _is_free(self, box):
        left, top, right, bottom = box
        inside = left >= 0 and right <= self.width and top >= 0 and bottom <= self.height
        return inside and all(
            right <= b[0] or b[2] <= left or bottom <= b[1] or b[3] <= top for b in self.taken
        )

    def svg(self):
        about = escape(f"{self.title}. {self.about}")
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{about}">'
        return head + f"<title>{escape(self.title)}</title>" + "".join(self.parts) + "</svg>"


def _short(value):
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def scale(low, high, start, end):
    """A linear map of [low, high] to [start, end]."""
    return lambda v: start + (v - low) / ((high - low) or 1) * (end - start)


def ticks(low, high, n=5):
    """About n round values inside [low, high]."""
    rough = (high - low) / n or 1
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(f for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    return [
        round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]
