"""The command `rotescope`: a table of sub-commands, each of them a module's main(argv)."""
import sys
from importlib import import_module

from rotescope import __version__
from rotescope.common.errors import InputError, exit_cleanly

COMMANDS = {  # name -> module, what it does
    "demo": ("rotescope.commands.demo",
             "the whole job on the embedded model: fine-tune, sample, retrieve, report"),
    "prepare": ("rotescope.datasets.prepare", "any image set -> a manifest with hashes and a duplication plan"),
    "inspect": ("rotescope.commands.inspect_files",
                "what a model, a LoRA or a folder of training data is, and whether they agree"),
    "preflight": ("rotescope.datasets.preflight",
                  "before training: broken files, near-duplicates, images most at risk"),
    "index": ("rotescope.evaluate.index_images", "embed training images once, for every later score and audit"),
    "finetune": ("rotescope.commands.finetune", "fine-tune a model (the same as train/finetune.py)"),
    "mitigations": ("rotescope.mitigate.list_mitigations",
                    "every mitigation by name: its paper, cost, needs and model families"),
    "selfcheck": ("rotescope.commands.selfcheck", "try on your own model what the tests promise of its family"),
    "calibrate": ("rotescope.mitigate.calibrate",
                  "ordinary prompts -> what their prediction gaps are, for dtp-calibrated"),
    "generate": ("rotescope.mitigate.generate", "prompts × seeds × mitigations -> images and records"),
    "figures": ("rotescope.commands.figures",
                "what the paper's figures claim, drawn and tested on a fine-tuned model"),
    "dose": ("rotescope.commands.dose", "copy rate against copies, with and without mitigations: a curve, a table"),
    "compare": ("rotescope.commands.compare",
                "every mitigation on one fine-tuned model: what it removes, at what price"),
    "retrigger": ("rotescope.commands.retrigger",
                  "after a mitigation: do other words or an embedding bring an image back?"),
    "detect": ("rotescope.commands.detect",
               "a model and prompts -> how memorized each prompt is, which words trigger"),
    "membership": ("rotescope.commands.membership", "was a set of pictures used in training? one p-value for the set"),
    "score": ("rotescope.evaluate.score", "a folder of generated images against the training images"),
    "audit": ("rotescope.commands.audit",
              "a checkpoint against its training images: sample, score, report, pass or fail"),
    "repair": ("rotescope.commands.repair",
               "a LoRA that leaks -> one that does not, and the audits before and after"),
}


def overview():
    rows = "\n".join(f"  {name:11s} {what}" for name, (_, what) in COMMANDS.items())
    return (f"usage: rotescope COMMAND [options]\n\nWhat did this fine-tune learn by rote? (rotescope {__version__})\n\n"
            f"{rows}\n\n"
            "rotescope COMMAND --help tells more.  Start with: rotescope demo --output_dir runs/demo")


@exit_cleanly
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
    elif argv[0] == "--version":
        print(__version__)
    elif argv[0] not in COMMANDS:
        raise InputError(f"rotescope knows no command {argv[0]!r}: take one of {', '.join(COMMANDS)}")
    else:
        import_module(COMMANDS[argv[0]][0]).main(argv[1:])


if __name__ == "__main__":
    main()
