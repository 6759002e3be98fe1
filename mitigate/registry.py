"""Every mitigation by name: what it is set to, where it comes from, what it costs and needs."""
import difflib
import types
import typing
from dataclasses import dataclass, fields, replace

from rotescope.errors import InputError
from rotescope.mitigate import guidance
from rotescope.mitigate.mitigation import Mitigation


@dataclass(frozen=True)
class Entry:
    preset: Mitigation      # with the authors' settings
    paper: str              # authors, venue, arXiv number
    cost: str               # denoiser rows against plain guidance, or what comes on top
    needs: str = ""         # gradients, attention, training images

    @property
    def families(self):
        return self.preset.families or ("sd", "sdxl", "sd3", "pixart", "flux")


_JAIN = "Jain et al., CVPR 2025, arXiv 2411.16738"
ENTRIES = {
    "none": Entry(guidance.PLAIN, "Ho & Salimans 2022, arXiv 2207.12598", "1 ×"),
    # τ belongs to Stable Diffusion 2.1 on LAION-10K and must be found anew for another model
    "stp": Entry(guidance.TransitionGuidance(before=0.0, transition=500), _JAIN, "0.75 × at τ = 500"),
    "og-stp": Entry(guidance.TransitionGuidance(before=-2.0, transition=650), _JAIN, "1 ×"),
    "dtp": Entry(guidance.TransitionGuidance(before=0.0, transition="dynamic"), _JAIN, "1 ×"),
    "og-dtp": Entry(guidance.TransitionGuidance(before=-7.5, transition="dynamic"), _JAIN, "1 ×"),
}


def get_mitigation(text):
    """'og-stp' or 'og-stp:before=-3,transition=700' -> Mitigation. InputError for an unknown name, key or value."""
    name, _, settings = text.partition(":")
    if name not in ENTRIES:
        raise InputError(f"no mitigation is called {name!r}: {_nearest(name, ENTRIES)}")
    preset = ENTRIES[name].preset
    return replace(preset, **dict(_setting(name, preset, s) for s in settings.split(",") if s))


def _setting(name, preset, text):
    key, equals, value = (part.strip() for part in text.partition("="))
    keys = [f.name for f in fields(preset)]
    if key not in keys or not equals:
        raise InputError(f"{name}: {text!r} is not a setting: write key=value; {_nearest(key, keys)}")
    kinds = typing.get_type_hints(type(preset))[key]
    kinds = typing.get_args(kinds) if isinstance(kinds, types.UnionType) else (kinds,)
    for kind in (k for k in (int, float, str) if k in kinds):
        try:
            return key, kind(value)
        except ValueError:
            pass
    if bool in kinds and value in ("true", "false"):
        return key, value == "true"
    raise InputError(f"{name}: {key}={value!r} is not a {' or '.join(k.__name__ for k in kinds if k is not types.NoneType)}")


def _nearest(word, known):
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"take one of {', '.join(known)}"
