r"""The training loop of `danlu.text.jose` over some documents, one triple at a time; compiled by `_jose_kernel`.

For a positive row u, a negative row u' and an anchor a (a context row v or a document row d), f = u . a, h = u' . a,

    active where f - h < m                                                                                (1)
    u  <- normalise(u + r k_u (a - f u)),   u' <- normalise(u' - r k_n (a - h u'))                        (2)
    a  <- normalise(a + r k_a ((u - u') - (f - h) a))                                                     (3)

with the old f, h and rows on the right. The factors k depend on the rule:

    "plain"   1, 1, 1                                                                                     (4)
    "paper"   1 - f, 1 + h, 1 - (f - h) / |u - u'|                                                        (5)
    "jose_c"  1 - f, 2 h, 1 - (f - h)                                                                     (6)

In the joint loss f = u . (v + d) and h = u' . (v + d) stand in (1) and (2), divided by |v + d| in (5), and (3) is taken
for v and for d, each with its own products. A random number is the upper half of x <- A x + C mod 2^64, begun afresh
in every document from a seed of its own, so who works on which document changes no draw.

Source: kexue.fm/archives/7063; arXiv:1911.01196 for (5), the program published with it for (6); A and C are Knuth's.
Shapes: V words, N documents, D features, K documents of this call.
"""

import numpy as np

__all__ = ["JOSE_C", "PAPER", "PLAIN", "run_documents"]

PLAIN, PAPER, JOSE_C = 0, 1, 2
A, C = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
HALF = np.uint64(32)
UNIT = np.float64(2.0**-32)


def run_documents(  # type: ignore[no-untyped-def]
    order, seeds, rates, offsets, ids, keep, accept, alias, words, anchors, hits, stats, margin, longest, first,
    window, negative, rule, joint, frozen,
):  # fmt: skip
    """One pass over some documents, in place.

    order (K,) documents, seeds (K,) uint64, rates (K,) r of each, in the type of the rows. offsets (N + 1,), ids (T,):
    the corpus. keep (V,) probability that a word is not dropped; accept, alias (V,): Walker's table of negatives.
    words (V, D) rows u; anchors rows v, from row `first` on rows d. hits (N,): grows by the positives of a document;
    stats (6,) grows by triples, active ones and loss of the words, the same of the documents. margin (1,). longest:
    words of the longest document. frozen: only the rows d move, and only documents are trained.
    """
    size = np.uint64(len(accept))
    dim = words.shape[1]
    kept = np.empty(longest, np.int64)
    z = np.empty(dim, words.dtype)
    new_a = np.empty(dim, words.dtype)
    new_u = np.empty(dim, words.dtype)
    new_n = np.empty(dim, words.dtype)
    zero, one = words.dtype.type(0), words.dtype.type(1)
    for k in range(len(order)):
        document = order[k]
        last_row = first + document
        state = seeds[k]
        rate = rates[k]
        count = 0
        for i in range(offsets[document], offsets[document + 1]):
            state = state * A + C
            if np.float64(state >> HALF) * UNIT < keep[ids[i]]:
                kept[count] = ids[i]
                count += 1
        for i in range(count):
            word = kept[i]
            state = state * A + C
            radius = 1 + np.int64(((state >> HALF) * np.uint64(window)) >> HALF)
            low = max(0, i - radius)
            high = min(count, i + radius + 1)
            if frozen:
                low = high
            for j in range(low, high + 1):  # the last turn is the document's
                if j == i or (j == high and joint and not frozen):
                    continue
                of_words = j < high
                if of_words:
                    u, a = kept[j], word
                else:
                    u, a = word, last_row
                    hits[document] += 1
                both = joint and of_words
                if both:
                    hits[document] += 1
                place = 0 if of_words else 3
                for c in range(dim):
                    z[c] = anchors[a, c]
                if both:
                    for c in range(dim):
                        z[c] += anchors[last_row, c]
                for _ in range(negative):
                    state = state * A + C
                    n = np.int64(((state >> HALF) * size) >> HALF)
                    state = state * A + C
                    if np.float64(state >> HALF) * UNIT >= accept[n]:
                        n = np.int64(alias[n])
                    if n == word or n == u:  # noqa: SIM109
                        continue
                    f, h = zero, zero
                    for c in range(dim):
                        f += words[u, c] * z[c]
                        h += words[n, c] * z[c]
                    stats[place] += 1
                    if not f - h < margin[0]:  # eq. (1)
                        continue
                    stats[place + 1] += 1
                    stats[place + 2] += margin[0] - (f - h)
                    length, gap = one, one  # |z| and |u - u'|
                    if rule == PAPER:
                        gap = zero
                        for c in range(dim):
                            gap += (words[u, c] - words[n, c]) * (words[u, c] - words[n, c])
                        gap = np.sqrt(gap)
                        if both:
                            length = zero
                            for c in range(dim):
                                length += z[c] * z[c]
                            length = np.sqrt(length)
                    rate_u, rate_n = rate, rate  # eq. (4)
                    if rule == PAPER:
                        rate_u = rate * (one - f / length) if length > zero else rate  # eq. (5)
                        rate_n = rate * (one + h / length) if length > zero else rate
                    elif rule == JOSE_C:
                        rate_u, rate_n = rate * (one - f), rate * (h + h)  # eq. (6)
                    size_u, size_n = zero, zero
                    for c in range(dim):
                        x = words[u, c] + rate_u * (z[c] - f * words[u, c])  # eq. (2)
                        y = words[n, c] - rate_n * (z[c] - h * words[n, c])
                        size_u += x * x
                        size_n += y * y
                        new_u[c] = x
                        new_n[c] = y
                    for t in range(2 if both else 1):
                        row = a if t == 0 else last_row
                        fa, ha = f, h
                        if both:
                            fa, ha = zero, zero
                            for c in range(dim):
                                fa += words[u, c] * anchors[row, c]
                                ha += words[n, c] * anchors[row, c]
                        rate_a = rate
                        if rule == JOSE_C:
                            rate_a = rate * (one - (fa - ha))  # eq. (6)
                        elif rule == PAPER and gap > zero:
                            rate_a = rate * (one - (fa - ha) / gap)  # eq. (5)
                        size_a = zero
                        for c in range(dim):
                            x = anchors[row, c] + rate_a * (
                                (words[u, c] - words[n, c]) - (fa - ha) * anchors[row, c]
                            )  # eq. (3)
                            size_a += x * x
                            new_a[c] = x
                        size_a = one / np.sqrt(size_a)
                        for c in range(dim):
                            anchors[row, c] = new_a[c] * size_a
                    for c in range(dim):
                        z[c] = anchors[a, c]
                    if both:
                        for c in range(dim):
                            z[c] += anchors[last_row, c]
                    if not frozen:
                        size_u, size_n = one / np.sqrt(size_u), one / np.sqrt(size_n)
                        for c in range(dim):
                            words[u, c] = new_u[c] * size_u
                            words[n, c] = new_n[c] * size_n
