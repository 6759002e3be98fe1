"""A fine-tune, handed the monitor that samples and measures while it trains."""
from rotescope.procedures.monitor import monitor_of
from rotescope.train.engine import training


def run_finetune(config, monitor=monitor_of, **more):
    """train.engine.training.train_model, with the monitor that config.monitor_steps asks for."""
    return training.train_model(config, monitor=monitor, **more)
