"""The command `rotescope finetune`: train/finetune.py, handed the monitor that samples and measures while it trains."""


def main(argv=None):
    from rotescope.train import finetune as command
    command.main(argv, monitor=_monitor)


def _monitor(job, say):
    """Sampling and retrieval load only where they are asked for."""
    from rotescope.procedures.monitor import monitor_of
    return monitor_of(job, say)


if __name__ == "__main__":
    main()
