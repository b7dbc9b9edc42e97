"""BLAKE3 (default hash mode) and CRC-32C in pure Python.

BLAKE3 hashes chunks side by side: one big integer holds the same word of many chunks, 64 bits apart, so that each
operation of Python works on all of them. That makes it some twenty times as fast as the plain way.
"""
import sys
from array import array

assert sys.byteorder == "little", "the lanes below are laid out for little-endian machines"

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIXED = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK, BLOCK, BATCH = 1024, 64, 1024


def schedule():
    order, rounds = tuple(range(16)), []
    for _ in range(7):
        rounds.append(order)
        order = tuple(order[i] for i in PERMUTATION)
    return rounds


ROUNDS = schedule()


def lanes(values):
    return int.from_bytes(array("Q", values).tobytes(), "little")


def unlane(value, count):
    words = array("Q")
    words.frombytes(value.to_bytes(8 * count, "little"))
    return words


def compress(cv, message, counter, length, flags, ones):
    """The compression function on lanes; `ones` has a 1 in each. Gives the eight words of the chaining value."""
    mask = ones * 0xFFFFFFFF
    v = [*cv, *(ones * word for word in IV[:4]), counter, 0, ones * length, ones * flags]
    for order in ROUNDS:
        for mix, (a, b, c, d) in enumerate(MIXED):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + message[order[2 * mix]]) & mask
            vd ^= va
            vd = (vd >> 16 | vd << 16) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & mask
            va = (va + vb + message[order[2 * mix + 1]]) & mask
            vd ^= va
            vd = (vd >> 8 | vd << 24) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & mask, vc, vd
    return [v[i] ^ v[i + 8] for i in range(8)]


def full_chunks(data, first):
    """Chaining values of whole chunks: eight arrays, one word each."""
    count = len(data) // CHUNK
    ones, counter = lanes([1] * count), lanes(range(first, first + count))
    words = array("I")
    words.frombytes(data)
    cv = [ones * word for word in IV]
    for block in range(16):
        message = [lanes(words[block * 16 + word :: 256]) for word in range(16)]
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == 15 else 0)
        cv = compress(cv, message, counter, BLOCK, flags, ones)
    return [unlane(word, count) for word in cv]


def last_chunk(data, number, root):
    """A chunk of any length up to 1024; with `root` the only one."""
    cv, flags = list(IV), CHUNK_START
    starts = range(0, max(len(data), 1), BLOCK)
    for start in starts:
        block = data[start : start + BLOCK]
        words = array("I")
        words.frombytes(block + bytes(BLOCK - len(block)))
        if start == starts[-1]:
            flags |= CHUNK_END | root
        cv = compress(cv, list(words), number, len(block), flags, 1)
        flags = 0
    return cv


class Blake3:
    def __init__(self):
        self.rest, self.cvs = b"", [array("Q") for _ in range(8)]

    def update(self, data):
        self.rest += data
        # The last chunk is held back: alone it would be the root.
        while len(self.rest) > BATCH * CHUNK:
            self.take(BATCH)
        return self

    def take(self, count):
        for known, new in zip(self.cvs, full_chunks(self.rest[: count * CHUNK], len(self.cvs[0]))):
            known.extend(new)
        self.rest = self.rest[count * CHUNK :]

    def digest(self):
        if not self.cvs[0] and len(self.rest) <= CHUNK:
            return array("I", last_chunk(self.rest, 0, ROOT)).tobytes()
        if len(self.rest) >= CHUNK:
            self.take(len(self.rest) // CHUNK)
        cvs = self.cvs
        if self.rest:
            for known, word in zip(cvs, last_chunk(self.rest, len(cvs[0]), 0)):
                known.append(word)
        # Pairing neighbours level by level, an odd last one waiting, gives BLAKE3's tree.
        while (count := len(cvs[0])) > 1:
            pairs = count // 2
            message = [lanes(word[side : 2 * pairs : 2]) for side in (0, 1) for word in cvs]
            ones = lanes([1] * pairs)
            flags = PARENT | (ROOT if count == 2 else 0)
            parents = compress([ones * word for word in IV], message, 0, BLOCK, flags, ones)
            cvs = [unlane(parent, pairs) + word[2 * pairs :] for parent, word in zip(parents, cvs)]
        return array("I", (word[0] for word in cvs)).tobytes()


def blake3(data):
    return Blake3().update(data).digest()


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def crc32c(data, crc=0):
    table, crc = CRC_TABLE, crc ^ 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
