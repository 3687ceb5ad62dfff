"""The title of champion given once: of two runs that were judged against one champion, the first to claim it has it.

MLflow moves an alias whatever it named before. A parameter of a run is written once, though, and a second value is
refused in the database itself: so the version that follows a champion is agreed on as a parameter of the champion's own
run (a consensus object, Herlihy 1991), and only then is the alias moved. Whoever comes second is told by whom, and is
judged again. A winner that died between the two is helped: the second moves the alias for it.
"""

from __future__ import annotations

import logging

from mlx_tasks.registry.mlflow_registry import Registry, Version
from mlx_tasks.registry.names import CHAMPION

logger = logging.getLogger(__name__)

SUCCESSOR = "mlx_tasks.successor"
SUCCEEDED_TAG = "mlx_tasks.succeeded"


def promote(registry: Registry, version: Version, champion: Version | None) -> str | None:
    """Make a version champion after the one that it was judged against; the version that was faster, or None.

    champion: who held the title when the version was judged; None for nobody.
    """
    name, held = version.name, _number(champion)
    anchor = champion or min(registry.versions(name), key=lambda one: int(one.version))
    for turn in range(1000):  # the title came back to this champion by hand as often as there are settled turns
        now = _number(registry.by_alias(name, CHAMPION))
        if now == version.version:
            return None  # an attempt before this one did it, or somebody helped
        if now != held:
            return now
        place = f"{SUCCESSOR}.{held or 'first'}.{turn}"
        chosen = registry.claim(str(anchor.run_id), place, version.version)
        if chosen != version.version and _is_settled(registry, name, chosen, place):
            continue  # its alias has moved before it was settled: the next look sees that, or that it came back
        now = _number(registry.by_alias(name, CHAMPION))
        if now == held:
            registry.set_alias(name, CHAMPION, chosen)
            now = chosen
        registry.set_version_tag(name, chosen, f"{SUCCEEDED_TAG}.{place}", "done")
        logger.info("model=%s champion=%s after=%s", name, now, held or "none")
        return None if now == version.version else now
    raise AssertionError("a thousand turns")


def _is_settled(registry: Registry, name: str, chosen: str, place: str) -> bool:
    """Whether a claim was carried out before: the title has been taken back since."""
    found = next((one for one in registry.versions(name) if one.version == chosen), None)
    return found is None or f"{SUCCEEDED_TAG}.{place}" in found.tags


def _number(version: Version | None) -> str:
    return version.version if version else ""
