"""Every mitigation by name: what it is set to, where it comes from, what it costs and needs."""
import types
import typing
from dataclasses import dataclass, fields, replace
from math import isfinite

from rotescope.common.errors import InputError
from rotescope.common.suggestions import nearest
from rotescope.mitigate.contract.families import FAMILIES
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.methods import calibrated_transition as calibrated
from rotescope.mitigate.methods import guidance_schedules as relatives
from rotescope.mitigate.methods import probed_transition as probed
from rotescope.mitigate.methods import transition as guidance
from rotescope.mitigate.methods.caption_perturbation import CaptionPerturbation
from rotescope.mitigate.methods.cross_attention import AttentionMask, Guard, SpikeAttenuation
from rotescope.mitigate.methods.initial_noise import NoiseOptimisation, SharpnessAwareNoise, SharpnessStep
from rotescope.mitigate.methods.recall_transition import RecallTransition
from rotescope.mitigate.methods.text_embedding import CaptionNoise, PadChange, PadMask, PromptOptimisation, PromptReanchoring
from rotescope.mitigate.methods.training_image_guidance import AntiMemorizationGuidance
from rotescope.mitigate.methods.value_neurons import ValueNeurons


@dataclass(frozen=True)
class Entry:
    preset: Mitigation      # with the authors' settings
    paper: str              # authors, venue, arXiv number
    cost: str               # denoiser rows against plain guidance, or what comes on top
    needs: str = ""         # gradients, attention, training images

    @property
    def families(self):
        """Where the contract test runs it."""
        return self.preset.families or tuple(FAMILIES)

    @property
    def ready(self):
        """Does the preset run as it is? Else it needs a setting of the user's own, such as a file."""
        try:
            self.preset.check()
        except InputError:
            return False
        return True


_SOMEPALLI = "Somepalli et al., NeurIPS 2023, arXiv 2305.20086"
_KIM = "Kim & No, CVPR 2026 Findings, arXiv 2605.02908"
_HAN = "Han et al., NeurIPS 2025, arXiv 2510.08625"
_ZHAO = "Zhao et al., ICML 2026, arXiv 2603.00133"
_JAIN = "Jain et al., CVPR 2025, arXiv 2411.16738"
_OURS = f"this project, after {_JAIN}"
ENTRIES = {
    "none": Entry(guidance.PLAIN, "Ho & Salimans 2022, arXiv 2207.12598", "1 ×"),
    # τ belongs to Stable Diffusion 2.1 on LAION-10K and must be found anew for another model
    "stp": Entry(guidance.TransitionGuidance(before=0.0, transition=500), _JAIN, "0.75 × at τ = 500"),
    "og-stp": Entry(guidance.TransitionGuidance(before=-2.0, transition=650), _JAIN, "1 ×"),
    "dtp": Entry(guidance.TransitionGuidance(before=0.0, transition="dynamic"), _JAIN, "1 ×"),
    "og-dtp": Entry(guidance.TransitionGuidance(before=-7.5, transition="dynamic"), _JAIN, "1 ×"),
    "og-stp-layout": Entry(guidance.TransitionGuidance(before=-2.0, transition=650, colour=1.0), _OURS, "1 ×"),
    "dtp-released": Entry(guidance.TransitionGuidance(before=1.0, transition="dynamic", latest=-1, min_drop=0.0), _JAIN, "1 ×"),
    "og-dtp-released": Entry(probed.ProbedTransition(), _JAIN, "2 ×, half of it a probe"),
    "dtp-calibrated": Entry(calibrated.CalibratedTransition(), _OURS, "1 ×", "a calibration file"),
    "og-recall": Entry(RecallTransition(), _OURS, "1 ×, and an encoding of each training image", "training images"),
    **{f"cfg-{shape}": Entry(relatives.ScheduledGuidance(shape), f"a baseline in {_JAIN}", "1 ×") for shape in relatives.SHAPES},
    "beta-cfg": Entry(relatives.BetaGuidance(), "Malarz et al. 2025, arXiv 2502.10574", "1 ×"),
    "tcfg": Entry(relatives.TangentialGuidance(), "Kwon et al., CVPR 2025, arXiv 2503.18137", "1 ×"),
    # the rivals
    "random-token": Entry(CaptionPerturbation("random_token_addition"), _SOMEPALLI, "1 ×"),
    "random-number": Entry(CaptionPerturbation("random_number_addition"), _SOMEPALLI, "1 ×"),
    "word-repeat": Entry(CaptionPerturbation("caption_word_repetition"), _SOMEPALLI, "1 ×"),
    "caption-noise": Entry(CaptionNoise(), _SOMEPALLI, "1 ×"),
    "prompt-optimisation": Entry(PromptOptimisation(), "Wen et al., ICLR 2024, arXiv 2407.21720",
                                 "+ 2 to 20 rows", "gradients"),
    "prompt-reanchoring": Entry(PromptReanchoring(), "Chen et al., CVPR 2025, arXiv 2504.18032",
                                "up to 1.5 × and 4 to 20 rows where triggered, else + 2 rows", "gradients"),
    "pad-change": Entry(PadChange(), _KIM, "1 ×"),
    "pad-mask": Entry(PadMask(), _KIM, "1 ×"),
    "attention-mask": Entry(AttentionMask(), "Ren et al., ECCV 2024, arXiv 2403.11052", "1 ×", "attention"),
    "spike-attenuation": Entry(SpikeAttenuation(), _ZHAO, "1 ×", "attention"),
    "guard": Entry(Guard(), _ZHAO, "1.5 ×", "attention"),
    "sharpness-step": Entry(SharpnessStep(), _HAN, "+ 8 rows, − 1 a step before the transition"),
    "noise-optimisation": Entry(NoiseOptimisation(), _HAN, "+ 2 to 2000 rows", "gradients"),
    "sharpness-aware-noise": Entry(SharpnessAwareNoise(), "Jeon et al., ICML 2025, arXiv 2412.04140",
                                   "+ 4 to 320 rows", "gradients"),
    "amg": Entry(AntiMemorizationGuidance(), "Chen et al., CVPR 2024, arXiv 2404.00922",
                 "1 × and 1 or 2 decodings a step", "gradients, training images"),
    "nemo": Entry(ValueNeurons(), "Hintersdorf et al., NeurIPS 2024, arXiv 2406.02366",
                  "+ 10 rows, or hundreds where memorized", "attention, ordinary prompts (they ship for the embedded model)"),
}


def get_mitigation(text):
    """'og-stp' or 'og-stp:before=-3,transition=700' -> Mitigation. InputError for an unknown name, key or value."""
    name, _, settings = text.partition(":")
    if name not in ENTRIES:
        raise InputError(f"no mitigation is called {name!r}: {nearest(name, ENTRIES)}")
    preset = ENTRIES[name].preset
    mitigation = with_settings(name, preset, settings)
    mitigation.check()
    return mitigation


def with_training(text, source):
    """What get_mitigation reads -> the same, with `source` for the training images if it needs some and names none."""
    name, _, settings = text.partition(":")
    needed = name in ENTRIES and "training images" in ENTRIES[name].needs and "training=" not in settings
    return f"{name}:{settings}{',' if settings else ''}training={source}" if needed else text


def with_settings(name, preset, text):
    """A preset and 'key=value,…' -> the same, set so. InputError for an unknown key, one given twice, or a bad value."""
    pairs = [_setting(name, preset, s) for s in text.split(",") if s]
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise InputError(f"{name}: {twice} is given twice: give it once")
    return replace(preset, **dict(pairs))


def _setting(name, preset, text):
    key, equals, value = (part.strip() for part in text.partition("="))
    keys = [f.name for f in fields(preset)]
    if key not in keys or not equals:
        raise InputError(f"{name}: {text!r} is not a setting: write key=value; {nearest(key, keys)}")
    kinds = typing.get_type_hints(type(preset))[key]
    kinds = typing.get_args(kinds) if isinstance(kinds, types.UnionType) else (kinds,)
    for kind in (k for k in (int, float, str) if k in kinds):
        try:
            found = kind(value)
        except ValueError:
            continue
        if isinstance(found, float) and not isfinite(found):
            raise InputError(f"{name}: {key}={value} is no finite number: give one")
        return key, found
    if bool in kinds and value in ("true", "false"):
        return key, value == "true"
    raise InputError(f"{name}: {key}={value!r} is not a {' or '.join(k.__name__ for k in kinds if k is not types.NoneType)}")
