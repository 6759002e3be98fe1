"""text -> texts that say the same in other words, by rule: no model, no chance, always the same ones in the same order.

They test whether a memory hangs on a caption's very words. Each rule changes one thing and says what; a rule that finds nothing
to change gives nothing. English; another language is only framed and stopped.
"""
import re

PLACES = "on|in|at|under|over|above|below|beside|behind|near|with|against|inside|outside"
SYNONYMS = {
    "background": "backdrop", "photo": "photograph", "photograph": "photo", "picture": "image", "image": "picture",
    "drawing": "sketch", "sketch": "drawing", "big": "large", "large": "big", "small": "little", "little": "small",
    "man": "guy", "woman": "lady", "child": "kid", "sofa": "couch", "couch": "sofa", "street": "road", "bike": "bicycle",
    "car": "automobile", "forest": "woods", "beautiful": "lovely", "close-up": "close view",
}


def place_first(text):
    """a cat on a blue background -> on a blue background, a cat"""
    return re.sub(rf"^(.+?) ((?:{PLACES}) .+?)([.!]?)$", r"\2, \1\3", text)


def swap_pair(text):
    """a cat and a bus on a blue background -> a bus and a cat on a blue background"""
    return re.sub(rf"^(.+?) and (.+?)((?: (?:{PLACES}) .*)?)$", r"\2 and \1\3", text)


def drop_articles(text):
    """a cat on a blue background -> cat on blue background"""
    return re.sub(r"\b(?:an?|the) ", "", text, flags=re.IGNORECASE)


def make_definite(text):
    """a cat on a blue background -> the cat on the blue background"""
    return re.sub(r"\ban? ", "the ", text, flags=re.IGNORECASE)


def use_synonyms(text):
    """a cat on a blue background -> a cat on a blue backdrop"""
    return re.sub(r"[\w-]+", lambda word: SYNONYMS.get(word[0].lower(), word[0]), text)


def frame(text):
    """a cat on a blue background -> a picture of a cat on a blue background"""
    return f"a picture of {text}"


def stop(text):
    """a cat on a blue background -> a cat on a blue background."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


RULES = (place_first, swap_pair, drop_articles, make_definite, use_synonyms, frame, stop)


def paraphrases(text, limit=None):
    """-> at most `limit` texts that differ from `text` and from one another, in the order of RULES."""
    text = " ".join(text.split())
    found = dict.fromkeys(rule(text) for rule in RULES) if text else {}
    return tuple(other for other in found if other != text)[:limit]
