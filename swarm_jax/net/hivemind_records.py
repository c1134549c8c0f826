"""What this process takes from the DHT, and what it keeps for others.

hivemind 1.1.12 trusts its records: one value under our key that is no msgpack makes
every ``get`` of that key wait for ever, on all peers. So records are checked where they
come in, with its own hook (``RecordValidatorBase``), and what it unpacks is of the
types that it expects.

Kept: ``MAX_KEYS`` keys of ``MAX_SUBKEYS`` subkeys, ``MAX_VALUE_BYTES`` each, for
``MAX_LIFE_S``. Leaning on ``DHTNode.protocol`` is leaning on the pinned hivemind.
"""

import contextlib
import math
from typing import Any

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer, get_dht_time
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

MAX_KEYS = 4096
MAX_SUBKEYS = 4096
MAX_SUBKEY_BYTES = 256
MAX_VALUE_BYTES = 64 * 1024
MAX_LIFE_S = 3600.0
MAX_ADDRESSES = 16

DICTIONARY = 0x50
"""hivemind's extension type for the records of all subkeys of a key."""
_NO_SUBKEY = MSGPackSerializer.dumps(None)


class CheckedSerializer(MSGPackSerializer):
    """As hivemind's, but whatever is wrong raises ``ValueError``."""

    @classmethod
    def loads(cls, buf: bytes) -> object:
        try:
            return msgpack.unpackb(buf, ext_hook=_dictionary)
        except TypeError as error:  # An unhashable key.
            raise ValueError(str(error)) from error


class RecordGuard(RecordValidatorBase):
    """Lets in what our directory can have written, and no more than it may keep."""

    def __init__(self):
        self._dht: DHTNode | None = None

    def watch(self, dht: DHTNode) -> None:
        """Bounds the storage of a node that was created with this guard."""
        self._dht = dht
        dht.protocol.serializer = CheckedSerializer
        dht.protocol.storage.maxsize = dht.protocol.cache.maxsize = MAX_KEYS

    def validate(self, record: DHTRecord) -> bool:
        life_s = record.expiration_time - get_dht_time()
        return (
            len(record.value) <= MAX_VALUE_BYTES
            and math.isfinite(life_s)
            and life_s <= MAX_LIFE_S
            and _is_subkey(record.subkey)
            and _unpacks(record.value)
            and self._has_room(record)
        )

    def _has_room(self, record: DHTRecord) -> bool:
        if self._dht is None or len(record.key) != DHTID.HASH_NBYTES:
            return len(record.key) == DHTID.HASH_NBYTES
        found = self._dht.protocol.storage.get(DHTID.from_bytes(record.key))
        kept = found.value if found else None
        if not isinstance(kept, DictionaryDHTValue) or len(kept) < MAX_SUBKEYS:
            return True
        return CheckedSerializer.loads(record.subkey) in kept


def entries_of(
    found: ValueWithExpiration | None,
) -> list[tuple[str, ValueWithExpiration]]:
    """Subkeys and their records, of what ``DHTNode.get`` gives.

    Somebody may have written one value without subkeys, a dictionary even.
    """
    value = found.value if found is not None else None
    if not isinstance(value, dict):
        return []
    return [
        (subkey, entry)
        for subkey, entry in value.items()
        if isinstance(subkey, str) and isinstance(entry, ValueWithExpiration)
    ]


def addresses_in(published: Any) -> list[Multiaddr]:
    """The addresses in a record where there should be some."""
    found = []
    for text in published[:MAX_ADDRESSES] if isinstance(published, list) else []:
        if isinstance(text, str) and len(text) <= MAX_SUBKEY_BYTES:
            with contextlib.suppress(ValueError):
                found.append(Multiaddr(text.split("/p2p/")[0]))
    return found


def _is_subkey(packed: bytes) -> bool:
    if packed == _NO_SUBKEY:
        return True
    try:
        return len(packed) <= MAX_SUBKEY_BYTES and isinstance(
            CheckedSerializer.loads(packed), str
        )
    except ValueError:
        return False


def _unpacks(packed: bytes) -> bool:
    try:
        CheckedSerializer.loads(packed)
        return True
    except ValueError:
        return False


def _dictionary(code: int, packed: bytes) -> DictionaryDHTValue:
    """Unpacks the one extension type that nodes exchange: many subkeys at once."""
    if code != DICTIONARY:
        raise ValueError(f"extension type {code}")
    size, latest_s, items = msgpack.unpackb(packed)
    if not _is_number(size) or not _is_number(latest_s) or not isinstance(items, list):
        raise ValueError("no dictionary of records")
    dictionary = DictionaryDHTValue()
    with dictionary.freeze():
        for subkey, value, expires_s in items:
            if not (
                isinstance(subkey, str)
                and isinstance(value, bytes)
                and _is_number(expires_s)
            ):
                raise ValueError("no dictionary of records")
            dictionary.store(subkey, value, expires_s)
    return dictionary


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)
