"""The command `rotescope finetune`: train/finetune.py, handed the monitor that samples and measures while it trains."""
from rotescope.commands.monitor import monitor_of
from rotescope.train import finetune as command


def finetune(config, monitor=monitor_of, **more):
    """train.finetune.finetune, with the monitor that config.monitor_steps asks for."""
    return command.finetune(config, monitor=monitor, **more)


def main(argv=None):
    command.main(argv, monitor=monitor_of)


if __name__ == "__main__":
    main()
