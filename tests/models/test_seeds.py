"""Numbers of texts are what they were in every release: images depend on them."""
import hashlib

import pytest

from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.models.seeds import hashed_integer


@pytest.mark.parametrize("size", [1, 6, 8, 32])
def test_it_is_the_head_of_the_hash(size):
    digest = hashlib.sha256("0\na café".encode()).hexdigest()
    assert hashed_integer("0\na café", size) == int(digest[:2 * size], 16)
    assert hashed_integer("0\na café", size) != hashed_integer("0\na cafe", size)


def test_the_noise_of_an_image_is_that_of_the_first_release():
    """Taken from version 0.1.0."""
    assert noise_seed("a cat on a blue background", 3) == 268709311826248
    assert noise_seed("a cat on a blue background", 3, 1) == int(hashlib.sha256(
        b"3 1\na cat on a blue background").hexdigest()[:12], 16)


def test_the_order_of_numbers_is_that_of_the_bytes():
    texts = [f"0:{i}" for i in range(50)]
    by_bytes = sorted(texts, key=lambda t: hashlib.sha256(t.encode()).digest())
    assert sorted(texts, key=lambda t: hashed_integer(t, 32)) == by_bytes
