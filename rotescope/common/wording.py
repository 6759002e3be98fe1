"""How the reports say things."""
NAMES = {"none": "plain guidance"}  # every other method is called what a user types
MEANINGS = {  # what such a name means
    "stp": "delayed guidance", "og-stp": "opposite, then plain guidance",
    "og-stp-layout": "opposite guidance, of the layout only",
    "dtp": "delayed guidance, dynamic", "og-dtp": "opposite, then plain guidance, dynamic"}
PROMPTS = {"duplicated": "captions of duplicated images", "control": "captions of control images",
           "further duplicated": "further captions of duplicated images", "further control": "further captions of control images",
           "further": "further captions", "ungrouped": "all prompts",
           "captions": "captions of training images", "paraphrase": "paraphrased captions", "heldout": "held-out captions",
           "paraphrase duplicated": "paraphrased captions of duplicated images",
           "paraphrase control": "paraphrased captions of control images",
           "empty": "the empty prompt", "file": "the user’s own prompts"}
SHORT = {"captions": "training captions"} | {g: PROMPTS[g] for g in ("ungrouped", "paraphrase", "heldout", "empty", "file")}


def printable(text):
    """Text as UTF-8 can hold it: bytes of a file name that are none stand as \\udc80 and so on."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def exact_number(n):
    """1000020 -> 1,000,020; 1.5 -> 1.5: never in powers of ten."""
    return f"{round(n):,}" if n == round(n) else f"{n:,.10g}"


def shown_safely(text):
    """Somebody else's text on one line of a terminal: a control character, which could forge a line, is a box."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def name(method):
    return NAMES.get(method, method)


def short_name(group):
    return SHORT.get(group, f"{group} captions")


def share(estimate):
    """95% (88–98%): a rate and its interval, of an Estimate."""
    low, high = percent(estimate.low), percent(estimate.high)
    return f"{percent(estimate.value)} ({low.removesuffix('%')}–{high})"


def percent(part):
    """0.931 -> 93%, 0.0104 -> 1.0%; never 0% or 100% for what is not."""
    if part is None:
        return "–"
    value = 100 * part
    if 0 < value < 0.05 or 99.95 < value < 100:
        return "<0.1%" if value < 1 else ">99.9%"
    return f"{value:.0f}%" if value in (0, 100) or 9.95 <= value < 99.5 else f"{value:.1f}%"
