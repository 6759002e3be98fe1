"""Another sampler than a model's own: by the name that people call it, or by diffusers' class."""
from rotescope.common.errors import InputError
from rotescope.common.suggestions import suggestion

SCHEDULERS: dict[str, tuple[str, dict]] = {  # what people say -> the class, and its settings beside the model's own
    "ddim": ("DDIMScheduler", {}), "ddpm": ("DDPMScheduler", {}), "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def check_scheduler_name(name):
    """InputError for a name that is neither in SCHEDULERS nor that of a class of diffusers'."""
    if name and name not in SCHEDULERS and not name.endswith("Scheduler"):
        raise InputError(f"--scheduler {name!r} is none that is known: {suggestion(name, SCHEDULERS)} (or name a scheduler's "
                         "class in diffusers)")


def set_scheduler(pipe, name):
    """Give a pipeline the scheduler of that name, with the noise schedule of its own. InputError where the two do not go
    together: a flow-matching model has no noise schedule that the others know."""
    import diffusers
    kind, settings = SCHEDULERS.get(name, (name, {}))
    fitting = sorted({c.__name__ for c in pipe.scheduler.compatibles} | {type(pipe.scheduler).__name__})
    if kind not in fitting:
        raise InputError(f"--scheduler {name} does not fit {type(pipe).__name__}, whose own is {type(pipe.scheduler).__name__}: "
                         f"take one of {', '.join(fitting)}")
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)
