"""What crossed the boundaries between stages, from the traces of microbatches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Traffic:
    """Bytes of arrays that peers sent each other, boundary by boundary added up.

    What was sent to a peer that gave no answer is not known here.

    Attributes:
        tokens: Each token counts once for every boundary that it crossed.
        activation_bytes: To the later stages; the targets (4 bytes a token) go along.
        gradient_bytes: Back from them.
        same_host_bytes: Of both, what passed no network.
    """

    tokens: int = 0
    activation_bytes: int = 0
    gradient_bytes: int = 0
    same_host_bytes: int = 0

    def add(self, trace: Iterable[Mapping[str, Any]], tokens: int) -> None:
        """Adds a microbatch that came back.

        Args:
            trace: Its hops; the first leads from the trainer to stage 0, which is no
                boundary. Peers wrote them: what is not as it should be is left out.
            tokens: Of the microbatch.
        """
        for hop in list(trace)[1:]:
            sent, received = hop.get("sent_bytes"), hop.get("received_bytes")
            if _is_count(sent) and _is_count(received):
                self.tokens += tokens
                self.activation_bytes += sent
                self.gradient_bytes += received
                if hop.get("same_host") is True:
                    self.same_host_bytes += sent + received

    def figures(self) -> dict[str, float | None]:
        """Means over tokens and boundaries; None before anything crossed one.

        ``same_host_share``: of the bytes, how many passed no network.
        """
        all_bytes = self.activation_bytes + self.gradient_bytes
        share = self.same_host_bytes / all_bytes if all_bytes else None
        crossed = {
            "activation": self.activation_bytes,
            "gradient": self.gradient_bytes,
        }
        return {
            f"{name}_bytes_per_token_per_boundary": (
                count / self.tokens if self.tokens else None
            )
            for name, count in crossed.items()
        } | {"same_host_share": share}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
