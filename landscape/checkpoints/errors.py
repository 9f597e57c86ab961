"""CheckpointError: why a checkpoint cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit: what is wrong, where, what to do."""
