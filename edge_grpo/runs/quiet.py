"""What libraries say of things that are meant to be as they are."""

import logging
import warnings

import transformers


def silence_expected_warnings() -> None:
    """Silence Lightning and transformers where they warn of what this project does on purpose."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # An iteration whose groups are all dropped takes no optimiser step, but the schedule goes on.
    warnings.filterwarnings("ignore", message=".*`lr_scheduler.step.+ before `optimizer.step.*")
    # peft 0.21 asks a model by the old name whether it checkpoints activations.
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")
