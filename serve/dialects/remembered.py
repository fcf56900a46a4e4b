"""What dialects remember of the ids that callers choose."""

from typing import Generic, TypeVar

from serve.session import digest_of

Value = TypeVar("Value")


def key_of(identity: str) -> str:
    """Returns a name of bounded length for an id; "" for none."""
    return digest_of(identity).hex()[:32] if identity else ""


class Remembered(Generic[Value]):
    """Values under names, each tenant's its own; the ones used last are kept.

    Where there are too many, the tenant that has most loses the one it used longest ago: nobody can
    have others' names forgotten before their own.

    Args:
        most: Values of all tenants.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._values: dict[str, dict[str, Value]] = {}

    def get(self, tenant: str, name: str) -> Value | None:
        """Returns a value, which counts as used; None for none."""
        own = self._values.get(tenant, {})
        if name not in own:
            return None
        own[name] = own.pop(name)
        return own[name]

    def put(self, tenant: str, name: str, value: Value) -> None:
        """Sets a value, which counts as used."""
        own = self._values.setdefault(tenant, {})
        self._count += name not in own
        own.pop(name, None)
        own[name] = value
        while self._count > self._most:
            fullest = max(self._values, key=lambda one: len(self._values[one]))
            del self._values[fullest][next(iter(self._values[fullest]))]
            self._count -= 1
            if not self._values[fullest]:
                del self._values[fullest]

    def __len__(self) -> int:
        return self._count
