"""In which order images are shown: endless epochs, each shuffled anew, each image as often as its copies say."""
import math

import torch

from rotescope.datasets.manifest import exact_copies

FILLS = -1  # stands for how often an image came before, where it only fills a batch up


class ShuffledPasses:
    """Endless epochs, each shuffled anew; k epochs show image i ⌊k · copies[i] + offset⌋ times, so a fraction is exact over them.

    The offsets, below 1 and spread evenly, let no epoch have all the showings that fractions leave over.

    shapes: of the images, where they differ. Then each `size` samples in turn are of one shape, and an epoch ends with its last
    one: what is left over of a shape makes a batch of its own, which images of that shape fill up that do not count.
    """

    def __init__(self, copies, generator=None, shapes=(), size=1):
        exact = [exact_copies(c) for c in torch.as_tensor(copies, dtype=torch.float64).tolist()]   # (n,)
        parts = [i for i, c in enumerate(exact) if c.denominator > 1]
        offsets = {i: place * exact[i].denominator // len(parts) for place, i in enumerate(parts)}
        self.times = torch.tensor([c.numerator for c in exact])
        self.epochs = torch.tensor([c.denominator for c in exact])
        self.offsets = torch.tensor([offsets.get(i, 0) for i in range(len(exact))])   # of epochs' numbers: whole, so exact
        numbers = {shape: i for i, shape in enumerate(sorted(set(shapes)))}
        self.shapes = torch.tensor([numbers[shape] for shape in shapes]) if shapes else None   # (n,)
        self.generator, self.epoch, self.size = generator, 0, size
        self.queue = torch.empty(2, 0, dtype=torch.long)

    def shown(self, epochs):
        """-> (n,) how often each image came in the first so many epochs."""
        return (epochs * self.times + self.offsets) // self.epochs

    def take(self, size):
        """-> (2, size): image, and how often it came before, or FILLS."""
        while self.queue.shape[1] < size:
            before, after = self.shown(self.epoch), self.shown(self.epoch + 1)
            counts = after - before
            images = torch.repeat_interleave(counts)                                              # (N,) of this epoch
            nth = torch.arange(len(images)) - (counts.cumsum(0) - counts - before)[images]        # (N,)
            order = torch.randperm(len(images), generator=self.generator)
            showings = torch.stack([images, nth])[:, order]
            drawn = showings if self.shapes is None else self._in_batches(showings, self.shapes[images[order]])
            self.queue = torch.cat([self.queue, drawn], 1)
            self.epoch += 1
        taken, self.queue = self.queue[:, :size], self.queue[:, size:]
        return taken

    def _in_batches(self, showings, shapes):
        """An epoch (2, N) in its order, and the shape of each, (N,) -> the same (2, a multiple of the size), batches of one
        shape in an order of their own."""
        batches = []
        for shape in shapes.unique():
            own = showings[:, shapes == shape]
            missing = -own.shape[1] % self.size
            fill = own[:, torch.arange(missing) % own.shape[1]].clone()
            fill[1] = FILLS
            batches += torch.cat([own, fill], 1).split(self.size, 1)
        order = torch.randperm(len(batches), generator=self.generator).tolist()
        return torch.cat([batches[i] for i in order], 1)

    # ----- how long epochs are

    def steps_of(self, epochs):
        """How many batches so many epochs make, the last of them whole or not."""
        if self.shapes is None:
            return math.ceil(sum(self.shown(epochs).tolist()) / self.size)
        if (self.epochs == 1).all():
            return epochs * self._batches_in(0)
        return sum(self._batches_in(epoch) for epoch in range(epochs))

    def _batches_in(self, epoch):
        counts = torch.bincount(self.shapes, weights=(self.shown(epoch + 1) - self.shown(epoch)).double()).long()
        return int(((counts + self.size - 1) // self.size).sum())

    def samples_in(self, steps):
        """How many showings so many batches have; those of an epoch that they do not end count in proportion."""
        if self.shapes is None:
            return steps * self.size
        done = epoch = 0
        if (self.epochs == 1).all():
            epoch, steps = divmod(steps, self._batches_in(0))
            done = epoch * int(self.times.sum())
        while steps:
            batches, counts = self._batches_in(epoch), int((self.shown(epoch + 1) - self.shown(epoch)).sum())
            done += counts if steps >= batches else counts * steps // batches
            steps, epoch = max(0, steps - batches), epoch + 1
        return done
