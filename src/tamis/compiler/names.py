"""The names that a user gives in the options of a build: are there such layers and tactics?"""

from __future__ import annotations

from collections.abc import Sequence

from tamis.compiler.config import PRECISIONS, BuildConfig, matches_layer, names_tactic
from tamis.compiler.tactics import region_tactics_of, tactics_of
from tamis.errors import ConfigError


def check_names(config: BuildConfig, layers: Sequence[str]) -> None:
    """Raise ``ConfigError`` for names of layers or tactics that there are none of: a slip would go unnoticed."""
    for pattern, _ in config.layer_precisions:
        if not any(matches_layer(pattern, layer) for layer in layers):
            raise ConfigError(f"no layer matches '{pattern}'", remedy="use the names that 'tamis explain' lists")
    known = [tactic.name for device in PRECISIONS for tactic in tactics_of(device)]
    known += [tactic.name for device in PRECISIONS for tactic in region_tactics_of(device)]
    for name in config.exclude_tactics:
        if not any(names_tactic(name, tactic) for tactic in known):
            raise ConfigError(f"there is no tactic '{name}'", remedy=f"choose among {', '.join(dict.fromkeys(known))}")
