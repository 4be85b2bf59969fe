"""Names of objects in the cache; apart from the client, as the catalog makes them without S3."""


def object_key(blob_id: int, salt: str) -> str:
    """The key of a blob: spread over 256 prefixes, and never used twice thanks to ``salt``."""
    return f"b/{blob_id & 0xFF:02x}/{blob_id:019d}-{salt}"
