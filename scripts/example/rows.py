"""Text to rows of token ids, for training and for measuring.

Documents are parted by blank lines. Each is encoded with its leading BOS and
the encoded documents are joined into one stream. A row is one more BOS and the
next piece of that stream; the last, partial row is dropped.
"""

import numpy as np

from byte_tokenizer import BOS_ID


def encode_stream(text: str) -> np.ndarray:
    pieces = []
    for document in text.strip("\n").split("\n\n"):
        pieces += [np.array([BOS_ID], np.int64), np.frombuffer(document.encode(), np.uint8).astype(np.int64)]
    return np.concatenate(pieces)


def rows_of(text: str, length: int) -> np.ndarray:
    """Return an array [rows, length] of ids."""
    stream = encode_stream(text)
    count = len(stream) // (length - 1)
    body = stream[: count * (length - 1)].reshape(count, length - 1)
    return np.concatenate([np.full((count, 1), BOS_ID), body], axis=1)
