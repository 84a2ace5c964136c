"""Streams."""
class StreamReader:
    def __init__(self, *a, **k): raise NotImplementedError
